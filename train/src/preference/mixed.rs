//! Several objectives in one batch.

use std::ops::{AddAssign, Range};

use planish_autograd::Tape;
use planish_nn::decoder::{Model, Routing};

use super::labelled::{measure_label, measure_margins};
use super::lengths::{LENGTH_MARGIN, Lengths, measure_length};
use super::members::{Member, MemberLoss, Origins, Own, completion, shorter};
use super::objective::{Kept, Preference};
use super::reference::Reference;
use super::unpaired::divergence;
use super::watch::{Kind, Watch};
use super::{Mode, Part, passes, routers};
use crate::Result;
use crate::config::OptimSettings;
use crate::data::Batch;
use crate::losses::{Pair, RouterTerms, Want, token_scores};
use crate::run::report::LossUnit;
use crate::trainer::router::{Balance, Routers};
use crate::trainer::{Sums, packed};

/// Minimises, over the rows of a step,
///
/// ```text
/// L = Σ_k w_k S_k / C_k
/// ```
///
/// S_k is the sum of objective k over its rows of the whole step, and C_k what it counts: supervised tokens, pairs (with
/// the mean over tokens of cross-entropy that some losses of pairs have beside), or completions. An objective without
/// rows in a step has no part in it. All rows of a pass go through the model together, whatever their objective: one
/// forward and one backward pass.
pub struct Mixed {
    members: Vec<Member>,
    kept: Kept,
    max_length: Option<usize>,
    train: Origins,
    held_out: Option<Origins>,
}

/// Sums of one member.
#[derive(Debug, Clone, Default, PartialEq)]
struct Total {
    loss: f64,
    count: f64,
    nll: f64,
    nll_tokens: f64,
    /// Of labelled completions.
    lengths: Lengths,
}

/// Sums of all members, and what was measured.
#[derive(Default)]
pub(super) struct Totals {
    members: Vec<Total>,
    measured: Sums,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.members.resize(other.members.len(), Total::default());
        for (to, from) in self.members.iter_mut().zip(other.members) {
            to.loss += from.loss;
            to.count += from.count;
            to.nll += from.nll;
            to.nll_tokens += from.nll_tokens;
            to.lengths += from.lengths;
        }
        self.measured += other.measured;
    }
}

/// An example of a batch: its member and its segments.
type Row = (usize, Range<usize>);

impl Mixed {
    /// An objective over `members`. `dropout` is whether there is any while training; prompts with other rows' completions
    /// (for KTO's estimate) are cut to `max_length`.
    pub fn new(
        members: Vec<Member>,
        reference: Reference,
        dropout: bool,
        max_length: Option<usize>,
        train: Origins,
        held_out: Option<Origins>,
    ) -> Mixed {
        let watch = |member: &Member| match &member.loss {
            MemberLoss::Pairs(loss) => Some(Watch::pairs(loss.has_reference()).named(&member.name)),
            MemberLoss::Labelled(_) => Some(Watch::new(Kind::Labelled).named(&member.name)),
            MemberLoss::CrossEntropy => None,
        };
        let watches = members.iter().filter_map(watch).collect();
        Mixed { members, kept: Kept::new(reference, dropout, watches), max_length, train, held_out }
    }

    /// Adds the losses of the model's routers, which count every token: nothing is shared beside them.
    #[must_use]
    pub fn balanced(mut self, terms: RouterTerms) -> Mixed {
        self.kept.balance = Balance::new(terms);
        self
    }

    /// Lets neighbouring rows share what they begin with ([`Want::beginnings`]).
    #[must_use]
    pub fn sharing(mut self, share: bool) -> Mixed {
        self.kept.share = share;
        self
    }

    fn rows(&self, batch: &Batch, mode: Mode) -> Vec<Row> {
        let origins = match (mode, &self.held_out) {
            (Mode::HeldOut, Some(held_out)) => held_out,
            _ => &self.train,
        };
        let member = |segments: &Range<usize>| origins.member(batch.example_indices[segments.start]);
        batch.examples().into_iter().map(|segments| (member(&segments), segments)).collect()
    }

    /// What each member counts over a step.
    fn counts(&self, micro_batches: &[Batch], mode: Mode) -> Vec<Total> {
        let mut counts = vec![Total::default(); self.members.len()];
        for batch in micro_batches {
            let tokens = |s: usize| batch.segment(s).skip(1).filter(|&i| batch.mask[i]).count() as f64;
            for (m, segments) in self.rows(batch, mode) {
                let to = &mut counts[m];
                match &self.members[m].loss {
                    MemberLoss::CrossEntropy => to.count += segments.map(tokens).sum::<f64>(),
                    MemberLoss::Labelled(_) => to.count += segments.len() as f64,
                    MemberLoss::Pairs(loss) => {
                        to.count += 1.0;
                        to.nll_tokens += match loss.nll() {
                            Some(nll) if nll.prompt => batch.segment(segments.start).len() as f64 - 1.0,
                            Some(_) => tokens(segments.start),
                            None => 0.0,
                        };
                    }
                }
            }
        }
        counts
    }

