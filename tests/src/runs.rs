//! Whole runs of recipes, as several test programs have them.

use std::path::{Path, PathBuf};

use planish_train::config::{Recipe, resolve};
use planish_train::run::{Observer, Outcome, StepMetrics, read_metrics};
use serde_json::{Map, Value};

/// A file or directory under `tests/fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// A file of the repository.
///
/// # Panics
/// Never: this crate is in a folder of it.
pub fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").join(path)
}

/// Settings as flags give them: five short steps of the builtin model, but for what `extra` says.
///
/// # Panics
/// If they contradict each other.
pub fn settings<C: Recipe>(data: &Path, out: &Path, extra: &[(&str, &str)]) -> C {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (data, out) = (text(data), text(out));
    let own = [
        ("model", "builtin"),
        ("dataset", &data),
        ("output_dir", &out),
        ("max_length", "64"),
        ("per_device_train_batch_size", "3"),
        ("gradient_accumulation_steps", "2"),
        ("learning_rate", "1e-3"),
        ("max_steps", "5"),
        ("save_steps", "2"),
    ];
    let own = own.into_iter().filter(|(k, _)| !extra.iter().any(|(e, _)| e == k));
    let flags: Vec<_> = own.chain(extra.iter().copied()).map(|(k, v)| (k.to_string(), vec![v.to_string()])).collect();
    resolve::<C>(None, &flags).expect("these settings go together").config
}

/// Hears everything, and interrupts after a number of steps, as Ctrl-C does.
pub struct Listener {
    steps_left: u64,
    /// What the run said.
    pub notes: Vec<String>,
}

impl Listener {
    /// Interrupts after so many steps.
    pub fn stopping_after(steps: u64) -> Listener {
        Listener { steps_left: steps, notes: Vec::new() }
    }
}

impl Default for Listener {
    /// Never interrupts.
    fn default() -> Self {
        Listener::stopping_after(u64::MAX)
    }
}

impl Observer for Listener {
    fn preflight(&mut self, report: &planish_train::data::Preflight) {
        self.notes.extend(report.warnings.iter().cloned());
    }
    fn note(&mut self, sentence: &str) {
        self.notes.push(sentence.to_owned());
    }
    fn stepped(&mut self, _: &StepMetrics) {
        self.steps_left -= 1;
    }
    fn interrupted(&mut self) -> bool {
        self.steps_left == 0
    }
}

/// The result of a run that came to its end.
///
/// # Panics
/// If it did not.
pub fn result(outcome: Outcome) -> PathBuf {
    match outcome {
        Outcome::Finished { result } => result,
        other => panic!("{other:?}"),
    }
}

/// Law 6: a run that is stopped after some steps and gone on with leaves the result, the metrics and the advice of one that
/// never was. `run` takes a name for its directory, further settings and the steps after which it is stopped. Gives the result.
///
/// # Panics
/// If it leaves anything else.
pub fn stopped_or_not(what: &str, stop: u64, run: impl Fn(&str, &[(&str, &str)], u64) -> Outcome) -> PathBuf {
    let whole = result(run("whole", &[], u64::MAX));
    let cut = run("cut", &[], stop);
    assert!(matches!(cut, Outcome::Interrupted { .. }), "{what}: {cut:?}");
    let resumed = result(run("cut", &[("resume_from_checkpoint", "latest")], u64::MAX));
    assert_eq!(files(&whole), files(&resumed), "{what}: the results");
    let of = |result: &Path| metrics(result.parent().expect("a result is in the directory of its run"));
    assert_eq!(of(&whole), of(&resumed), "{what}: the metrics");
    let said =
        |result: &Path| std::fs::read_to_string(result.with_file_name("advice.jsonl")).expect("every run has one");
    assert_eq!(said(&whole), said(&resumed), "{what}: the advice");
    whole
}

/// Everything in metrics.jsonl that does not depend on the clock or the machine.
///
/// # Panics
/// If it cannot be read.
pub fn metrics(run: &Path) -> Vec<Map<String, Value>> {
    let timed = ["tokens_per_second", "step_seconds", "peak_memory_bytes", "eval_runtime"];
    let mut rows = metrics_with_clock(run);
    rows.iter_mut().for_each(|row| timed.iter().for_each(|key| drop(row.remove(*key))));
    rows
}

/// All of metrics.jsonl.
///
/// # Panics
/// If it cannot be read.
pub fn metrics_with_clock(run: &Path) -> Vec<Map<String, Value>> {
    read_metrics(&run.join("metrics.jsonl")).expect("the run has written metrics")
}

/// Names and bytes of the files of a directory.
///
/// # Panics
/// If it cannot be read.
pub fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).expect("the directory is there").map(|e| e.expect("it can be read"));
    let file =
        |e: std::fs::DirEntry| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).expect("a file"));
    let mut all: Vec<_> = entries.map(file).collect();
    all.sort();
    all
}
