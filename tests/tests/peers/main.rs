//! transformers, PEFT and llama.cpp load what the program writes, and compute the same.
//!
//! Needs a Python with what `fixtures/generate/requirements.txt` lists, named by `PLANISH_PEER_PYTHON`, so it is left out
//! of an ordinary run: `scripts/check-peers` runs it. The way back, from their files to ours and out again, needs
//! no Python and is in `parity/`.

// What the peers found is what such a run is for.
#![allow(clippy::print_stdout)]

mod adapters;
mod llama_cpp;
mod models;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use planish_nn::Ctx;
use planish_nn::decoder::{LoadOptions, Model, Packed};
use planish_nn::pretrained::Pretrained;
use planish_nn::weights::save_safetensors;
use planish_tensor::{DType, Tensor};
use planish_tests::program::planish;
use serde_json::Value;

fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs the program; it must succeed.
fn run(arguments: &[&str]) {
    let done = planish(arguments);
    assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
}

/// Our logits for some sequences, in the form that `check_model.py` reads.
fn expect(model: &Model, path: &Path) {
    expect_of(model, path, [vec![1], (3..60).collect(), (0..200).map(|i| i * 37 % 1400).collect()]);
}

/// Those for these sequences.
fn expect_of(model: &Model, path: &Path, sequences: [Vec<u32>; 3]) {
    let ctx = Ctx::inference();
    let mut tensors = Vec::new();
    for (i, ids) in sequences.iter().enumerate() {
        let hidden = model.forward(&ctx, &Packed::new(&[ids]), false).unwrap();
        tensors.push((format!("logits.{i}"), model.logits(&ctx, hidden.value()).unwrap()));
        let wide: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
        tensors.push((format!("ids.{i}"), Tensor::from_vec(wide, [ids.len()]).unwrap()));
    }
    save_safetensors(path, tensors, &BTreeMap::new()).unwrap();
}

fn open(dir: &Path) -> Model {
    Pretrained::open(dir).unwrap().load(LoadOptions { dtype: Some(DType::F32), trainable: false }).unwrap()
}

/// Their f32 against ours: logits of up to about 20, over four layers of sums in another order.
const TOLERANCE: [&str; 2] = ["--tolerance", "2e-4"];

fn python() -> Command {
    let python = std::env::var_os("PLANISH_PEER_PYTHON").expect("PLANISH_PEER_PYTHON names a Python with the peers");
    Command::new(python)
}

/// `check_model.py`, which compares what it is told, one after the other: loading the peers takes ten seconds.
struct Peers {
    /// It ends with its input, which ends with this process.
    child: Child,
    from: BufReader<ChildStdout>,
}

impl Peers {
    fn new() -> Peers {
        let script = repo("tests/fixtures/generate/check_model.py");
        let mut command = python();
        command.args(["-W", "ignore"]).arg(script).arg("--each").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the Python starts");
        let from = BufReader::new(child.stdout.take().unwrap());
        Peers { child, from }
    }

    fn compare(&mut self, arguments: &[&str]) -> Value {
        let to = self.child.stdin.as_mut().unwrap();
        writeln!(to, "{}", serde_json::json!(arguments)).unwrap();
        let mut answer = String::new();
        self.from.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).expect("check_model.py answers")
    }
}

/// What the peers make of a directory's logits.
fn compare(model: &Path, expected: &Path, flags: &[&str]) -> Value {
    static PEERS: Mutex<Option<Peers>> = Mutex::new(None);
    let mut peers = PEERS.lock().unwrap_or_else(|e| e.into_inner());
    let found = peers.get_or_insert_with(Peers::new).compare(&[&[text(model), text(expected)], flags].concat());
    println!("{} {}: {found}", expected.file_name().unwrap().display(), flags.join(" "));
    found
}

/// They are ours.
fn check_with(model: &Path, expected: &Path, flags: &[&str]) {
    let found = compare(model, expected, &[&TOLERANCE[..], flags].concat());
    assert_eq!(found["ok"], true, "{}: {found}", model.display());
}

fn check(model: &Path, expected: &Path) {
    check_with(model, expected, &[]);
}

fn check_adapter(base: &Path, adapter: &Path, expected: &Path) {
    check_with(base, expected, &["--adapter", text(adapter)]);
}

/// A copy of the builtin model as a directory, and a few examples.
fn prepare(dir: &Path) -> (PathBuf, PathBuf) {
    let base = dir.join("base");
    std::fs::create_dir(&base).unwrap();
    for file in std::fs::read_dir(repo("train/builtin")).unwrap().map(|e| e.unwrap()) {
        std::fs::copy(file.path(), base.join(file.file_name())).unwrap();
    }
    let mut rows = String::new();
    for i in 0..16 {
        writeln!(rows, r#"{{"prompt": "What comes after {i}?", "completion": " It is {}."}}"#, i + 1).unwrap();
    }
    let data = dir.join("data.jsonl");
    std::fs::write(&data, rows).unwrap();
    (base, data)
}
