//! Learning from preferences: numbers of TRL, whole runs, and what is refused.

mod mixed;
mod parity;
mod process;
mod refused;
mod runs;
mod shared;
mod tokens;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use planish_train::config::{Recipe, resolve};
use planish_train::run::{Observer, Outcome, read_metrics};

/// A file or directory under `tests/fixtures`.
fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// A file of the repository.
fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").join(path)
}

/// Settings as flags give them, on the builtin model.
fn settings<C: Recipe>(data: &Path, out: &Path, extra: &[(&str, &str)]) -> C {
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
    resolve::<C>(None, &flags).unwrap().config
}

/// Pairs and labelled rows, plain and as conversations.
fn write_data(dir: &Path) {
    let (mut pairs, mut labelled) = (String::new(), String::new());
    for i in 0..20 {
        let (good, bad) = (format!("{} pens", i + 2), ["no", "a fish in the river"][i % 2]);
        let question = format!("What is {i} and 2?");
        let label = i % 3 > 0;
        writeln!(
            pairs,
            r#"{{"prompt":[{{"role":"user","content":"{question}"}}],"chosen":[{{"role":"assistant","content":"{good}"}}],"rejected":[{{"role":"assistant","content":"{bad}"}}]}}"#
        )
        .unwrap();
        let completion = if label { &good } else { bad };
        writeln!(labelled, r#"{{"prompt":"{question}","completion":" {completion}","label":{label}}}"#).unwrap();
    }
    std::fs::write(dir.join("pairs.jsonl"), pairs).unwrap();
    std::fs::write(dir.join("labelled.jsonl"), labelled).unwrap();
}

/// Hears everything, and interrupts after a number of steps, as Ctrl-C does.
struct Listener {
    steps_left: u64,
    notes: Vec<String>,
}

impl Listener {
    fn stopping_after(steps: u64) -> Listener {
        Listener { steps_left: steps, notes: Vec::new() }
    }

    fn new() -> Listener {
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
    fn stepped(&mut self, _: &planish_train::run::StepMetrics) {
        self.steps_left -= 1;
    }
    fn interrupted(&mut self) -> bool {
        self.steps_left == 0
    }
}

fn result(outcome: Outcome) -> PathBuf {
    match outcome {
        Outcome::Finished { result } => result,
        other => panic!("{other:?}"),
    }
}

/// Everything in metrics.jsonl that does not depend on the clock or the machine.
fn metrics(run: &Path) -> Vec<serde_json::Map<String, serde_json::Value>> {
    let timed = ["tokens_per_second", "step_seconds", "peak_memory_bytes", "eval_runtime"];
    let mut rows = read_metrics(&run.join("metrics.jsonl")).unwrap();
    rows.iter_mut().for_each(|row| timed.iter().for_each(|key| drop(row.remove(*key))));
    rows
}

/// Names and bytes of the files of a directory.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().to_string_lossy().into_owned(), std::fs::read(e.path()).unwrap()))
        .collect();
    all.sort();
    all
}
