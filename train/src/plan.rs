//! What a run will take, before step 0: memory and arithmetic of the worst micro-batch (law 7).
//!
//! The model of memory is what the engine keeps, in the dtype it keeps it in: weights, what is trained
//! (gradient, AdamW's two moments, an f32 master of narrower weights), and for each token the
//! activations that the backward pass needs. With recomputation a layer keeps its input only, and one
//! layer at a time the rest.

use planish_nn::decoder::Model;
use planish_tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::data::{Lengths, Packing, Sampler};
use crate::{Error, Result};

/// Memory of a run, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// The program, its tokenizer and its buffers.
    pub program: u64,
    /// Weights, adapters included.
    pub weights: u64,
    /// Gradients of what is trained.
    pub gradients: u64,
    /// AdamW's moments and f32 masters.
    pub optimizer: u64,
    /// Activations and temporary tensors of the worst micro-batch.
    pub activations: u64,
    /// Tokens of that micro-batch.
    pub tokens: u64,
}

impl MemoryPlan {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.program + self.weights + self.gradients + self.optimizer + self.activations
    }
}

/// What a run would take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// Optimizer steps in all.
    pub total_steps: u64,
    /// Optimizer steps of an epoch.
    pub steps_per_epoch: u64,
    /// Mean input tokens of a step.
    pub tokens_per_step: f64,
    /// Peak memory.
    pub memory: MemoryPlan,
    /// Floating-point operations of a step.
    pub operations_per_step: f64,
    /// Rate of this machine's matrix product at the model's shapes, 10⁹ operations a second, measured.
    pub gflops: f64,
    /// Seconds of the whole run, evaluations apart.
    pub seconds: f64,
}

/// Share of the matrix product's rate that a whole step is taken to reach: what is left goes to attention's
/// softmax, norms, packing of panels and the optimizer. An assumption, not yet measured on a quiet machine.
pub const STEP_EFFICIENCY: f64 = 0.6;

/// Rate of the matrix product (tokens, hidden) x (hidden, intermediate), 10⁹ operations a second, over
/// about 0.2 s.
///
/// # Errors
/// Out of memory.
pub fn measure_gflops(hidden: usize, intermediate: usize) -> planish_tensor::Result<f64> {
    const TOKENS: usize = 512;
    let (x, w) = (Tensor::full(0.5f32, [TOKENS, hidden])?, Tensor::full(0.5f32, [intermediate, hidden])?);
    let run = || planish_tensor::ops::linear::forward(&x, &w, None);
    run()?;
    let (started, mut products) = (std::time::Instant::now(), 0);
    while started.elapsed().as_secs_f64() < 0.2 {
        run()?;
        products += 1;
    }
    let operations = 2.0 * (TOKENS * hidden * intermediate * products) as f64;
    Ok(operations / started.elapsed().as_secs_f64() / 1e9)
}

/// Memory that the system can still give, bytes; `None` where it does not say.
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Refuses a run that will not fit, before its first step.
///
/// # Errors
/// [`Error::DoesNotFit`] with the numbers and what to change.
pub fn check_fits(plan: &MemoryPlan, in_use: u64, available: Option<u64>, recompute: bool) -> Result<()> {
    // What the process holds already (the weights) is not asked for again.
    let needed = plan.total().saturating_sub(in_use);
    match available {
        Some(available) if needed > available => {
            let advice = if !recompute {
                "set gradient_checkpointing to true"
            } else if plan.activations > plan.optimizer + plan.gradients {
                "lower per_device_train_batch_size (and raise gradient_accumulation_steps), or max_length"
            } else {
                "train a LoRA adapter (use_peft) instead of all weights, or set dtype to bfloat16"
            };
            Err(Error::DoesNotFit {
                needed: plan.total(),
                activations: plan.activations,
                tokens: plan.tokens,
                available,
                advice,
            })
        }
        _ => Ok(()),
    }
}

/// Estimates: memory of the process before a model is loaded, and, for each entry of the vocabulary, what
/// the tokenizer keeps of it in several tables.
const PROGRAM: u64 = 24 << 20;
const PER_TOKEN_TYPE: u64 = 700;

