//! A token from each row of logits; see `cuda/kernels/sampling.cu`.

use super::{NULL, size};
use crate::driver::Arg;
use crate::kernels::SAMPLING;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "sampling";

/// How tokens are chosen, under transformers' names; applied in this order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the largest.
    pub temperature: f64,
    /// Only the k largest stay, and those equal to the k-th; 0 is off.
    pub top_k: usize,
    /// Only the most probable stay, as many as it takes to reach this probability; 1 is off.
    pub top_p: f64,
    /// Only tokens at least this probable, relative to the most probable one, stay; 0 is off.
    pub min_p: f64,
}

/// Which random number a row draws: word (step, index) of the stream of `seed` for sampling (`tensor/src/rng.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Seed.
    pub seed: u64,
    /// Step of the stream.
    pub step: u64,
    /// Index in it.
    pub index: u64,
}

impl Draw {
    /// Draws as [`sample`] takes them from the device.
    pub fn words(draws: &[Draw]) -> Vec<u64> {
        draws.iter().flat_map(|draw| [draw.seed, draw.step, draw.index]).collect()
    }
}

/// What a row gives whose logits are NaN, or whose largest is infinite.
pub const NO_TOKEN: u32 = u32::MAX;

impl Sampling {
    /// `struct Sampling` of the kernel.
    fn bytes(&self, width: usize) -> Result<[u8; 32]> {
        for (what, value, ok) in [
            ("temperature", self.temperature, self.temperature >= 0.0),
            ("top_p", self.top_p, (0.0..=1.0).contains(&self.top_p)),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p)),
        ] {
            if !ok {
                return Err(Error::Value {
                    op: OP,
                    what,
                    expected: "not negative, and a probability at most 1",
                    got: value,
                });
            }
        }
        let mut bytes = [0; 32];
        for (to, value) in bytes.chunks_exact_mut(8).zip([self.temperature, self.top_p, self.min_p]) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        // A k beyond the vocabulary keeps all, as 0 does.
        let top_k = if self.top_k < width { self.top_k as u32 } else { 0 };
        bytes[24..28].copy_from_slice(&top_k.to_le_bytes());
        bytes[28..].copy_from_slice(&size(OP, "the vocabulary", width)?.to_le_bytes());
        Ok(bytes)
    }
}

/// tokens: (rows) u32, from logits: (rows, width) f32 and draws: (rows, 3) words of 64 bits as pairs of u32.
///
/// # Errors
/// Sizes or types that do not agree; settings out of range.
pub fn sample(
    queue: Queue<'_>,
    tokens: SliceMut<'_>,
    logits: Slice<'_>,
    draws: Slice<'_>,
    sampling: &Sampling,
    width: usize,
) -> Result<()> {
    logits.expect_dtype(OP, "the logits", DType::F32)?;
    let rows = super::rows(OP, "the vocabulary", logits, width)?;
    tokens.expect_dtype(OP, "the tokens", DType::U32)?;
    tokens.expect(OP, "the tokens", rows)?;
    draws.expect_dtype(OP, "the draws", DType::U32)?;
    draws.expect(OP, "the draws", 6 * rows)?;
    // The soft limit of the fixed-point weights.
    if width > 1 << 19 {
        return Err(Error::Size { op: OP, what: "the vocabulary", expected: "at most 2^19", got: width });
    }
    let bytes = sampling.bytes(width)?;
    let mut tokens = tokens;
    for first in (0..rows).step_by(ROWS) {
        let n = ROWS.min(rows - first);
        let (logits, draws) = (logits.part(first * width, n * width)?, draws.part(6 * first, 6 * n)?);
        some(queue, tokens.reborrow().part(first, n)?, logits, draws, sampling, &bytes, width)?;
    }
    Ok(())
}

/// Rows that are sampled at once: their histograms take up to 96 KiB each.
const ROWS: usize = 256;

/// Logits of a stretch, threads of its block, bins of a histogram, as in the kernels.
const STRETCH: usize = 8192;
const THREADS: u32 = 512;
const BINS: usize = 2048;

/// [`sample`] for a few rows.
fn some(
    queue: Queue<'_>,
    tokens: SliceMut<'_>,
    logits: Slice<'_>,
    draws: Slice<'_>,
    sampling: &Sampling,
    bytes: &[u8; 32],
    width: usize,
) -> Result<()> {
    let rows = tokens.len();
    let blocks = rows * width.div_ceil(STRETCH);
    let all = Shape::line(blocks, THREADS);
    let launch = |name, shape, args: &[Arg<'_>]| queue.launch(&SAMPLING, name, &Vec::new(), shape, args);
    let (s, count) = (Arg::Bytes(bytes), Arg::U32(rows as u32));
    let words = |what, n: usize| queue.alloc(what, 2 * n, DType::U32);

    let draw = Shape::line(rows, THREADS);
    let tops = words("the largest logits of stretches", blocks)?;
    let tops = tops.slice(DType::U32).arg();
    if sampling.temperature == 0.0 {
        launch("sampling_top", all, &[tops, NULL, logits.arg(), Arg::U32(width as u32)])?;
        let args = [tokens.arg(), NULL, NULL, tops, logits.arg(), draws.arg(), s, Arg::U32(0), count];
        return launch("sampling_draw", draw, &args);
    }

    // Three digits for each threshold.
    let top_k = (1..width).contains(&sampling.top_k);
    let steps = 3 * (usize::from(top_k) + usize::from(sampling.top_p < 1.0));
    let bins = queue.zeros("histograms of logits", 2 * steps * rows * BINS, DType::U32)?;
    let first = if top_k { bins.slice(DType::U32).arg() } else { NULL };
    launch("sampling_top", all, &[tops, first, logits.arg(), Arg::U32(width as u32)])?;
    let states = words("thresholds of logits", 3 * (steps + 1) * rows)?;
    let parts = words("sums of stretches of logits", 2 * blocks)?;
    let [bins, states, parts] = [&bins, &states, &parts].map(|buffer| buffer.slice(DType::U32).arg());
    for step in usize::from(top_k)..steps {
        let args = [states, bins, tops, logits.arg(), s, Arg::U32(step as u32), count];
        launch("sampling_count", all, &args)?;
    }
    let steps = Arg::U32(steps as u32);
    launch("sampling_sums", all, &[parts, states, bins, tops, logits.arg(), s, steps, count])?;
    let args = [tokens.arg(), parts, states, tops, logits.arg(), draws.arg(), s, steps, count];
    launch("sampling_draw", draw, &args)
}
