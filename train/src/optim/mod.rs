//! Optimizers and learning-rate schedules.

mod adafactor;
mod adamw;
mod lion;
mod muon;
mod norm;
mod rates;
mod schedule;
mod schedule_free;
mod sgd;
mod slots;

pub use adafactor::Adafactor;
pub use adamw::{AdamW, AdamWSettings};
pub use lion::Lion;
pub use muon::Muon;
pub use norm::grad_norm;
pub use rates::Rates;
pub use schedule::learning_rate;
pub use schedule_free::ScheduleFree;
pub use sgd::Sgd;

use planish_autograd::Param;
use planish_tensor::Tensor;

use crate::Result;
use crate::config::{OptimSettings, OptimizerChoice};

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

    /// Its state as named tensors.
    fn state(&self) -> Vec<(String, Tensor)>;

    /// Takes up a state that [`Optimizer::state`] gave, after `step` updates.
    ///
    /// # Errors
    /// Those of `get`; a tensor of another shape or dtype.
    fn restore(&mut self, step: u64, get: &dyn Fn(&str) -> Result<Tensor>) -> Result<()>;
}

/// The optimizer that the settings name, of the trainable ones among `params`.
///
/// # Errors
/// Out of memory.
pub fn optimizer(params: &[Param], o: &OptimSettings, rates: &Rates) -> Result<Box<dyn Optimizer>> {
    let adam =
        AdamWSettings { beta1: o.adam_beta1, beta2: o.adam_beta2, eps: o.adam_epsilon, weight_decay: o.weight_decay };
    let betas = (o.adam_beta1, o.adam_beta2);
    Ok(match o.optim {
        OptimizerChoice::AdamW => Box::new(AdamW::with_rates(params, adam, rates)?),
        OptimizerChoice::Sgd => Box::new(Sgd::new(params, o.sgd_momentum, o.weight_decay, rates)?),
        OptimizerChoice::Lion => Box::new(Lion::new(params, betas, o.weight_decay, rates)?),
        OptimizerChoice::Adafactor => Box::new(Adafactor::new(params, o.weight_decay, rates)?),
        OptimizerChoice::Muon => Box::new(Muon::new(params, adam, rates)?),
        OptimizerChoice::ScheduleFree => Box::new(ScheduleFree::new(params, adam, rates)?),
    })
}