/// Predicts the peak memory of training `model` with micro-batches of up to `tokens` tokens, of which
/// `supervised` at most carry a loss.
pub fn memory(model: &Model, tokens: u64, supervised: u64, recompute: bool) -> MemoryPlan {
    let params = model.params();
    let (mut weights, mut gradients, mut optimizer) = (0, 0, 0);
    for p in &params {
        let value = p.value();
        let (n, dtype) = (value.numel() as u64, value.dtype());
        weights += n * dtype.size() as u64;
        if p.is_trainable() {
            let wide = p.grad_dtype();
            gradients += n * wide.size() as u64;
            let masters = if dtype == wide { 0 } else { 1 };
            optimizer += n * wide.size() as u64 * (2 + masters);
        }
    }
    let c = &model.config;
    let size = if model.dtype() == DType::F64 { 8 } else { 4 };
    let (h, m, layers) = (c.hidden_size as u64, c.intermediate_size as u64, c.num_layers() as u64);
    let (q, kv) = ((c.num_heads * c.head_dim) as u64, (c.num_kv_heads * c.head_dim) as u64);
    // Kept for the backward pass of a layer: both norms' input and output (4 h), q, k, v and the
    // attention's output, gate, up and their product; norms of their own on q and k keep their input.
    let qk_norm = if c.qk_norm == planish_nn::config::QkNorm::None { 0 } else { q + kv };
    let layer = 4 * h + 2 * q + 2 * kv + 3 * m + qk_norm;
    // Alive at once in a layer's backward pass besides: gradients of gate, up and product, and of x.
    let passing = 3 * m + 4 * h;
    let per_token = if recompute { layers * h + layer + passing } else { layers * layer + passing };
    let scored = supervised * 2 * h;
    let tiles = (planish_tensor::ops::lm_head::ROWS * planish_tensor::ops::lm_head::TILE) as u64;
    let activations = size * (tokens * per_token + scored + tiles);
    let program = PROGRAM + PER_TOKEN_TYPE * c.vocab_size as u64;
    MemoryPlan { program, weights, gradients, optimizer, activations, tokens }
}

/// Floating-point operations of training on `tokens` tokens, `supervised` of which carry a loss:
/// 2 a weight and token forward, 2 for the gradient of activations, 2 for that of trained weights, and
/// with recomputation 2 once more; attention's products by half the mean length.
pub fn operations(model: &Model, tokens: u64, supervised: u64, mean_length: f64, recompute: bool) -> f64 {
    let (mut frozen, mut trained) = (0f64, 0f64);
    for layer in &model.layers {
        for linear in layer.linears() {
            for p in linear.params().filter(|p| p.value().rank() == 2) {
                let n = p.value().numel() as f64;
                if p.is_trainable() { trained += n } else { frozen += n }
            }
        }
    }
    let again = if recompute { 2.0 } else { 0.0 };
    let c = &model.config;
    let attention = c.num_layers() as f64 * (c.num_heads * c.head_dim) as f64 * mean_length / 2.0;
    let head = (c.vocab_size * c.hidden_size) as f64;
    let head_trained = if model.head(&planish_nn::Ctx::inference()).is_tracked() { 2.0 } else { 0.0 };
    tokens as f64 * (frozen * (4.0 + again) + trained * (6.0 + again) + attention * (14.0 + 2.0 * again))
        // Forward, recomputed logits and the gradient of the hidden states.
        + supervised as f64 * head * (6.0 + head_trained)
}

/// Tokens of the largest of the first `micro_batches` micro-batches: exact when all lengths are known, else
/// what the longest examples would make together.
pub fn worst_micro_batch(sampler: &Sampler, lengths: &Lengths, longest: u64, mut micro_batches: u64) -> u64 {
    let options = sampler.options();
    let limit = sampler.encoder().options().max_length.map_or(u64::MAX, |n| n as u64);
    let n = options.micro_batch as u64;
    if options.packing != Packing::None {
        return (sampler.row_length() as u64).saturating_mul(n);
    }
    if lengths.by_row.is_empty() {
        return longest.min(limit).saturating_mul(n);
    }
    let mut worst = 0;
    for epoch in 0.. {
        let order = sampler.view().order(options.seed, options.shuffle, epoch);
        let kept = (0..order.len()).map(|i| lengths.by_row[order.get(i) as usize] as u64).filter(|&l| l > 0);
        let (mut sum, mut count, before) = (0, 0, micro_batches);
        for length in kept {
            sum += length;
            count += 1;
            if count == n {
                worst = worst.max(sum);
                (sum, count) = (0, 0);
                micro_batches -= 1;
                if micro_batches == 0 {
                    return worst;
                }
            }
        }
        if count > 0 {
            worst = worst.max(sum);
            micro_batches -= 1;
        }
        // Later epochs are other orders of the same rows: a few of them say what there is to say.
        if micro_batches == 0 || micro_batches == before || epoch >= 9 {
            break;
        }
    }
    worst
}
