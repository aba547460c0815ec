//! Every method of adapting in preference runs: pairs, and reward models against PEFT's.

use std::path::Path;

use planish_nn::Ctx;
use planish_nn::adapters::load_adapter;
use planish_nn::decoder::{LoadOptions, Packed};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::reward::RewardKind;
use planish_nn::weights::WeightsReader;
use planish_tensor::DType;
use planish_tests::methods::{METHODS, flags};
use planish_train::config::{DpoConfig, RewardConfig};
use planish_train::recipes::{dpo, reward};
use planish_train::run::Silent;

use crate::trajectory::ids;
use crate::{fixture, metrics, result, settings, write_data};

/// Two steps, with a checkpoint after each; the ranks of AdaLoRA may fall after the first.
fn short(method: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let own =
        [("max_steps", "2"), ("save_steps", "1"), ("gradient_accumulation_steps", "1"), ("learning_rate", "1e-2")];
    let early = |(key, value)| match key {
        "tinit" => (key, "1"),
        "tfinal" => (key, "0"),
        _ => (key, value),
    };
    own.into_iter().chain(flags(method).into_iter().map(early)).collect()
}

/// Every step has a loss and a gradient, and the second step moved what was saved after the first.
fn trains(name: &str, out: &Path) {
    let lines = metrics(out);
    assert_eq!(lines.len(), 2, "{name}");
    for line in &lines {
        let of = |key: &str| line[key].as_f64().unwrap_or(f64::NAN);
        assert!(of("loss").is_finite() && of("grad_norm") > 0.0, "{name}: {line:?}");
    }
    let read = |at: &str| {
        let weights = WeightsReader::open(out.join(at).join("adapter_model.safetensors")).unwrap();
        let mut names = weights.names().to_vec();
        names.sort();
        names
            .into_iter()
            .map(|n| weights.get(&n).unwrap().to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap())
            .collect()
    };
    let (first, last): (Vec<Vec<f64>>, Vec<Vec<f64>>) = (read("checkpoint-1"), read("final"));
    assert!(first.len() == last.len() && first != last, "{name}: nothing has moved");
}

#[test]
fn every_method_learns_from_pairs() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    for (name, method) in METHODS {
        let out = dir.join(name);
        let config = settings::<DpoConfig>(&dir.join("pairs.jsonl"), &out, &short(method));
        result(dpo::run(&config, &mut Silent).unwrap_or_else(|e| panic!("{name}: {e}")));
        trains(name, &out);
    }
}

/// Methods that a reward model cannot have: it has no head on the vocabulary, and takes no keys and values.
const NOT_OF_REWARDS: [&str; 3] = ["ends", "saved", "prefix"];

#[test]
fn every_method_learns_to_rate() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let steps = dir.join("steps.jsonl");
    let row = |i: usize| {
        let (a, b) = (i + 3, i + 4);
        format!(
            "{{\"prompt\": \"What is {i} and 3?\", \"completions\": [\"{i} and 3\", \"{a}\", \"or {b}\"], \"labels\": [true, true, false]}}\n"
        )
    };
    std::fs::write(&steps, (0..12).map(row).collect::<String>()).unwrap();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let pairs = dir.join("pairs.jsonl");
    for (name, method) in METHODS.into_iter().filter(|(name, _)| !NOT_OF_REWARDS.contains(name)) {
        // Steps for one of each sort: the head beside wrapped modules, and beside none.
        let all = match ["plain", "ia3", "prompt", "encoder"].contains(&name) {
            true => &[(&pairs, "SEQ_CLS"), (&steps, "TOKEN_CLS")][..],
            false => &[(&pairs, "SEQ_CLS")],
        };
        for (data, task) in all {
            let out = dir.join(format!("{name}-{task}"));
            let config = settings::<RewardConfig>(data, &out, &short(method));
            let end = result(reward::run(&config, &mut Silent).unwrap_or_else(|e| panic!("{name}: {e}")));
            trains(name, &out);
            let config = read_json(&end.join("adapter_config.json")).unwrap();
            assert_eq!(config["task_type"], *task, "{name}");
            let weights = WeightsReader::open(end.join("adapter_model.safetensors")).unwrap();
            assert!(weights.names().iter().any(|n| n.ends_with(".score.weight")), "{name}: {:?}", weights.names());
            let (scored, end) = (text(&out.join("rewards.jsonl")), text(&end));
            let arguments = [
                "score",
                "--reward",
                "--model",
                "builtin",
                "--adapter",
                &end,
                "--dataset",
                &text(data),
                "--output",
                &scored,
            ];
            let done = planish_tests::program::planish(&arguments);
            assert_eq!(done.code, 0, "{name}: {done:?}");
        }
    }
}

/// Checkpoints of what is saved in another shape than it is trained in, and of the head beside it.
#[test]
fn a_head_beside_virtual_tokens_is_resumed() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    for (name, method) in METHODS.into_iter().filter(|(name, _)| ["prompt", "encoder", "ia3", "ranks"].contains(name)) {
        let flags = flags(method);
        crate::stopped_or_not(name, 3, |out, more, stop| {
            let extra = [&flags[..], more].concat();
            let config = settings::<RewardConfig>(&dir.join("pairs.jsonl"), &dir.join(format!("{name}-{out}")), &extra);
            reward::run(&config, &mut crate::Listener::stopping_after(stop)).unwrap()
        });
    }
}

#[test]
fn rewards_of_every_kind_are_those_of_peft() {
    let found = read_json(&fixture("reward_adapters/rewards.json")).unwrap();
    let sequences: Vec<Vec<u32>> = found["ids"].as_array().unwrap().iter().map(ids).collect();
    let mut kinds = 0;
    for (kind, want) in found.as_object().unwrap().iter().filter(|(kind, _)| *kind != "ids") {
        let options = LoadOptions { dtype: Some(DType::F32), trainable: false };
        let base = Pretrained::open(&fixture("preference/reward")).unwrap();
        let mut model = base.load_reward(options, RewardKind::Outcome, 0).unwrap();
        let dir = fixture("reward_adapters").join(kind);
        assert_eq!(planish_nn::reward::adapter_head(&dir).unwrap(), Some(RewardKind::Outcome), "{kind}");
        load_adapter(&mut model, &dir).unwrap();
        // All in one stream, each read at its last token.
        let (packed, ctx) = (Packed::new(&sequences), Ctx::inference());
        let last: Vec<u32> = packed.cu_seqlens[1..].iter().map(|end| *end - 1).collect();
        let hidden = model.forward(&ctx, &packed, false).unwrap();
        let got = model.rewards(&ctx, &hidden, &last).unwrap().value().to_vec::<f32>().unwrap();
        for (got, want) in got.iter().zip(want.as_array().unwrap()) {
            let want = want.as_f64().unwrap();
            // f32 on both sides.
            assert!((f64::from(*got) - want).abs() <= 1e-4 * want.abs().max(1.0), "{kind}: {got}, PEFT {want}");
        }
        kinds += 1;
    }
    assert_eq!(kinds, 5);
}
