//! What an optimizer's state takes, before it is made (law 7).

use planish_autograd::Param;
use planish_tensor::Device;

use super::args::{OptimArgs, Targets};
use super::blockwise::{fields, split};
use super::muon::is_hidden;
use super::{Rule, rule};
use crate::Result;
use crate::config::{OptimSettings, OptimizerChoice as O};

/// Bytes of an optimizer's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateSize {
    /// In memory: moments, f32 masters of narrower weights, and a paged optimizer's buffers.
    pub memory: u64,
    /// In a paged optimizer's file.
    pub file: u64,
    /// In memory while a step is taken, when all gradients are there and no activations: GaLore's matrices in f64.
    pub step: u64,
}

/// The state of the trainable ones among `params` under these settings.
///
/// What schedule-free keeps of the weights while it evaluates and saves is not among it: it is as large as the gradients,
/// and there when these are not.
///
/// # Errors
/// Settings that contradict each other.
pub fn state_size(params: &[Param], o: &OptimSettings) -> Result<StateSize> {
    let trained: Vec<&Param> = params.iter().filter(|p| p.is_trainable()).collect();
    if let Some(rule) = rule(o) {
        return Ok(blockwise(&trained, &rule, o));
    }
    let (args, targets) = (OptimArgs::of(o)?, Targets::of(o)?);
    let (mut memory, mut projected) = (0, Vec::new());
    for p in trained {
        let (value, wide) = (p.value(), p.grad_dtype());
        let n = value.numel();
        let numbers = match o.optim {
            O::Sgd => {
                if o.sgd_momentum > 0.0 {
                    n
                } else {
                    0
                }
            }
            O::Lion => n,
            O::Adafactor => match *value.dims() {
                [rows, cols] => rows + cols,
                _ => n,
            },
            O::Muon if is_hidden(p) => n,
            O::GaLoreAdamW if value.rank() == 2 && targets.has(p.name()) => {
                projected.push(value.dims().to_vec());
                let [moments, projection] = args.galore.shapes(value.dims());
                2 * moments.iter().product::<usize>() + projection.iter().product::<usize>()
            }
            _ => 2 * n,
        };
        let master = if value.dtype() == wide { 0 } else { n };
        memory += match value.device() {
            Device::Cpu => ((numbers + master) * wide.size()) as u64,
            // Each a tensor as large as the weight.
            device => ((numbers + master) / n.max(1)) as u64 * device.taken((n * wide.size()) as u64),
        };
    }
    Ok(StateSize { memory, file: 0, step: args.galore.working(&projected) as u64 })
}

fn blockwise(trained: &[&Param], rule: &Rule, o: &OptimSettings) -> StateSize {
    if trained.iter().any(|p| !p.value().device().is_cpu()) {
        let of = |p: &&Param| super::on_device::bytes(&fields(rule, p, o.optim.eight_bits()), &p.value());
        return StateSize { memory: trained.iter().map(of).sum(), ..StateSize::default() };
    }
    let sizes = trained.iter().map(|p| (fields(rule, p, o.optim.eight_bits()), p.value().numel()));
    let (_, memory, file) = split(sizes, if o.optim.is_paged() { budget(o) } else { u64::MAX });
    StateSize { memory, file, step: 0 }
}

/// Bytes of states that a paged optimizer keeps in memory.
pub(super) fn budget(o: &OptimSettings) -> u64 {
    (o.optim_memory_budget.unwrap_or(0.0) * (1u64 << 30) as f64) as u64
}
