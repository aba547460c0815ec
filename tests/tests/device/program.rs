//! The program with `--device emulator`: training, resuming, scoring, generating, and what is refused.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use planish_tests::program::{Done, command, refused};
use planish_train::run::read_metrics;
use serde_json::Value;

use crate::{has_nvrtc, kernels};

/// Runs the program with the tests' cache of kernels: that of the user is none of a test's business.
fn planish(arguments: &[&str]) -> Done {
    let output = command().args(arguments).env("XDG_CACHE_HOME", kernels()).output().expect("planish starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Done { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A file of the repository.
fn repo(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent");
    root.join(path).to_string_lossy().into_owned()
}

/// A tiny architecture over the builtin model's tokenizer, and a few texts: (config, data).
fn prepare(dir: &Path) -> (String, String) {
    let text = std::fs::read_to_string(repo("train/builtin/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [
        ("hidden_size", 16),
        ("intermediate_size", 24),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("head_dim", 8),
    ] {
        config[key] = value.into();
    }
    let (config_file, data) = (dir.join("config.json"), dir.join("texts.jsonl"));
    std::fs::write(&config_file, config.to_string()).unwrap();
    let mut texts = String::new();
    for i in 0..12usize {
        let words = ["one", "two", "three"][i % 3].repeat(i % 3 + 1);
        writeln!(texts, r#"{{"text": "row {i}: {words}"}}"#).unwrap();
    }
    std::fs::write(&data, texts).unwrap();
    (config_file.to_string_lossy().into_owned(), data.to_string_lossy().into_owned())
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

/// Runs four steps, and again two and then two: law 6 says that this is the same, bit for bit.
fn resumed(dir: &Path, name: &str, command: &[&str]) -> PathBuf {
    let (whole, cut) = (dir.join(format!("{name}-whole")), dir.join(format!("{name}-cut")));
    let run = |out: &Path, extra: &[&str]| {
        let fixed = [
            "--output-dir",
            out.to_str().unwrap(),
            "--device",
            "emulator",
            "--per-device-train-batch-size",
            "2",
            "--learning-rate",
            "1e-2",
            "--lr-scheduler-type",
            "constant",
            "--save-steps",
            "2",
            "--max-length",
            "12",
            // What chat templates take for the time, which a checkpoint keeps.
            "--template-time",
            "1700000000",
        ];
        let done = planish(&[command, &fixed, extra].concat());
        assert_eq!(done.code, 0, "{done:?}");
    };
    run(&whole, &["--max-steps", "4"]);
    run(&cut, &["--max-steps", "2"]);
    run(&cut, &["--max-steps", "4", "--resume-from-checkpoint", "latest"]);
    assert_eq!(metrics(&cut), metrics(&whole), "{name}");
    assert_eq!(metrics(&whole).len(), 4);
    for entry in std::fs::read_dir(whole.join("checkpoint-4")).unwrap().map(|e| e.unwrap()) {
        let file = entry.file_name();
        let [a, b] = [&whole, &cut].map(|run| std::fs::read(run.join("checkpoint-4").join(&file)).unwrap());
        assert!(a == b, "{name}: {file:?} differs");
    }
    let config = std::fs::read_to_string(whole.join("config.yaml")).unwrap();
    assert!(config.contains("device: emulator"), "{config}");
    whole.join("final")
}

#[test]
fn runs_resume_bitwise_and_what_they_save_is_used() {
    if !has_nvrtc() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (config, data) = prepare(dir);
    let tokenizer = repo("train/builtin");
    let new = ["--config-name", &config, "--tokenizer-name", &tokenizer, "--dataset", &data, "--dtype", "bfloat16"];
    let model = resumed(dir, "new", &[&["pretrain"][..], &new].concat());
    let model = model.to_str().unwrap();
    let lora = ["--use-peft", "--lora-r", "2", "--lora-dropout", "0.2", "--lora-target-modules", "all-linear"];
    let adapter = resumed(dir, "lora", &[&["sft", "--model", model, "--dataset", &data][..], &lora].concat());
    resumed(
        dir,
        "qlora",
        &[&["sft", "--model", model, "--dataset", &data, "--load-in-4bit", "--use-bnb-nested-quant"][..], &lora]
            .concat(),
    );
    let plan = |extra: &[&str]| {
        let flags = ["plan", "--model", model, "--dataset", &data, "--device", "emulator", "--max-steps", "2"];
        let done = planish(&[&flags[..], extra].concat());
        assert_eq!(done.code, 0, "{done:?}");
        done.stdout
    };
    assert!(plan(&[]).contains("in the emulator, which is no GPU"));
    let forecast: Value = serde_json::from_str(&plan(&["--json"])).unwrap();
    assert!(forecast["device"] == "emulator" && forecast["memory"]["activations"].as_u64() > Some(0), "{forecast}");
    let score = |device: &str, bf16: &str| -> Vec<f64> {
        let (out, adapter) = (dir.join(format!("{device}-{bf16}")), adapter.to_str().unwrap());
        let flags = ["score", "--model", model, "--adapter", adapter, "--dataset", &data, "--device", device];
        let done = planish(&[&flags[..], &["--bf16", bf16, "--output", out.to_str().unwrap()]].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let lines = std::fs::read_to_string(out).unwrap();
        lines.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["sum"].as_f64().unwrap()).collect()
    };
    let (there, here) = (score("emulator", "false"), score("cpu", "false"));
    assert_eq!(there.len(), 12);
    for (got, want) in there.iter().zip(&here) {
        // A dozen log-probabilities of about 7, each right to some tens of roundings of 6e-8.
        assert!((got - want).abs() <= 1e-5 * want.abs(), "{got} for {want}");
    }
    for (got, want) in score("emulator", "true").iter().zip(&here) {
        // The same with each op's result rounded to bf16, by 2e-3 of itself.
        let off = (got - want).abs() / want.abs();
        assert!(off > 1e-6 && off <= 5e-3, "{got} for {want}");
    }
}

#[test]
fn the_builtin_model_answers_on_the_emulator() {
    if !has_nvrtc() {
        return;
    }
    let ask = |device: &str, bf16: &str| {
        let prompt = "What is 2 plus 3?";
        let flags =
            ["generate", "--model", "builtin", "--prompt", prompt, "--max-new-tokens", "4", "--temperature", "0"];
        let done = planish(&[&flags[..], &["--json", "--device", device, "--bf16", bf16]].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let answers: Value = serde_json::from_str(&done.stdout).unwrap();
        answers[0]["ids"].clone()
    };
    let here = ask("cpu", "false");
    for bf16 in ["false", "true"] {
        assert_eq!(ask("emulator", bf16), here);
    }
}

#[test]
fn what_devices_do_not_do_is_refused_by_name() {
    let place = tempfile::tempdir().unwrap();
    let (_, data) = prepare(place.path());
    let out = place.path().join("run");
    let base = |command| {
        [command, "--model", "builtin", "--dataset", &data, "--output-dir", out.to_str().unwrap()].map(str::to_owned)
    };
    let refuse = |command, flags: &[&str], words: &str| {
        let all: Vec<String> = base(command).into_iter().chain(flags.iter().map(|f| f.to_string())).collect();
        refused(&all, words);
        assert!(!out.exists(), "something was written");
    };
    let emulator = ["--device", "emulator"];
    refuse("sft", &[&emulator[..], &["--optim", "muon"]].concat(), "the optimizer muon is not supported there yet");
    refuse("sft", &[&emulator[..], &["--memory-budget", "4"]].concat(), "memory_budget");
    refuse("dpo", &[&emulator[..], &["--optim", "lion_32bit"]].concat(), "the optimizer lion_32bit is not supported");
    refused(&["generate", "--model", "builtin", "--prompt", "x", "--bf16"], "the processor computes in float32");
    for command in ["sft", "dpo", "plan"] {
        refuse(command, &["--bf16", "true"], "the processor computes in float32: leave it out");
    }
    if planish_cuda::probe().unavailable().is_some() {
        refuse("sft", &["--device", "cuda"], "--device cuda:0 cannot be used: ");
    }
}

#[test]
fn kernels_are_compiled_and_looked_at() {
    refused(&["kernels", "compile", "--arch", "sm_80", "cost"], "there is no kernel file `cost`; did you mean `cast`?");
    refused(
        &["kernels", "compile", "--arch", "sm_80", "matmul_hopper"],
        "matmul_hopper is for sm_90a only, not for sm_80",
    );
    refused(&["kernels", "compile", "--arch", "pentium"], "--arch");
    if !has_nvrtc() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("cache");
    let cache = ["--cache-dir", dir.to_str().unwrap(), "--json"];
    let json = |flags: &[&str]| -> Value {
        let done = planish(&[&["kernels"][..], flags, &cache[..]].concat());
        assert_eq!(done.code, 0, "{done:?}");
        serde_json::from_str(&done.stdout).unwrap()
    };
    let done = json(&["compile", "--arch", "sm_80", "cast", "embedding"]);
    assert_eq!((done["arch"].as_str(), done["files"].as_u64()), (Some("sm_80"), Some(8)));
    assert!(done["kernels"].as_u64().unwrap() >= 8);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 8);
    // What was compiled is found again.
    let before: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().metadata().unwrap().modified().unwrap()).collect();
    let seen = json(&["inspect", "cast", "--arch", "sm_80"]);
    let after: Vec<_> =
        std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().metadata().unwrap().modified().unwrap()).collect();
    assert_eq!(before, after);
    // Four pairs of types, each in its plain version too.
    assert_eq!(seen["usage"].as_array().unwrap().len(), 8);
    let run = &seen["emulated"][0];
    assert!(run["classes"]["global"].as_u64().unwrap() > 0 && run["waste"].is_array(), "{run}");
    assert!(run["global_requests"].as_u64() <= run["global_sectors"].as_u64());
}

#[test]
fn doctor_compares_instructions() {
    refused(&["doctor", "--conformance"], "give one with --device");
    refused(&["doctor", "--conformance", "--bench", "--device", "emulator"], "--bench");
    if !has_nvrtc() {
        return;
    }
    let done = planish(&["doctor", "--device", "emulator", "--conformance", "--json"]);
    assert_eq!(done.code, 0, "{done:?}");
    let report: Value = serde_json::from_str(&done.stdout).unwrap();
    let rows = report["conformance"].as_array().unwrap();
    assert!(report["passed"] == true && rows.len() > 200);
    let of = |name: &str| rows.iter().find(|row| row["instruction"] == name).unwrap();
    assert!(of("fma.rn.f32")["held_against_host"] == true && of("ex2.approx.f32")["approximate"] == true);
}

/// The benchmark of a device: what is asked for by name, on stderr line by line, and as JSON.
#[test]
fn doctor_measures_what_is_asked_for() {
    refused(&["doctor", "--bench-only", "swiglu"], "--bench");
    refused(&["doctor", "--bench", "--bench-only", "swiglu"], "--device");
    refused(&["doctor", "--kernels"], "--bench");
    refused(&["doctor", "--bench", "--kernels"], "--kernels lists");
    if !has_nvrtc() {
        return;
    }
    let doctor = ["doctor", "--device", "emulator", "--bench", "--json", "--bench-only"];
    refused(&[&doctor[..], &["swiglu,swish"]].concat(), "--bench-only swish");
    let done = planish(&[&doctor[..], &["swiglu/forward,decode/tiny/"]].concat());
    assert_eq!(done.code, 0, "{done:?}");
    let report: Value = serde_json::from_str(&done.stdout).unwrap();
    assert!(report["passed"] == true && report["bench"]["card"]["emulated"] == true, "{report}");
    let rows = report["bench"]["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names[names.len() - 3..], ["swiglu/forward", "decode/tiny/1", "decode/tiny/2"]);
    for row in rows {
        assert!(row["state"] == "measured" && row["rate"].as_f64().unwrap() > 0.0, "{row}");
        assert!(done.stderr.contains(row["name"].as_str().unwrap()), "{}", done.stderr);
    }
    assert!(done.stderr.contains("mean nothing"), "{}", done.stderr);
}
