//! The objective of reward models.

use std::sync::Arc;

use planish_autograd::Tape;
use planish_nn::decoder::Model;
use planish_tensor::{DType, Tensor};

use super::judged::{Judged, Length};
use super::{Mode, passes};
use crate::Result;
use crate::config::OptimSettings;
use crate::data::{Batch, Cursor, Sampler, Step};
use crate::losses::{BradleyTerry, Laid};
use crate::trainer::{Objective, Sums, packed};

/// Minimises [`BradleyTerry`] over pairs, divided by their number. A side's reward is read at its last token, by
/// position: deviation from transformers, which looks for the last token that is not padding and so takes the one
/// before an end that the padding is equal to.
pub struct Rewards {
    loss: BradleyTerry,
    dropout: bool,
    share: bool,
}

impl Rewards {
    /// An objective. `dropout` is whether there is any while training.
    pub fn new(loss: BradleyTerry, dropout: bool) -> Rewards {
        Rewards { loss, dropout, share: false }
    }

    /// Lets the sides of a pair share what they begin with: [`crate::losses::Want::share`] says when.
    #[must_use]
    pub fn sharing(self, share: bool) -> Rewards {
        Rewards { share, ..self }
    }

    fn run(&self, model: &Model, optim: &OptimSettings, micro_batches: &[Batch], mode: Mode) -> Result<Sums> {
        let mut sums = Sums::default();
        for parts in passes(micro_batches, optim.tokens_per_pass) {
            let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
            for part in &parts {
                let tape = (mode != Mode::HeldOut).then(Tape::new);
                let ctx = mode.ctx(optim, &part.keys, tape.as_ref());
                let laid = Laid::new(model, &ctx, packed(&part.batch), self.share);
                let hidden = model.forward(&ctx, laid.stream(), optim.gradient_checkpointing)?;
                let last: Vec<u32> = part.batch.cu_seqlens[1..].iter().map(|end| laid.at(end - 1)).collect();
                let rewards = model.rewards(&ctx, &hidden, &last)?;
                drop(hidden);
                let values = rewards.value().to_dtype(DType::F64)?.to_vec::<f64>()?;
                let mut slopes = Vec::with_capacity(values.len());
                for (k, (pair, &margin)) in values.chunks_exact(2).zip(&part.batch.margins).enumerate() {
                    let (chosen, rejected) = (pair[0], pair[1]);
                    let judged = Judged::new([chosen, rejected], [0, 1].map(|s| part.batch.segment(2 * k + s).len()));
                    let found = self.loss.loss(chosen, rejected, margin);
                    slopes.extend([found.chosen, found.rejected]);
                    sums.loss += found.loss;
                    sums.count += 1.0;
                    sums.measure("mean_reward", chosen + rejected, 2.0);
                    sums.measure("accuracy", judged.right(), 1.0);
                    // Both each time, so that metrics have one order whatever pair comes first.
                    for length in [Length::ChosenLonger, Length::ChosenShorter] {
                        let is = f64::from(u8::from(judged.length == Some(length)));
                        sums.measure(length.metric(), is * judged.right(), is);
                    }
                    sums.measure("confidence", judged.confidence(), 1.0);
                    sums.measure("margin", chosen - rejected, 1.0);
                    (least, most) = (least.min(chosen).min(rejected), most.max(chosen).max(rejected));
                }
                if let Some(tape) = &tape {
                    let upstream = Tensor::from_vec(slopes, rewards.dims())?.to_dtype(rewards.value().dtype())?;
                    tape.backward_from(vec![(rewards, upstream)])?;
                }
            }
            sums.measure("min_reward", least, 1.0);
            sums.measure("max_reward", most, 1.0);
        }
        Ok(sums)
    }
}

impl Objective for Rewards {
    fn accumulate(&mut self, model: &Model, optim: &OptimSettings, step: &Step, done: u64) -> Result<Sums> {
        self.run(model, optim, &step.micro_batches, Mode::Train { done, dropout: self.dropout })
    }

    fn evaluate(&mut self, model: &Model, optim: &OptimSettings, sampler: &Arc<Sampler>) -> Result<Sums> {
        let mut all = Sums::default();
        for step in sampler.steps(Cursor::default())?.epochs(1) {
            all += self.run(model, optim, &step?.micro_batches, Mode::HeldOut)?;
        }
        Ok(all)
    }
}
