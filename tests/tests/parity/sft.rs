//! Ten optimizer steps against TRL's trainer.

use std::path::Path;

use planish_autograd::Tape;
use planish_nn::Ctx;
use planish_nn::adapters::load_adapter;
use planish_nn::decoder::{LoadOptions, Model, Packed};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::weights::WeightsReader;
use planish_tensor::DType;
use planish_train::losses::{LossSum, cross_entropy};
use planish_train::optim::{AdamW, AdamWSettings, Update, grad_norm};
use serde_json::Value;

use crate::{fixture, floats};

pub(crate) struct Row {
    pub(crate) ids: Vec<u32>,
    pub(crate) mask: Vec<bool>,
}

pub(crate) fn rows() -> Vec<Row> {
    let list = |v: &Value| -> Vec<u64> { v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap()).collect() };
    let rows = read_json(&fixture("sft/rows.json")).unwrap();
    rows.as_array()
        .unwrap()
        .iter()
        .map(|r| Row {
            ids: list(&r["input_ids"]).into_iter().map(|x| x as u32).collect(),
            mask: list(&r["completion_mask"]).into_iter().map(|x| x != 0).collect(),
        })
        .collect()
}

/// How one step's rows are fed.
#[derive(Clone, Copy)]
struct Feed {
    micro_batch: usize,
    recompute: bool,
}

fn start(run: &Path, steps: &Value) -> Model {
    let base = fixture(steps["model"].as_str().unwrap());
    let lora = run.join("adapter_init");
    let options = LoadOptions { dtype: None, trainable: !lora.exists() };
    let mut model = Pretrained::open(&base).unwrap().load(options).unwrap();
    if lora.exists() {
        load_adapter(&mut model, &lora).unwrap();
    }
    model
}

/// Runs the fixture's steps; per step (loss, gradient norm), and the model after the last.
fn train(run: &Path, feed: Feed) -> (Vec<(f64, f64)>, Model) {
    let steps = read_json(&run.join("steps.json")).unwrap();
    let settings = &steps["settings"];
    let number = |key: &str| settings[key].as_f64().unwrap();
    let model = start(run, &steps);
    let mut optimizer = AdamW::new(
        &model.params(),
        AdamWSettings {
            beta1: number("adam_beta1"),
            beta2: number("adam_beta2"),
            eps: number("adam_epsilon"),
            weight_decay: number("weight_decay"),
        },
    )
    .unwrap();
    let per_step = (number("per_device_train_batch_size") * number("gradient_accumulation_steps")) as usize;
    let rows = rows();
    let mut trajectory = Vec::new();
    for (s, step) in steps["steps"].as_array().unwrap().iter().enumerate() {
        let mut sum = LossSum::default();
        for micro in rows[s * per_step..(s + 1) * per_step].chunks(feed.micro_batch) {
            let batch = Packed::new(&micro.iter().map(|r| &r.ids).collect::<Vec<_>>());
            let mask: Vec<bool> = micro.iter().flat_map(|r| r.mask.iter().copied()).collect();
            let ctx = Ctx::training(&Tape::new(), None);
            sum += cross_entropy(&model, &ctx, &batch, &mask, feed.recompute).unwrap();
        }
        assert_eq!(sum.count, step["tokens"].as_u64().unwrap());
        let scale = 1.0 / sum.count as f64;
        let norm = grad_norm(optimizer.params(), scale).unwrap();
        let clip = (number("max_grad_norm") / (norm + 1e-6)).min(1.0);
        let learning_rate = step["learning_rate"].as_f64().unwrap();
        optimizer.step(Update { learning_rate, grad_scale: scale * clip }).unwrap();
        trajectory.push((sum.mean(), norm));
    }
    (trajectory, model)
}

pub(crate) const RUNS: [&str; 5] = ["full_smollm2", "full_qwen3", "lora_smollm2", "lora_qwen3", "lora_rs_saved"];

