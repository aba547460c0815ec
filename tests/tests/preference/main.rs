//! Learning from preferences: numbers of TRL, whole runs, and what is refused.

mod adapters;
mod mixed;
mod pages;
mod parity;
mod process;
mod ranked;
mod refused;
mod runs;
mod shared;
mod tokens;
mod trajectory;

use std::fmt::Write as _;
use std::path::Path;

use planish_tests::runs::{Listener, files, fixture, metrics, repo, result, settings, stopped_or_not};

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
