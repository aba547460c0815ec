//! The language-model head: hidden states in, log-probabilities of target tokens out. Full logits
//! never exist (law 4 of the design).
//!
//! For row r with target t_r, over the vocabulary of size V:
//!
//! z = cap(scale · W h_r),  logprob_r = z_{t_r} - log Σ_v exp z_v   (nats)
//!
//! with cap(z) = c·tanh(z/c) if a soft-cap is set. hidden: (rows, size) in f32 or f64, W: (V, size) in
//! any float dtype, outputs: (rows) in the dtype of hidden. Only rows that carry a loss should be passed.
//!
//! # Order of the sum
//! The vocabulary is taken in tiles of [`TILE`], with a running maximum and sum per row, so a row's
//! result is the same bits whatever rows come with it; [`from_logits`] takes the same order over a row
//! of logits that decoding has at hand (law 5 of the design).
//!
//! Memory: [`ROWS`] × [`TILE`] logits. Bound by arithmetic: 2 V size operations a row forward. Where W is
//! frozen, [`forward_with_gradient`] makes the gradient of h in the same pass, 2 V size more; where it is
//! trained, [`backward`] recomputes the logits: 6 V size. Where the gradient of the loss by each log-probability is known
//! beforehand, [`forward_and_backward`] does both for 6 V size, with whole rows of logits in [`WHOLE_BYTES`].

use super::check;
use crate::device::{self, ops::lm_head as on_device};
use crate::gemm::{Mat, Right, Store, gemm};
use crate::ops::linear::{matrix, with_right};
use crate::parallel::Disjoint;
use crate::scratch;
use crate::{DType, Element, Error, Real, Result, Tensor, dispatch_real, parallel};

pub use crate::device::ops::lm_head::{Correct, scratch_bytes};

const OP: &str = "lm_head";

/// Vocabulary entries per tile. Part of the arithmetic, not only a tuning knob.
pub const TILE: usize = 3072;

/// Rows taken at a time.
pub const ROWS: usize = 512;

/// Bytes of the whole rows of logits that [`forward_and_backward`] has at a time, at most. Part of the arithmetic: the
/// gradient of W is a sum over these blocks of rows. The larger, the fewer times it is read and written.
pub const WHOLE_BYTES: usize = 64 << 20;

/// Options of the head.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LmHead {
    /// Factor on the logits (1 for most models).
    pub scale: f64,
    /// Bound c of the soft-cap c·tanh(z/c).
    pub softcap: Option<f64>,
}

impl Default for LmHead {
    fn default() -> Self {
        LmHead { scale: 1.0, softcap: None }
    }
}

/// What the head computes for each row.
#[derive(Debug, Clone)]
pub struct LmHeadOutput {
    /// Log-probability of the target, nats.
    pub logprobs: Tensor,
    /// Entropy of the distribution, nats.
    pub entropy: Tensor,
    /// log Σ exp z, which the backward pass needs.
    pub lse: Tensor,
    /// Whether the target is the most probable token (the first of equals).
    pub correct: Correct,
}

/// One block of logits and the states of all rows: kept by the thread, so that they are no allocation of a step.
#[derive(Default)]
struct Logits<R>(Vec<R>, Vec<Running<R>>);

