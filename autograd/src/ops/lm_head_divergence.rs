//! Divergence of a student's predictions from a teacher's, without the logits of either.

use std::sync::Arc;

use planish_tensor::Tensor;
use planish_tensor::ops::lm_head::LmHead;
pub use planish_tensor::ops::lm_head_divergence::Divergence;
use planish_tensor::ops::lm_head_divergence::{self as kernel, Teacher as View};

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "lm_head_divergence",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("lm_head_divergence"),
    fixture: Fixture::Torch("lm_head_divergence"),
};

/// What is known of the teacher's predictions; no gradient goes there.
#[derive(Debug, Clone)]
pub enum Teacher {
    /// All of them: hidden states, (rows, its size), and its head, (vocabulary, its size).
    Head {
        /// Hidden states.
        hidden: Tensor,
        /// Weight of its head.
        weight: Tensor,
        /// Options of its head.
        options: LmHead,
    },
    /// Its k most probable tokens in each row, at the temperature of the divergence.
    Top {
        /// Different ids: (rows · k).
        ids: Arc<[u32]>,
        /// Their log-probabilities, nats: (rows · k).
        logprobs: Arc<[f64]>,
        /// k.
        k: usize,
    },
}

impl Teacher {
    fn view(&self) -> View<'_> {
        match self {
            Teacher::Head { hidden, weight, options } => View::Head { hidden, weight, options: *options },
            Teacher::Top { ids, logprobs, k } => View::Top { ids, logprobs, k: *k },
        }
    }
}

/// What the op gives for each row.
pub struct Divergences {
    /// The divergence, nats: (rows), differentiable.
    pub divergence: Var,
    /// Entropy of the student, nats: (rows). A measurement: no gradient flows through it.
    pub entropy: Tensor,
    /// Whether the most probable token of both is the same.
    pub agrees: Vec<bool>,
}

/// D_r of the distributions that the two heads give; [`kernel`] has the formulas.
///
/// hidden: (rows, size), W: (vocabulary, size) in any float dtype, of the student. Saves these, the teacher's, and a
/// few numbers a row; the backward pass makes the logits again, tile by tile.
///
/// # Errors
/// Shapes, vocabularies or dtypes that do not agree; β outside of 0 to 1; a temperature that is not positive.
pub fn lm_head_divergence(
    hidden: &Var,
    weight: &Var,
    options: &LmHead,
    teacher: &Teacher,
    what: &Divergence,
) -> Result<Divergences> {
    let out = kernel::forward(hidden.value(), weight.value(), options, &teacher.view(), what)?;
    let (entropy, agrees) = (out.entropy.clone(), out.agrees.clone());
    let divergence = record1(&OP, &[hidden, weight], out.divergence.clone(), || {
        let (hidden, weight) = (hidden.value().clone(), weight.value().clone());
        let (options, teacher, what) = (*options, teacher.clone(), *what);
        move |grads: &mut Grads<'_>| {
            let g = grads.upstream().clone();
            let mut dhidden = None;
            let mut run = |dweight: Option<&mut Tensor>| {
                let view = teacher.view();
                dhidden = Some(kernel::backward(&g, &hidden, &weight, &options, &view, &what, &out, dweight)?);
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
    Ok(Divergences { divergence, entropy, agrees })
}
