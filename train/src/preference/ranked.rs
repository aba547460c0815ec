//! The objective of several answers with scores.

use std::ops::Range;

use planish_autograd::Tape;
use planish_nn::decoder::{Model, Routing};

use super::lengths::{LENGTH_MARGIN, measure_length};
use super::members::completion;
use super::moved::{MOVED, measure_moved};
use super::objective::{Kept, Preference};
use super::pairs::Totals;
use super::reference::{Compared, Reference};
use super::watch::Watch;
use super::{Mode, Part, passes, routers};
use crate::Result;
use crate::config::OptimSettings;
use crate::data::Batch;
use crate::losses::{ListLoss, RouterTerms, Side, TokenScores, Want, ordered, token_scores};
use crate::run::report::LossUnit;
use crate::trainer::router::{Balance, Routers};
use crate::trainer::{Sums, packed};

/// Minimises a [`ListLoss`] over rows of answers to a prompt, and cross-entropy on the best answers:
///
/// ```text
/// L = Σ_rows ℓ(answers, scores) / rows + w · Σ_best Σ_tokens -log p / tokens
/// ```
///
/// With ℓ = Σ_{s_i > s_j} max(0, mean log p(j) - mean log p(i)) ([`AllPairs`](crate::losses::AllPairs)) this is RRHF, with
/// [`Nca`](crate::losses::Nca) it is NCA. Of a pair the chosen answer has the score 1 and the rejected one 0. The best is
/// the first of those with the highest score. All answers of a row go through the model in one batch.
///
/// # Source
/// Yuan et al., "RRHF", arXiv 2304.05302, equations 2 to 4. Deviation: cross-entropy is a mean over the tokens of a step,
/// where the paper has a sum.
pub struct Ranked {
    loss: Box<dyn ListLoss>,
    kept: Kept,
}

impl Ranked {
    /// An objective. `dropout` is whether there is any while training.
    ///
    /// # Panics
    /// If the reference was computed beforehand, which is done for pairs.
    pub fn new(loss: Box<dyn ListLoss>, reference: Reference, dropout: bool) -> Ranked {
        assert!(!matches!(reference, Reference::Known(_)), "numbers of pairs");
        let watches = vec![Watch::pairs(loss.has_reference())];
        Ranked { loss, kept: Kept::new(reference, dropout, watches) }
    }

    /// Adds the losses of the model's routers, which count every token: nothing is shared beside them.
    #[must_use]
    pub fn balanced(mut self, terms: RouterTerms) -> Ranked {
        self.kept.balance = Balance::new(terms);
        self
    }

    /// Lets the answers of a prompt share it ([`Want::beginnings`]).
    #[must_use]
    pub fn sharing(mut self, share: bool) -> Ranked {
        self.kept.share = share;
        self
    }

    /// A pass, whose tokens of best answers weigh `nll` each in the loss that is still to be divided by the rows.
    fn part(
        &self,
        model: &Model,
        optim: &OptimSettings,
        (part, mode): (&Part, Mode),
        nll: f64,
        (totals, routers): (&mut Totals, &mut Option<Routers>),
    ) -> Result<()> {
        let batch = &part.batch;
        let beginnings = self.kept.share && !self.kept.balance.terms().any();
        // Before anything is recorded: the reference's activations and the model's are never there together.
        let (ones, want) = (vec![1.0; batch.supervised()], Want { beginnings, ..Want::default() });
        let compared = self.kept.reference.compare(model, batch, &ones, mode == Mode::HeldOut, want)?;
        let tape = (mode != Mode::HeldOut).then(Tape::new);
        let (mut ctx, routing) = (mode.ctx(optim, &part.keys, tape.as_ref()), Routing::default());
        if routers.is_some() {
            ctx = ctx.with_routing(&routing);
        }
        let want = Want { recompute: optim.recomputes_layers(), ..want };
        let scores = token_scores(model, &ctx, &packed(batch), &batch.mask, want)?;
        if let Some(tokens) = &compared.tokens {
            let logratios = scores.logprobs.iter().zip(tokens).map(|(p, r)| p - r);
            measure_moved(&mut totals.sums, MOVED, logratios);
        }
        let mut slopes = vec![0.0; scores.logprobs.len()];
        for answers in batch.examples() {
            let best = best(batch, &answers);
            for (s, slope) in answers.clone().zip(self.rank(batch, (&scores, &compared), &answers, &mut totals.sums)) {
                slopes[scores.of(s)].fill(if s == best { slope - nll } else { slope });
            }
            totals.nll -= scores.of(best).map(|i| scores.logprobs[i]).sum::<f64>();
        }
        let beside = match routers {
            Some(routers) => routers.beside(&routing.take(), totals.pairs)?,
            None => None,
        };
        if mode != Mode::HeldOut {
            scores.backward_beside(&slopes, beside)?;
        }
        Ok(())
    }