/// That hidden (rows, size), W (vocabulary, size) and (rows) targets agree.
///
/// # Errors
/// That they do not; options out of range.
pub fn validate(hidden: &Tensor, weight: &Tensor, targets: &[u32], options: &LmHead) -> Result<()> {
    for t in [hidden, weight] {
        if t.rank() != 2 {
            return Err(Error::Rank { op: OP, expected: 2, shape: t.dims().to_vec() });
        }
    }
    let mismatch = |what, lhs: &[usize], rhs: &[usize]| {
        Err(Error::ShapeMismatch { op: OP, what, lhs: lhs.to_vec(), rhs: rhs.to_vec() })
    };
    if hidden.dims()[1] != weight.dims()[1] {
        return mismatch("hidden (rows, size) against weight (vocabulary, size)", hidden.dims(), weight.dims());
    }
    if hidden.dims()[0] != targets.len() {
        return mismatch("rows of hidden against targets", hidden.dims(), &[targets.len()]);
    }
    let vocabulary = weight.dims()[0];
    if let Some(&id) = targets.iter().find(|&&t| t as usize >= vocabulary) {
        return Err(Error::OutOfRange { op: OP, what: "target token id", index: id as i128, len: vocabulary });
    }
    if let Some(c) = options.softcap.filter(|c| !(*c > 0.0 && c.is_finite())) {
        return Err(Error::InvalidValue { op: OP, name: "softcap", value: c, expected: "positive" });
    }
    if !options.scale.is_finite() {
        return Err(Error::InvalidValue { op: OP, name: "scale", value: options.scale, expected: "finite" });
    }
    Ok(())
}

/// Running state of one row's softmax over the vocabulary.
#[derive(Debug, Clone, Copy)]
pub(super) struct Running<R> {
    pub(super) maximum: R,
    pub(super) sum: R,
    /// Σ z exp(z - maximum), for the entropy.
    weighted: R,
    target: R,
    pub(super) argmax: usize,
}

impl<R: Real> Running<R> {
    pub(super) const NEW: Self =
        Running { maximum: R::NEG_INFINITY, sum: R::ZERO, weighted: R::ZERO, target: R::ZERO, argmax: usize::MAX };

    /// (log-probability, entropy, log-sum-exp).
    pub(super) fn finish(&self) -> (R, R, R) {
        let lse = self.maximum + self.sum.ln();
        (self.target - lse, lse - self.weighted / self.sum, lse)
    }
}

crate::simd::simd_fn! {
    /// Takes in one tile of a row: `z` raw logits of tokens `v0..`, capped and scaled in place.
    pub(super) fn take_tile<R: Real>(state: &mut Running<R>, z: &mut [R], v0: usize, target: usize, scale: R, softcap: Option<R>) {
        let mut top = R::NEG_INFINITY;
        for z in z.iter_mut() {
            *z = super::attention::cap(*z, scale, softcap);
            top = top.max(*z);
        }
        if top > state.maximum {
            state.argmax = v0 + z.iter().position(|&x| x == top).expect("the maximum is one of them");
        } else {
            top = state.maximum;
        }
        if let Some(&z) = target.checked_sub(v0).and_then(|i| z.get(i)) {
            state.target = z;
        }
        let (mut sums, mut weighted) = ([R::ZERO; 16], [R::ZERO; 16]);
        let mut chunks = z.chunks_exact(16);
        for chunk in &mut chunks {
            for l in 0..16 {
                let e = (chunk[l] - top).exp();
                sums[l] += e;
                weighted[l] = chunk[l].mul_add(e, weighted[l]);
            }
        }
        for (l, &x) in chunks.remainder().iter().enumerate() {
            let e = (x - top).exp();
            sums[l] += e;
            weighted[l] = x.mul_add(e, weighted[l]);
        }
        let (mut sum, mut w) = (R::ZERO, R::ZERO);
        for l in 0..16 {
            sum += sums[l];
            w += weighted[l];
        }
        let correction = (state.maximum - top).exp();
        state.sum = state.sum.mul_add(correction, sum);
        state.weighted = state.weighted.mul_add(correction, w);
        state.maximum = top;
    }
}

/// Log-probabilities of the targets.
///
/// # Errors
/// Shapes that do not agree; a target outside the vocabulary; hidden of a dtype other than f32 and f64.
pub fn forward(hidden: &Tensor, weight: &Tensor, targets: &[u32], options: &LmHead) -> Result<LmHeadOutput> {
    validate(hidden, weight, targets, options)?;
    if let Some(on) = device::of(OP, [hidden, weight])? {
        return on_device::forward(&on, hidden, weight, targets, options);
    }
    let hidden = hidden.contiguous()?;
    match hidden.dtype() {
        DType::F32 => with_right!(OP, weight, w => {
            scratch::with(|b| forward_typed::<f32, _>(&hidden, w, targets, options, None, b))
        }),
        DType::F64 => {
            let weight = weight.to_dtype(DType::F64)?;
            scratch::with(|b| forward_typed::<f64, _>(&hidden, matrix::<f64>(&weight), targets, options, None, b))
        }
        dtype => Err(Error::UnsupportedDType { op: OP, dtype }),
    }
}

