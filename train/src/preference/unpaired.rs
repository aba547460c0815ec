//! The objective of labelled completions.

use std::ops::{AddAssign, Range};

use planish_autograd::Tape;
use planish_nn::Ctx;
use planish_nn::decoder::{Model, Routing};

use super::labelled::{measure_label, measure_margins};
use super::lengths::{LENGTH_MARGIN, Lengths};
use super::moved::{MOVED, measure_moved};
use super::objective::{Kept, Preference};
use super::reference::{Compared, Reference};
use super::watch::{Kind, Watch, by_heart_loss};
use super::{Mode, Part, passes, routers};
use crate::Result;
use crate::config::OptimSettings;
use crate::data::Batch;
use crate::losses::{Kto, RouterTerms, Running, TokenScores, Want, token_scores};
use crate::run::report::LossUnit;
use crate::trainer::router::{Balance, Routers};
use crate::trainer::{Sums, packed};

/// Minimises [`Kto`] over labelled completions.
///
/// The estimate z of the KL divergence is that of a micro-batch, as in TRL: its prompts, each with the completion
/// of the row before it, under the model and the reference; max(0, mean log π/π_ref). It is computed first,
/// without a tape, so the passes that follow need nothing of each other. Deviation from TRL: a completion that
/// was cut to fit behind its own prompt is taken as cut. Pairs are two completions of one prompt, the chosen one good
/// and the rejected one bad; the completion of the row before is then that of the same side.
///
/// BCO's δ takes in a micro-batch before its losses, as in TRL. Where a micro-batch takes several passes, their numbers are
/// computed without a tape first, as [`Pairs`](super::Pairs) does. Held-out data meet δ as it stands.
pub struct Unpaired {
    loss: Kto,
    kept: Kept,
    max_length: Option<usize>,
}

impl Unpaired {
    /// An objective. `dropout` is whether there is any while training; mismatched sequences are cut to
    /// `max_length`.
    pub fn new(loss: Kto, reference: Reference, dropout: bool, max_length: Option<usize>) -> Unpaired {
        let delta = loss.is_running().then(Running::default);
        let kept = Kept { delta, ..Kept::new(reference, dropout, vec![Watch::new(Kind::Labelled)]) };
        Unpaired { loss, kept, max_length }
    }

    /// Adds the losses of the model's routers.
    #[must_use]
    pub fn balanced(mut self, terms: RouterTerms) -> Unpaired {
        self.kept.balance = Balance::new(terms);
        self
    }

    /// What the losses of a micro-batch turn on: z, δ, or nothing.
    fn anchor(&self, model: &Model, batch: &Batch, optim: &OptimSettings, totals: &mut Totals) -> Result<f64> {
        let mut anchor = 0.0;
        if self.loss.needs_kl()
            && let Some(found) = divergence(model, &self.kept.reference, batch, self.max_length, optim)?
        {
            anchor = found;
            totals.sums.measure("kl", anchor, 1.0);
        }
        if let Some(delta) = totals.delta {
            anchor = delta.mean;
            totals.sums.measure("delta", anchor, 1.0);
        }
        Ok(anchor)
    }

    /// Adds a pass; gives the slopes of the loss by each token's log-probability.
    fn measure(
        &self,
        batch: &Batch,
        scores: &TokenScores,
        reference: &Compared,
        anchor: f64,
        Totals { sums, lengths, .. }: &mut Totals,
    ) -> Vec<f64> {
        sums.measure("entropy", scores.entropy.iter().sum(), scores.entropy.len() as f64);
        if let Some(tokens) = &reference.tokens {
            measure_moved(sums, MOVED, scores.logprobs.iter().zip(tokens).map(|(p, r)| p - r));
        }
        let mut slopes = vec![0.0; scores.logprobs.len()];
        for s in 0..batch.segments() {
            let label = batch.labels.get(s).copied().unwrap_or(s % 2 == 0);
            let logp: f64 = scores.of(s).map(|i| scores.logprobs[i]).sum();
            let logratio = logp - reference.sums[s];
            let found = self.loss.loss(logratio, label, anchor);
            slopes[scores.of(s)].fill(found.slope);
            sums.loss += found.loss;
            sums.count += 1.0;
            let reward = self.loss.beta * logratio;
            measure_label(sums, "", label, reward, self.loss.is_right(reward, label, anchor));
            lengths.push(label, scores.of(s).len(), reward);
            let side = if label { "chosen" } else { "rejected" };
            sums.measure(&format!("logps/{side}"), logp, 1.0);
            if let Some(means) = &scores.mean_logits {
                let sum = scores.of(s).map(|i| means[i]).sum();
                sums.measure(&format!("logits/{side}"), sum, scores.of(s).len() as f64);
            }
        }
        slopes
    }
}

