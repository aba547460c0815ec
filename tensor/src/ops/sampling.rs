//! Tokens chosen where their logits are, with their log-probabilities: on a device.
//!
//! The processor's sampler is `planish_nn`'s, which knows more rules. What is here follows the same rules in another
//! arithmetic (`cuda/kernels/sampling.cu`), draws the same random numbers, and brings home two words a row in one copy,
//! where the other needs whole rows of logits.

use crate::device;
use crate::rng::{Purpose, Stream};
use crate::{DType, Error, Result, Tensor};

pub use planish_cuda::ops::sampling::Sampling;

const OP: &str = "sampling";

/// The largest vocabulary that tokens are chosen of.
pub const MAX_VOCABULARY: usize = 1 << 19;

/// The next token of each row of logits, (rows, vocabulary) f32 as [`logits`](super::lm_head::logits) makes them, and its
/// log-probability, with the bits of [`logprobs_of_logits`](super::lm_head::logprobs_of_logits); `None` for a row whose
/// logits are not numbers, or the largest of them infinite. Row r draws number `draws[r].1` of stream `draws[r].0`.
///
/// # Errors
/// [`Error::OnlyOnDevice`]; a number of draws other than the rows; a stream that is not for sampling; settings out of range.
pub fn next_tokens(logits: &Tensor, draws: &[(Stream, u64)], settings: &Sampling) -> Result<Vec<Option<(u32, f32)>>> {
    let Some(on) = device::of(OP, [logits])? else { return Err(Error::OnlyOnDevice { op: OP }) };
    let (rows, _) = logits.rows(OP)?;
    if logits.rank() != 2 || rows != draws.len() {
        let (lhs, rhs) = (logits.dims().to_vec(), vec![draws.len()]);
        return Err(Error::ShapeMismatch { op: OP, what: "logits (rows, vocabulary) against draws", lhs, rhs });
    }
    if logits.dtype() != DType::F32 {
        return Err(Error::DTypeMismatch { op: OP, expected: DType::F32, got: logits.dtype() });
    }
    if draws.iter().any(|(stream, _)| stream.parts().1 != Purpose::Sampling) {
        return Err(Error::InvalidValue { op: OP, name: "purpose", value: 0.0, expected: "that of sampling" });
    }
    device::ops::sampling::next_tokens(&on, logits, draws, settings)
}