/// As [`forward`], bit for bit, and G = ∂logprob_r/∂h_r, (rows, size), in the same pass:
///
/// G_r = slope_t W_t - Σ_v p_v slope_v W_v,  slope = cap'(z) scale
///
/// where the sum is kept with the running maximum, as attention keeps its own. With it the backward
/// pass is dh_r = dlogprob_r G_r.
///
/// # Errors
/// As [`forward`].
pub fn forward_with_gradient(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    options: &LmHead,
) -> Result<(LmHeadOutput, Tensor)> {
    validate(hidden, weight, targets, options)?;
    if let Some(on) = device::of(OP, [hidden, weight])? {
        return on_device::forward_with_gradients(&on, None, hidden, weight, targets, options, None);
    }
    let (hidden, weight) = (hidden.contiguous()?, &weight.contiguous()?);
    let mut gradient = Tensor::zeros(hidden.shape(), hidden.dtype())?;
    let out = match hidden.dtype() {
        DType::F32 => with_right!(OP, weight, w => {
            let gradient = Some(gradient.as_slice_mut()?);
            scratch::with(|b| forward_typed::<f32, _>(&hidden, w, targets, options, gradient, b))
        }),
        DType::F64 => {
            let weight = weight.to_dtype(DType::F64)?;
            let gradient = Some(gradient.as_slice_mut()?);
            scratch::with(|b| forward_typed::<f64, _>(&hidden, matrix::<f64>(&weight), targets, options, gradient, b))
        }
        dtype => Err(Error::UnsupportedDType { op: OP, dtype }),
    }?;
    Ok((out, gradient))
}

fn forward_typed<R: Real, W: Right<R>>(
    hidden: &Tensor,
    w: W,
    targets: &[u32],
    options: &LmHead,
    mut gradient: Option<&mut [R]>,
    buffer: &mut Logits<R>,
) -> Result<LmHeadOutput> {
    let (rows, size) = (hidden.dims()[0], hidden.dims()[1]);
    let x = hidden.as_slice::<R>()?;
    let Logits(logits, states) = buffer;
    scratch::fill(states, rows, Running::NEW);
    logits.resize(ROWS.min(rows) * TILE.min(w.rows()), R::ZERO);
    let (scale, softcap) = (R::from_f64(options.scale), options.softcap.map(R::from_f64));
    for (r0, states) in (0..rows).step_by(ROWS).zip(states.chunks_mut(ROWS)) {
        let n = states.len();
        let block = Mat::new(&x[r0 * size..(r0 + n) * size], n, size);
        for v0 in (0..w.rows()).step_by(TILE) {
            let width = TILE.min(w.rows() - v0);
            let (tile, logits) = (w.narrow_rows(v0, width), &mut logits[..n * width]);
            gemm(block, tile.t(), logits, Store::Set);
            let Some(gradient) = gradient.as_deref_mut() else {
                parallel::chunks2(logits, width, states, 1, |r, logits, states| {
                    for (i, (state, z)) in states.iter_mut().zip(logits.chunks_exact_mut(width)).enumerate() {
                        take_tile(state, z, v0, targets[r0 + r + i] as usize, scale, softcap);
                    }
                });
                continue;
            };
            let gradient = &mut gradient[r0 * size..(r0 + n) * size];
            let sums = Disjoint::new(gradient);
            parallel::chunks2(logits, width, states, 1, |r, logits, states| {
                for (i, (state, z)) in states.iter_mut().zip(logits.chunks_exact_mut(width)).enumerate() {
                    let before = state.maximum;
                    take_tile(state, z, v0, targets[r0 + r + i] as usize, scale, softcap);
                    // SAFETY: a row belongs to one task.
                    let sum = unsafe { sums.part((r + i) * size, size) };
                    if before != state.maximum {
                        let correction = (before - state.maximum).exp();
                        sum.iter_mut().for_each(|x| *x *= correction);
                    }
                    weigh_tile(z, state.maximum, scale, softcap);
                }
            });
            gemm(Mat::new(&*logits, n, width), tile, gradient, Store::Add);
        }
    }
    if let Some(gradient) = gradient {
        parallel::chunks(gradient, size, |start, gradient| {
            let mut row = vec![R::ZERO; size];
            for (i, g) in gradient.chunks_exact_mut(size).enumerate() {
                let r = start / size + i;
                w.read_row(targets[r] as usize, &mut row);
                finish_gradient(g, &row, &states[r], scale, softcap);
            }
        });
    }
    results(states, targets, hidden.dtype())
}