/// What is added up over a step, or over held-out data.
#[derive(Default)]
pub(super) struct Totals {
    sums: Sums,
    lengths: Lengths,
    /// BCO's δ, as it then is.
    delta: Option<Running>,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.sums += other.sums;
        self.lengths += other.lengths;
        self.delta = other.delta;
    }
}

impl Preference for Unpaired {
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
        let mut totals = Totals { delta: self.kept.delta, ..Totals::default() };
        let completions: usize = micro_batches.iter().map(Batch::segments).sum();
        let all = passes(micro_batches, optim.pass());
        let mut routers = routers(model, self.kept.balance.terms(), optim, &all, mode)?;
        let routed = routers.is_some();
        for (batch, parts) in micro_batches.iter().zip(&all) {
            // Before anything is recorded: the reference's activations and the model's are never there together.
            let compare = |part: &Part| {
                let ones = vec![1.0; part.batch.supervised()];
                self.kept.reference.compare(model, &part.batch, &ones, mode == Mode::HeldOut, Want::default())
            };
            let references = parts.iter().map(compare).collect::<Result<Vec<Compared>>>()?;
            let routing = Routing::default();
            let score = |part: &Part, recorded: bool| -> Result<TokenScores> {
                let tape = (recorded && mode != Mode::HeldOut).then(Tape::new);
                let mut ctx = mode.ctx(optim, &part.keys, tape.as_ref());
                if recorded && routed {
                    ctx = ctx.with_routing(&routing);
                }
                let want = Want { recompute: optim.recomputes_layers(), mean_logits: true, ..Want::default() };
                token_scores(model, &ctx, &packed(&part.batch), &part.batch.mask, want)
            };
            let mut at_once = None;
            if let Some(delta) = totals.delta.as_mut().filter(|_| mode != Mode::HeldOut) {
                let mut rewards = Vec::new();
                for (part, reference) in parts.iter().zip(&references) {
                    let scores = score(part, parts.len() == 1)?;
                    let logp = |s: usize| scores.of(s).map(|i| scores.logprobs[i]).sum::<f64>();
                    rewards.extend((0..scores.segments()).map(|s| self.loss.beta * (logp(s) - reference.sums[s])));
                    at_once = (parts.len() == 1).then_some(scores);
                }
                delta.add(&rewards);
            }
            let anchor = self.anchor(model, batch, optim, &mut totals)?;
            for (part, reference) in parts.iter().zip(&references) {
                let scores = match at_once.take() {
                    Some(scores) => scores,
                    None => score(part, true)?,
                };
                let slopes = self.measure(&part.batch, &scores, reference, anchor, &mut totals);
                let beside = match &mut routers {
                    Some(routers) => routers.beside(&routing.take(), completions as f64)?,
                    None => None,
                };
                if mode != Mode::HeldOut {
                    scores.backward_beside(&slopes, beside)?;
                }
            }
        }
        Ok((totals, routers))
    }

    fn keep(&mut self, totals: &Totals) {
        self.kept.delta = totals.delta;
    }

    fn unit(&self) -> LossUnit {
        LossUnit::new("per completion", self.loss.is_of_a_classifier().then(by_heart_loss))
    }

    fn together(&self, Totals { mut sums, lengths, .. }: Totals, routers: Option<&Routers>) -> Sums {
        if let Some(routers) = routers {
            let completions = sums.count;
            routers.add_to(&mut sums, completions);
        }
        measure_margins(&mut sums, "");
        lengths.measure(&mut sums, LENGTH_MARGIN);
        sums
    }
}

