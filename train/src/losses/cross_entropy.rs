//! Cross-entropy of the next token.

use planish_autograd::Var;
use planish_nn::Ctx;
use planish_nn::decoder::{Model, Packed};

use super::tokens::{Unread, Want, unread_scores};
use crate::Result;

/// Sums over the supervised tokens of one or more batches. Add them up, then divide.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossSum {
    /// Σ -log p, nats.
    pub loss: f64,
    /// Supervised tokens.
    pub count: u64,
    /// Those that were the most probable token.
    pub correct: u64,
    /// Σ entropy of the predictions, nats.
    pub entropy: f64,
}

impl std::ops::AddAssign for LossSum {
    fn add_assign(&mut self, other: LossSum) {
        self.loss += other.loss;
        self.count += other.count;
        self.correct += other.correct;
        self.entropy += other.entropy;
    }
}

impl LossSum {
    /// Mean loss, nats per supervised token.
    pub fn mean(&self) -> f64 {
        self.loss / self.count as f64
    }

    /// Share of supervised tokens that were the most probable.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.count as f64
    }

    /// Mean entropy, nats.
    pub fn mean_entropy(&self) -> f64 {
        self.entropy / self.count as f64
    }
}

/// L = Σ over i with mask\[i\] of -log p(ids\[i\] | what comes before it in its segment), in nats.
///
/// Token i is predicted at row i - 1, so the first token of a segment, which nothing predicts, never
/// counts. Under a tape the gradient of L (not of its mean) is added to the parameters.
///
/// # Errors
/// A token id outside the vocabulary; those of the kernels.
pub fn cross_entropy(model: &Model, ctx: &Ctx, batch: &Packed, mask: &[bool], recompute: bool) -> Result<LossSum> {
    cross_entropy_unread(model, ctx, batch, mask, Want { recompute, ..Want::default() })?.read()
}

/// A [`LossSum`] whose numbers may still be on a device: reading it waits for them.
pub struct UnreadLoss(Option<Unread>);

/// As [`cross_entropy`], without waiting for the loss: a step reads the sums of all its micro-batches at its end.
/// `want` says how the batch is computed.
///
/// # Errors
/// As [`cross_entropy`].
pub fn cross_entropy_unread(model: &Model, ctx: &Ctx, batch: &Packed, mask: &[bool], want: Want) -> Result<UnreadLoss> {
    cross_entropy_beside(model, ctx, batch, mask, want, || Ok(None))
}

/// As [`cross_entropy_unread`] with another loss beside it: `beside` is called after the forward pass and gives a number
/// that came of it and its slope, the factor with which its gradient is added. It is not asked where no token is
/// supervised: such a batch is not computed.
///
/// # Errors
/// As [`cross_entropy`]; those of `beside`.
pub fn cross_entropy_beside(
    model: &Model,
    ctx: &Ctx,
    batch: &Packed,
    mask: &[bool],
    want: Want,
    beside: impl FnOnce() -> Result<Option<(Var, f64)>>,
) -> Result<UnreadLoss> {
    match unread_scores(model, ctx, batch, mask, want, true)? {
        Ok(unread) => Ok(UnreadLoss(Some(unread.backward(-1.0, beside()?)?))),
        Err(_) => Ok(UnreadLoss(None)),
    }
}

impl UnreadLoss {
    /// The sums.
    ///
    /// # Errors
    /// A kernel that failed.
    pub fn read(self) -> Result<LossSum> {
        let Some(unread) = self.0 else { return Ok(LossSum::default()) };
        let scores = unread.read()?;
        let count = scores.logprobs.len();
        Ok(LossSum {
            loss: -scores.logprobs.iter().sum::<f64>(),
            count: count as u64,
            correct: scores.correct.iter().filter(|&&c| c).count() as u64,
            entropy: scores.entropy.iter().sum(),
        })
    }
}