/// What the states of all rows make.
fn results<R: Real>(states: &[Running<R>], targets: &[u32], dtype: DType) -> Result<LmHeadOutput> {
    let column = || Tensor::zeros([states.len()], dtype);
    let (mut logprobs, mut entropy, mut lse) = (column()?, column()?, column()?);
    let outputs =
        logprobs.as_slice_mut::<R>()?.iter_mut().zip(entropy.as_slice_mut::<R>()?).zip(lse.as_slice_mut::<R>()?);
    for (state, ((logprob, entropy), lse)) in states.iter().zip(outputs) {
        (*logprob, *entropy, *lse) = state.finish();
    }
    let correct: Vec<bool> = states.iter().zip(targets).map(|(s, &t)| s.argmax == t as usize).collect();
    Ok(LmHeadOutput { logprobs, entropy, lse, correct: Correct::from(correct) })
}

/// cap'(raw) · scale, from the capped value.
#[inline(always)]
pub(super) fn slope<R: Real>(capped: R, scale: R, softcap: Option<R>) -> R {
    match softcap {
        None => scale,
        Some(c) => scale * (R::ONE - (capped / c) * (capped / c)),
    }
}

crate::simd::simd_fn! {
    /// From capped logits to e^(z - maximum) · slope, in place.
    fn weigh_tile<R: Real>(z: &mut [R], maximum: R, scale: R, softcap: Option<R>) {
        for z in z {
            *z = (*z - maximum).exp() * slope(*z, scale, softcap);
        }
    }
}

crate::simd::simd_fn! {
    /// From Σ_v e^(z_v - maximum) slope_v W_v to G, in place; `w` is the target's row of W.
    fn finish_gradient<R: Real>(g: &mut [R], w: &[R], state: &Running<R>, scale: R, softcap: Option<R>) {
        let (at_target, inverse) = (slope(state.target, scale, softcap), R::ONE / state.sum);
        for (g, w) in g.iter_mut().zip(w) {
            *g = at_target.mul_add(*w, -(*g * inverse));
        }
    }
}

/// cap(scale · W h) of a few rows, whole: for sampling, which needs every token's. The same bits that
/// [`forward`] computes within.
///
/// # Errors
/// As [`forward`].
pub fn logits(hidden: &Tensor, weight: &Tensor, options: &LmHead) -> Result<Tensor> {
    if let Some(on) = device::of(OP, [hidden, weight])? {
        validate(hidden, weight, &vec![0; hidden.dims().first().copied().unwrap_or(0)], options)?;
        let mut logits = on_device::logits(hidden, weight)?;
        on_device::cap(&on, &mut logits, options)?;
        return Ok(logits);
    }
    let mut logits = super::linear::forward(hidden, weight, None)?;
    validate(hidden, weight, &vec![0; hidden.dims()[0]], options)?;
    if options.scale == 1.0 && options.softcap.is_none() {
        return Ok(logits);
    }
    dispatch_real!(OP, hidden.dtype(), R => {
        let (scale, softcap) = (R::from_f64(options.scale), options.softcap.map(R::from_f64));
        parallel::chunks(logits.as_slice_mut::<R>()?, 1, |_, z| cap_all(z, scale, softcap));
    });
    Ok(logits)
}

