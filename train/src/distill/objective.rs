//! The objective of distillation.

use std::path::Path;
use std::sync::Arc;

use planish_autograd::ops::elementwise;
use planish_autograd::ops::lm_head_divergence::{Divergence, Teacher};
use planish_nn::Ctx;
use planish_nn::decoder::{Model, Packed, Routing};
use planish_tensor::{DType, Device, Tensor};

use super::features::{Features, selected};
use super::stored::StoredTeacher;
use crate::Result;
use crate::config::OptimSettings;
use crate::data::{Batch, Cursor, Sampler, Step};
use crate::losses::{RouterTerms, predicted};
use crate::run::report::LossUnit;
use crate::trainer::router::{Balance, Routers};
use crate::trainer::{Objective, Sums, packed, passes};

/// Where the teacher's predictions come from.
pub enum Guide {
    /// A model.
    Model(Box<Model>),
    /// A file of its most probable tokens.
    Stored(StoredTeacher),
}

/// Minimises the mean over the supervised tokens of
///
/// ```text
/// D(student, teacher) - hard_weight · log p(token)
/// ```
///
/// with the divergence D of [`planish_tensor::ops::lm_head_divergence`], and of [`Features`] where layers are matched.
pub struct Distill {
    guide: Guide,
    what: Divergence,
    hard_weight: f64,
    features: Option<Features>,
    balance: Balance,
}

impl Distill {
    /// An objective; `hard_weight` is that of cross-entropy on the data's own tokens.
    pub fn new(guide: Guide, what: Divergence, hard_weight: f64) -> Distill {
        Distill { guide, what, hard_weight, features: None, balance: Balance::default() }
    }

    /// Adds the losses of the student's routers. TRL's `GKDTrainer` leaves them out.
    #[must_use]
    pub fn balanced(self, terms: RouterTerms) -> Distill {
        Distill { balance: Balance::new(terms), ..self }
    }

    /// Matches layers too. The teacher is a model then.
    #[must_use]
    pub fn matching(self, features: Features) -> Distill {
        Distill { features: Some(features), ..self }
    }

    /// What the teacher says where `rows` of a batch predict.
    fn teacher(&self, batch: &Batch, stream: &Packed, rows: &[u32]) -> Result<(Teacher, Vec<Tensor>)> {
        match &self.guide {
            Guide::Model(model) => {
                let (ctx, layers) = (Ctx::inference(), self.features.as_ref().map_or(&[][..], |f| &f.teacher));
                let (hidden, seen) = model.forward_with(&ctx, stream, false, layers)?;
                Ok((model.as_teacher(&ctx, &hidden, rows)?, selected(&seen, rows)?))
            }
            Guide::Stored(stored) => {
                let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
                for s in 0..batch.segments() {
                    let range = batch.segment(s);
                    let (example, mask) = (batch.example_indices[s], &batch.mask[range.clone()]);
                    stored.read(example, &batch.ids[range], mask, &mut ids, &mut logprobs)?;
                }
                Ok((Teacher::Top { ids: ids.into(), logprobs: logprobs.into(), k: stored.k() }, Vec::new()))
            }
        }
    }

