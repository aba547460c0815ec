//! Some optimizer steps of an objective over rows of ids, as the generators of fixtures go through them.

use std::path::Path;

use planish_nn::decoder::Model;
use planish_tensor::DType;
use planish_train::config::OptimSettings;
use planish_train::data::{Batch, Cursor, Example, Source, Step};
use planish_train::optim::{AdamW, AdamWSettings, Update, grad_norm};
use planish_train::trainer::Objective;
use serde_json::Value;

/// How a step is fed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Feed {
    pub(crate) tokens_per_pass: u64,
    /// Micro-batches of the fixture's are cut into so many.
    pub(crate) cut: usize,
    pub(crate) recompute: bool,
    /// Rows share what they begin with.
    pub(crate) share: bool,
    pub(crate) dtype: DType,
}

pub(crate) const WHOLE: Feed = Feed { tokens_per_pass: 0, cut: 1, recompute: false, share: true, dtype: DType::F32 };

/// By step: `loss`, `grad_norm`, `count` and what is measured.
pub(crate) type Trajectory = Vec<Vec<(String, f64)>>;

pub(crate) fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

pub(crate) fn example(prompt: &Value, completion: &Value, row: usize) -> Example {
    let (prompt, completion) = (ids(prompt), ids(completion));
    let n_prompt = prompt.len();
    let ids = [prompt, completion].concat();
    let mask = (0..ids.len()).map(|i| i >= n_prompt).collect();
    let source = Source { file: Path::new("made").into(), line: row as u64 + 1, row: row as u64 };
    Example { ids, mask, n_prompt, source }
}

/// Trains with the settings `training` of a fixture; `steps` are the micro-batches of each step.
pub(crate) fn follow(
    model: &Model,
    training: &Value,
    feed: Feed,
    objective: &mut dyn Objective,
    steps: impl Iterator<Item = Vec<Batch>>,
) -> Trajectory {
    let number = |key: &str| training[key].as_f64().unwrap();
    let settings =
        AdamWSettings { beta1: 0.9, beta2: 0.999, eps: number("adam_epsilon"), weight_decay: number("weight_decay") };
    let mut optimizer = AdamW::new(&model.params(), settings).unwrap();
    let optim = OptimSettings {
        tokens_per_pass: Some(feed.tokens_per_pass),
        gradient_checkpointing: feed.recompute,
        ..OptimSettings::default()
    };
    let one = |(s, micro_batches): (usize, Vec<Batch>)| {
        let (supervised, tokens) = (1, micro_batches.iter().map(Batch::tokens).sum());
        let cursor = Cursor::default();
        let step = Step { micro_batches, supervised, tokens, dropped: 0, cursor, epoch: 0.0 };
        let sums = objective.accumulate(model, &optim, &step, s as u64).unwrap();
        let scale = 1.0 / sums.count;
        let norm = grad_norm(optimizer.params(), scale).unwrap();
        let clip = (number("max_grad_norm") / (norm + 1e-6)).min(1.0);
        optimizer.step(Update { learning_rate: number("learning_rate"), grad_scale: scale * clip }).unwrap();
        objective.updated(model, s as u64 + 1).unwrap();
        let own = [("loss", sums.mean()), ("grad_norm", norm), ("count", sums.count)];
        own.map(|(name, value)| (name.to_owned(), value)).into_iter().chain(sums.means()).collect()
    };
    steps.enumerate().map(one).collect()
}

/// Law 3: two ways to one trajectory in f64, but for metrics that are not sums.
pub(crate) fn differ_by_rounding(what: &str, found: &Trajectory, want: &Trajectory, but: &[&str]) {
    assert_eq!(found.len(), want.len(), "{what}");
    for (s, (found, want)) in found.iter().zip(want).enumerate() {
        assert_eq!(found.len(), want.len(), "{what}");
        for ((name, a), (_, b)) in found.iter().zip(want).filter(|((name, _), _)| !but.contains(&name.as_str())) {
            // Sums of f64 gradients in another order, an error of some 1e-15, carried through updates of which the first
            // are sign-like and enlarge it where a gradient is nearly nothing.
            let tolerance = if s == 0 { 1e-12 } else { 1e-7 };
            assert!((a - b).abs() <= tolerance * b.abs().max(0.1), "{what} step {}: {name} {a}, not {b}", s + 1);
        }
    }
}
