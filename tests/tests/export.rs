//! `planish export` and `planish combine` from outside: what they write is the same model, and what they refuse.

use std::path::{Path, PathBuf};

use planish_nn::adapters::{LoraConfig, Targets, adapter_params, attach_lora, save_adapter};
use planish_nn::decoder::LoadOptions;
use planish_nn::gguf::{GgmlType, GgufFile};
use planish_nn::pretrained::Pretrained;
use planish_tensor::{DType, Tensor};
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

/// An adapter that moves one number of one weight by far less than its block tells apart: put back on the base's grid the
/// model is the base, bit for bit, and both commands say that the fine-tune is lost.
#[test]
fn a_fine_tune_that_rounding_undoes_is_said_to_be_lost() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (packed, base) = (dir.join("nf4"), dir.join("base.gguf"));
    assert_eq!(planish(&["quantize", "--model", "builtin", "-o", text(&packed)]).code, 0);
    assert_eq!(planish(&["export", "--model", "builtin", "--quant", "q4_0", "-o", text(&base)]).code, 0);
    let adapter = |name: &str, model: &Path| {
        let mut model = Pretrained::open(model).unwrap().load(LoadOptions::default()).unwrap();
        let target = "model.layers.0.self_attn.q_proj".to_owned();
        let weight = model.layers[0].linears().into_iter().find(|l| *l.name == *target).unwrap().weight.base.value();
        let row = weight.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap()[..32].to_vec();
        let column = (0..32).min_by(|&a, &b| row[a].abs().total_cmp(&row[b].abs())).unwrap();
        let largest = row.iter().fold(0f32, |m, x| m.max(x.abs()));
        let config = LoraConfig {
            r: 1,
            lora_alpha: 1.0,
            target_modules: Targets::Names(vec![target]),
            base_model: Some("builtin".into()),
            ..LoraConfig::default()
        };
        attach_lora(&mut model, &config, 0).unwrap();
        for param in adapter_params(&model, 0) {
            let is_a = param.name().ends_with("lora_A.weight");
            let mut values = vec![0f32; param.value().numel()];
            values[if is_a { column } else { 0 }] = if is_a { 1.0 } else { 1e-3 * largest };
            let values = Tensor::from_vec(values, param.value().dims()).unwrap();
            param
                .update(|t| -> planish_tensor::Result<()> {
                    *t = values;
                    Ok(())
                })
                .unwrap();
        }
        let to = dir.join(name);
        save_adapter(&model, &config, &to).unwrap();
        to
    };
    let (of_packed, of_blocks) = (adapter("of-nf4", &packed), adapter("of-blocks", &base));
    let (merged, file) = (dir.join("merged"), dir.join("merged.gguf"));
    let merge = ["merge", "--model", text(&packed), "--adapter", text(&of_packed), "--requantize", "-o", text(&merged)];
    let export =
        ["export", "--model", text(&base), "--adapter", text(&of_blocks), "--quant", "q4_0", "-o", text(&file)];
    for (arguments, part, instead) in
        [(&merge[..], "requantized", "Merge without --requantize"), (&export[..], "drift", "Export with more bits")]
    {
        let done = planish(&[arguments, &["--json"]].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let told: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(told[part]["lost"], true, "{done:?}");
        let words = "warning: quantising the merged weights lost what the adapter had learned";
        assert!(done.stderr.contains(words) && done.stderr.contains(instead), "{done:?}");
        // A base of another name than the adapter's: of the same shape, so a note and not a refusal.
        assert!(done.stderr.contains("says that its base is builtin, and the model is"), "{done:?}");
    }
    // It was one: the tuned model is another than the base.
    let kept = planish(&[&["merge"], &merge[1..5], &["-o", text(&dir.join("wide"))]].concat());
    assert_eq!(kept.code, 0, "{kept:?}");
    let values = |dir: &Path| {
        let model = Pretrained::open(dir).unwrap().load(LoadOptions::default()).unwrap();
        let all =
            model.layers[0].linears().into_iter().find(|l| l.name.ends_with("q_proj")).unwrap().weight.base.value();
        all.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap()
    };
    assert!(values(&merged) == values(&packed) && values(&dir.join("wide")) != values(&packed));
}

/// Adapters of two bases have a sum, and a note.
#[test]
fn adapters_of_two_bases_are_noted() {
    let place = tempfile::tempdir().unwrap();
    let (one, two) = (repo("tests/fixtures/combined/one"), place.path().join("two"));
    std::fs::create_dir(&two).unwrap();
    let from = repo("tests/fixtures/combined/two");
    std::fs::copy(from.join("adapter_model.safetensors"), two.join("adapter_model.safetensors")).unwrap();
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    let combined = |out: &str| {
        let adapters = format!("{},{}", text(&one), text(&two));
        let done =
            planish(&["combine", "--adapters", &adapters, "--weights", "1,1", "-o", text(&place.path().join(out))]);
        assert_eq!(done.code, 0, "{done:?}");
        done.stderr
    };
    std::fs::write(two.join("adapter_config.json"), config.to_string()).unwrap();
    assert_eq!(combined("same"), "");
    config["base_model_name_or_path"] = "somewhere/another".into();
    std::fs::write(two.join("adapter_config.json"), config.to_string()).unwrap();
    let said = combined("other");
    assert!(said.contains("that it is somewhere/another") && said.lines().count() == 1, "{said}");
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
