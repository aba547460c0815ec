//! Tokens out of logits.

use planish_cuda::DType as Type;
use planish_cuda::ops::lm_head::{self, LmHead, Output};
use planish_cuda::ops::sampling::{self as kernel, Draw, NO_TOKEN, Sampling};

use super::On;
use crate::rng::Stream;
use crate::{Result, Tensor};

/// Tokens, and their log-probabilities.
pub(crate) fn next_tokens(
    on: &On,
    logits: &Tensor,
    draws: &[(Stream, u64)],
    settings: &Sampling,
) -> Result<Vec<Option<(u32, f32)>>> {
    let (logits, rows, width) = (logits.contiguous()?, draws.len(), logits.dims()[1]);
    if rows == 0 {
        return Ok(Vec::new());
    }
    let draw = |&(stream, index): &(Stream, u64)| {
        let (seed, _, step) = stream.parts();
        // Nobody draws where the largest wins: the same table each time is uploaded once.
        if settings.temperature == 0.0 { [0; 3] } else { [seed, step, index] }
    };
    let words: Vec<u32> = draws.iter().flat_map(draw).flat_map(|word| [word as u32, (word >> 32) as u32]).collect();
    let words = on.words(&words)?;
    debug_assert_eq!(words.bytes(), rows * size_of::<Draw>());
    let (queue, what) = (on.queue(), "a token of each sequence");
    // Tokens, then their log-probabilities: one copy brings both home.
    let mut both = queue.alloc(what, 2 * rows, Type::U32)?;
    let (mut sums, mut best) = (queue.alloc(what, rows, Type::F32)?, queue.alloc(what, rows, Type::U32)?);
    let (mut tokens, logprobs) = both.slice_mut(Type::U32).split(rows)?;
    kernel::sample(queue, tokens.reborrow(), logits.cells()?, words.slice(Type::U32), settings, width)?;
    let out = Output {
        logprobs: logprobs.bits_of(Type::F32)?,
        entropy: None,
        lse: sums.slice_mut(Type::F32),
        best: best.slice_mut(Type::U32),
    };
    let head = LmHead { scale: 1.0, softcap: None };
    lm_head::from_logits(queue, out, logits.cells()?, *tokens, width, &head)?;
    let both: Vec<u32> = both.download()?;
    on.downloaded(size_of_val(&*both));
    let (tokens, logprobs) = both.split_at(rows);
    let row = |(&token, &bits): (&u32, &u32)| {
        let logprob = f32::from_bits(bits);
        (token != NO_TOKEN && logprob.is_finite()).then_some((token, logprob))
    };
    Ok(tokens.iter().zip(logprobs).map(row).collect())
}