    /// A pass: its sums, and under a tape its gradient; and what the routers did in it, with the tokens of the whole step.
    fn pass(
        &self,
        model: &Model,
        ctx: &Ctx,
        batch: &Batch,
        recompute: bool,
        (sums, routers): (&mut Sums, Option<(&mut Routers, f64)>),
    ) -> Result<()> {
        let stream = packed(batch);
        let (rows, targets, _) = predicted(&stream, &batch.mask);
        if rows.is_empty() {
            return Ok(());
        }
        // Before anything is recorded: the activations of the two are never there together.
        let (teacher, theirs) = self.teacher(batch, &stream, &rows)?;
        let layers = self.features.as_ref().map_or(&[][..], Features::layers);
        let routing = Routing::default();
        let ctx = &if routers.is_some() { ctx.clone().with_routing(&routing) } else { ctx.clone() };
        let (hidden, seen) = model.forward_with(ctx, &stream, recompute, layers)?;
        let out = model.divergences(ctx, &hidden, &rows, &teacher, &self.what)?;
        let numbers =
            |t: &Tensor| -> Result<Vec<f64>> { Ok(t.to_device(Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>()?) };
        let (count, divergence) = (rows.len() as f64, numbers(out.divergence.value())?.iter().sum::<f64>());
        sums.loss += divergence;
        sums.count += count;
        sums.measure("divergence", divergence, count);
        sums.measure("teacher_agreement", out.agrees.iter().filter(|a| **a).count() as f64, count);
        sums.measure("entropy", numbers(&out.entropy)?.iter().sum(), count);
        let mut objective = out.divergence;
        if self.hard_weight > 0.0 {
            let scores = model.scores(ctx, &hidden, &rows, &targets)?;
            let nll = -numbers(scores.logprobs.value())?.iter().sum::<f64>();
            sums.loss += self.hard_weight * nll;
            sums.measure("nll_loss", nll, count);
            objective = elementwise::sub(&objective, &elementwise::scale(&scores.logprobs, self.hard_weight)?)?;
        }
        drop(hidden);
        let mut ends = vec![(objective, 1.0)];
        if let Some((routers, whole)) = routers {
            ends.extend(routers.beside(&routing.take(), whole)?);
        }
        if let Some(features) = &self.features {
            let distance = features.distance(ctx, &seen, &theirs, &rows)?;
            let sum = numbers(distance.value())?.iter().sum::<f64>();
            sums.loss += sum;
            sums.measure("feature_loss", sum, count);
            ends.push((distance, 1.0));
        }
        drop(seen);
        if let Some(tape) = ctx.tape() {
            let mut seeds = Vec::new();
            for (end, slope) in ends.into_iter().filter(|(end, _)| end.is_tracked()) {
                let value = end.value();
                let slopes = Tensor::full(slope, end.dims())?.to_dtype(value.dtype())?.to_device(value.device())?;
                seeds.push((end, slopes));
            }
            tape.backward_from(seeds)?;
        }
        Ok(())
    }
}

impl Objective for Distill {
    fn accumulate(&mut self, model: &Model, optim: &OptimSettings, step: &Step, done: u64) -> Result<Sums> {
        let mut passes = passes(optim, step, done, false);
        let supervised = |batch: &Batch| predicted(&packed(batch), &batch.mask).0.len();
        passes.retain(|(batch, _)| supervised(batch) > 0);
        let whole: usize = passes.iter().map(|(batch, _)| supervised(batch)).sum();
        let mut routers = match model.config.moe {
            None => None,
            Some(_) => {
                let passes = passes.iter().map(|(batch, ctx)| (packed(batch), ctx.clone()));
                Some(Routers::new(model, self.balance.terms(), passes)?)
            }
        };
        let mut sums = Sums::default();
        for (batch, ctx) in &passes {
            let routers = routers.as_mut().map(|routers| (routers, whole as f64));
            self.pass(model, ctx, batch, optim.recomputes_layers(), (&mut sums, routers))?;
        }
        if let Some(routers) = &routers {
            routers.add_to(&mut sums, whole as f64);
            self.balance.see(model, routers);
        }
        Ok(sums)
    }

    fn evaluate(&mut self, model: &Model, optim: &OptimSettings, sampler: &Arc<Sampler>) -> Result<Sums> {
        let limit = usize::try_from(optim.pass()).unwrap_or(usize::MAX);
        let mut sums = Sums::default();
        for step in sampler.steps(Cursor::default())?.epochs(1) {
            for batch in step?.micro_batches.iter().flat_map(|b| b.split(limit)) {
                self.pass(model, &Ctx::inference(), &batch, false, (&mut sums, None))?;
            }
        }
        Ok(sums)
    }

    fn unit(&self) -> LossUnit {
        // Distances of features have no unit.
        LossUnit::new(if self.features.is_some() { "per token" } else { "nats per token" }, None)
    }

    fn advice(&mut self, _sums: &Sums) -> Vec<String> {
        self.balance.advice().into_iter().collect()
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.features.as_ref().map_or(Ok(()), |features| features.save(dir))
    }

    fn load(&mut self, dir: &Path) -> Result<()> {
        self.features.as_ref().map_or(Ok(()), |features| features.load(dir))
    }
}
