//! The objective of reward models.

use planish_nn::decoder::Model;

use super::head::{Lay, through_head};
use super::judged::{Judged, Length};
use super::lengths::measure_length;
use super::objective::{Kept, Preference};
use super::reference::Reference;
use super::watch::{Kind, Watch, by_heart_loss};
use super::{Mode, passes, routers};
use crate::Result;
use crate::config::OptimSettings;
use crate::data::Batch;
use crate::losses::{BradleyTerry, Laid};
use crate::run::report::LossUnit;
use crate::trainer::Sums;
use crate::trainer::router::Routers;

/// Minimises [`BradleyTerry`] over pairs, divided by their number. A side's reward is read at its last token, by
/// position: deviation from transformers, which looks for the last token that is not padding and so takes the one
/// before an end that the padding is equal to.
pub struct Rewards {
    loss: BradleyTerry,
    kept: Kept,
}

impl Rewards {
    /// An objective. `dropout` is whether there is any while training.
    pub fn new(loss: BradleyTerry, dropout: bool) -> Rewards {
        Rewards { loss, kept: Kept::new(Reference::Free, dropout, vec![Watch::new(Kind::Reward)]) }
    }

    /// Lets the sides of a pair share what they begin with: [`crate::losses::Want::share`] says when.
    #[must_use]
    pub fn sharing(mut self, share: bool) -> Rewards {
        self.kept.share = share;
        self
    }
}

impl Preference for Rewards {
    type Totals = Sums;

    fn kept(&self) -> &Kept {
        &self.kept
    }

    fn kept_mut(&mut self) -> &mut Kept {
        &mut self.kept
    }

    fn run(
        &self,
        model: &Model,
        optim: &OptimSettings,
        micro_batches: &[Batch],
        mode: Mode,
    ) -> Result<(Sums, Option<Routers>)> {
        let mut sums = Sums::default();
        let all = passes(micro_batches, optim.pass());
        let mut routers = routers(model, self.kept.balance.terms(), optim, &all, mode)?;
        for parts in &all {
            let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
            for part in parts {
                let batch = &part.batch;
                let last = batch.cu_seqlens[1..].iter().map(|end| end - 1);
                let loss = |values: &[f64]| {
                    let mut slopes = Vec::with_capacity(values.len());
                    for (k, (pair, &margin)) in values.chunks_exact(2).zip(&batch.margins).enumerate() {
                        let (chosen, rejected) = (pair[0], pair[1]);
                        let tokens = [0, 1].map(|s| batch.segment(2 * k + s).len());
                        let judged = Judged::new([chosen, rejected], tokens);
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
                        let lengths = tokens.map(|n| n as f64);
                        measure_length(&mut sums, "length_margin", [chosen, rejected], lengths);
                        (least, most) = (least.min(chosen).min(rejected), most.max(chosen).max(rejected));
                    }
                    slopes
                };
                let how = (Laid::new as Lay, self.kept.share);
                through_head(model, optim, (part, mode), how, last, routers.as_mut(), loss)?;
            }
            sums.measure("min_reward", least, 1.0);
            sums.measure("max_reward", most, 1.0);
        }
        Ok((sums, routers))
    }

    fn unit(&self) -> LossUnit {
        LossUnit::new("per pair", (self.loss.center == 0.0).then(by_heart_loss))
    }

    fn together(&self, mut totals: Sums, routers: Option<&Routers>) -> Sums {
        if let Some(routers) = routers {
            routers.add_to(&mut totals, 0.0);
        }
        totals
    }
}
