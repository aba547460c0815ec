//! Optimizers and learning-rate schedules.

mod adafactor;
mod adamw;
mod args;
mod blockwise;
mod codes;
mod galore;
mod lion;
mod muon;
mod norm;
mod on_device;
mod paging;
mod rates;
mod rules;
mod schedule;
mod schedule_free;
mod sgd;
mod size;
mod slots;

pub use adafactor::Adafactor;
pub use adamw::{AdamW, AdamWSettings};
pub use args::OptimArgs;
pub use blockwise::{Blockwise, Keep};
pub use codes::Rounding;
pub use galore::{GaLore, GaLoreSettings, ProjType};
pub use lion::Lion;
pub use muon::Muon;
pub use norm::grad_norm;
pub use on_device::AdamW8;
pub use rates::Rates;
pub use rules::Rule;
pub use schedule::learning_rate;
pub use schedule_free::ScheduleFree;
pub use sgd::Sgd;
pub use size::{StateSize, state_size};

use std::path::Path;

use planish_autograd::Param;
use planish_tensor::Tensor;

use crate::Result;
use crate::config::{ConfigError, OptimSettings, OptimizerChoice};

/// What an update is done with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Learning rate.
    pub learning_rate: f64,
    /// Factor on the accumulated gradient: 1 / count, times the clipping.
    pub grad_scale: f64,
}

/// What turns gradients into updates, with its state.
pub trait Optimizer {
    /// The parameters it updates.
    fn params(&self) -> Vec<Param>;

    /// One update from the accumulated gradients, which are taken. A parameter without a gradient is left alone.
    ///
    /// # Errors
    /// Those of the kernels.
    fn step(&mut self, update: Update) -> Result<()>;

    /// Puts the weights that are to be evaluated and saved in place of those that are trained, or these back, bit for
    /// bit. They are the same for most.
    ///
    /// # Errors
    /// Those of the kernels.
    fn averaged(&mut self, _on: bool) -> Result<()> {
        Ok(())
    }

    /// Its state as named tensors: all of it, for a checkpoint is no checkpoint without.
    ///
    /// # Errors
    /// A file of states that cannot be mapped; out of memory.
    fn state(&self) -> Result<Vec<(String, Tensor)>>;

    /// Takes up a state that [`Optimizer::state`] gave, after `step` updates.
    ///
    /// # Errors
    /// Those of `get`; a tensor of another shape or dtype.
    fn restore(&mut self, step: u64, get: &dyn Fn(&str) -> Result<Tensor>) -> Result<()>;
}

/// The optimizer that the settings name, of the trainable ones among `params`. A paged one has its file in `scratch`.
///
/// # Errors
/// Out of memory; arguments that contradict each other; a disk without the room.
pub fn optimizer(params: &[Param], o: &OptimSettings, rates: &Rates, scratch: &Path) -> Result<Box<dyn Optimizer>> {
    let args = OptimArgs::of(o)?;
    let adam = adam(o);
    let betas = (o.adam_beta1, o.adam_beta2);
    let on_device = params.iter().any(|p| p.is_trainable() && !p.value().device().is_cpu());
    if on_device && o.optim == OptimizerChoice::AdamW8bit {
        return Ok(Box::new(AdamW8::new(params, adam, rates)?));
    }
    if let Some(rule) = rule(o) {
        let paged = o.optim.is_paged().then(|| (size::budget(o), scratch));
        let keep = Keep { eight_bits: o.optim.eight_bits(), rounding: args.rounding, paged };
        return Ok(Box::new(Blockwise::new(params, rule, keep, rates)?));
    }
    Ok(match o.optim {
        OptimizerChoice::Sgd => Box::new(Sgd::new(params, o.sgd_momentum, o.weight_decay, rates)?),
        OptimizerChoice::Lion => Box::new(Lion::new(params, betas, o.weight_decay, rates)?),
        OptimizerChoice::Adafactor => Box::new(Adafactor::new(params, o.weight_decay, rates)?),
        OptimizerChoice::Muon => Box::new(Muon::new(params, adam, rates)?),
        OptimizerChoice::ScheduleFree => Box::new(ScheduleFree::new(params, adam, rates)?),
        OptimizerChoice::GaLoreAdamW => {
            let targets = args::Targets::of(o)?;
            if !params.iter().any(|p| p.is_trainable() && p.value().rank() == 2 && targets.has(p.name())) {
                let problem = "names no trained linear layer of this model";
                return Err(ConfigError::Conflict { key: "optim_target_modules", problem }.into());
            }
            Box::new(GaLore::new(params, adam, args.galore, |p| targets.has(p.name()), rates)?)
        }
        _ => Box::new(AdamW::with_rates(params, adam, rates)?),
    })
}

fn adam(o: &OptimSettings) -> AdamWSettings {
    AdamWSettings { beta1: o.adam_beta1, beta2: o.adam_beta2, eps: o.adam_epsilon, weight_decay: o.weight_decay }
}

/// The rule of the optimizers that are [`Blockwise`].
fn rule(o: &OptimSettings) -> Option<Rule> {
    use OptimizerChoice as O;
    let weight_decay = o.weight_decay;
    Some(match o.optim {
        O::AdamW8bit | O::PagedAdamW | O::PagedAdamW8bit => Rule::AdamW(adam(o)),
        O::Lion8bit | O::PagedLion | O::PagedLion8bit => {
            Rule::Lion { betas: (o.adam_beta1, o.adam_beta2), weight_decay }
        }
        O::Sgd8bit => Rule::Sgd { momentum: o.sgd_momentum, weight_decay },
        _ => return None,
    })
}
