//! What a run minimises, as the training loop sees it.

use std::path::Path;
use std::sync::Arc;

use planish_nn::decoder::Model;

use super::router::Balance;
use crate::Result;
use crate::config::OptimSettings;
use crate::data::{Sampler, Step};
use crate::losses::{LossSum, RouterTerms};
use crate::run::report::LossUnit;

/// Sums over a step, or over held-out data: of the loss, and of what is measured on the way.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sums {
    /// Summed loss, nats or the loss's own unit.
    pub loss: f64,
    /// What it is divided by: tokens, pairs, completions.
    pub count: f64,
    /// Name, sum and count of each measurement.
    metrics: Vec<(String, f64, f64)>,
}

impl Sums {
    /// A loss alone.
    pub fn new(loss: f64, count: f64) -> Sums {
        Sums { loss, count, metrics: Vec::new() }
    }

    /// Adds to a measurement.
    pub fn measure(&mut self, name: &str, sum: f64, count: f64) {
        match self.metrics.iter_mut().find(|(n, ..)| n == name) {
            Some((_, s, c)) => (*s, *c) = (*s + sum, *c + count),
            None => self.metrics.push((name.to_owned(), sum, count)),
        }
    }

    /// Mean loss.
    pub fn mean(&self) -> f64 {
        self.loss / self.count
    }

    /// Means of what was measured, in the order in which it first was; nothing where there was nothing to count.
    pub fn means(&self) -> Vec<(String, f64)> {
        self.metrics.iter().filter(|(_, _, c)| *c > 0.0).map(|(n, s, c)| (n.clone(), s / c)).collect()
    }

    /// The mean of one measurement.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|(n, _, c)| n == name && *c > 0.0).map(|(_, s, c)| s / c)
    }
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Sums) {
        self.loss += other.loss;
        self.count += other.count;
        other.metrics.iter().for_each(|(n, s, c)| self.measure(n, *s, *c));
    }
}

impl From<LossSum> for Sums {
    fn from(sum: LossSum) -> Sums {
        let count = sum.count as f64;
        let mut sums = Sums::new(sum.loss, count);
        sums.measure("mean_token_accuracy", sum.correct as f64, count);
        sums.measure("entropy", sum.entropy, count);
        sums
    }
}

/// What a run minimises.
pub trait Objective {
    /// Adds the gradient of the step's summed loss to the parameters. `done` optimizer steps are behind.
    ///
    /// # Errors
    /// Those of the data and of the kernels.
    fn accumulate(&mut self, model: &Model, optim: &OptimSettings, step: &Step, done: u64) -> Result<Sums>;

    /// Sums over one epoch of held-out data, without dropout and without a tape.
    ///
    /// # Errors
    /// Those of the data and of the kernels.
    fn evaluate(&mut self, model: &Model, optim: &OptimSettings, sampler: &Arc<Sampler>) -> Result<Sums>;

    /// After an optimizer step, the `done`-th.
    ///
    /// # Errors
    /// Those of the kernels.
    fn updated(&mut self, _model: &Model, _done: u64) -> Result<()> {
        Ok(())
    }

    /// What the user should know after a step with these sums, a sentence each.
    fn advice(&mut self, _sums: &Sums) -> Vec<String> {
        Vec::new()
    }

    /// How a curve of the loss is to be read.
    fn unit(&self) -> LossUnit {
        LossUnit::new("nats per token", None)
    }

    /// Writes what a resumed run needs besides model, optimizer and trainer.
    ///
    /// # Errors
    /// Files that cannot be written.
    fn save(&self, _dir: &Path) -> Result<()> {
        Ok(())
    }

    /// Reads what [`Objective::save`] wrote.
    ///
    /// # Errors
    /// Files that are missing or wrong.
    fn load(&mut self, _dir: &Path) -> Result<()> {
        Ok(())
    }
}

/// Cross-entropy of the supervised tokens, and of a mixture of experts the losses of its routers: what sft and pretrain
/// minimise.
#[derive(Debug, Clone, Default)]
pub struct CrossEntropy {
    /// What neighbouring examples begin with is computed once; nothing may drop out then.
    share: bool,
    balance: Balance,
}

impl CrossEntropy {
    /// With `share` what neighbouring examples begin with is computed once (nothing may drop out then; without effect
    /// beside losses of routers, which count every token). `router` has the weights of those losses.
    pub fn new(share: bool, router: RouterTerms) -> CrossEntropy {
        CrossEntropy { share, balance: Balance::new(router) }
    }
}

impl Objective for CrossEntropy {
    fn accumulate(&mut self, model: &Model, optim: &OptimSettings, step: &Step, done: u64) -> Result<Sums> {
        if model.config.moe.is_none() {
            return Ok(super::accumulate_sharing(model, optim, step, done, self.share)?.into());
        }
        let terms = self.balance.terms();
        let (sums, routers) = super::router::accumulate(model, optim, step, done, self.share, terms)?;
        self.balance.see(model, &routers);
        Ok(sums)
    }

    fn evaluate(&mut self, model: &Model, _optim: &OptimSettings, sampler: &Arc<Sampler>) -> Result<Sums> {
        Ok(super::evaluate(model, sampler)?.into())
    }

    fn advice(&mut self, _sums: &Sums) -> Vec<String> {
        self.balance.advice().into_iter().collect()
    }
}
