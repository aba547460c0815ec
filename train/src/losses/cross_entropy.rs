//! Cross-entropy of the next token.

use planish_autograd::Var;
use planish_nn::Ctx;
use planish_nn::decoder::{Model, Packed};
use planish_tensor::{DType, Tensor};

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
    let (rows, targets) = supervised(batch, mask);
    if rows.is_empty() {
        return Ok(LossSum::default());
    }
    let hidden = model.forward(ctx, batch, recompute)?;
    let scores = model.scores(ctx, &hidden, &rows, &targets)?;
    drop(hidden);
    let sum = |t: &Tensor| -> Result<f64> { Ok(t.to_dtype(DType::F64)?.to_vec::<f64>()?.iter().sum()) };
    let total = LossSum {
        loss: -sum(scores.logprobs.value())?,
        count: rows.len() as u64,
        correct: scores.correct.iter().filter(|&&c| c).count() as u64,
        entropy: sum(&scores.entropy)?,
    };
    backward(ctx, scores.logprobs)?;
    Ok(total)
}

fn backward(ctx: &Ctx, logprobs: Var) -> Result<()> {
    let Some(tape) = ctx.tape().filter(|_| logprobs.is_tracked()) else { return Ok(()) };
    let upstream = Tensor::full(-1.0f64, logprobs.dims())?.to_dtype(logprobs.value().dtype())?;
    tape.backward_from(vec![(logprobs, upstream)])?;
    Ok(())
}

/// (rows, targets) of the supervised tokens.
fn supervised(batch: &Packed, mask: &[bool]) -> (Vec<u32>, Vec<u32>) {
    let (mut rows, mut targets) = (Vec::new(), Vec::new());
    for segment in batch.cu_seqlens.windows(2) {
        for i in segment[0] + 1..segment[1] {
            if mask[i as usize] {
                rows.push(i - 1);
                targets.push(batch.ids[i as usize]);
            }
        }
    }
    (rows, targets)
}