    /// The slopes of ℓ of a row by its answers' log-probabilities.
    fn rank(
        &self,
        batch: &Batch,
        (scores, compared): (&TokenScores, &Compared),
        answers: &Range<usize>,
        to: &mut Sums,
    ) -> Vec<f64> {
        let side = |s: usize| Side {
            logp: scores.of(s).map(|i| scores.logprobs[i]).sum(),
            reference: compared.sums[s],
            tokens: scores.of(s).len() as f64,
            ..Side::default()
        };
        let (first, sides) = (answers.start, answers.clone().map(side).collect::<Vec<_>>());
        let known: Vec<f64> = answers.clone().map(|s| score(batch, s, first)).collect();
        let found = self.loss.loss(&sides, &known);
        to.loss += found.loss;
        let rewards: Vec<f64> = sides.iter().map(|side| self.loss.reward(side)).collect();
        for (i, j) in ordered(&known) {
            to.measure("rewards/accuracies", f64::from(u8::from(rewards[i] > rewards[j])), 1.0);
            measure_length(to, LENGTH_MARGIN, [rewards[i], rewards[j]], [sides[i].tokens, sides[j].tokens]);
        }
        let best = best(batch, answers);
        let shown: Vec<f64> = sides.iter().map(|side| self.loss.shown(side)).collect();
        // Of the best answer, and the mean of the others.
        let apart = |of: &[f64]| {
            let others = of.iter().enumerate().filter(|(i, _)| first + i != best).map(|(_, x)| x).sum::<f64>();
            (of[best - first], others / (of.len() - 1).max(1) as f64)
        };
        let ((chosen, rejected), (c, r)) = (apart(&rewards), apart(&shown));
        for (name, value) in [
            ("rewards/chosen", chosen),
            ("rewards/rejected", rejected),
            ("rewards/margins", chosen - rejected),
            ("logps/chosen", c),
            ("logps/rejected", r),
        ] {
            to.measure(name, value, 1.0);
        }
        let tokens = answers.clone().flat_map(|s| scores.of(s));
        to.measure("entropy", tokens.clone().map(|i| scores.entropy[i]).sum(), tokens.count() as f64);
        let correct = scores.of(best).filter(|&i| scores.correct[i]).count();
        to.measure("mean_token_accuracy", correct as f64, scores.of(best).len() as f64);
        found.slopes
    }
}

/// How good segment `s` is of answers that begin with segment `first`: of a pair the chosen side comes first.
fn score(batch: &Batch, s: usize, first: usize) -> f64 {
    batch.scores.get(s).copied().unwrap_or(if s == first { 1.0 } else { 0.0 })
}

/// The first of those with the highest score.
fn best(batch: &Batch, answers: &Range<usize>) -> usize {
    let of = |s: usize| score(batch, s, answers.start);
    answers.clone().fold(answers.start, |best, s| if of(s) > of(best) { s } else { best })
}

impl Preference for Ranked {
    type Totals = Totals;

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
    ) -> Result<(Totals, Option<Routers>)> {
        let mut totals = Totals::default();
        for batch in micro_batches {
            for answers in batch.examples() {
                totals.pairs += 1.0;
                totals.nll_tokens += self.loss.nll().map_or(0.0, |_| completion(batch, best(batch, &answers)) as f64);
            }
        }
        let nll = self.loss.nll().map_or(0.0, |n| n.weight * totals.pairs / totals.nll_tokens.max(1.0));
        let all = passes(micro_batches, optim.pass());
        let mut routers = routers(model, self.kept.balance.terms(), optim, &all, mode)?;
        for part in all.iter().flatten() {
            self.part(model, optim, (part, mode), nll, (&mut totals, &mut routers))?;
        }
        Ok((totals, routers))
    }

    fn unit(&self) -> LossUnit {
        LossUnit::new("per row", None)
    }

    fn together(&self, totals: Totals, routers: Option<&Routers>) -> Sums {
        totals.together(self.loss.nll(), routers)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::{Example, Source};

    #[test]
    fn the_best_is_the_first_of_equals() {
        let source = Source { file: Path::new("made").into(), line: 1, row: 0 };
        let example = Example { ids: vec![1, 2], mask: vec![false, true], n_prompt: 1, source };
        let mut batch = Batch::from_examples([0, 0, 0, 1, 1].map(|i| (i, &example)));
        // Without scores the first.
        assert_eq!(best(&batch, &(3..5)), 3);
        (batch.sizes, batch.scores) = (vec![3, 2], vec![0.5, 2.0, 2.0, -1.0, -0.5]);
        assert_eq!(batch.examples().iter().map(|answers| best(&batch, answers)).collect::<Vec<_>>(), [1, 4]);
        // A pass keeps them.
        let parts = batch.split(7);
        assert_eq!(parts.iter().map(|part| part.scores.len()).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(best(&parts[1], &(0..2)), 1);
    }
}
