//! The parts of a mixture: which rows are trained with what.

use std::ops::Range;
use std::sync::Arc;

use super::moved::{MOVED, measure_moved};
use crate::data::{Batch, Dataset};
use crate::losses::{Kto, PairLoss, Side, TokenScores};
use crate::trainer::Sums;

/// Rows of one data set, and what is minimised over them.
pub struct Member {
    /// What its metrics begin with.
    pub name: String,
    /// w.
    pub weight: f64,
    /// ℓ.
    pub loss: MemberLoss,
}

/// The loss of a member's rows.
pub enum MemberLoss {
    /// -log p of each supervised token.
    CrossEntropy,
    /// Of pairs, each by itself.
    Pairs(Box<dyn PairLoss>),
    /// Of completions with a label, or of the two sides of pairs.
    Labelled(Kto),
}

/// Which member the rows of a data set belong to: by the number of the spec that they came from.
pub struct Origins {
    data: Arc<Dataset>,
    members: Vec<usize>,
}

impl Origins {
    /// `members` has a member for each spec; the last goes for all that follow.
    ///
    /// # Panics
    /// If there is none.
    pub fn new(data: Arc<Dataset>, members: Vec<usize>) -> Origins {
        assert!(!members.is_empty(), "rows belong to a member");
        Origins { data, members }
    }

    pub(super) fn member(&self, index: usize) -> usize {
        self.members[self.data.spec_of(index as u64).min(self.members.len() - 1)]
    }
}

/// What a member's rows are computed from, and measured to.
pub(super) struct Own<'a> {
    pub(super) member: &'a Member,
    pub(super) scores: &'a TokenScores,
    pub(super) of_completion: &'a [bool],
    pub(super) measured: &'a mut Sums,
}

impl Own<'_> {
    pub(super) fn measure(&mut self, name: &str, value: f64) {
        self.measured.measure(&self.named(name), value, 1.0);
    }

    /// A metric's name among those of all members.
    pub(super) fn named(&self, name: &str) -> String {
        format!("{}/{name}", self.member.name)
    }

    /// Places of the scores of a segment's completion.
    pub(super) fn completion(&self, s: usize) -> impl Iterator<Item = usize> {
        let of_completion = self.of_completion;
        self.scores.of(s).filter(move |&i| of_completion[i])
    }

    /// Measures how far a segment's completion has moved from these log-probabilities, if there are any.
    pub(super) fn moved(&mut self, s: usize, reference: &[f64]) {
        if reference.is_empty() {
            return;
        }
        let name = self.named(MOVED);
        let policy: Vec<f64> = self.completion(s).map(|i| self.scores.logprobs[i]).collect();
        measure_moved(self.measured, &name, policy.iter().zip(reference).map(|(p, r)| p - r));
    }

    pub(super) fn side(&self, s: usize, reference: f64, weight: impl Fn(usize) -> f64) -> Side {
        let mut side = Side { reference, ..Side::default() };
        for (k, i) in self.completion(s).enumerate() {
            side.logp += weight(k) * self.scores.logprobs[i];
            side.tokens += 1.0;
        }
        side
    }
}

/// Tokens of a segment's completion.
pub(super) fn completion(batch: &Batch, s: usize) -> usize {
    batch.segment(s).skip(1).filter(|&i| batch.mask[i]).count()
}

/// Tokens of an example's shorter completion.
pub(super) fn shorter(batch: &Batch, segments: &Range<usize>) -> usize {
    segments.clone().map(|s| completion(batch, s)).min().unwrap_or(0)
}
