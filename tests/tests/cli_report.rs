//! The program from outside: `report`.

use std::io::Read;
use std::process::Stdio;

use planish_tests::program::{command, planish, refused};

#[test]
fn a_report_is_made_again_and_compares_runs() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    for name in ["one", "two"] {
        std::fs::create_dir(path(name)).unwrap();
        let lines: String = (1..50).map(|n| format!("{{\"step\":{n},\"loss\":{}}}\n", 3.0 / f64::from(n))).collect();
        std::fs::write(place.path().join(name).join("metrics.jsonl"), lines).unwrap();
    }
    let done = planish(&["report".into(), path("one"), "--json".into()]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let json: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(json["runs"][0]["steps"], 49.0);
    assert!(std::fs::read_to_string(path("one/report.html")).unwrap().contains("<svg"));

    refused(&["report".into(), path("one"), path("two")], "give --output FILE");
    let both = path("both.html");
    let done = planish(&["report".into(), path("one"), path("two"), "-o".into(), both.clone()]);
    assert_eq!(done.stdout.trim(), both);
    let page = std::fs::read_to_string(&both).unwrap();
    assert!(page.contains("one") && page.contains("two"));
}

#[test]
fn what_is_no_run_is_refused_and_nothing_is_written() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().to_str().unwrap();
    refused(&["report", dir], "is not a run directory");
    std::fs::write(place.path().join("metrics.jsonl"), "{}\nnonsense\n").unwrap();
    refused(&["report", dir], "metrics.jsonl:2: not a line of metrics");
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    refused(&["report"], "RUN_DIR");
}

#[test]
fn a_reader_that_stops_reading_is_no_failure() {
    let mut child =
        command().args(["config", "sft", "--help"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(errors, "");
}
