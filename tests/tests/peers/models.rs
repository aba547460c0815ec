//! Models: quantised, trained, of rewards, of experts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use planish_nn::Ctx;
use planish_nn::adapters::load_adapter;
use planish_nn::decoder::{LoadOptions, Model, Packed};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::reward::RewardKind;
use planish_nn::weights::save_safetensors;
use planish_tensor::{DType, Tensor};

use crate::{TOLERANCE, check, check_with, compare, expect, expect_of, open, prepare, repo, run, text};

#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn fine_tuned_models_load_in_the_peers() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (base, data) = prepare(dir);
    let freeze = ["--finetuning-type", "freeze", "--freeze-trainable-layers", "1", "--freeze-extra-modules", "norm"];
    let kinds: [(&str, &[&str]); 3] =
        [("f32", &["--dtype", "float32"]), ("bf16", &["--dtype", "bfloat16"]), ("freeze", &freeze)];
    for (name, flags) in kinds {
        let out = dir.join(name);
        let fixed = ["sft", "--model", text(&base), "--dataset", text(&data), "--output-dir", text(&out)];
        run(&[&fixed[..], &["--max-steps", "4", "--learning-rate", "1e-3"], flags].concat());
        let result = out.join("final");
        let expected = dir.join(format!("{name}.safetensors"));
        expect(&open(&result), &expected);
        check(&result, &expected);
    }
}

/// The comparison itself can fail.
#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn a_wrong_weight_is_seen_by_the_peers() {
    let place = tempfile::tempdir().unwrap();
    let (base, _) = prepare(place.path());
    let model = open(&base);
    let expected = place.path().join("expected.safetensors");
    expect(&model, &expected);
    check(&base, &expected);
    let weight = &model.layers[2].linears()[0].weight.base;
    weight.update(|t| planish_tensor::ops::elementwise::scale(t, 1.01).map(|new| *t = new)).unwrap();
    expect(&model, &expected);
    let found = compare(&base, &expected, &TOLERANCE);
    assert_eq!(found["ok"], false, "a weight that is off by 1% went unnoticed: {found}");
}

#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn quantised_models_load_in_the_peers() {
    let place = tempfile::tempdir().unwrap();
    let (base, _) = prepare(place.path());
    // The whole of it in NF4 is some 800 kB.
    let formats: [(&str, &[&str]); 6] = [
        ("nf4", &["--double-quant"]),
        ("nf4", &["--blocksize", "128"]),
        ("fp4", &[]),
        ("int8", &[]),
        ("nf4", &["--double-quant", "--max-shard-size", "60kB"]),
        ("int8", &["--max-shard-size", "100kB"]),
    ];
    for (i, (kind, more)) in formats.into_iter().enumerate() {
        let (out, expected) = (place.path().join(format!("q{i}")), place.path().join(format!("q{i}.safetensors")));
        let own = ["quantize", "--model", text(&base), "--output-dir", text(&out), "--quant-type", kind];
        run(&[&own[..], more].concat());
        if more.contains(&"--max-shard-size") {
            parts_are_together(&out);
        }
        expect(&open(&out), &expected);
        check(&out, &expected);
    }
}

/// Of a model in several files: each quantised weight is in one of them.
fn parts_are_together(dir: &Path) {
    let index = read_json(&dir.join("model.safetensors.index.json")).unwrap();
    let (mut files, mut place, mut of_parts) = (BTreeSet::new(), BTreeMap::new(), 0);
    for (name, file) in index["weight_map"].as_object().unwrap() {
        files.insert(file.as_str().unwrap());
        let weight = &name[..name.find(".weight").map_or(name.len(), |at| at + ".weight".len())];
        // int8 has its scales beside the weight, under the module's name.
        let weight = weight.strip_suffix(".SCB").map_or(weight.to_owned(), |module| format!("{module}.weight"));
        of_parts += usize::from(weight != *name);
        assert_eq!(place.entry(weight).or_insert(file), &file, "{name}");
    }
    assert!(files.len() >= 8 && of_parts >= 28, "{} files, {of_parts} parts", files.len());
}

