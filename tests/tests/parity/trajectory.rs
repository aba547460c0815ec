//! Six steps of a run of a fixture: a model or a part of it, or an adapter, on the rows of `sft/`, eight a step.

use std::path::Path;

use planish_nn::adapters::{Partial, load_adapter, train_only};
use planish_nn::decoder::LoadOptions;
use planish_nn::pretrained::Pretrained;
use planish_tensor::DType;
use planish_train::config::{OptimSettings, RouterSettings};
use planish_train::data::{Batch, Cursor, Example, Source, Step};
use planish_train::optim::{AdamW, AdamWSettings, Update, grad_norm};
use planish_train::trainer::{CrossEntropy, Objective, Sums, router};
use serde_json::Value;

use crate::fixture;
use crate::sft::{Row, rows};

/// How a step's eight rows are fed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Feed {
    pub(crate) micro_batch: usize,
    pub(crate) tokens_per_pass: u64,
    pub(crate) recompute: bool,
}

pub(crate) const WHOLE: Feed = Feed { micro_batch: 8, tokens_per_pass: 0, recompute: true };

fn step(rows: &[Row], feed: Feed) -> Step {
    let source = Source { file: Path::new("made").into(), line: 0, row: 0 };
    let examples: Vec<Example> = rows
        .iter()
        .map(|r| Example { ids: r.ids.clone(), mask: r.mask.clone(), n_prompt: 1, source: source.clone() })
        .collect();
    let of = |part: &[Example]| Batch::from_examples(part.iter().enumerate());
    let micro_batches: Vec<Batch> = examples.chunks(feed.micro_batch).map(of).collect();
    let supervised = micro_batches.iter().map(Batch::supervised).sum();
    let tokens = micro_batches.iter().map(Batch::tokens).sum();
    Step { micro_batches, supervised, tokens, dropped: 0, cursor: Cursor::default(), epoch: 0.0 }
}

/// The weights that are trained if it is not all of them, of a model of so many layers.
fn part(run: &Value) -> Option<fn(usize) -> Partial> {
    match run["trained"].as_str() {
        Some("bias") => Some(|_| Partial::Biases),
        Some("last") => Some(|layers| Partial::layers(1, layers, vec![], vec![]).unwrap()),
        _ => None,
    }
}

/// Runs a fixture's steps; per step the sums and the gradient norm.
pub(crate) fn train(run: &Value, dtype: Option<DType>, feed: Feed) -> Vec<(Sums, f64)> {
    let settings = &run["settings"];
    let number = |key: &str| settings[key].as_f64().unwrap();
    let part = part(run);
    let options = LoadOptions { dtype, trainable: run["adapter"].is_null() && part.is_none() };
    let mut model = Pretrained::open(&fixture(run["model"].as_str().unwrap())).unwrap().load(options).unwrap();
    if let Some(adapter) = run["adapter"].as_str() {
        load_adapter(&mut model, &fixture(adapter)).unwrap();
    }
    if let Some(part) = part {
        let layers = model.layers.len();
        train_only(&mut model, &part(layers)).unwrap();
    }
    let trained: usize = model.params().iter().filter(|p| p.is_trainable()).map(|p| p.value().numel()).sum();
    assert_eq!(trained as u64, run["trained_parameters"].as_u64().unwrap());
    let adam = AdamWSettings {
        beta1: number("adam_beta1"),
        beta2: number("adam_beta2"),
        eps: number("adam_epsilon"),
        weight_decay: number("weight_decay"),
    };
    let mut optimizer = AdamW::new(&model.params(), adam).unwrap();
    let router = RouterSettings {
        router_aux_loss_coef: run["router_aux_loss_coef"].as_f64(),
        router_z_loss_coef: run["router_z_loss_coef"].as_f64().unwrap_or(0.0),
    };
    let mut objective = CrossEntropy::new(false, router::terms(&router, &model.config).unwrap());
    let optim = OptimSettings {
        tokens_per_pass: Some(feed.tokens_per_pass),
        gradient_checkpointing: feed.recompute,
        ..OptimSettings::default()
    };
    let mut trajectory = Vec::new();
    for (s, rows) in rows().chunks(8).take(run["steps"].as_array().unwrap().len()).enumerate() {
        let sums = objective.accumulate(&model, &optim, &step(rows, feed), s as u64).unwrap();
        let scale = 1.0 / sums.count;
        let norm = grad_norm(optimizer.params(), scale).unwrap();
        let clip = (number("max_grad_norm") / (norm + 1e-6)).min(1.0);
        optimizer.step(Update { learning_rate: number("learning_rate"), grad_scale: scale * clip }).unwrap();
        trajectory.push((sums, norm));
    }
    trajectory
}
