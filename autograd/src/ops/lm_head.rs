//! Log-probabilities of target tokens, without the logits.

use std::cell::RefCell;
use std::rc::Rc;

use planish_tensor::ops::lm_head::LmHeadOutput;
pub use planish_tensor::ops::lm_head::{Correct, LmHead};
use planish_tensor::ops::{elementwise, lm_head as kernel};
use planish_tensor::{DType, Tensor};

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Error, Result, Var, record1};

/// Registry entry.
pub static OP: Op =
    Op { name: "lm_head", backward: Backward::Rule, cuda: Cuda::Kernel("lm_head"), fixture: Fixture::Torch("lm_head") };

/// What [`lm_head_later`] gives: scores whose numbers are made together with their gradient.
pub struct Later {
    /// As [`Scores::logprobs`], but its value is NaN: it is there to be gone back from.
    pub logprobs: Var,
    state: Rc<RefCell<State>>,
}

/// What a head that does its work later has, and what it gave. The backward pass leaves nothing of the former alive.
enum State {
    Before { hidden: Tensor, weight: Tensor, targets: Vec<u32>, options: LmHead },
    Made(LmHeadOutput),
    Taken,
}

impl Later {
    /// The numbers, no longer tracked: those that the backward pass made, or made now if there was none.
    ///
    /// # Errors
    /// Those of the kernels; a backward pass that failed.
    pub fn scores(self) -> Result<Scores> {
        let out = match self.state.replace(State::Taken) {
            State::Made(out) => out,
            State::Before { hidden, weight, targets, options } => {
                kernel::forward(&hidden, &weight, &targets, &options)?
            }
            State::Taken => return Err(Error::NoRule { op: OP.name, reason: "its backward pass has failed" }),
        };
        Ok(Scores { logprobs: Var::constant(out.logprobs), entropy: out.entropy, correct: out.correct })
    }
}

/// [`lm_head`] for a loss whose slope by each log-probability is known before the log-probabilities are, as that of
/// cross-entropy is: the head does nothing until its backward pass, which makes the logits once for both. With W tracked
/// that is three products instead of four; the numbers have the bits of [`lm_head`].
///
/// # Errors
/// As [`lm_head`].
pub fn lm_head_later(hidden: &Var, weight: &Var, targets: &[u32], options: &LmHead) -> Result<Later> {
    kernel::validate(hidden.value(), weight.value(), targets, options)?;
    let device = hidden.value().device();
    // On a device numbers of halves are f32.
    let dtype = if device.is_cpu() { hidden.value().dtype() } else { DType::F32 };
    let nothing = Tensor::full(f32::NAN, [targets.len()])?.to_dtype(dtype)?.to_device(device)?;
    let (targets, options) = (targets.to_vec(), *options);
    let before = State::Before { hidden: hidden.value().clone(), weight: weight.value().clone(), targets, options };
    let state = Rc::new(RefCell::new(before));
    let logprobs = record1(&OP, &[hidden, weight], nothing, || {
        let state = state.clone();
        move |grads: &mut Grads<'_>| {
            let State::Before { hidden, weight, targets, options } = state.replace(State::Taken) else {
                return Err(Error::NoRule { op: OP.name, reason: "its numbers were taken before its gradient" });
            };
            let g = grads.upstream().clone();
            let mut made = None;
            if grads.wants(1) {
                grads.add_with(1, |dweight| {
                    made = Some(kernel::forward_and_backward(&g, &hidden, &weight, &targets, &options, dweight)?);
                    Ok(())
                })?;
            } else {
                let (out, d) = kernel::forward_with_gradient(&hidden, &weight, &targets, &options)?;
                made = Some((out, elementwise::mul(&d, &g.unsqueeze(1)?)?));
            }
            let Some((out, dhidden)) = made else { return Ok(()) };
            state.replace(State::Made(out));
            grads.add(0, dhidden)
        }
    })?;
    Ok(Later { logprobs, state })
}

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

#[cfg(test)]
mod tests {
    use planish_tensor::rng::{Purpose, Stream};

    use super::*;
    use crate::Tape;

    fn random(shape: [usize; 2], salt: u64) -> Tensor {
        let s = Stream::new(3, Purpose::Data, salt);
        let values = (0..shape[0] * shape[1]).map(|i| s.normal(i as u64)).collect::<Vec<f64>>();
        Tensor::from_vec(values, shape).unwrap()
    }

    /// The numbers to the bit and the gradients but for rounding, whichever of hidden and W are tracked.
    #[test]
    fn later_is_the_same() {
        let (h, w, g) = (random([6, 5], 1), random([40, 5], 2), random([1, 6], 3).reshape([6]).unwrap());
        let (targets, options) = ([1, 0, 39, 7, 7, 2], LmHead { scale: 0.5, softcap: Some(2.0) });
        let numbers = |t: &Tensor| t.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap();
        for (of_hidden, of_weight) in [(true, true), (true, false), (false, true)] {
            let run = |later: bool| {
                let tape = Tape::new();
                let var = |tracked, t: &Tensor| if tracked { tape.leaf(t.clone()) } else { Var::constant(t.clone()) };
                let (hidden, weight) = (var(of_hidden, &h), var(of_weight, &w));
                let (gradients, scores) = if later {
                    let later = lm_head_later(&hidden, &weight, &targets, &options).unwrap();
                    assert!(later.logprobs.is_tracked() && numbers(later.logprobs.value()).iter().all(|x| x.is_nan()));
                    let back = tape.backward_from(vec![(later.logprobs.clone(), g.clone())]).unwrap();
                    (back, later.scores().unwrap())
                } else {
                    let scores = lm_head(&hidden, &weight, &targets, &options).unwrap();
                    (tape.backward_from(vec![(scores.logprobs.clone(), g.clone())]).unwrap(), scores)
                };
                let correct = scores.correct.read().unwrap();
                let back = [&hidden, &weight].map(|v| gradients.get(v).map(&numbers));
                (numbers(scores.logprobs.value()), numbers(&scores.entropy), correct, back)
            };
            let ((logprobs, entropy, correct, back), later) = (run(false), run(true));
            assert!(later.0 == logprobs && later.1 == entropy && later.2 == correct);
            for (a, b, tracked) in [(&back[0], &later.3[0], of_hidden), (&back[1], &later.3[1], of_weight)] {
                assert_eq!((a.is_some(), b.is_some()), (tracked, tracked));
                let (a, b) = (a.iter().flatten(), b.iter().flatten());
                assert!(a.zip(b).all(|(a, b)| (a - b).abs() < 1e-13));
            }
        }
    }

    /// Without a backward pass the numbers are made when they are asked for; wrong targets are named at once.
    #[test]
    fn later_without_a_backward_pass() {
        let (h, w) = (Var::constant(random([3, 5], 1)), Var::constant(random([9, 5], 2)));
        let options = LmHead::default();
        let later = lm_head_later(&h, &w, &[0, 8, 3], &options).unwrap().scores().unwrap();
        let plain = lm_head(&h, &w, &[0, 8, 3], &options).unwrap();
        assert_eq!(later.logprobs.value().to_vec::<f64>().unwrap(), plain.logprobs.value().to_vec::<f64>().unwrap());
        assert!(lm_head_later(&h, &w, &[0, 9, 3], &options).is_err());
    }
}