/// Without padding, against TRL's padded run: loss, gradient norm and the weights after ten steps.
#[test]
fn trajectories_are_those_of_trl() {
    for run in RUNS {
        let dir = fixture(&format!("sft/{run}"));
        let (trajectory, model) = train(&dir, Feed { micro_batch: 4, recompute: false });
        let steps = read_json(&dir.join("steps.json")).unwrap();
        for (s, ((loss, norm), step)) in trajectory.iter().zip(steps["steps"].as_array().unwrap()).enumerate() {
            // The peer's own f32 and f64 runs differ by 5e-7 and 7e-6.
            for (what, got, tolerance) in [("loss", loss, 1e-5), ("grad_norm", norm, 1e-4)] {
                let want = step[what].as_f64().unwrap();
                assert!((got - want).abs() <= tolerance * want, "{run} step {}: {what} {got}, TRL {want}", s + 1);
            }
        }
        let lora = dir.join("adapter_final/adapter_model.safetensors");
        let reader = WeightsReader::open(if lora.exists() { lora } else { dir.join("final.safetensors") }).unwrap();
        let mut compared = 0;
        for p in model.params().into_iter().filter(|p| p.is_trainable()) {
            let (got, want) = (p.value().to_vec::<f32>().unwrap(), floats(&reader, p.name()));
            // Adam's first updates are sign-like: where a gradient is nearly zero its rounding moves a
            // weight by up to a step, so the bound is on the mean.
            let mean = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).sum::<f32>() / got.len() as f32;
            assert!(mean <= 1e-4, "{run}: {} off by {mean} on average", p.name());
            compared += 1;
        }
        assert!(compared > 10, "{run}");
    }
}

/// Law 3: micro-batch size, accumulation and recomputation change the trajectory by rounding only.
#[test]
fn splitting_a_step_changes_rounding_only() {
    for run in ["full_smollm2", "lora_qwen3"] {
        let dir = fixture(&format!("sft/{run}"));
        let (want, _) = train(&dir, Feed { micro_batch: 8, recompute: false });
        for feed in [(1, false), (3, true), (8, true)] {
            let (got, _) = train(&dir, Feed { micro_batch: feed.0, recompute: feed.1 });
            for ((loss, norm), (want_loss, want_norm)) in got.iter().zip(&want) {
                // f32 sums in another order, carried through ten updates.
                assert!((loss - want_loss).abs() <= 1e-5 * want_loss, "{run} {feed:?}: {loss} {want_loss}");
                assert!((norm - want_norm).abs() <= 1e-4 * want_norm, "{run} {feed:?}: {norm} {want_norm}");
            }
            if feed.0 == 8 {
                assert_eq!(got, want, "recomputation alone changes no bit");
            }
        }
    }
}

/// bf16 weights with f32 masters follow the f32 run as far as bf16 allows, and stay bf16.
#[test]
fn bf16_weights_train_with_masters() {
    let dir = fixture("sft/full_smollm2");
    let steps = read_json(&dir.join("steps.json")).unwrap();
    let base = fixture(steps["model"].as_str().unwrap());
    let options = LoadOptions { dtype: Some(DType::BF16), trainable: true };
    let model = Pretrained::open(&base).unwrap().load(options).unwrap();
    let settings = AdamWSettings { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
    let mut optimizer = AdamW::new(&model.params(), settings).unwrap();
    let rows = rows();
    let batch = Packed::new(&rows[..8].iter().map(|r| &r.ids).collect::<Vec<_>>());
    let mask: Vec<bool> = rows[..8].iter().flat_map(|r| r.mask.iter().copied()).collect();
    let mut losses = Vec::new();
    for _ in 0..40 {
        let sum = cross_entropy(&model, &Ctx::training(&Tape::new(), None), &batch, &mask, false).unwrap();
        losses.push(sum.mean());
        // Updates of 1e-4 are far below bf16's resolution near 1 (2^-8): without masters norms stay put.
        optimizer.step(Update { learning_rate: 1e-4, grad_scale: 1.0 / sum.count as f64 }).unwrap();
    }
    assert!(losses[39] < losses[0] - 0.1, "{losses:?}");
    let masters: Vec<_> = optimizer.state().into_iter().filter(|(n, _)| n.starts_with("master.")).collect();
    assert_eq!(masters.len(), model.params().len());
    for (p, (_, master)) in model.params().iter().zip(&masters) {
        assert_eq!(p.value().dtype(), DType::BF16);
        let rounded = master.to_dtype(DType::BF16).unwrap().to_vec::<planish_tensor::bf16>().unwrap();
        assert_eq!(p.value().to_vec::<planish_tensor::bf16>().unwrap(), rounded);
    }
}
