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
//!
//! On a device the head's logits are tensors too, and there is a bound on them, so that a short step says nothing of a
//! long one. The trial then scores one token of each example, and the peak is the larger one of two: that of the formula,
//! and at the head what the layers have kept until then, which goes by the formula as well, with what the head takes
//! ([`lm_head::scratch_bytes`]). So are the memory that attention's backward pass may take there by the square of lengths
//! ([`attention::scratch_bytes`]), and the values of quantised experts, which are made together for many rows alone.

use std::time::Instant;

use planish_autograd::Tape;
use planish_nn::Ctx;
use planish_nn::decoder::Model;
use planish_nn::modules::Linear;
use planish_tensor::ops::attention::{self, Attention};
use planish_tensor::ops::{grouped_linear, lm_head};
use planish_tensor::{DType, Device};

use crate::Result;
use crate::config::OptimSettings;
use crate::data::{Batch, Cursor, Example, Source, Step};
use crate::trainer::{packed, passes, trial};

/// Most tokens of a trial step that is timed: beyond, everything grows in proportion.
pub const TIMED_TOKENS: usize = 512;
/// The same on a GPU, which is busy only with many, and on the emulator of one, which is slow and whose time means nothing.
pub const TIMED_ON_DEVICES: [usize; 2] = [4096, 64];
/// The same of one for its memory alone, which does so from a few tokens on; every run begins with it.
pub const MEMORY_TOKENS: usize = 64;

/// On the processor the head's logits, one block of them at a time, are no tensors.
const LOGITS: u64 = (lm_head::ROWS * lm_head::TILE * 4) as u64;

/// The steps that are to be foreseen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// Tokens of the largest micro-batch.
    pub tokens: u64,
    /// Mean length of an example.
    pub mean_length: f64,
    /// Most tokens of one.
    pub longest: u64,
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
    /// On a device.
    head: Option<Head>,
    /// On a device, of layers that go backward.
    scratch: Option<Scratch>,
    /// On the processor: the share of tokens that a trained head scores, of how large a vocabulary.
    whole_rows: Option<(f64, usize)>,
    /// What tensors had there before the trial, which leaves copies of a few layers' weights.
    pub(crate) in_use_before: Option<u64>,
}

/// What layers take on a device for a moment, and a short step says nothing of: attention's backward pass, or a map of quantised experts.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Scratch {
    device: Device,
    activations: DType,
    heads: [usize; 3],
    /// Of the layer that takes most.
    kind: Attention,
    longest: u64,
    /// Quantised experts, those of a token, and the elements of one map of all.
    experts: Option<[usize; 3]>,
    /// Whether there is memory for what it does without if need be.
    roomy: bool,
}

impl Scratch {
    fn of(model: &Model, longest: u64) -> Scratch {
        let c = &model.config;
        // A layer without a window sees most.
        let window = c.layers.iter().map(|layer| layer.window).reduce(|a, b| a?.max(b?).into()).flatten();
        let kind = Attention { window, softcap: c.attention_softcap, ..Attention::causal(c.attention_scale) };
        let heads = [c.num_heads, c.num_kv_heads, c.head_dim];
        let packed = |linear: &&Linear| {
            linear.name.contains(".experts.") && linear.params().any(|p| p.value().dtype() == DType::Packed)
        };
        let quantised = model.layers.iter().any(|layer| layer.linears().iter().any(packed));
        let experts =
            c.moe.filter(|_| quantised).map(|m| [m.experts, m.per_token, m.experts * m.width * c.hidden_size]);
        let (device, activations) = (model.device(), model.activations());
        Scratch { device, activations, heads, kind, longest, experts, roomy: true }
    }

    /// Of a pass as the longest examples make it.
    fn bytes(&self, tokens: u64) -> u64 {
        if !self.roomy {
            return 0;
        }
        let longest = self.longest.clamp(1, tokens.max(1));
        let rest = tokens % longest;
        let lengths: Vec<usize> = (0..tokens / longest).map(|_| longest as usize).chain([rest as usize]).collect();
        let scores = attention::scratch_bytes(self.device, self.activations, &lengths, self.heads, &self.kind);
        let values = self.experts.map(|[experts, per_token, elements]| {
            grouped_linear::values_bytes(self.device, experts, tokens as usize * per_token, elements)
        });
        let known = "the model is on that device, with heads that attention takes";
        scores.expect(known).max(values.map_or(0, |bytes| bytes.expect(known)))
    }
}

