//! Continued pretraining: replay, and perplexity by source.

use std::path::Path;

use planish_tests::program::refused;
use planish_train::config::{PretrainConfig, resolve};
use planish_train::data::Preflight;
use planish_train::recipes::pretrain;
use planish_train::run::{Observer, Outcome, read_metrics};

#[derive(Default)]
struct Listener(Option<Preflight>);

impl Observer for Listener {
    fn preflight(&mut self, report: &Preflight) {
        self.0 = Some(report.clone());
    }
}

fn write(dir: &Path, name: &str, rows: usize, text: &str) -> String {
    let path = dir.join(name);
    let lines: String = (0..rows).map(|i| format!("{{\"text\":\"{text} {i} and {}.\"}}\n", i + 1)).collect();
    std::fs::write(&path, lines).unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn replay_has_its_share_and_every_source_its_perplexity() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (law, code) = (write(dir, "law.jsonl", 60, "The law says"), write(dir, "code.jsonl", 20, "Print"));
    let general = write(dir, "general.jsonl", 500, "A pen costs");
    let run = |out: &str, replay: bool| {
        let out = dir.join(out);
        let mut flags = vec![
            ("model", vec!["builtin"]),
            ("dataset", vec![&*law, &*code]),
            ("dataset_weights", vec!["1", "2"]),
            ("output_dir", vec![out.to_str().unwrap()]),
            ("packing", vec!["false"]),
            ("validation_split", vec!["0.1"]),
            ("eval_strategy", vec!["steps"]),
            ("eval_steps", vec!["2"]),
            ("max_steps", vec!["2"]),
        ];
        if replay {
            flags.extend([("replay_dataset", vec![&*general]), ("replay_share", vec!["0.2"])]);
        }
        let flags: Vec<_> =
            flags.into_iter().map(|(k, v)| (k.to_owned(), v.into_iter().map(str::to_owned).collect())).collect();
        let mut seen = Listener::default();
        let outcome = pretrain::run(&resolve::<PretrainConfig>(None, &flags).unwrap().config, &mut seen).unwrap();
        assert!(matches!(outcome, Outcome::Finished { .. }));
        (read_metrics(&out.join("metrics.jsonl")).unwrap().pop().unwrap(), seen.0.unwrap())
    };
    let (line, report) = run("plain", false);
    let of = |name: &str| line.get(name).and_then(|v| v.as_f64());
    let (all, each) =
        (of("eval_perplexity").unwrap(), ["law", "code"].map(|n| of(&format!("eval_perplexity/{n}")).unwrap()));
    assert!((all - of("eval_loss").unwrap().exp()).abs() <= 1e-9 * all, "{line:?}");
    assert!(each[0].min(each[1]) <= all && all <= each[0].max(each[1]), "{line:?}");
    assert!(of("eval_perplexity/general").is_none());
    // 54 and twice 18 rows.
    assert_eq!(report.epoch_len, 90);
    let (line, report) = run("replayed", true);
    assert!(line["eval_perplexity/general"].as_f64().is_some_and(f64::is_finite), "{line:?}");
    // A fifth is replayed; the split leaves nine tenths of every file.
    let replayed = report.epoch_len as f64 - 90.0;
    assert!((replayed / report.epoch_len as f64 - 0.2).abs() <= 0.01, "{} of {}", replayed, report.epoch_len);
}

#[test]
fn replay_needs_files_and_a_share() {
    let place = tempfile::tempdir().unwrap();
    let text = write(place.path(), "text.jsonl", 5, "Some");
    let out = place.path().join("out").to_string_lossy().into_owned();
    let own = ["pretrain", "--model", "builtin", "--dataset", &text, "--output-dir", &out];
    refused(&[&own[..], &["--replay-share", "0.1"]].concat(), "go together");
    refused(&[&own[..], &["--replay-dataset", &text]].concat(), "go together");
    refused(&[&own[..], &["--replay-dataset", &text, "--replay-share", "1"]].concat(), "replay_share");
}