crate::simd::simd_fn! {
    fn cap_all<R: Real>(z: &mut [R], scale: R, softcap: Option<R>) {
        for z in z {
            *z = super::attention::cap(*z, scale, softcap);
        }
    }
}

/// Log-probability of each row's target, (rows), from rows of logits, (rows, vocabulary), that [`logits`] has capped
/// and scaled: the bits that [`forward`] computes within.
///
/// # Errors
/// A target outside the vocabulary; shapes that do not agree; a dtype other than f32 and f64.
pub fn logprobs_of_logits(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let (rows, vocabulary) = logits.rows(OP)?;
    check::indices(OP, "target token id", targets, vocabulary)?;
    if logits.rank() != 2 || rows != targets.len() {
        let (lhs, rhs) = (logits.dims().to_vec(), vec![targets.len()]);
        return Err(Error::ShapeMismatch { op: OP, what: "logits (rows, vocabulary) against targets", lhs, rhs });
    }
    if let Some(on) = device::of(OP, [logits])? {
        return on_device::from_logits(&on, logits, targets, &LmHead::default());
    }
    let mut logits = logits.copied()?;
    dispatch_real!(OP, logits.dtype(), R => {
        let rows = logits.as_slice_mut::<R>()?.chunks_exact_mut(vocabulary.max(1));
        let all = rows.zip(targets).map(|(row, &target)| from_logits(row, target, &LmHead::default()).0);
        Tensor::from_vec(all.collect::<Vec<R>>(), [targets.len()])
    })
}

/// (log-probability of `target`, entropy) from one row of raw logits W h, in the same order and so with
/// the same bits as [`forward`]. The row is capped and scaled in place.
///
/// # Panics
/// If `target` is not below the number of logits.
pub fn from_logits<R: Real>(logits: &mut [R], target: u32, options: &LmHead) -> (R, R) {
    assert!((target as usize) < logits.len(), "target outside the vocabulary");
    let mut state = Running::NEW;
    for (i, tile) in logits.chunks_mut(TILE).enumerate() {
        let (scale, softcap) = (R::from_f64(options.scale), options.softcap.map(R::from_f64));
        take_tile(&mut state, tile, i * TILE, target as usize, scale, softcap);
    }
    let (logprob, entropy, _) = state.finish();
    (logprob, entropy)
}

/// dhidden, and dW added to `dweight` if given, from the upstream gradient `dlogprobs` (rows) and the
/// forward pass's `lse`. With g = dlogprob_r (onehot(t_r) - softmax(z)) cap'(z) scale:
/// dh_r = Wᵀ g, dW += g h_rᵀ.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    dlogprobs: &Tensor,
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    lse: &Tensor,
    options: &LmHead,
    dweight: Option<&mut Tensor>,
) -> Result<Tensor> {
    validate(hidden, weight, targets, options)?;
    for t in [dlogprobs, lse] {
        if t.dims() != [targets.len()] {
            let (lhs, rhs) = (t.dims().to_vec(), vec![targets.len()]);
            return Err(Error::ShapeMismatch { op: OP, what: "gradient of the log-probabilities", lhs, rhs });
        }
    }
    if let Some(on) = device::of(OP, [dlogprobs, hidden, weight, lse].into_iter().chain(dweight.as_deref()))? {
        return on_device::backward(&on, dlogprobs, hidden, weight, targets, lse, options, dweight);
    }
    let (hidden, dlogprobs) = (hidden.contiguous()?, dlogprobs.contiguous()?);
    match hidden.dtype() {
        DType::F32 => with_right!(OP, weight, w => {
            scratch::with(|b| backward_typed::<f32, _>(&dlogprobs, &hidden, w, targets, lse, options, dweight, b))
        }),
        DType::F64 => {
            let weight = weight.to_dtype(DType::F64)?;
            scratch::with(|b| {
                let w = matrix::<f64>(&weight);
                backward_typed::<f64, _>(&dlogprobs, &hidden, w, targets, lse, options, dweight, b)
            })
        }
        dtype => Err(Error::UnsupportedDType { op: OP, dtype }),
    }
}

