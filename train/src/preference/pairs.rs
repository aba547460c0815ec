//! The objective of preference pairs.

use std::ops::{AddAssign, Range};

use planish_autograd::Tape;
use planish_nn::decoder::{Model, Routing};

use super::lengths::{LENGTH_MARGIN, measure_length};
use super::moved::{MOVED, measure_moved};
use super::objective::{Kept, Preference};
use super::reference::{Compared, Reference};
use super::watch::{Watch, by_heart_loss};
use super::{Mode, Part, passes, routers};
use crate::Result;
use crate::config::OptimSettings;
use crate::data::Batch;
use crate::losses::{Nll, Pair, PairLoss, PairSlope, RouterTerms, Side, TokenScores, Want, token_scores};
use crate::run::report::LossUnit;
use crate::trainer::router::{Balance, Routers};
use crate::trainer::{Sums, packed};

/// Minimises a [`PairLoss`] over pairs whose sides are neighbouring segments of a batch.
///
/// Losses that look at a pair by itself go pass by pass, forward and backward at once. A loss that couples the
/// pairs of a micro-batch needs all their numbers first: where a micro-batch takes several passes, they are
/// computed without a tape, and each pass is then run again to go back through it. The second run has the bits of
/// the first (law 5), so that passes change nothing but rounding in either case.
pub struct Pairs {
    loss: Box<dyn PairLoss>,
    kept: Kept,
}

/// Sums of the two terms of the loss.
#[derive(Default)]
pub(super) struct Totals {
    /// Pairs, or rows of ranked answers.
    pub(super) pairs: f64,
    pub(super) nll: f64,
    pub(super) nll_tokens: f64,
    /// Of the pairs' loss, and what was measured.
    pub(super) sums: Sums,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.pairs += other.pairs;
        self.nll += other.nll;
        self.nll_tokens += other.nll_tokens;
        self.sums += other.sums;
    }
}

impl Totals {
    /// One sum, to be divided by the number of pairs: Σ ℓ + weight · pairs · (mean cross-entropy).
    pub(super) fn together(self, nll: Option<Nll>, routers: Option<&Routers>) -> Sums {
        let mut sums = self.sums;
        if let Some(nll) = nll {
            sums.loss += nll.weight * self.pairs * self.nll / self.nll_tokens.max(1.0);
            sums.measure("nll_loss", self.nll, self.nll_tokens);
        }
        sums.count = self.pairs;
        if let Some(routers) = routers {
            routers.add_to(&mut sums, self.pairs);
        }
        sums
    }
}

/// What goes into the loss of a part.
struct Prepared {
    /// Tokens to score.
    mask: Vec<bool>,
    /// Of these, those of completions.
    completion: Vec<bool>,
    /// What each weighs in its completion's sum; 0 for tokens of prompts.
    weights: Vec<f64>,
    compared: Compared,
}

impl Pairs {
    /// An objective. `dropout` is whether there is any while training.
    pub fn new(loss: Box<dyn PairLoss>, reference: Reference, dropout: bool) -> Pairs {
        let watches = vec![Watch::pairs(loss.has_reference())];
        Pairs { loss, kept: Kept::new(reference, dropout, watches) }
    }

    /// Adds the losses of the model's routers, which count every token: nothing is shared beside them.
    #[must_use]
    pub fn balanced(mut self, terms: RouterTerms) -> Pairs {
        self.kept.balance = Balance::new(terms);
        self
    }

    /// Lets the sides of a pair share what they begin with ([`Want::share`]).
    #[must_use]
    pub fn sharing(mut self, share: bool) -> Pairs {
        self.kept.share = share;
        self
    }

