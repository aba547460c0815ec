//! What a run will take, before step 0: memory and arithmetic of the worst micro-batch (law 7).
//!
//! Weights and what is trained (gradient, the optimizer's state, an f32 master of narrower weights) are counted in
//! the dtype that they are kept in. Activations and time are measured, by [`measure`], on a few layers of the
//! model itself.

mod probe;

pub use probe::{Costs, MEMORY_TOKENS, TIMED_ON_DEVICES, TIMED_TOKENS, Work, measure};

use std::collections::HashSet;

use planish_autograd::Param;
use planish_nn::decoder::Model;
use planish_tensor::{DType, Device};
use serde::{Deserialize, Serialize};

use crate::config::OptimSettings;
use crate::data::{DatasetType, Lengths, Packing, Sampler};
use crate::optim::state_size;
use crate::{Error, Result};

/// Memory of a run, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// The program, its tokenizer and its buffers; on a device what else is there, such as a reference.
    pub program: u64,
    /// Weights, adapters included.
    pub weights: u64,
    /// Gradients that are alive at the worst moment.
    pub gradients: u64,
    /// The optimizer's state and f32 masters, as far as they are in memory.
    pub optimizer: u64,
    /// Activations and temporary tensors at that moment of the worst micro-batch, or of the optimizer's step.
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
    /// Where it would compute.
    pub device: String,
    /// Optimizer steps in all.
    pub total_steps: u64,
    /// Optimizer steps of an epoch.
    pub steps_per_epoch: u64,
    /// Mean input tokens of a step.
    pub tokens_per_step: f64,
    /// Peak memory.
    pub memory: MemoryPlan,
    /// What the backward pass makes again, by the name of the setting, if anything.
    pub recomputes: Option<String>,
    /// Floating-point operations of a step.
    pub operations_per_step: f64,
    /// Seconds of the whole run, evaluations apart.
    pub seconds: f64,
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
pub fn check_fits(
    plan: &MemoryPlan,
    device: Device,
    in_use: u64,
    available: Option<u64>,
    recompute: bool,
) -> Result<()> {
    // What is held already (the weights) is not asked for again.
    let needed = plan.total().saturating_sub(in_use);
    match available {
        Some(available) if needed > available => {
            let advice = if !recompute {
                "set gradient_checkpointing to true"
            } else if plan.activations > plan.optimizer + plan.gradients {
                "lower tokens_per_pass or max_length"
            } else if device.is_cpu() {
                "train a LoRA adapter (use_peft) instead of all weights, keep the optimizer's state in 8 bits or in a file (optim: adamw_8bit, paged_adamw_32bit), or set dtype to bfloat16"
            } else {
                ROOM_FOR_STATE
            };
            Err(Error::DoesNotFit {
                place: if device.is_cpu() { "the system".to_owned() } else { device.to_string() },
                needed: plan.total(),
                activations: plan.activations,
                tokens: plan.tokens,
                available: available + in_use,
                advice,
            })
        }
        _ => Ok(()),
    }
}

/// What makes room for a training step on a device.
pub(crate) fn room_for_step(optim: &OptimSettings) -> &'static str {
    match optim.recomputes_layers() {
        false => {
            "set gradient_checkpointing to true, or lower tokens_per_pass, per_device_train_batch_size or max_length"
        }
        true => "lower tokens_per_pass, per_device_train_batch_size or max_length",
    }
}

/// What makes room on a device for weights and what is trained of them.
pub(crate) const ROOM_FOR_STATE: &str = "train a LoRA adapter (use_peft) instead of all weights, on a quantised base (load_in_4bit) if need be, keep the optimizer's state in 8 bits (optim: adamw_8bit), or set dtype to bfloat16";

/// That not even the plan that takes least is within the budget.
pub fn over_budget(plan: &MemoryPlan, budget: u64) -> Error {
    let (needed, activations, tokens) = (plan.total(), plan.activations, plan.tokens);
    let advice = "raise memory_budget, lower max_length, set dtype to bfloat16, or train a LoRA adapter (use_peft)";
    Error::OverBudget { needed, activations, tokens, budget, advice }
}

/// What a process takes at least, where it cannot be asked: the program and a small tokenizer.
const PROGRAM: u64 = 24 << 20;

