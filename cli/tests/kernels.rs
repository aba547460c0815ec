//! `planish kernels` from outside.

// A test that skips says so.
#![allow(clippy::print_stderr)]

use std::process::{Command, Output};

use serde_json::Value;

fn planish(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_planish")).args(arguments).output().expect("planish starts")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_file_is_listed() {
    let output = planish(&["kernels", "list", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert_eq!(names, planish_cuda::kernels::ALL.iter().map(|kernel| kernel.name).collect::<Vec<_>>());
    let plain = planish(&["kernels", "list"]);
    assert!(String::from_utf8_lossy(&plain.stdout).contains("RMSNorm"));
}

#[test]
fn mistakes_are_named() {
    for (arguments, words) in [
        (&["kernels", "inspect", "rmsnorm"][..], "did you mean `rms_norm`?"),
        (&["kernels", "inspect", "cast", "--arch", "hopper"], "write it as sm_80 or sm_90a"),
        (&["kernels", "compile"], "--arch"),
    ] {
        let output = planish(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(words), "{arguments:?}: {}", stderr(&output));
    }
}

/// Whether the program found no compiler: a test is then skipped, and says so. With `PLANISH_REQUIRE_NVRTC=1` that is
/// a failure.
fn skipped(output: &Output) -> bool {
    if !stderr(output).contains("NVRTC") {
        return false;
    }
    let required = std::env::var("PLANISH_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
    assert!(!required, "{}", stderr(output));
    assert_eq!(output.status.code(), Some(1));
    eprintln!("skipped: {}", stderr(output));
    true
}

#[test]
fn a_kernel_is_stepped_through() {
    let place = tempfile::tempdir().unwrap();
    let cache = place.path().join("kernels");
    let fixed = ["kernels", "step", "elementwise", "--cache-dir", cache.to_str().unwrap()];
    let step = |flags: &[&str]| planish(&[&fixed[..], flags].concat());
    let output = step(&["--kernel", "elementwise_axpby", "--count", "400", "--json"]);
    if skipped(&output) {
        return;
    }
    assert!(output.status.success(), "{}", stderr(&output));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["kernel"], "elementwise_axpby");
    let steps = found["steps"].as_array().unwrap();
    assert!(steps.len() > 20 && steps.last().unwrap()["ptx"].as_str().unwrap().starts_with("ret"), "{steps:?}");
    // Every lane knows who it is, and the line of CUDA C++ is there.
    let thread = steps.iter().find(|step| step["ptx"].as_str().unwrap().contains("%tid.x")).unwrap();
    assert_eq!(thread["written"][0]["lanes"][17], "17");
    assert!(thread["source"]["text"].as_str().unwrap().contains("threadIdx.x"), "{thread}");
    let plain = step(&["--from", "3", "--count", "2", "--lane", "5"]);
    let text = String::from_utf8_lossy(&plain.stdout).into_owned();
    assert!(text.starts_with("elementwise_add, block 0, warp 0; values of lane 5"), "{text}");
    assert!(text.contains("\n     3  ") && text.contains("\n     4  ") && text.ends_with("--from 5\n"), "{text}");
    let unknown = step(&["--kernel", "elementwise_div"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(stderr(&unknown).contains("these do: elementwise_add, elementwise_axpby"), "{}", stderr(&unknown));
}

#[test]
fn a_kernel_is_inspected() {
    let place = tempfile::tempdir().unwrap();
    let cache = place.path().join("kernels");
    let arguments =
        ["kernels", "inspect", "elementwise", "--arch", "sm_80", "--cache-dir", cache.to_str().unwrap(), "--json"];
    let output = planish(&arguments);
    if skipped(&output) {
        return;
    }
    assert!(output.status.success(), "{}", stderr(&output));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let usage = found["usage"].as_array().unwrap();
    assert!(usage.iter().all(|row| row["registers"].as_u64().unwrap() > 0 && row["arch"] == "sm_80"));
    let emulated = found["emulated"].as_array().unwrap();
    // Both kernels of the small run read and write whole sectors.
    assert_eq!(emulated.len(), 2);
    assert!(emulated.iter().all(|run| run["global_sectors"] == run["global_sectors_needed"]), "{emulated:?}");
    assert!(cache.read_dir().unwrap().count() > 0, "the cache is where it was asked to be");
}
