//! Six optimizer steps of every loss against TRL's trainers, with all weights and with LoRA.

use planish_nn::adapters::load_adapter;
use planish_nn::decoder::{LoadOptions, Model};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::reward::RewardKind;
use planish_tensor::DType;
use planish_train::config::{CpoConfig, DpoConfig, KtoConfig, OrpoConfig, Recipe, RewardConfig, resolve};
use planish_train::data::{Batch, Example};
use planish_train::losses::PairLoss;
use planish_train::preference::{Follow, Pairs, Reference, Rewards, Unpaired};
use planish_train::recipes::{cpo, dpo, kto, orpo, reward};
use planish_train::trainer::{Objective, router};
use serde_json::Value;

use crate::fixture;
use crate::trajectory::{Feed, Trajectory, WHOLE, differ_by_rounding, example, follow};

/// The batch of some rows of the fixture.
pub(crate) fn batch(trainer: &str, rows: &[Value], first: usize) -> Batch {
    if trainer == "kto" {
        let all: Vec<(Example, bool)> = rows
            .iter()
            .enumerate()
            .map(|(i, r)| (example(&r["prompt_ids"], &r["completion_ids"], i), r["label"].as_bool().unwrap()))
            .collect();
        return Batch::from_labelled(all.iter().enumerate().map(|(i, (e, l))| (first + i, e, *l)));
    }
    let sides: Vec<[Example; 2]> = rows
        .iter()
        .enumerate()
        .map(|(i, r)| ["chosen_ids", "rejected_ids"].map(|side| example(&r["prompt_ids"], &r[side], i)))
        .collect();
    let mut batch = Batch::from_pairs(sides.iter().enumerate().map(|(i, [c, r])| (first + i, c, r)));
    batch.margins.iter_mut().zip(rows).for_each(|(m, r)| *m = r["margin"].as_f64().unwrap_or(0.0));
    batch
}

pub(crate) fn open(name: &str, dtype: DType, trainable: bool) -> Model {
    let dir = fixture(&format!("models/{name}"));
    Pretrained::open(&dir).unwrap().load(LoadOptions { dtype: Some(dtype), trainable }).unwrap()
}

/// TRL's settings as the program reads them.
fn settings<C: Recipe>(spec: &Value) -> C {
    let mut flags = vec![
        ("model".to_owned(), vec!["none".to_owned()]),
        ("dataset".to_owned(), vec!["none".to_owned()]),
        ("output_dir".to_owned(), vec!["none".to_owned()]),
    ];
    for (key, value) in spec["settings"].as_object().unwrap() {
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        let values = value.as_array().map_or_else(|| vec![text(value)], |list| list.iter().map(text).collect());
        flags.push((key.clone(), values));
    }
    resolve::<C>(None, &flags).unwrap().config
}

/// The model that a run starts from.
fn base(spec: &Value) -> &str {
    spec["base"].as_str().unwrap_or("smollm2")
}

fn objective(spec: &Value, dtype: DType, share: bool, model: &Model) -> Box<dyn Objective> {
    let free = |loss: Box<dyn PairLoss>| Box::new(Pairs::new(loss, Reference::Free, false).sharing(share));
    let reference = |follow: Option<Follow>| match (spec["lora"].as_bool().unwrap(), spec["ref_model"].as_str()) {
        (true, None) => Reference::Base,
        (_, name) => Reference::Model { model: Box::new(open(name.unwrap_or(base(spec)), dtype, false)), follow },
    };
    match spec["trainer"].as_str().unwrap() {
        "dpo" => {
            let c: DpoConfig = settings(spec);
            let r = &c.reference;
            let follow = Follow { alpha: r.ref_model_mixup_alpha, every: r.ref_model_sync_steps };
            let reference = reference(r.sync_ref_model.then_some(follow));
            let router = router::terms(&c.router, &model.config).unwrap();
            Box::new(Pairs::new(Box::new(dpo::loss(&c.dpo, false)), reference, false).sharing(share).balanced(router))
        }
        "kto" => {
            let c: KtoConfig = settings(spec);
            let router = router::terms(&c.router, &model.config).unwrap();
            Box::new(Unpaired::new(kto::loss(&c.kto), reference(None), false, Some(64)).balanced(router))
        }
        "orpo" => free(Box::new(orpo::loss(&settings::<OrpoConfig>(spec).orpo))),
        "cpo" => free(Box::new(cpo::loss(&settings::<CpoConfig>(spec).cpo))),
        "reward" => Box::new(Rewards::new(reward::loss(&settings::<RewardConfig>(spec).reward), false).sharing(share)),
        other => panic!("{other}"),
    }
}