fn backward_typed<R: Real, W: Right<R>>(
    dlogprobs: &Tensor,
    hidden: &Tensor,
    w: W,
    targets: &[u32],
    lse: &Tensor,
    options: &LmHead,
    mut dweight: Option<&mut Tensor>,
    buffer: &mut Logits<R>,
) -> Result<Tensor> {
    let (rows, size) = (hidden.dims()[0], hidden.dims()[1]);
    let (x, g, lse) = (hidden.as_slice::<R>()?, dlogprobs.as_slice::<R>()?, lse.as_slice::<R>()?);
    let mut dhidden = Tensor::zeros(hidden.shape(), R::DTYPE)?;
    let dx = dhidden.as_slice_mut::<R>()?;
    let logits = &mut buffer.0;
    logits.resize(ROWS.min(rows) * TILE.min(w.rows()), R::ZERO);
    let (scale, softcap) = (R::from_f64(options.scale), options.softcap.map(R::from_f64));
    for r0 in (0..rows).step_by(ROWS) {
        let n = ROWS.min(rows - r0);
        let block = Mat::new(&x[r0 * size..(r0 + n) * size], n, size);
        let dx = &mut dx[r0 * size..(r0 + n) * size];
        for v0 in (0..w.rows()).step_by(TILE) {
            let width = TILE.min(w.rows() - v0);
            let tile = w.narrow_rows(v0, width);
            let logits = &mut logits[..n * width];
            gemm(block, tile.t(), logits, Store::Set);
            parallel::chunks(logits, width, |start, logits| {
                for (i, z) in logits.chunks_exact_mut(width).enumerate() {
                    let r = r0 + start / width + i;
                    tile_gradient(z, v0, targets[r] as usize, lse[r], g[r], scale, softcap, true);
                }
            });
            let dz = Mat::new(&*logits, n, width);
            gemm(dz, tile, dx, Store::Add);
            if let Some(dweight) = dweight.as_deref_mut() {
                let dw = &mut dweight.as_slice_mut::<R>()?[v0 * size..(v0 + width) * size];
                gemm(dz.t(), block, dw, Store::Add);
            }
        }
    }
    Ok(dhidden)
}

/// [`forward`], bit for bit, and [`backward`] of the same logits: three products of 2 V size operations a row instead of
/// four. (What the head gives, dhidden); dW is added to `dweight`.
///
/// # Errors
/// As [`backward`].
pub fn forward_and_backward(
    dlogprobs: &Tensor,
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    options: &LmHead,
    dweight: &mut Tensor,
) -> Result<(LmHeadOutput, Tensor)> {
    validate(hidden, weight, targets, options)?;
    if dlogprobs.dims() != [targets.len()] {
        let (lhs, rhs) = (dlogprobs.dims().to_vec(), vec![targets.len()]);
        return Err(Error::ShapeMismatch { op: OP, what: "gradient of the log-probabilities", lhs, rhs });
    }
    if let Some(on) = device::of(OP, [dlogprobs, hidden, weight, &*dweight])? {
        let (d, dw) = (Some(dlogprobs), Some(dweight));
        return on_device::forward_with_gradients(&on, d, hidden, weight, targets, options, dw);
    }
    let (hidden, g) = (hidden.contiguous()?, dlogprobs.contiguous()?);
    match hidden.dtype() {
        DType::F32 => with_right!(OP, weight, w => {
            scratch::with(|b| at_once::<f32, _>(&g, &hidden, w, targets, options, dweight, b))
        }),
        DType::F64 => {
            let weight = weight.to_dtype(DType::F64)?;
            scratch::with(|b| at_once::<f64, _>(&g, &hidden, matrix::<f64>(&weight), targets, options, dweight, b))
        }
        dtype => Err(Error::UnsupportedDType { op: OP, dtype }),
    }
}

