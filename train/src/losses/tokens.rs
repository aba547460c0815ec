//! Log-probabilities of chosen tokens of a packed batch, and the way back: the primitive under every loss that
//! learns from fixed data.
//!
//! Forward: a number for each chosen token. A loss is then plain arithmetic on these numbers, and its slope by
//! each of them is what [`TokenScores::backward`] takes: one forward and one backward pass through the model,
//! whatever the loss is.

use std::ops::Range;

use planish_autograd::Var;
use planish_autograd::ops::index_select::index_select;
use planish_nn::Ctx;
use planish_nn::decoder::{Model, Packed};
use planish_tensor::{DType, Tensor};

use crate::Result;

/// Rows of logits that are alive at once where whole distributions are asked for.
const ROWS: usize = 16;

/// What is wanted besides log-probabilities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Want {
    /// Keep each layer's input only, and compute the rest again in the backward pass.
    pub recompute: bool,
    /// [`TokenScores::log_collision`].
    pub log_collision: bool,
}

/// Scores of the chosen tokens, in the order of the batch.
pub struct TokenScores {
    /// log p(token | what comes before it in its segment), nats.
    pub logprobs: Vec<f64>,
    /// Entropy of the distribution that predicted it, nats. No gradient flows through it.
    pub entropy: Vec<f64>,
    /// Whether the token was the most probable.
    pub correct: Vec<bool>,
    /// log Σ_v p(v)², nats, if wanted: what a token sampled by itself would have on average, as a
    /// log-probability. No gradient flows through it.
    pub log_collision: Option<Vec<f64>>,
    /// Scores of segment s are `starts[s]..starts[s + 1]`.
    starts: Vec<usize>,
    tracked: Option<Var>,
}

/// Scores the tokens i with `mask[i]`; the first of a segment, which nothing predicts, never counts. Only the
/// rows of these are computed in the head.
///
/// # Errors
/// A token id outside the vocabulary; those of the kernels.
pub fn token_scores(model: &Model, ctx: &Ctx, batch: &Packed, mask: &[bool], want: Want) -> Result<TokenScores> {
    let (rows, targets, starts) = chosen(batch, mask);
    if rows.is_empty() {
        let log_collision = want.log_collision.then(Vec::new);
        let (logprobs, entropy, correct) = (Vec::new(), Vec::new(), Vec::new());
        return Ok(TokenScores { logprobs, entropy, correct, log_collision, starts, tracked: None });
    }
    let hidden = model.forward(ctx, batch, want.recompute)?;
    let log_collision = match want.log_collision {
        true => Some(log_collision(model, ctx, &hidden, &rows)?),
        false => None,
    };
    let scores = model.scores(ctx, &hidden, &rows, &targets)?;
    drop(hidden);
    Ok(TokenScores {
        logprobs: numbers(scores.logprobs.value())?,
        entropy: numbers(&scores.entropy)?,
        correct: scores.correct,
        log_collision,
        starts,
        tracked: scores.logprobs.is_tracked().then_some(scores.logprobs),
    })
}

impl TokenScores {
    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.starts.len() - 1
    }

    /// Places of a segment's scores.
    pub fn of(&self, segment: usize) -> Range<usize> {
        self.starts[segment]..self.starts[segment + 1]
    }

    /// Adds Σ_i slopes\[i\] · ∂logprobs\[i\]/∂θ to the gradients of the parameters. Does nothing if nothing was
    /// recorded.
    ///
    /// # Errors
    /// Those of the backward rules.
    ///
    /// # Panics
    /// If there is not a slope for each score.
    pub fn backward(self, slopes: &[f64]) -> Result<()> {
        assert_eq!(slopes.len(), self.logprobs.len(), "a slope for each score");
        let Some(logprobs) = self.tracked else { return Ok(()) };
        let upstream = Tensor::from_vec(slopes.to_vec(), [slopes.len()])?.to_dtype(logprobs.value().dtype())?;
        let tape = logprobs.tape().expect("it is tracked").clone();
        tape.backward_from(vec![(logprobs, upstream)])?;
        Ok(())
    }
}

fn numbers(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.to_dtype(DType::F64)?.to_vec::<f64>()?)
}

/// log Σ_v p(v)² = lse(2 z) - 2 lse(z), from the logits z of a few rows at a time.
fn log_collision(model: &Model, ctx: &Ctx, hidden: &Var, rows: &[u32]) -> Result<Vec<f64>> {
    let hidden = hidden.detach();
    let mut out = Vec::with_capacity(rows.len());
    for rows in rows.chunks(ROWS) {
        let logits = numbers(&model.logits(ctx, index_select(&hidden, rows)?.value())?)?;
        for z in logits.chunks_exact(logits.len() / rows.len()) {
            let most = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum = |times: f64| z.iter().map(|z| (times * (z - most)).exp()).sum::<f64>().ln();
            out.push(sum(2.0) - 2.0 * sum(1.0));
        }
    }
    Ok(out)
}

/// (row that predicts, target) of each chosen token, and where each segment's begin.
fn chosen(batch: &Packed, mask: &[bool]) -> (Vec<u32>, Vec<u32>, Vec<usize>) {
    let (mut rows, mut targets, mut starts) = (Vec::new(), Vec::new(), vec![0]);
    for segment in batch.cu_seqlens.windows(2) {
        for i in segment[0] + 1..segment[1] {
            if mask[i as usize] {
                rows.push(i - 1);
                targets.push(batch.ids[i as usize]);
            }
        }
        starts.push(rows.len());
    }
    (rows, targets, starts)
}