fn train(spec: &Value, rows: &[Value], feed: Feed) -> Trajectory {
    let lora = spec["lora"].as_bool().unwrap();
    let mut model = match spec["trainer"] == "reward" {
        false => open(base(spec), feed.dtype, !lora),
        true => {
            let options = LoadOptions { dtype: Some(feed.dtype), trainable: !lora };
            Pretrained::open(&fixture("preference/reward"))
                .unwrap()
                .load_reward(options, RewardKind::Outcome, 0)
                .unwrap()
        }
    };
    if lora {
        let name = if spec["trainer"] == "reward" { "reward_adapter" } else { "adapter" };
        load_adapter(&mut model, &fixture("preference").join(name)).unwrap();
    }
    let mut objective = objective(spec, feed.dtype, feed.share, &model);
    let number = |key: &str| spec["training"][key].as_u64().unwrap() as usize;
    let micro = number("per_device_train_batch_size");
    let per_step = micro * number("gradient_accumulation_steps");
    let micro = micro / feed.cut;
    let trainer = spec["trainer"].as_str().unwrap();
    let steps = (0..spec["steps"].as_array().unwrap().len()).map(|s| {
        let firsts = (s * per_step..(s + 1) * per_step).step_by(micro);
        firsts.map(|first| batch(trainer, &rows[first..first + micro], first)).collect()
    });
    let found = follow(&model, &spec["training"], feed, &mut *objective, steps);
    assert!(found.iter().flatten().filter(|(name, _)| name == "count").all(|(_, n)| *n == per_step as f64));
    found
}

/// Each run with its rows.
fn runs() -> Vec<(String, Value, Vec<Value>)> {
    let read = |name: &str| read_json(&fixture(&format!("preference/{name}.json"))).unwrap();
    let rows = |spec: &Value| {
        let name = match spec["trainer"].as_str().unwrap() {
            "kto" => "labelled",
            "reward" => "rewarded",
            _ => "pairs",
        };
        read(name).as_array().unwrap().clone()
    };
    read("runs").as_object().unwrap().iter().map(|(name, spec)| (name.clone(), spec.clone(), rows(spec))).collect()
}

#[test]
fn trajectories_are_those_of_trl() {
    let runs = runs();
    assert!(runs.len() >= 40);
    let (mut compared, mut wrong) = (0, Vec::new());
    for (name, spec, rows) in &runs {
        let kto = spec["trainer"] == "kto";
        let found = train(spec, rows, WHOLE);
        for (s, (found, step)) in found.iter().zip(spec["steps"].as_array().unwrap()).enumerate() {
            let mut seen = 0;
            for (what, got) in found {
                let Some(want) = step[what.as_str()].as_f64() else { continue };
                // Of completions here; there, outside of DPO and KTO, of prompts and padding too.
                if what.starts_with("logits/") && !(kto || spec["trainer"] == "dpo") {
                    continue;
                }
                // Rewards are differences of sums of some 40 nats, times beta; logits are means of what is of either sign.
                let least = match what.as_str() {
                    "loss" | "grad_norm" => 0.0,
                    what if what.contains("reward") => 0.2,
                    _ => 1e-3,
                };
                if !((got - want).abs() <= 1e-3 * want.abs().max(least)) {
                    wrong.push(format!("{name} step {}: {what} {got}, TRL {want}", s + 1));
                }
                seen += 1;
            }
            assert!(seen >= 2, "{name}: only {seen} numbers to compare");
            compared += seen;
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(compared > 2000, "{compared}");
}

/// Law 3: passes, recomputation, sharing and, for losses that look at a pair by itself, micro-batches change a
/// trajectory by rounding only.
#[test]
fn splitting_a_step_changes_rounding_only() {
    for (name, spec, rows) in &runs() {
        // Rows see each other within a micro-batch, which is then part of what is computed.
        let couples = name.starts_with("aot") || name.contains("kto");
        let dtype = DType::F64;
        let want = train(spec, rows, Feed { dtype, share: false, ..WHOLE });
        let feeds =
            [(0, 1, false, true), (1, 1, true, true), (60, 1, false, false), (0, 2, false, true), (40, 4, true, false)];
        for (tokens_per_pass, cut, recompute, share) in feeds {
            if couples && cut > 1 {
                continue;
            }
            let found = train(spec, rows, Feed { tokens_per_pass, cut, recompute, share, dtype });
            // Of a micro-batch, as TRL has them.
            let but: &[&str] = if cut > 1 { &["min_reward", "max_reward"] } else { &[] };
            differ_by_rounding(&format!("{name} ({tokens_per_pass}, {cut}, {share})"), &found, &want, but);
        }
    }
}
