//! The objective of reward models that judge steps.

use planish_nn::decoder::Model;
use serde::Serialize;

use super::head::{Lay, through_head};
use super::objective::{Kept, Preference};
use super::reference::Reference;
use super::{Mode, passes, routers};
use crate::Result;
use crate::config::OptimSettings;
use crate::data::Batch;
use crate::losses::{Laid, step_loss};
use crate::run::report::LossUnit;
use crate::trainer::Sums;
use crate::trainer::router::Routers;

/// Minimises [`step_loss`] over the judged steps of a batch, divided by their number. A step is judged at its last token.
pub struct StepRewards {
    kept: Kept,
}

impl StepRewards {
    /// An objective. `dropout` is whether there is any while training.
    pub fn new(dropout: bool) -> StepRewards {
        StepRewards { kept: Kept::new(Reference::Free, dropout, Vec::new()) }
    }

    /// Lets neighbouring answers share what they begin with, such as those of one row of PRM800K:
    /// [`crate::losses::Want::beginnings`].
    #[must_use]
    pub fn sharing(mut self, share: bool) -> StepRewards {
        self.kept.share = share;
        self
    }
}

impl Preference for StepRewards {
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
        let (mut sums, mut judgement) = (Sums::default(), StepJudgement::default());
        let passes = passes(micro_batches, optim.pass());
        let mut routers = routers(model, self.kept.balance.terms(), optim, &passes, mode)?;
        for part in passes.iter().flatten() {
            let batch = &part.batch;
            let ends = |s: usize| batch.segment(s).skip(1).filter(|&i| batch.mask[i]);
            let all = (0..batch.segments()).flat_map(ends).map(|i| i as u32);
            let loss = |values: &[f64]| {
                let mut slopes = Vec::with_capacity(values.len());
                let mut steps = values.chunks_exact(2).zip(&batch.steps);
                for s in 0..batch.segments() {
                    let mut answer = Answer::default();
                    for (z, &is_right) in steps.by_ref().take(ends(s).count()) {
                        let found = step_loss([z[0], z[1]], is_right);
                        slopes.extend(found.slopes);
                        sums.loss += found.loss;
                        sums.count += 1.0;
                        answer.push(found.right, Some(is_right));
                    }
                    judgement.add(&answer);
                }
                slopes
            };
            let how = (Laid::beginnings as Lay, self.kept.share);
            through_head(model, optim, (part, mode), how, all, routers.as_mut(), loss)?;
        }
        judgement.measure(&mut sums);
        Ok((sums, routers))
    }

    fn unit(&self) -> LossUnit {
        LossUnit::new("nats per judged step", None)
    }

    fn together(&self, mut totals: Sums, routers: Option<&Routers>) -> Sums {
        if let Some(routers) = routers {
            routers.add_to(&mut totals, 0.0);
        }
        totals
    }
}

/// The steps of an answer: how probable it is that each is right, and whether it is, where that is known.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    probabilities: Vec<f64>,
    labels: Vec<bool>,
}

impl Answer {
    /// Appends a step. Either all steps of an answer have a label or none has.
    pub fn push(&mut self, right: f64, label: Option<bool>) {
        self.probabilities.push(right);
        self.labels.extend(label);
    }

    /// p of each step.
    pub fn probabilities(&self) -> &[f64] {
        &self.probabilities
    }

    /// The least p of a step: an answer is as good as its weakest step (1 of no steps).
    pub fn min(&self) -> f64 {
        self.probabilities.iter().copied().fold(1.0, f64::min)
    }

    /// Π p: how probable it is that all steps are right, were they independent.
    pub fn product(&self) -> f64 {
        self.probabilities.iter().product()
    }

    /// p of the last step (1 of no steps).
    pub fn last(&self) -> f64 {
        self.probabilities.last().copied().unwrap_or(1.0)
    }

    /// Whether the first wrong step, or that there is none, is found: the first with p < ½.
    fn first_error_found(&self) -> bool {
        let found = self.probabilities.iter().position(|&p| p < 0.5);
        found == self.labels.iter().position(|&right| !right)
    }
}

/// How well steps are judged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct StepJudgement {
    /// Steps with a label.
    pub steps: u64,
    /// Of these, right ones.
    pub right_steps: u64,
    /// Judged as labelled: wrong ones, right ones (p of at least ½).
    pub hits: [u64; 2],
    /// Answers with labels.
    pub answers: u64,
    /// Of these, those of which the first wrong step, or that there is none, is found.
    pub first_errors_found: u64,
}

impl StepJudgement {
    /// Takes in an answer; one without labels counts for nothing.
    pub fn add(&mut self, answer: &Answer) {
        if answer.labels.is_empty() {
            return;
        }
        for (&p, &right) in answer.probabilities.iter().zip(&answer.labels) {
            self.steps += 1;
            self.right_steps += u64::from(right);
            self.hits[usize::from(right)] += u64::from((p >= 0.5) == right);
        }
        self.answers += 1;
        self.first_errors_found += u64::from(answer.first_error_found());
    }

    /// Names, sums and counts of what is measured.
    ///
    /// # Source
    /// The first error is what ProcessBench counts, arXiv 2412.06559.
    pub fn shares(&self) -> [(&'static str, u64, u64); 4] {
        let [wrong, right] = self.hits;
        [
            ("accuracy", wrong + right, self.steps),
            ("accuracy/right", right, self.right_steps),
            ("accuracy/wrong", wrong, self.steps - self.right_steps),
            ("accuracy/first_error", self.first_errors_found, self.answers),
        ]
    }

    fn measure(&self, sums: &mut Sums) {
        for (name, sum, count) in self.shares() {
            sums.measure(name, sum as f64, count as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_first_errors_are_counted() {
        let answer = |steps: &[(f64, bool)]| {
            let mut answer = Answer::default();
            steps.iter().for_each(|&(p, right)| answer.push(p, Some(right)));
            answer
        };
        let mut found = StepJudgement::default();
        found.add(&answer(&[(0.9, true), (0.2, false), (0.3, true)]));
        found.add(&answer(&[(0.4, true), (0.8, false)]));
        found.add(&answer(&[(0.5, true)]));
        let mut unlabelled = Answer::default();
        unlabelled.push(0.25, None);
        unlabelled.push(0.5, None);
        found.add(&unlabelled);
        assert_eq!(
            found.shares().map(|(_, sum, count)| (sum, count)),
            // Right of all, of the right ones, of the wrong ones; the first error of the first and of the last answer.
            [(3, 6), (2, 4), (1, 2), (2, 3)]
        );
        assert_eq!((unlabelled.min(), unlabelled.product(), unlabelled.last()), (0.25, 0.125, 0.5));
    }
}