    /// KTO's estimate for each member that needs one, of its rows of a micro-batch.
    fn divergences(
        &self,
        model: &Model,
        batch: &Batch,
        optim: &OptimSettings,
        mode: Mode,
        measured: &mut Sums,
    ) -> Result<Vec<f64>> {
        let rows = self.rows(batch, mode);
        let mut all = vec![0.0; self.members.len()];
        for (m, member) in self.members.iter().enumerate() {
            let MemberLoss::Labelled(kto) = &member.loss else { continue };
            if !kto.needs_kl() {
                continue;
            }
            let own = batch.select(rows.iter().filter(|(of, _)| *of == m).map(|(_, segments)| segments.clone()));
            if let Some(kl) = divergence(model, &self.kept.reference, &own, self.max_length, optim)? {
                all[m] = kl;
                measured.measure(&format!("{}/kl", member.name), kl, 1.0);
            }
        }
        Ok(all)
    }

    /// log π_ref of each segment's completion, and of its tokens; 0 and none where nothing is compared with it.
    fn compared(&self, model: &Model, batch: &Batch, rows: &[Row], mode: Mode) -> Result<Vec<(f64, Vec<f64>)>> {
        let mut all = vec![(0.0, Vec::new()); batch.segments()];
        let mut weights = Vec::new();
        let mut segments = Vec::new();
        for (m, own) in rows {
            let verbose = match &self.members[*m].loss {
                MemberLoss::Pairs(loss) if loss.has_reference() => Some(loss.verbose_weight()),
                MemberLoss::Labelled(_) => Some(1.0),
                _ => None,
            };
            let Some(verbose) = verbose else { continue };
            let least = shorter(batch, own);
            for s in own.clone() {
                segments.push(s);
                weights.extend((0..completion(batch, s)).map(|k| if k < least { 1.0 } else { verbose }));
            }
        }
        if segments.is_empty() {
            return Ok(all);
        }
        let part = batch.select(segments.iter().map(|&s| s..s + 1));
        let found = self.kept.reference.compare(model, &part, &weights, mode == Mode::HeldOut, Want::default())?;
        let mut tokens = found.tokens.unwrap_or_default().into_iter();
        for (s, sum) in segments.into_iter().zip(found.sums) {
            all[s] = (sum, tokens.by_ref().take(completion(batch, s)).collect());
        }
        Ok(all)
    }