/// Rows whose whole logits exist at a time, of so many bytes each element.
fn whole_rows(rows: usize, vocabulary: usize, element: usize) -> usize {
    let most = (WHOLE_BYTES / (element * vocabulary.max(1))).clamp(1, ROWS);
    // Whole tiles of products, if there are several.
    (if most >= 64 { most / 64 * 64 } else { most }).min(rows.max(1))
}

/// Bytes of logits of [`forward_and_backward`] on the processor, in f32.
pub fn whole_bytes(rows: usize, vocabulary: usize) -> u64 {
    (4 * whole_rows(rows, vocabulary, 4) * vocabulary) as u64
}

fn at_once<R: Real, W: Right<R>>(
    dlogprobs: &Tensor,
    hidden: &Tensor,
    w: W,
    targets: &[u32],
    options: &LmHead,
    dweight: &mut Tensor,
    buffer: &mut Logits<R>,
) -> Result<(LmHeadOutput, Tensor)> {
    let (rows, size, vocabulary) = (hidden.dims()[0], hidden.dims()[1], w.rows());
    let (x, g) = (hidden.as_slice::<R>()?, dlogprobs.as_slice::<R>()?);
    let mut dhidden = Tensor::zeros(hidden.shape(), R::DTYPE)?;
    let (dx, dw) = (dhidden.as_slice_mut::<R>()?, dweight.as_slice_mut::<R>()?);
    let Logits(logits, states) = buffer;
    let most = whole_rows(rows, vocabulary, size_of::<R>());
    scratch::fill(states, rows, Running::NEW);
    logits.resize(most * vocabulary, R::ZERO);
    let (scale, softcap) = (R::from_f64(options.scale), options.softcap.map(R::from_f64));
    for (r0, states) in (0..rows).step_by(most).zip(states.chunks_mut(most)) {
        let n = states.len();
        let block = Mat::new(&x[r0 * size..(r0 + n) * size], n, size);
        let logits = &mut logits[..n * vocabulary];
        gemm(block, w.t(), logits, Store::Set);
        parallel::chunks2(logits, vocabulary, states, 1, |start, logits, states| {
            for (i, (state, row)) in states.iter_mut().zip(logits.chunks_exact_mut(vocabulary)).enumerate() {
                let r = r0 + start + i;
                let target = targets[r] as usize;
                for (tile, z) in row.chunks_mut(TILE).enumerate() {
                    take_tile(state, z, tile * TILE, target, scale, softcap);
                }
                let (_, _, lse) = state.finish();
                tile_gradient(row, 0, target, lse, g[r], scale, softcap, false);
            }
        });
        let dz = Mat::new(&*logits, n, vocabulary);
        gemm(dz, w, &mut dx[r0 * size..(r0 + n) * size], Store::Set);
        gemm(dz.t(), block, dw, Store::Add);
    }
    Ok((results(states, targets, hidden.dtype())?, dhidden))
}

crate::simd::simd_fn! {
    /// From logits of tokens `v0..` to their gradient, in place; `raw` if they are not yet capped and scaled.
    fn tile_gradient<R: Real>(
        z: &mut [R], v0: usize, target: usize, lse: R, g: R, scale: R, softcap: Option<R>, raw: bool
    ) {
        let slope = |z: R| slope(z, scale, softcap);
        let capped = |z: R| if raw { super::attention::cap(z, scale, softcap) } else { z };
        let at_target = target.checked_sub(v0).and_then(|i| z.get(i)).map(|&z| g * slope(capped(z)));
        for z in z.iter_mut() {
            let capped = capped(*z);
            *z = -(g * (capped - lse).exp() * slope(capped));
        }
        if let Some(add) = at_target {
            z[target - v0] += add;
        }
    }
}

#[cfg(test)]
mod tests;