/// What the LM head takes on a device.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Head {
    device: Device,
    /// What is alive before it.
    kept: Line,
    /// Share of tokens that it scores.
    share: f64,
    vocabulary: usize,
    size: usize,
    activations: DType,
    /// Whether its weight is trained.
    trained: bool,
    /// Whether logits are made once, in a buffer that it does without if need be.
    at_once: bool,
}

impl Head {
    /// The head of this model.
    fn of(model: &Model, share: f64, kept: Line) -> Head {
        let weight = model.head(&Ctx::training(&Tape::new(), None));
        let (vocabulary, size) = (weight.dims()[0], weight.dims()[1]);
        let (device, activations) = (model.device(), model.activations());
        Head { device, kept, share, vocabulary, size, activations, trained: weight.is_tracked(), at_once: true }
    }

    /// Bytes alive at once in the head, forward or backward, beside what was before it.
    fn bytes(&self, tokens: f64) -> f64 {
        let rows = (self.share * tokens).ceil().max(1.0) as usize;
        let taken = |n: usize, size: usize| self.device.taken((n * size) as u64) as f64;
        let scratch = lm_head::scratch_bytes(self.device, rows, self.vocabulary, self.activations);
        let [once, tiles] = scratch.expect("activations are of a device's dtype");
        // The rows of hidden states, and f32: their gradient, and of each four results and four sums.
        let wide = taken(rows * self.size, 4);
        let own = taken(rows * self.size, self.activations.size()) + 4.0 * taken(rows, 4) + taken(4 * rows, 4) + wide;
        let scratch = if self.at_once { once } else { tiles };
        // The way back of a frozen head: its gradient times the slopes, and put at the places of their tokens.
        let back = wide + taken(tokens as usize * self.size, 4);
        own + (scratch as f64).max(if self.trained { 0.0 } else { back })
    }
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
        let all = self.bytes.at(tokens as f64, self.layers);
        let scratch = self.scratch.map_or(0, |scratch| scratch.bytes(tokens));
        match &self.head {
            None => all as u64 + self.logits(tokens),
            Some(head) => {
                (all + scratch as f64).max(head.kept.at(tokens as f64, self.layers) + head.bytes(tokens as f64)) as u64
            }
        }
    }

    /// Of the processor's head: as cross-entropy has them, which makes those of a trained head in whole rows.
    fn logits(&self, tokens: u64) -> u64 {
        let whole = self.whole_rows.map_or(0, |(share, vocabulary)| {
            let rows = (share * tokens as f64).ceil().max(1.0) as usize;
            lm_head::whole_bytes(rows, vocabulary)
        });
        whole.max(LOGITS)
    }

    /// The same at the end of the backward pass, in the first layer.
    pub fn bytes_below(&self, tokens: u64) -> u64 {
        let logits = if self.head.is_some() { 0 } else { self.logits(tokens) };
        self.bytes.at(tokens as f64, self.layers.min(1.0)) as u64
            + logits
            + self.scratch.map_or(0, |scratch| scratch.bytes(tokens))
    }

    /// The same where memory is short: on a device the head then makes its logits tile by tile, attention its scores again, and experts
    /// have their values made one after another.
    #[must_use]
    pub(crate) fn at_least(mut self) -> Costs {
        self.head.iter_mut().for_each(|head| head.at_once = false);
        self.scratch.iter_mut().for_each(|scratch| scratch.roomy = false);
        self
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
    let optim = &OptimSettings { tokens_per_pass: Some(0), ..optim.clone() };
    let few = |layers: usize| {
        let mut model = model.clone();
        model.layers.drain(..model.layers.len() - layers);
        model
    };
    let layers = [1.min(recorded), 3.min(recorded)];
    let most = trial_tokens.min(usize::try_from(work.tokens).unwrap_or(usize::MAX)).max(4);
    let tokens = [most.div_ceil(2), most];
    let device = model.device();
    let in_use_before = device.memory()?.map(|memory| memory.in_use);
    let run = |layers: usize, tokens: usize| -> Result<[f64; 3]> {
        let of_share = |supervised_share| step(tokens, &Work { supervised_share, ..*work }, model.config.vocab_size);
        let (few, step) = (few(layers), of_share(work.supervised_share));
        let started = Instant::now();
        let (done, peak) = device.peak_of(|| trial(&few, optim, &step))?;
        done?;
        if device.is_cpu() {
            return Ok([peak as f64, started.elapsed().as_secs_f64(), 0.0]);
        }
        device.synchronize()?;
        let seconds = started.elapsed().as_secs_f64();
        let (done, peak) = device.peak_of(|| trial(&few, optim, &of_share(0.0)))?;
        done?;
        Ok([peak as f64, seconds, before_head(&few, optim, &step)? as f64])
    };
    // Makes the buffers of gradients, which are counted apart, and warms up for what is timed.
    let timed = trial_tokens > MEMORY_TOKENS || !device.is_cpu();
    run(layers[1], if timed { tokens[0] } else { tokens[0].min(8) })?;
    let found = [run(layers[0], tokens[0])?, run(layers[0], tokens[1])?, run(layers[1], tokens[1])?];
    model.params().iter().for_each(|p| p.clear_grad());
    let line = |i: usize| Line::through(found.map(|f| f[i]), tokens.map(|t| t as f64), layers.map(|l| l as f64));
    let of = Head::of(model, work.supervised_share, line(2));
    let whole_rows = (model.device().is_cpu() && of.trained).then_some((of.share, of.vocabulary));
    let head = (!device.is_cpu()).then_some(of);
    let (layers, below) = (recorded as f64, first as f64);
    let scratch = (!device.is_cpu() && recorded > 0).then(|| Scratch::of(model, work.longest));
    Ok(Costs { bytes: line(0), seconds: line(1), layers, below, head, scratch, whole_rows, in_use_before })
}