    /// Parts whose pairs see each other.
    fn group(
        &self,
        model: &Model,
        optim: &OptimSettings,
        parts: &[Part],
        mode: Mode,
        nll: f64,
        (totals, routers): (&mut Totals, &mut Option<Routers>),
    ) -> Result<()> {
        // Before anything is recorded: the reference's activations and the model's are never there together.
        let prepared = parts.iter().map(|p| self.prepare(model, &p.batch, mode)).collect::<Result<Vec<_>>>()?;
        let want = Want {
            recompute: optim.recomputes_layers(),
            log_collision: self.loss.weighs(),
            mean_logits: true,
            share: self.kept.share && !self.kept.balance.terms().any(),
            beginnings: false,
        };
        let (routing, routed) = (Routing::default(), routers.is_some());
        let score = |i: usize, recorded: bool| -> Result<TokenScores> {
            let tape = (recorded && mode != Mode::HeldOut).then(Tape::new);
            let mut ctx = mode.ctx(optim, &parts[i].keys, tape.as_ref());
            if recorded && routed {
                ctx = ctx.with_routing(&routing);
            }
            token_scores(model, &ctx, &packed(&parts[i].batch), &prepared[i].mask, want)
        };
        let at_once = parts.len() == 1;
        let scored = (0..parts.len()).map(|i| score(i, at_once)).collect::<Result<Vec<_>>>()?;
        let mut pairs = Vec::new();
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for (scores, prepared) in scored.iter().zip(&prepared) {
            let start = pairs.len();
            pairs.extend((0..scores.segments() / 2).map(|k| pair(scores, prepared, k)));
            ranges.push(start..pairs.len());
        }
        let slopes = self.loss.losses(&pairs);
        for (i, scores) in scored.into_iter().enumerate() {
            let (pairs, slopes) = (&pairs[ranges[i].clone()], &slopes[ranges[i].clone()]);
            self.measure(&scores, &prepared[i], pairs, slopes, totals);
            if mode == Mode::HeldOut {
                continue;
            }
            let scores = if at_once { scores } else { score(i, true)? };
            let by_token = self.by_token(&scores, &prepared[i], slopes, nll);
            let beside = match routers {
                Some(routers) => routers.beside(&routing.take(), totals.pairs)?,
                None => None,
            };
            scores.backward_beside(&by_token, beside)?;
        }
        Ok(())
    }

    fn prepare(&self, model: &Model, batch: &Batch, mode: Mode) -> Result<Prepared> {
        let prompt = self.loss.nll().is_some_and(|n| n.prompt);
        let mut mask = batch.mask.clone();
        let mut completion = Vec::new();
        for s in 0..batch.segments() {
            for i in batch.segment(s).skip(1) {
                mask[i] |= prompt && s % 2 == 0;
                if mask[i] {
                    completion.push(batch.mask[i]);
                }
            }
        }
        let of_completions = token_weights(batch, self.loss.verbose_weight());
        let want = Want { share: self.kept.share, ..Want::default() };
        let compared = self.kept.reference.compare(model, batch, &of_completions, mode == Mode::HeldOut, want)?;
        let mut of_completions = of_completions.into_iter();
        let weight = |&is: &bool| if is { of_completions.next().expect("one a token") } else { 0.0 };
        let weights = completion.iter().map(weight).collect();
        Ok(Prepared { mask, completion, weights, compared })
    }

    /// Slopes of the step's loss by each scored token.
    fn by_token(&self, scores: &TokenScores, prepared: &Prepared, slopes: &[PairSlope], nll: f64) -> Vec<f64> {
        let mut out = vec![0.0; scores.logprobs.len()];
        for s in 0..scores.segments() {
            let pair = slopes[s / 2];
            let (slope, nll) = if s % 2 == 0 { (pair.chosen, nll) } else { (pair.rejected, 0.0) };
            scores.of(s).for_each(|i| out[i] = slope * prepared.weights[i] - nll);
        }
        out
    }

