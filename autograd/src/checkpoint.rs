//! Activation checkpointing: recompute a segment in the backward pass instead of keeping it.

use planish_tensor::Tensor;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Tape, Var};

/// Registry entry.
pub static OP: Op = Op {
    name: "checkpoint",
    backward: Backward::Rule,
    cuda: Cuda::Composed("it runs the ops of its segment again"),
    fixture: Fixture::None("it computes nothing of its own: gradients are compared with the segment recorded as it is"),
};

/// Runs `segment` without recording it, and again, recorded, in the backward pass.
///
/// `segment(tape, inputs)` computes outputs from inputs and from parameters that it takes from
/// `tape` (none while only the values are wanted). It must be deterministic; with counter-based
/// randomness it is, dropout included, so the recomputed values are the same bits.
///
/// Memory: the inputs are kept, and during the backward pass one segment's activations.
/// Work: one more forward pass of the segment.
///
/// # Errors
/// Those of the segment.
///
/// # Source
/// Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
pub fn checkpoint<F>(tape: &Tape, segment: F, inputs: &[&Var]) -> Result<Vec<Var>>
where
    F: Fn(Option<&Tape>, &[Var]) -> Result<Vec<Var>> + 'static,
{
    let detached: Vec<Var> = inputs.iter().map(|v| v.detach()).collect();
    let outputs = segment(None, &detached)?.into_iter().map(Var::into_value).collect();
    let wanted: Vec<bool> = inputs.iter().map(|v| v.is_tracked()).collect();
    let rule = move |grads: &mut Grads<'_>| {
        let inner = Tape::new();
        let leaves: Vec<Var> = detached
            .iter()
            .zip(&wanted)
            .map(|(v, &wanted)| if wanted { inner.leaf(v.value().clone()) } else { v.clone() })
            .collect();
        let outputs = segment(Some(&inner), &leaves)?;
        let seeds: Vec<(Var, Tensor)> = outputs
            .into_iter()
            .enumerate()
            // An output that depends on nothing tracked has nowhere to send its gradient.
            .filter_map(|(i, out)| grads.upstream_of(i).filter(|_| out.is_tracked()).map(|g| (out, g.clone())))
            .collect();
        let found = inner.backward_from(seeds)?;
        for (i, leaf) in leaves.iter().enumerate() {
            if let Some(g) = found.get(leaf) {
                grads.add(i, g.clone())?;
            }
        }
        Ok(())
    };
    tape.record_always(&OP, inputs, outputs, Box::new(rule))
}
