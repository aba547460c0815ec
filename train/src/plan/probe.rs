//! What the engine keeps and how fast it is, measured on a few layers of the model itself.
//!
//! A step of `tokens` tokens through the last `layers` layers has a peak of tensors, beyond the weights and
//! their gradients, of
//!
//! ```text
//! bytes(tokens, layers) = fixed + tokens · (rest + layers · layer)
//! ```
//!
//! `layer` is what the backward pass of a layer needs kept (with recomputation its input alone), `rest` what
//! the embedding and the head keep and what is alive at the worst moment besides, `fixed` what does not go by
//! tokens (the gradient of an embedding that is built and then added). Three short steps determine the three:
//! the plan is that of the code that runs, whatever it saves. Time goes by the same formula.

use std::time::Instant;

use planish_nn::decoder::Model;
use planish_tensor::ops::lm_head;

use crate::Result;
use crate::config::OptimSettings;
use crate::data::{Batch, Cursor, Example, Source, Step};
use crate::trainer::trial;

/// Most tokens of a trial step that is timed, and of one for its memory alone: beyond, everything grows in
/// proportion.
pub const TIMED_TOKENS: usize = 512;
/// See [`TIMED_TOKENS`].
pub const MEMORY_TOKENS: usize = 128;

/// The head's logits, one block of them at a time, are no tensors.
const LOGITS: u64 = (lm_head::ROWS * lm_head::TILE * 4) as u64;

/// The steps that are to be foreseen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Tokens of the largest micro-batch.
    pub tokens: u64,
    /// Mean length of an example.
    pub mean_length: f64,
    /// Share of tokens that carry a loss.
    pub supervised_share: f64,
}

/// What a micro-batch takes, by its tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    bytes: Line,
    seconds: Line,
    /// Layers that keep something, and those below, which are only gone through forward.
    layers: f64,
    below: f64,
}

/// fixed + tokens · (rest + layers · layer)
#[derive(Debug, Clone, Copy, PartialEq)]
struct Line {
    fixed: f64,
    rest: f64,
    layer: f64,
}

impl Line {
    /// Through (t1, l1) ↦ a, (t2, l1) ↦ b and (t2, l2) ↦ c, with t1 < t2; l1 = l2 has the layers in `rest`.
    fn through([a, b, c]: [f64; 3], [t1, t2]: [f64; 2], [l1, l2]: [f64; 2]) -> Line {
        let layer = if l2 > l1 { ((c - b) / (l2 - l1) / t2).max(0.0) } else { 0.0 };
        let slope = ((b - a) / (t2 - t1)).max(0.0);
        Line { fixed: (b - slope * t2).max(0.0), rest: slope - layer * l1, layer }
    }

    fn at(&self, tokens: f64, layers: f64) -> f64 {
        self.fixed + tokens * (self.rest + layers * self.layer)
    }
}

impl Costs {
    /// Most bytes of tensors alive at once in a micro-batch, beyond weights and gradients.
    pub fn bytes(&self, tokens: u64) -> u64 {
        self.bytes.at(tokens as f64, self.layers) as u64 + LOGITS
    }

    /// The same at the end of the backward pass, in the first layer.
    pub fn bytes_below(&self, tokens: u64) -> u64 {
        self.bytes.at(tokens as f64, self.layers.min(1.0)) as u64 + LOGITS
    }

    /// Seconds of a step of `tokens` tokens in `micro_batches` micro-batches; the optimizer's update apart.
    pub fn seconds(&self, tokens: f64, micro_batches: f64) -> f64 {
        // Forward is a third of a layer's work.
        let layers = self.layers + self.below / 3.0;
        self.seconds.at(tokens, layers) + (micro_batches - 1.0) * self.seconds.fixed
    }
}

/// Takes three short steps of up to `trial_tokens` tokens through a few of the model's layers. Leaves the model as it was, without gradients.
///
/// # Errors
/// Those of a training step.
pub fn measure(model: &Model, optim: &OptimSettings, work: &Work, trial_tokens: usize) -> Result<Costs> {
    // Layers below the first trained one keep nothing (their input, with recomputation), and are not gone
    // through backward.
    let trained = |layer: &planish_nn::decoder::Layer| {
        let of_linears = layer.linears().into_iter().any(|l| l.params().any(|p| p.is_trainable()));
        of_linears || layer.norms().into_iter().any(|n| n.weight.params().any(|p| p.is_trainable()))
    };
    // What comes in before the first layer, or in every layer.
    let before =
        model.embed_lora.iter().flat_map(|l| l.params()).chain(model.virtual_tokens.iter().flat_map(|v| v.params()));
    let embedding = model.embed_tokens.params().chain(before).any(|p| p.is_trainable());
    let first = if embedding { 0 } else { model.layers.iter().position(trained).unwrap_or(0) };
    let first = if optim.recomputes_layers() { 0 } else { first };
    let recorded = model.layers.len() - first;
    // A trial is one pass, however short passes are to be.
    let optim = &OptimSettings { tokens_per_pass: 0, ..optim.clone() };
    let few = |layers: usize| {
        let mut model = model.clone();
        model.layers.drain(..model.layers.len() - layers);
        model
    };
    let layers = [1.min(recorded), 3.min(recorded)];
    let most = trial_tokens.min(usize::try_from(work.tokens).unwrap_or(usize::MAX)).max(4);
    let tokens = [most.div_ceil(2), most];
    let run = |layers: usize, tokens: usize| -> Result<[f64; 2]> {
        let (model, step) = (few(layers), step(tokens, work, model.config.vocab_size));
        let started = Instant::now();
        let (done, peak) = model.device().peak_of(|| trial(&model, optim, &step))?;
        done?;
        Ok([peak as f64, started.elapsed().as_secs_f64()])
    };
    // Makes the buffers of gradients, which are counted apart, and warms up.
    run(layers[1], tokens[0])?;
    let found = [run(layers[0], tokens[0])?, run(layers[0], tokens[1])?, run(layers[1], tokens[1])?];
    model.params().iter().for_each(|p| p.clear_grad());
    let line = |i: usize| Line::through(found.map(|f| f[i]), tokens.map(|t| t as f64), layers.map(|l| l as f64));
    Ok(Costs { bytes: line(0), seconds: line(1), layers: recorded as f64, below: first as f64 })
}

/// A micro-batch of examples of the mean length.
fn step(tokens: usize, work: &Work, vocab_size: usize) -> Step {
    let length = (work.mean_length.round() as usize).clamp(2, tokens.max(2));
    let mut examples = Vec::new();
    let mut left = tokens;
    while left > 1 {
        let n = if left < 2 * length { left } else { length };
        let trained = ((n as f64 * work.supervised_share).round() as usize).clamp(1, n - 1);
        let ids = (0..n).map(|i| ((left + i) * 7919 % vocab_size) as u32).collect();
        let source = Source { file: std::path::Path::new("trial").into(), line: 0, row: 0 };
        examples.push(Example { ids, mask: (0..n).map(|i| i >= n - trained).collect(), n_prompt: n - trained, source });
        left -= n;
    }
    let batch = Batch::from_examples(examples.iter().enumerate());
    Step {
        supervised: batch.supervised(),
        tokens: batch.tokens(),
        micro_batches: vec![batch],
        dropped: 0,
        cursor: Cursor::default(),
        epoch: 0.0,
    }
}