/// max(0, mean log π/π_ref) over the completions of a batch's prompts each with the completion of the row before it, nats;
/// nothing of a row alone, which has no other before it.
pub(super) fn divergence(
    model: &Model,
    reference: &Reference,
    batch: &Batch,
    max_length: Option<usize>,
    optim: &OptimSettings,
) -> Result<Option<f64>> {
    if batch.examples().len() < 2 {
        return Ok(None);
    }
    let (batch, mut sum) = (mismatched(batch, max_length), 0.0);
    for part in batch.split(usize::try_from(optim.pass()).unwrap_or(usize::MAX)) {
        let ones = vec![1.0; part.supervised()];
        let reference = reference.compare(model, &part, &ones, false, Want::default())?.sums;
        let scores = token_scores(model, &Ctx::inference(), &packed(&part), &part.mask, Want::default())?;
        sum += scores.logprobs.iter().sum::<f64>() - reference.iter().sum::<f64>();
    }
    Ok(Some((sum / batch.segments() as f64).max(0.0)))
}

/// Each prompt with the completion of the row before it, the first with that of the last.
fn mismatched(batch: &Batch, max_length: Option<usize>) -> Batch {
    let parts = |s: usize| {
        let ids = &batch.ids[batch.segment(s)];
        let prompt = batch.mask[batch.segment(s)].iter().position(|&m| m).unwrap_or(ids.len());
        ids.split_at(prompt)
    };
    let mut out = Batch::new();
    let examples = batch.examples();
    let before = examples.last().into_iter().chain(&examples).zip(&examples);
    // Of a pair, the same side of the row before: the other side has the same prompt.
    let same_side = |(before, own): (&Range<usize>, &Range<usize>)| {
        let last = before.end - 1;
        own.clone().zip((before.start..).map(move |s| s.min(last))).collect::<Vec<_>>()
    };
    for (s, other) in before.flat_map(same_side) {
        let (prompt, completion) = (parts(s).0, parts(other).1);
        let mut ids = [prompt, completion].concat();
        let mut mask: Vec<bool> = (0..ids.len()).map(|i| i >= prompt.len()).collect();
        let limit = max_length.unwrap_or(usize::MAX);
        ids.truncate(limit);
        mask.truncate(limit);
        out.push(batch.example_indices[s], &ids, &mask);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::{Example, Source};

    /// Prompt p, p and a completion of n times c.
    fn example(p: u32, c: u32, n: usize) -> Example {
        let ids = [vec![p, p], vec![c; n]].concat();
        let source = Source { file: Path::new("made").into(), line: 1, row: 0 };
        Example { mask: (0..ids.len()).map(|i| i >= 2).collect(), ids, n_prompt: 2, source }
    }

    fn sequences(batch: &Batch) -> Vec<Vec<u32>> {
        (0..batch.segments()).map(|s| batch.ids[batch.segment(s)].to_vec()).collect()
    }

    #[test]
    fn prompts_get_the_completion_of_the_row_before() {
        let rows = [example(1, 10, 1), example(2, 20, 3), example(3, 30, 2)];
        let batch = Batch::from_labelled(rows.iter().enumerate().map(|(i, e)| (i, e, true)));
        let found = mismatched(&batch, Some(4));
        assert_eq!(sequences(&found), [vec![1, 1, 30, 30], vec![2, 2, 10], vec![3, 3, 20, 20]]);
        assert_eq!(found.supervised(), 5);
        // Of pairs, the same side of the row before: the other side has the same prompt.
        let pairs = [[example(1, 10, 1), example(1, 11, 1)], [example(2, 20, 1), example(2, 21, 1)]];
        let batch = Batch::from_pairs(pairs.iter().enumerate().map(|(i, [c, r])| (i, c, r)));
        let want = [vec![1, 1, 20], vec![1, 1, 21], vec![2, 2, 10], vec![2, 2, 11]];
        assert_eq!(sequences(&mismatched(&batch, None)), want);
        // Of pairs and single completions.
        let all = Batch::from_labelled(
            (0..5).zip([&rows[0], &pairs[0][0], &pairs[0][1], &rows[1], &rows[2]]).map(|(i, e)| (i, e, true)),
        );
        let all = all.select([0..1, 1..3, 3..4, 4..5]);
        assert_eq!((&all.sizes[..], all.labels.len()), (&[1, 2, 1, 1][..], 5));
        let want = [vec![1, 1, 30, 30], vec![1, 1, 10], vec![1, 1, 10], vec![2, 2, 10], vec![3, 3, 20, 20, 20]];
        assert_eq!(sequences(&mismatched(&all, None)), want);
    }
}