    fn measure(&self, scores: &TokenScores, part: &Prepared, pairs: &[Pair], slopes: &[PairSlope], to: &mut Totals) {
        let of_completions = |i: &usize| part.completion[*i];
        for s in 0..scores.segments() {
            let completion = || scores.of(s).filter(of_completions);
            let tokens = completion().count() as f64;
            to.sums.measure("entropy", completion().map(|i| scores.entropy[i]).sum(), tokens);
            if let Some(means) = &scores.mean_logits {
                let name = ["logits/chosen", "logits/rejected"][s % 2];
                to.sums.measure(name, completion().map(|i| means[i]).sum(), tokens);
            }
            if s % 2 == 0 {
                let correct = completion().filter(|&i| scores.correct[i]).count();
                to.sums.measure("mean_token_accuracy", correct as f64, tokens);
                if self.loss.nll().is_some() {
                    to.nll -= scores.of(s).map(|i| scores.logprobs[i]).sum::<f64>();
                }
            }
        }
        if let Some(reference) = &part.compared.tokens {
            let policy = (0..scores.logprobs.len()).filter(of_completions).map(|i| scores.logprobs[i]);
            measure_moved(&mut to.sums, MOVED, policy.zip(reference).map(|(p, r)| p - r));
        }
        for (pair, slope) in pairs.iter().zip(slopes) {
            let [chosen, rejected] = [&pair.chosen, &pair.rejected].map(|side| self.loss.reward(side));
            to.sums.loss += slope.loss;
            for (name, value) in [
                ("rewards/chosen", chosen),
                ("rewards/rejected", rejected),
                ("rewards/accuracies", f64::from(u8::from(chosen > rejected))),
                ("rewards/margins", chosen - rejected),
                ("logps/chosen", self.loss.shown(&pair.chosen)),
                ("logps/rejected", self.loss.shown(&pair.rejected)),
            ] {
                to.sums.measure(name, value, 1.0);
            }
            let tokens = [pair.chosen.tokens, pair.rejected.tokens];
            measure_length(&mut to.sums, LENGTH_MARGIN, [chosen, rejected], tokens);
            self.loss.extra(pair).into_iter().for_each(|(name, value)| to.sums.measure(name, value, 1.0));
        }
    }
}

/// What each token of the completions of a batch of pairs counts: 1, and `verbose` beyond the length of the
/// pair's shorter completion.
pub(super) fn token_weights(batch: &Batch, verbose: f64) -> Vec<f64> {
    let tokens = |s: usize| batch.segment(s).skip(1).filter(|&i| batch.mask[i]).count();
    let mut out = Vec::new();
    for s in 0..batch.segments() {
        let (own, shared) = (tokens(s), tokens(s).min(tokens(s ^ 1)));
        out.extend((0..own).map(|k| if k < shared { 1.0 } else { verbose }));
    }
    out
}

/// Tokens that the term of cross-entropy is a mean over.
fn nll_tokens(batch: &Batch, nll: Option<Nll>) -> f64 {
    let Some(nll) = nll else { return 0.0 };
    let counts = |s: usize| batch.segment(s).skip(1).filter(|&i| nll.prompt || batch.mask[i]).count();
    (0..batch.segments()).step_by(2).map(counts).sum::<usize>() as f64
}

/// The numbers of pair `k` of a part.
fn pair(scores: &TokenScores, prepared: &Prepared, k: usize) -> Pair {
    let side = |s: usize| {
        let mut out = Side { reference: prepared.compared.sums[s], ..Side::default() };
        for i in scores.of(s).filter(|&i| prepared.completion[i]) {
            out.logp += prepared.weights[i] * scores.logprobs[i];
            out.tokens += 1.0;
            if let Some(own) = &scores.log_collision {
                out.alignment += scores.logprobs[i] - own[i];
            }
        }
        out.alignment /= out.tokens.max(1.0);
        out
    };
    Pair { chosen: side(2 * k), rejected: side(2 * k + 1) }
}

impl Preference for Pairs {
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
            totals.pairs += (batch.segments() / 2) as f64;
            totals.nll_tokens += nll_tokens(batch, self.loss.nll());
        }
        // Of a token's log-probability, in the loss that is still to be divided by the pairs.
        let nll = self.loss.nll().map_or(0.0, |n| n.weight * totals.pairs / totals.nll_tokens.max(1.0));
        let all = passes(micro_batches, optim.pass());
        let mut routers = routers(model, self.kept.balance.terms(), optim, &all, mode)?;
        for parts in &all {
            let together = if self.loss.couples() { parts.len().max(1) } else { 1 };
            for parts in parts.chunks(together) {
                self.group(model, optim, parts, mode, nll, (&mut totals, &mut routers))?;
            }
        }
        Ok((totals, routers))
    }

    fn unit(&self) -> LossUnit {
        LossUnit::new("per pair", self.loss.is_of_bradley_and_terry().then(by_heart_loss))
    }

    fn together(&self, totals: Totals, routers: Option<&Routers>) -> Sums {
        totals.together(self.loss.nll(), routers)
    }
}