/// Bytes of tensors that a forward pass of a step has made and kept when it comes to the head.
fn before_head(model: &Model, optim: &OptimSettings, step: &Step) -> Result<u64> {
    let in_use = || -> Result<u64> { Ok(model.device().memory()?.map_or(0, |memory| memory.in_use)) };
    let mut most = 0;
    for (batch, ctx) in passes(optim, step, 0, false) {
        let before = in_use()?;
        let hidden = model.forward(&ctx, &packed(&batch), optim.recomputes_layers())?;
        most = most.max(in_use()?.saturating_sub(before));
        drop(hidden);
    }
    Ok(most)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a short trial says of the logits goes by the tokens; what the head takes does not.
    #[test]
    fn logits_of_a_long_pass_are_bounded() {
        let nothing = Line { fixed: 0.0, rest: 0.0, layer: 0.0 };
        let head = Head {
            device: Device::Emulator(0),
            kept: nothing,
            share: 1.0,
            vocabulary: 151_936,
            size: 896,
            activations: DType::BF16,
            trained: false,
            at_once: true,
        };
        let costs = |head| Costs {
            bytes: Line { rest: 1e4, ..nothing },
            seconds: nothing,
            layers: 1.0,
            below: 0.0,
            head: Some(head),
            scratch: None,
            whole_rows: None,
            in_use_before: None,
        };
        // The allocator rounds up, by an eighth at most.
        let about = |got: f64, want: f64| assert!((0.999..1.13).contains(&(got / want)), "{got} for {want}");
        let long = costs(head).bytes(16_384) as f64;
        // 1664 whole rows of logits, a tile of their gradient in bf16, the hidden states and their gradient, and 8 numbers a row.
        let whole = 1664.0 * (151_936.0 * 4.0 + 8192.0 * 2.0);
        let own = 16_384.0 * (896.0 * 6.0 + 32.0);
        about(long, whole + own);
        about(costs(Head { trained: true, ..head }).bytes(16_384) as f64, whole + own);
        // Tile by tile where there is no room for more.
        about(costs(head).at_least().bytes(16_384) as f64, own + 4096.0 * 8192.0 * 6.0);
        // On the processor a trained head takes 64 whole rows, a frozen one a tile of 512.
        let on_cpu = |whole_rows| Costs { head: None, whole_rows, ..costs(head) }.bytes(100) as f64;
        assert_eq!(on_cpu(Some((1.0, 151_936))) - on_cpu(None), 4.0 * (64.0 * 151_936.0 - 512.0 * 3072.0));
        // Of few tokens it is what they make.
        let row = 151_936.0 * 4.0 + 8192.0 * 2.0 + 896.0 * 6.0 + 32.0;
        about(costs(head).bytes(64) as f64, 64.0 * row);
        // And of layers that keep much, what they do.
        assert_eq!(costs(Head { share: 1e-4, vocabulary: 10, ..head }).bytes(1 << 20), 10_485_760_000);
    }
}