    fn part(
        &self,
        model: &Model,
        optim: &OptimSettings,
        part: &Part,
        mode: Mode,
        (counts, kl): (&[Total], &[f64]),
        (totals, routers): (&mut Totals, &mut Option<Routers>),
    ) -> Result<()> {
        let batch = &part.batch;
        let rows = self.rows(batch, mode);
        // Before anything is recorded: the reference's activations and the model's are never there together.
        let reference = self.compared(model, batch, &rows, mode)?;
        let mut mask = batch.mask.clone();
        for (m, segments) in &rows {
            if let MemberLoss::Pairs(loss) = &self.members[*m].loss
                && loss.nll().is_some_and(|nll| nll.prompt)
            {
                mask[batch.segment(segments.start)].iter_mut().skip(1).for_each(|on| *on = true);
            }
        }
        let tape = (mode != Mode::HeldOut).then(Tape::new);
        let (mut ctx, routing) = (mode.ctx(optim, &part.keys, tape.as_ref()), Routing::default());
        if routers.is_some() {
            ctx = ctx.with_routing(&routing);
        }
        let beginnings = self.kept.share && !self.kept.balance.terms().any();
        let want = Want { recompute: optim.recomputes_layers(), beginnings, ..Want::default() };
        let scores = token_scores(model, &ctx, &packed(batch), &mask, want)?;
        // Whether each scored token is of a completion; else it is of a prompt that counts.
        let scored = (0..batch.segments()).flat_map(|s| batch.segment(s).skip(1)).filter(|&i| mask[i]);
        let of_completion: Vec<bool> = scored.map(|i| batch.mask[i]).collect();
        let mut slopes = vec![0.0; scores.logprobs.len()];
        for (m, segments) in rows {
            let (member, to) = (&self.members[m], &mut totals.members[m]);
            let scale = member.weight / counts[m].count;
            let mut own =
                Own { member, scores: &scores, of_completion: &of_completion, measured: &mut totals.measured };
            match &member.loss {
                MemberLoss::CrossEntropy => {
                    for i in segments.flat_map(|s| scores.of(s)) {
                        to.loss -= scores.logprobs[i];
                        slopes[i] = -scale;
                        own.measure("mean_token_accuracy", f64::from(u8::from(scores.correct[i])));
                        own.measure("entropy", scores.entropy[i]);
                    }
                }
                MemberLoss::Labelled(kto) => {
                    for (side, s) in segments.enumerate() {
                        let label = batch.labels.get(s).copied().unwrap_or(side == 0);
                        let logp = scores.of(s).map(|i| scores.logprobs[i]).sum::<f64>();
                        let logratio = logp - reference[s].0;
                        let found = kto.loss(logratio, label, kl[m]);
                        to.loss += found.loss;
                        slopes[scores.of(s)].fill(scale * found.slope);
                        let reward = kto.beta * logratio;
                        let prefix = own.named("");
                        measure_label(own.measured, &prefix, label, reward, kto.is_right(reward, label, kl[m]));
                        own.measure(if label { "logps/chosen" } else { "logps/rejected" }, logp);
                        own.moved(s, &reference[s].1);
                        to.lengths.push(label, scores.of(s).len(), reward);
                    }
                }
                MemberLoss::Pairs(loss) => {
                    let least = shorter(batch, &segments);
                    let weight = |k: usize| if k < least { 1.0 } else { loss.verbose_weight() };
                    let [chosen, rejected] = [segments.start, segments.start + 1];
                    let pair = Pair {
                        chosen: own.side(chosen, reference[chosen].0, weight),
                        rejected: own.side(rejected, reference[rejected].0, weight),
                    };
                    let found = loss.losses(&[pair])[0];
                    to.loss += found.loss;
                    for (s, slope) in [(chosen, found.chosen), (rejected, found.rejected)] {
                        own.completion(s).enumerate().for_each(|(k, i)| slopes[i] = scale * slope * weight(k));
                    }
                    if let Some(nll) = loss.nll() {
                        let each = member.weight * nll.weight / counts[m].nll_tokens;
                        for i in scores.of(chosen) {
                            to.nll -= scores.logprobs[i];
                            slopes[i] -= each;
                        }
                    }
                    let [c, r] = [&pair.chosen, &pair.rejected].map(|side| loss.reward(side));
                    own.measure("rewards/chosen", c);
                    own.measure("rewards/rejected", r);
                    own.measure("rewards/accuracies", f64::from(u8::from(c > r)));
                    own.measure("rewards/margins", c - r);
                    own.measure("logps/chosen", loss.shown(&pair.chosen));
                    own.measure("logps/rejected", loss.shown(&pair.rejected));
                    [chosen, rejected].into_iter().for_each(|s| own.moved(s, &reference[s].1));
                    let (name, tokens) = (own.named(LENGTH_MARGIN), [pair.chosen.tokens, pair.rejected.tokens]);
                    measure_length(own.measured, &name, [c, r], tokens);
                }
            }
        }
        let beside = match routers {
            Some(routers) => routers.beside(&routing.take(), 1.0)?,
            None => None,
        };
        if mode != Mode::HeldOut {
            scores.backward_beside(&slopes, beside)?;
        }
        Ok(())
    }
}

impl Preference for Mixed {
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
        let members = self.counts(micro_batches, mode);
        let all = passes(micro_batches, optim.pass());
        let mut routers = routers(model, self.kept.balance.terms(), optim, &all, mode)?;
        let mut totals = Totals { members: members.clone(), measured: Sums::default() };
        for (batch, parts) in micro_batches.iter().zip(&all) {
            let kl = self.divergences(model, batch, optim, mode, &mut totals.measured)?;
            for part in parts {
                self.part(model, optim, part, mode, (&members, &kl), (&mut totals, &mut routers))?;
            }
        }
        Ok((totals, routers))
    }

    fn unit(&self) -> LossUnit {
        LossUnit::new("of the mixture", None)
    }

    /// L, and each member's own mean loss among what was measured.
    fn together(&self, totals: Totals, routers: Option<&Routers>) -> Sums {
        let mut sums = Sums::new(0.0, 1.0);
        for (member, total) in self.members.iter().zip(&totals.members).filter(|(_, total)| total.count > 0.0) {
            let nll = match &member.loss {
                MemberLoss::Pairs(loss) => {
                    loss.nll().map_or(0.0, |nll| nll.weight * total.nll / total.nll_tokens.max(1.0))
                }
                _ => 0.0,
            };
            let mean = total.loss / total.count + nll;
            sums.loss += member.weight * mean;
            sums.measure(&format!("{}/loss", member.name), mean, 1.0);
        }
        sums += totals.measured;
        for (member, total) in self.members.iter().zip(totals.members) {
            if matches!(member.loss, MemberLoss::Labelled(_)) {
                measure_margins(&mut sums, &format!("{}/", member.name));
            }
            total.lengths.measure(&mut sums, &format!("{}/{LENGTH_MARGIN}", member.name));
        }
        if let Some(routers) = routers {
            routers.add_to(&mut sums, 1.0);
        }
        sums
    }
}