fn open_reward(dir: &Path, kind: RewardKind) -> Model {
    let options = LoadOptions { dtype: Some(DType::F32), trainable: false };
    Pretrained::open(dir).unwrap().load_reward(options, kind, 0).unwrap()
}

/// Our rewards of some sequences, or the logits of wrong and right at each of their tokens, in the same form.
fn expect_rewards(model: &Model, path: &Path) {
    let of_steps = model.reward_kind() == Some(RewardKind::Process);
    let ctx = Ctx::inference();
    let mut tensors = Vec::new();
    for (i, ids) in [vec![1u32], (3..60).collect(), (1..200).map(|i| i * 37 % 1400).collect()].iter().enumerate() {
        let batch = Packed::new(&[ids]);
        let hidden = model.forward(&ctx, &batch, false).unwrap();
        let n = ids.len() as u32;
        let at: Vec<u32> = if of_steps { (0..n).collect() } else { vec![n - 1] };
        let rewards = model.rewards(&ctx, &hidden, &at).unwrap().into_value();
        let shape = if of_steps { vec![ids.len(), 2] } else { vec![1] };
        tensors.push((format!("logits.{i}"), rewards.reshape(shape).unwrap()));
        let wide: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
        tensors.push((format!("ids.{i}"), Tensor::from_vec(wide, [ids.len()]).unwrap()));
    }
    save_safetensors(path, tensors, &BTreeMap::new()).unwrap();
}

#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn reward_models_load_in_the_peers() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (base, data) = prepare(dir);
    let pair =
        |i: usize| format!("{{\"prompt\": \"{i}\", \"chosen\": \" It is {}.\", \"rejected\": \" no\"}}\n", i + 1);
    let steps = |i: usize| {
        format!("{{\"prompt\": \"{i}\", \"completions\": [\"It is {}.\", \"no\"], \"labels\": [true, false]}}\n", i + 1)
    };
    let kinds = [
        (RewardKind::Outcome, "--reward", (0..16).map(pair).collect::<String>()),
        (RewardKind::Process, "--steps", (0..16).map(steps).collect()),
    ];
    for (kind, flag, rows) in kinds {
        std::fs::write(&data, rows).unwrap();
        let out = dir.join(&flag[2..]);
        let fixed = ["reward", "--model", text(&base), "--dataset", text(&data), "--output-dir", text(&out)];
        run(&[&fixed[..], &["--max-steps", "4"]].concat());
        let result = out.join("final");
        let expected = dir.join(format!("{kind:?}.safetensors"));
        expect_rewards(&open_reward(&result, kind), &expected);
        check_with(&result, &expected, &[flag]);
        // An adapter on it, which has a head of its own.
        let out = dir.join(format!("adapter{flag}"));
        let fixed = ["reward", "--model", text(&result), "--dataset", text(&data), "--output-dir", text(&out)];
        run(&[&fixed[..], &["--max-steps", "4", "--use-peft", "--lora-target-modules", "all-linear"]].concat());
        let mut model = open_reward(&result, kind);
        load_adapter(&mut model, &out.join("final")).unwrap();
        expect_rewards(&model, &expected);
        let adapter = out.join("final");
        check_with(&result, &expected, &[flag, "--adapter", text(&adapter)]);
    }
}

#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn experts_load_in_the_peers() {
    let place = tempfile::tempdir().unwrap();
    for family in ["mixtral", "mixtral_fused", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"] {
        let model = open(&repo("tests/fixtures/models").join(family));
        let (out, expected) = (place.path().join(family), place.path().join(format!("{family}.safetensors")));
        model.save(&out).unwrap();
        expect_of(&model, &expected, [vec![1], (3..60).collect(), (0..60).map(|i| i * 37 % 99).collect()]);
        check(&out, &expected);
    }
}
