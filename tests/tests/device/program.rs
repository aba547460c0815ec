//! The program with `--device emulator`: training, resuming, scoring, generating, and what is refused.

use std::fmt::Write as _;
use std::path::Path;

use planish_tests::program::{Done, command, refused};
use planish_train::run::read_metrics;
use serde_json::Value;

use crate::{fixture, has_nvrtc, kernels};

/// Runs the program with the tests' cache of kernels: that of the user is none of a test's business.
fn planish(arguments: &[&str]) -> Done {
    let output = command().args(arguments).env("XDG_CACHE_HOME", kernels()).output().expect("planish starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Done { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn data(dir: &Path) -> String {
    let mut rows = String::new();
    for i in 0..12usize {
        let ids: Vec<usize> = (0..4 + i % 5).map(|k| (7 * i + 11 * k) % 99).collect();
        writeln!(rows, r#"{{"input_ids": {ids:?}}}"#).unwrap();
    }
    let path = dir.join("rows.jsonl");
    std::fs::write(&path, rows).unwrap();
    path.to_string_lossy().into_owned()
}

fn train(model: &str, data: &str, out: &Path, extra: &[&str]) -> Done {
    let out = out.to_str().unwrap();
    let fixed = [
        "sft",
        "--model",
        model,
        "--dataset",
        data,
        "--output-dir",
        out,
        "--device",
        "emulator",
        "--max-steps",
        "4",
        "--per-device-train-batch-size",
        "2",
        "--learning-rate",
        "1e-2",
        "--save-steps",
        "2",
        "--max-length",
        "16",
    ];
    planish(&[&fixed[..], extra].concat())
}

/// Everything in metrics.jsonl that does not depend on the clock.
fn metrics(run: &Path) -> Vec<String> {
    let rows = read_metrics(&run.join("metrics.jsonl")).unwrap();
    rows.into_iter()
        .map(|mut row| {
            ["tokens_per_second", "step_seconds", "peak_memory_bytes"].iter().for_each(|key| drop(row.remove(*key)));
            Value::Object(row).to_string()
        })
        .collect()
}

/// Law 6: a run that went on from a checkpoint is bitwise the run that never stopped.
#[test]
fn training_resumes_bitwise_and_what_it_saves_is_used() {
    if !has_nvrtc() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let (dir, model) = (place.path(), fixture("models/llama_bf16"));
    let (model, data) = (model.to_str().unwrap(), data(dir));
    for (name, flags) in [("full", &[][..]), ("lora", &["--use-peft", "--lora-r", "2", "--lora-dropout", "0.2"])] {
        let (whole, cut) = (dir.join(format!("{name}-whole")), dir.join(format!("{name}-cut")));
        let done = train(model, &data, &whole, flags);
        assert_eq!(done.code, 0, "{done:?}");
        let config = std::fs::read_to_string(whole.join("config.yaml")).unwrap();
        assert!(config.contains("device: emulator"), "{config}");
        let done = train(model, &data, &cut, &[flags, &["--max-steps", "2"]].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let done = train(model, &data, &cut, &[flags, &["--resume-from-checkpoint", "latest"]].concat());
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(metrics(&cut), metrics(&whole), "{name}");
        for entry in std::fs::read_dir(whole.join("checkpoint-4")).unwrap().map(|e| e.unwrap()) {
            let file = entry.file_name();
            let [a, b] = [&whole, &cut].map(|run| std::fs::read(run.join("checkpoint-4").join(&file)).unwrap());
            assert!(a == b, "{name}: {file:?} differs");
        }
        let first: Value = serde_json::from_str(&metrics(&whole)[0]).unwrap();
        assert!(first["loss"].as_f64().unwrap() > 3.0 && first["grad_norm"].as_f64().unwrap() > 0.0);

        let scores = dir.join(format!("{name}.jsonl"));
        let scores = scores.to_str().unwrap();
        let done = match name {
            "full" => planish(&[
                "score",
                "--model",
                whole.join("final").to_str().unwrap(),
                "--dataset",
                &data,
                "--output",
                scores,
                "--device",
                "emulator",
            ]),
            _ => planish(&[
                "score",
                "--model",
                model,
                "--adapter",
                whole.join("final").to_str().unwrap(),
                "--dataset",
                &data,
                "--output",
                scores,
                "--device",
                "emulator",
            ]),
        };
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(std::fs::read_to_string(scores).unwrap().lines().count(), 12);
    }
}

#[test]
fn the_builtin_model_answers_on_the_emulator() {
    if !has_nvrtc() {
        return;
    }
    let ask = |device: &str| {
        let prompt = "What is 2 plus 3?";
        let flags =
            ["generate", "--model", "builtin", "--prompt", prompt, "--max-new-tokens", "4", "--temperature", "0"];
        let done = planish(&[&flags[..], &["--json", "--device", device]].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let answers: Value = serde_json::from_str(&done.stdout).unwrap();
        answers[0]["ids"].clone()
    };
    assert_eq!(ask("emulator"), ask("cpu"));
}

#[test]
fn what_devices_do_not_do_is_refused_by_name() {
    let place = tempfile::tempdir().unwrap();
    let (model, data) = (fixture("models/smollm2"), data(place.path()));
    let out = place.path().join("run");
    let base = |command| {
        [command, "--model", model.to_str().unwrap(), "--dataset", &data, "--output-dir", out.to_str().unwrap()]
            .map(str::to_owned)
    };
    let refuse = |command, flags: &[&str], words: &str| {
        let all: Vec<String> = base(command).into_iter().chain(flags.iter().map(|f| f.to_string())).collect();
        refused(&all, words);
        assert!(!out.exists(), "something was written");
    };
    let emulator = ["--device", "emulator"];
    refuse("sft", &[&emulator[..], &["--optim", "muon"]].concat(), "the optimizer muon is not supported there yet");
    refuse("sft", &[&emulator[..], &["--memory-budget", "4"]].concat(), "memory_budget");
    refuse("dpo", &emulator, "--device emulator: preference tuning is not supported there yet; use --device cpu");
    refuse("plan", &emulator, "a forecast");
    if has_nvrtc() {
        let dora = ["--use-peft", "--use-dora", "true"];
        refuse("sft", &[&emulator[..], &dora].concat(), "DoRA is not supported there yet");
        refuse("sft", &[&emulator[..], &["--use-peft", "--peft-type", "OFT"]].concat(), "the adapter OFT");
    }
    if planish_cuda::probe().unavailable().is_some() {
        refuse("sft", &["--device", "cuda"], "--device cuda:0 cannot be used: ");
    }
}
