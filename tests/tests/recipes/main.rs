//! Whole recipes on small models: resumed runs, saved results, what they write.

mod adapters;
mod choices;
mod experts;
mod memory;
mod resume;
mod split;

use std::path::{Path, PathBuf};

use planish_train::config::{Recipe, resolve};
use planish_train::run::{Observer, Outcome, read_metrics};

/// A file of the repository.
fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").join(path)
}

/// Settings as flags give them.
fn settings<C: Recipe>(flags: &[(&str, &str)]) -> C {
    let flags: Vec<_> = flags.iter().map(|(k, v)| (k.to_string(), vec![v.to_string()])).collect();
    resolve::<C>(None, &flags).unwrap().config
}

/// Interrupts after a number of steps, as Ctrl-C does.
struct StopAfter(u64, u64);

impl Observer for StopAfter {
    fn stepped(&mut self, _: &planish_train::run::StepMetrics) {
        self.1 += 1;
    }
    fn interrupted(&mut self) -> bool {
        self.1 >= self.0
    }
}

fn result(outcome: Outcome) -> PathBuf {
    match outcome {
        Outcome::Finished { result } => result,
        other => panic!("{other:?}"),
    }
}

/// Everything in metrics.jsonl that does not depend on the clock or the machine.
fn metrics(run: &Path) -> Vec<String> {
    let timed = ["tokens_per_second", "step_seconds", "peak_memory_bytes", "eval_runtime"];
    let rows = read_metrics(&run.join("metrics.jsonl")).unwrap();
    rows.into_iter()
        .map(|mut row| {
            timed.iter().for_each(|key| drop(row.remove(*key)));
            serde_json::Value::Object(row).to_string()
        })
        .collect()
}

/// Names and bytes of the files of a directory, without those that hold the time.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).unwrap()))
        .collect();
    all.sort();
    all
}
