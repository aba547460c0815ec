//! Log-probabilities of target tokens, without the logits.

use planish_tensor::Tensor;
pub use planish_tensor::ops::lm_head::{Correct, LmHead};
use planish_tensor::ops::{elementwise, lm_head as kernel};

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op =
    Op { name: "lm_head", backward: Backward::Rule, cuda: Cuda::Kernel("lm_head"), fixture: Fixture::Torch("lm_head") };

/// What the head gives for each row.
pub struct Scores {
    /// Log-probability of the target, nats: (rows), differentiable.
    pub logprobs: Var,
    /// Entropy of the distribution, nats: (rows). A measurement: no gradient flows through it.
    pub entropy: Tensor,
    /// Whether the target is the most probable token.
    pub correct: Correct,
}

/// logprob_r = z_{t_r} - log Σ_v exp z_v with z = cap(scale · W h_r).
///
/// hidden: (rows, size), W: (vocabulary, size) in any float dtype. Pass only the rows that carry a loss.
/// With W untracked the gradient of hidden is made in the forward pass and saved, (rows, size). With W
/// tracked the backward pass recomputes the logits tile by tile; saved are hidden, W and one number a row.
///
/// # Errors
/// Shapes that do not agree; a target outside the vocabulary.
pub fn lm_head(hidden: &Var, weight: &Var, targets: &[u32], options: &LmHead) -> Result<Scores> {
    if hidden.is_tracked() && !weight.is_tracked() {
        let (out, gradient) = kernel::forward_with_gradient(hidden.value(), weight.value(), targets, options)?;
        let logprobs = record1(&OP, &[hidden], out.logprobs, || {
            move |grads: &mut Grads<'_>| {
                let g = grads.upstream().unsqueeze(1)?;
                grads.add(0, elementwise::mul(&gradient, &g)?)
            }
        })?;
        return Ok(Scores { logprobs, entropy: out.entropy, correct: out.correct });
    }
    let out = kernel::forward(hidden.value(), weight.value(), targets, options)?;
    let logprobs = record1(&OP, &[hidden, weight], out.logprobs, || {
        let (hidden, weight, targets) = (hidden.value().clone(), weight.value().clone(), targets.to_vec());
        let (options, lse) = (*options, out.lse);
        move |grads: &mut Grads<'_>| {
            let g = grads.upstream().clone();
            let mut dhidden = None;
            let mut run = |dweight: Option<&mut Tensor>| {
                dhidden = Some(kernel::backward(&g, &hidden, &weight, &targets, &lse, &options, dweight)?);
                Ok(())
            };
            if grads.wants(1) {
                grads.add_with(1, |dweight| run(Some(dweight)))?;
            } else {
                run(None).map_err(crate::Error::Tensor)?;
            }
            match dhidden {
                Some(dhidden) => grads.add(0, dhidden),
                None => Ok(()),
            }
        }
    })?;
    Ok(Scores { logprobs, entropy: out.entropy, correct: out.correct })
}