/// Predicts the peak memory of training `model` with micro-batches of up to `tokens` tokens, `accumulation`
/// of them a step.
///
/// The optimizer gives gradients back, so in a step of one micro-batch they come into being, from the head down
/// to the first layer, while activations go: the peak is at one end of that, and [`MemoryPlan`] says what is
/// alive then. `in_use` is what the process has after [`measure`], with the model loaded: what of it is not
/// weights is the program's, the tokenizer's, the threads' buffers and what the allocator holds back. On a device it is what
/// tensors had there before: beside the weights a reference, a teacher. Tensors are counted there with the allocator's
/// rounding, and weights that are wider than activations with the copies that products take.
///
/// # Errors
/// Arguments of the optimizer that contradict each other.
pub fn memory(
    model: &Model,
    optim: &OptimSettings,
    costs: &Costs,
    tokens: u64,
    accumulation: usize,
    in_use: Option<u64>,
) -> Result<MemoryPlan> {
    let device = model.device();
    let (mut weights, mut all) = (0, 0);
    let size = state_size(&model.params(), optim)?;
    let gradient =
        |p: &Param| if p.is_trainable() { device.taken((p.value().numel() * p.grad_dtype().size()) as u64) } else { 0 };
    for p in model.params() {
        weights += device.taken(p.value().nbytes() as u64);
        all += gradient(&p);
    }
    // Each once: maps of several experts may share a parameter.
    let mut seen = HashSet::new();
    let of_linears = model.layers.iter().flat_map(|l| l.linears()).flat_map(|l| l.params());
    let of_norms = model.layers.iter().flat_map(|l| l.norms()).flat_map(|n| n.weight.params());
    let of_layers = of_linears.chain(of_norms).filter(|p| seen.insert(p.name().to_owned())).map(gradient);
    let above = all - of_layers.sum::<u64>();
    let (most, least) = (costs.bytes(tokens), costs.bytes_below(tokens));
    let (gradients, activations) = match accumulation {
        1 if above + most >= all + least => (above, most),
        1 => (all, least),
        _ => (all, most),
    };
    // Or, where it takes more, while the optimizer makes its step.
    let (gradients, activations) =
        if all + size.step > gradients + activations { (all, size.step) } else { (gradients, activations) };
    let optimizer = size.memory;
    let program = in_use.unwrap_or(0).saturating_sub(weights).max(if device.is_cpu() { PROGRAM } else { 0 });
    weights += rounded(model);
    Ok(MemoryPlan { program, weights, gradients, optimizer, activations, tokens })
}

/// Bytes of the copies in the dtype of activations that a device keeps of weights that products take and that are held in
/// a wider one.
fn rounded(model: &Model) -> u64 {
    let (device, dtype) = (model.device(), model.activations());
    if device.is_cpu() || dtype == DType::F32 {
        return 0;
    }
    let head = model.lm_head.as_ref().unwrap_or(&model.embed_tokens);
    let linears = model.layers.iter().flat_map(|l| l.linears());
    let mut seen = HashSet::new();
    let taken = linears.flat_map(|l| l.params()).chain(head.params()).filter(|p| seen.insert(p.name().to_owned()));
    let copied = taken.filter(|p| ![dtype, DType::Packed].contains(&p.value().dtype()));
    copied.map(|p| device.taken((p.value().numel() * dtype.size()) as u64)).sum()
}

/// Ends of the names of the modules that a lean pass computes again.
const WIDE: [&str; 4] = ["gate_proj", "up_proj", ".w1", ".w3"];

/// Floating-point operations of training on `tokens` tokens, `supervised` of which carry a loss:
/// 2 a weight and token forward, 2 for the gradient of activations, 2 for that of trained weights, and
/// where it is recomputed 2 once more; attention's products by half the mean length.
pub fn operations(model: &Model, tokens: u64, supervised: u64, mean_length: f64, optim: &OptimSettings) -> f64 {
    let (mut frozen, mut trained, mut wide) = (0f64, 0f64, 0f64);
    // Of its experts a token goes through some only.
    let chosen = model.config.moe.map_or(1.0, |moe| moe.per_token as f64 / moe.experts as f64);
    let mut seen = HashSet::new();
    for layer in &model.layers {
        for linear in layer.linears() {
            let expert = linear.name.contains(".experts.");
            let share = if expert { chosen } else { 1.0 };
            for p in linear.params().filter(|p| p.value().rank() == 2) {
                // Maps of several experts may share one.
                if expert && !seen.insert(p.name().to_owned()) {
                    continue;
                }
                let n = p.value().numel() as f64 * share;
                if p.is_trainable() {
                    trained += n
                } else {
                    frozen += n
                }
                if WIDE.iter().any(|end| linear.name.ends_with(end)) {
                    wide += n;
                }
            }
        }
    }
    let again = if optim.recomputes_layers() { 2.0 } else { 0.0 };
    let wide = if optim.recomputes_mlps() { 2.0 * wide } else { 0.0 };
    let c = &model.config;
    let attention = c.num_layers() as f64 * (c.num_heads * c.head_dim) as f64 * mean_length / 2.0;
    let head = (c.vocab_size * c.hidden_size) as f64;
    let head_trained = if model.head(&planish_nn::Ctx::inference()).is_tracked() { 2.0 } else { 0.0 };
    tokens as f64 * (frozen * (4.0 + again) + trained * (6.0 + again) + wide + attention * (14.0 + 2.0 * again))
        // Forward, recomputed logits and the gradient of the hidden states.
        + supervised as f64 * head * (6.0 + head_trained)
}

/// Tokens of the largest of the first `micro_batches` micro-batches: exact when all lengths are known, else
/// what the longest examples would make together.
pub fn worst_micro_batch(sampler: &Sampler, lengths: &Lengths, longest: u64, mut micro_batches: u64) -> u64 {
    let options = sampler.options();
    // Each side of a pair may be that long.
    let has = |kind| sampler.view().data().files().iter().any(|f| f.kind == kind);
    let sides = if has(DatasetType::Preference) { 2 } else { 1 };
    // A row may have any number of answers.
    let many = [DatasetType::Prm800k, DatasetType::Ranked].into_iter().any(has);
    let longest_row = sampler.encoder().options().max_length.filter(|_| !many);
    let limit = longest_row.map_or(u64::MAX, |n| n as u64 * sides);
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
