//! `planish export` and `planish combine` from outside: what they write is the same model, and what they refuse.

use std::path::{Path, PathBuf};

use planish_nn::gguf::{GgmlType, GgufFile};
use planish_tests::program::{planish, refused};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Log-probabilities of a few answers.
fn scores(model: &[&str], dir: &Path) -> Vec<f64> {
    let data = dir.join("rows.jsonl");
    let row = |i: i32| format!("{{\"prompt\": \"What comes after {i}?\", \"completion\": \" It is {}.\"}}\n", i + 1);
    std::fs::write(&data, (0..6).map(row).collect::<String>()).unwrap();
    let out = dir.join("scores.jsonl");
    let fixed = ["score", "--dataset", text(&data), "--output", text(&out), "--dtype", "float32"];
    let done = planish(&[&fixed[..], model].concat());
    assert_eq!(done.code, 0, "{done:?}");
    let lines = std::fs::read_to_string(&out).unwrap();
    let all = lines.lines().flat_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["logprobs"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>()
    });
    all.collect()
}

#[test]
fn an_exported_model_scores_as_the_original() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let want = scores(&["--model", "builtin"], dir);
    // The weights are bf16: the first two hold every bit of them.
    for (quant, tolerance) in [("f32", 1e-6), ("bf16", 1e-6), ("q8_0", 0.5), ("q4_k_m", 2.0)] {
        let file = dir.join(format!("{quant}.gguf"));
        let fixed = ["export", "--model", "builtin", "--quant", quant, "--output", text(&file), "--json"];
        let done = planish(&fixed);
        assert_eq!(done.code, 0, "{done:?}");
        let said: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(said["bytes"].as_u64().unwrap(), std::fs::metadata(&file).unwrap().len());
        let got = scores(&["--model", text(&file)], dir);
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() <= tolerance, "{quant}: {got} against {want}");
        }
        let read = GgufFile::open(&file).unwrap();
        let vectors = read.tensors().filter(|t| t.shape.len() == 1);
        assert!(vectors.into_iter().all(|t| t.kind == GgmlType::F32), "vectors stay in f32");
        for (tensor, kind) in said["fallbacks"].as_object().unwrap() {
            let found = read.tensors().find(|t| t.name == *tensor).unwrap();
            assert_eq!(format!("{:?}", found.kind), kind.as_str().unwrap());
        }
    }
    let file = dir.join("f32.gguf");
    let before = std::fs::read(&file).unwrap();
    let again = ["export", "--model", "builtin", "--quant", "q8_0", "--output", text(&file)];
    refused(&again, "exists");
    assert!(before == std::fs::read(&file).unwrap());
    assert_eq!(planish(&[&again[..], &["--overwrite"]].concat()).code, 0);
    assert!(before != std::fs::read(&file).unwrap());
    refused(&["export", "--model", "builtin", "--quant", "q3_k", "--output", "x.gguf"], "q3_k");
    let leftovers =
        std::fs::read_dir(dir).unwrap().filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().ends_with(".tmp"));
    assert_eq!(leftovers.count(), 0);
}

#[test]
fn an_adapter_is_folded_in() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let data = dir.join("train.jsonl");
    std::fs::write(&data, "{\"prompt\": \"Hi\", \"completion\": \" there\"}\n".repeat(8)).unwrap();
    let out = dir.join("run");
    let train = ["sft", "--model", "builtin", "--dataset", text(&data), "--output-dir", text(&out), "--max-steps", "3"];
    let more =
        ["--use-peft", "--lora-target-modules", "all-linear", "--learning-rate", "1e-2", "--save-strategy", "no"];
    assert_eq!(planish(&[&train[..], &more].concat()).code, 0);
    let adapter = out.join("final");
    let want = scores(&["--model", "builtin", "--adapter", text(&adapter)], dir);
    let file = dir.join("model.gguf");
    let fixed = ["export", "--model", "builtin", "--adapter", text(&adapter), "--dtype", "float32", "--quant", "f32"];
    let done = planish(&[&fixed[..], &["-o", text(&file)]].concat());
    assert_eq!(done.code, 0, "{done:?}");
    for (got, want) in scores(&["--model", text(&file)], dir).iter().zip(&want) {
        assert!((got - want).abs() <= 1e-3 * want.abs().max(1.0), "{got} against {want}");
    }
    // A base of blocks, back on its grid: how far that is from the tuned model is told, and what the adapter was worth.
    let base = dir.join("base.gguf");
    assert_eq!(planish(&["export", "--model", "builtin", "--quant", "q4_0", "-o", text(&base)]).code, 0);
    let told = |quant: &str| -> serde_json::Value {
        let own = ["export", "--model", text(&base), "--adapter", text(&adapter), "--quant", quant, "--overwrite"];
        let done = planish(&[&own[..], &["-o", text(&file), "--json"]].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let lost = done.stderr.contains("lost what the adapter had learned");
        let told: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(told["drift"]["lost"].as_bool().unwrap(), lost, "{done:?}");
        told["drift"].clone()
    };
    let kl = |told: &serde_json::Value, name: &str| told[name].as_f64().unwrap();
    let (coarse, fine) = (told("q4_0"), told("f32"));
    assert!(kl(&coarse, "kl_of_base") > 0.0 && kl(&coarse, "kl_of_base") == kl(&fine, "kl_of_base"), "{coarse} {fine}");
    assert!(kl(&fine, "kl") < 1e-5 && kl(&coarse, "kl") > 10.0 * kl(&fine, "kl"), "{coarse} {fine}");
    // Without an adapter a text asks for it.
    let own =
        ["export", "--model", "builtin", "--quant", "q4_0", "-o", text(&file), "--overwrite", "--text", text(&data)];
    let done = planish(&own);
    assert!(done.code == 0 && done.stdout.contains("nats from the model before on"), "{done:?}");
}

#[test]
fn combined_adapters_and_what_cannot_be() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("both");
    let (one, two) = (repo("tests/fixtures/combined/one"), repo("tests/fixtures/combined/two"));
    let adapters = format!("{},{}", text(&one), text(&two));
    let fixed = ["combine", "--adapters", &adapters, "--weights", "0.7,-0.3", "--output-dir", text(&out)];
    let with = |more: &[&'static str]| [&fixed[..], more].concat();
    refused(&with(&["--combination-type", "ties"]), "--density");
    refused(&with(&["--combination-type", "linear", "--density", "0.5"]), "takes no --density");
    refused(&with(&["--svd-rank", "2"]), "--svd-rank");
    refused(&["combine", "--adapters", &adapters, "--weights", "1", "-o", text(&out)], "give a weight for each");
    assert!(!out.exists());
    let kinds: [&[&str]; 4] = [
        &["--combination-type", "cat"],
        &["--combination-type", "svd", "--svd-rank", "2"],
        &["--combination-type", "dare_ties_svd", "--density", "0.5"],
        &["--combination-type", "magnitude_prune_svd", "--density", "0.5", "--json"],
    ];
    for kind in kinds {
        let done = planish(&with(kind));
        assert_eq!(done.code, 0, "{kind:?}: {done:?}");
        assert!(out.join("adapter_model.safetensors").exists() && out.join("adapter_config.json").exists());
        refused(&with(kind), "not empty");
        std::fs::remove_dir_all(&out).unwrap();
    }
}
