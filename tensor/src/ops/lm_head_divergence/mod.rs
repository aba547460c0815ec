//! How far a student's predictions are from a teacher's: hidden states in, a divergence a row out. Full logits of
//! neither ever exist (law 4 of the design).
//!
//! For row r, over the vocabulary, with z = cap(scale · W h_r) / T of either model, s = z - lse(z) the student's and
//! t the teacher's log-probabilities, P = e^s, Q = e^t:
//!
//! | β | D_r, nats | |
//! | --- | --- | --- |
//! | 0 | Σ Q (t - s) | forward KL(teacher ‖ student) |
//! | 1 | Σ P (s - t) | reverse KL(student ‖ teacher) |
//! | between | β Σ Q (t - m) + (1 - β) Σ P (s - m) | generalised Jensen-Shannon, m = log(β Q + (1 - β) P) |
//!
//! and ∂D/∂z_v = P - Q for β = 0, else P_v (g_v - Σ_u P_u g_u) with g = s - t for β = 1 and (1 - β)(s - m) between.
//!
//! A teacher may also be known by its k most probable tokens: the divergence is then that of the k + 1 events "token
//! j" and "any other", which is a lower bound of the whole (data processing). The probability of the other event is
//! what the k leave of 1, at least [`LEAST`].
//!
//! hidden: (rows, size), W: (V, size) in any float dtype, for student and teacher each with its own size; D: (rows).
//!
//! # Order of the sum
//! As in [`lm_head`](super::lm_head): tiles of the vocabulary in order, so that a row's numbers do not depend on its
//! company. Two passes over the vocabulary: the normalisers first, then the divergence; [`backward`] makes the
//! logits again.
//!
//! Memory: 2 · [`ROWS`] × [`TILE`] logits. Bound by arithmetic: 4 V size operations a row and model forward, 2 more
//! backward, and 2 to 4 for the gradients of hidden and W.
//!
//! # Source
//! Agarwal et al., "On-policy distillation of language models" (GKD), arXiv 2306.13649, equation 1; β and the order of
//! the two terms as in TRL's `generalized_jsd_loss`. For β of 0 and 1 the terms P - Q, which sum to 0, are added under
//! the sum: rounding of the normalisers then enters in second order only.

mod head;
mod terms;
mod top;

use super::lm_head::{LmHead, ROWS, TILE, validate};
use head::{head_gradient, with_head};
use terms::Terms;
pub(crate) use top::finish_top;
use top::{top_gradient, with_top};

use crate::gemm::{Mat, Store, gemm};
use crate::ops::linear::matrix;
use crate::{Element, Error, Real, Result, Tensor, dispatch_float, dispatch_real, parallel};
use crate::{device, scratch};

const OP: &str = "lm_head_divergence";

/// Least probability of the event "none of the k tokens" of a teacher known by k tokens.
pub const LEAST: f64 = 1e-9;

/// Which divergence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergence {
    /// β: 0 for forward KL, 1 for reverse KL, between for Jensen-Shannon.
    pub beta: f64,
    /// T, by which the logits of both are divided.
    pub temperature: f64,
}

/// What is known of the teacher's predictions.
#[derive(Debug, Clone, Copy)]
pub enum Teacher<'a> {
    /// All: its hidden states, (rows, size), and its head.
    Head {
        /// Hidden states.
        hidden: &'a Tensor,
        /// (V, size).
        weight: &'a Tensor,
        /// Options of its head.
        options: LmHead,
    },
    /// Its k most probable tokens in each row, with temperature T applied.
    Top {
        /// Different ids: (rows · k).
        ids: &'a [u32],
        /// Their log-probabilities, nats: (rows · k).
        logprobs: &'a [f64],
        /// k.
        k: usize,
    },
}

/// What [`forward`] gives for each row, and what [`backward`] needs.
#[derive(Debug, Clone)]
pub struct DivergenceOutput {
    /// D, nats.
    pub divergence: Tensor,
    /// Entropy of the student at temperature T, nats.
    pub entropy: Tensor,
    /// Whether the most probable token of both is the same; a teacher's by k tokens is its first.
    pub agrees: Vec<bool>,
    /// Normalisers of the student.
    pub(crate) lse: Vec<f64>,
    /// Normalisers of the teacher; by k tokens the factor on P of all other tokens.
    pub(crate) teacher: Vec<f64>,
    /// Σ P g, or nothing.
    pub(crate) centre: Vec<f64>,
    /// ∂D/∂z of the k tokens, or nothing.
    pub(crate) top: Vec<f64>,
}

impl DivergenceOutput {
    /// Of no rows: both columns are empty.
    pub(crate) fn of_none(divergence: Tensor, entropy: Tensor) -> DivergenceOutput {
        let (lse, teacher, centre, top) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        DivergenceOutput { divergence, entropy, agrees: Vec::new(), lse, teacher, centre, top }
    }
}

/// One block of logits of each model: kept by the thread, so that it is no allocation of a step.
#[derive(Default)]
struct Logits<R> {
    student: Vec<R>,
    teacher: Vec<R>,
}

/// Options of a head whose logits are divided by the temperature.
pub(crate) fn tempered(options: &LmHead, temperature: f64) -> LmHead {
    LmHead { scale: options.scale / temperature, softcap: options.softcap.map(|c| c / temperature) }
}

fn check(hidden: &Tensor, weight: &Tensor, options: &LmHead, teacher: &Teacher<'_>, what: &Divergence) -> Result<()> {
    let bad = |name, value, expected| Err(Error::InvalidValue { op: OP, name, value, expected });
    if !(what.temperature > 0.0 && what.temperature.is_finite()) {
        return bad("temperature", what.temperature, "positive");
    }
    if !(0.0..=1.0).contains(&what.beta) {
        return bad("beta", what.beta, "from 0 to 1");
    }
    let rows = hidden.dims().first().copied().unwrap_or(0);
    validate(hidden, weight, &vec![0; rows], options)?;
    let mismatch = |what, lhs: &[usize], rhs: &[usize]| {
        Err(Error::ShapeMismatch { op: OP, what, lhs: lhs.to_vec(), rhs: rhs.to_vec() })
    };
    match teacher {
        Teacher::Head { hidden: theirs, weight: head, options } => {
            if theirs.dtype() != hidden.dtype() {
                return Err(Error::DTypeMismatch { op: OP, expected: hidden.dtype(), got: theirs.dtype() });
            }
            validate(theirs, head, &vec![0; theirs.dims().first().copied().unwrap_or(0)], options)?;
            if theirs.dims()[0] != rows {
                return mismatch("rows of the teacher", hidden.dims(), theirs.dims());
            }
            if head.dims()[0] != weight.dims()[0] {
                return mismatch("vocabularies of student and teacher", weight.dims(), head.dims());
            }
        }
        Teacher::Top { ids, logprobs, k } => {
            if *k == 0 || ids.len() != rows * k || logprobs.len() != ids.len() {
                return mismatch("rows · k of the teacher's tokens", &[rows, *k], &[ids.len(), logprobs.len()]);
            }
            let vocabulary = weight.dims()[0];
            for row in ids.chunks(*k) {
                let mut sorted = row.to_vec();
                sorted.sort_unstable();
                if let Some(twice) = sorted.windows(2).find(|w| w[0] == w[1]) {
                    return bad("one of the teacher's tokens", f64::from(twice[0]), "named once in a row");
                }
                if let Some(&id) = sorted.last().filter(|id| **id as usize >= vocabulary) {
                    let (what, index) = ("the teacher's token id", i128::from(id));
                    return Err(Error::OutOfRange { op: OP, what, index, len: vocabulary });
                }
            }
            if let Some(&p) = logprobs.iter().find(|p| !(**p <= 1e-6)) {
                return bad("the teacher's log-probability", p, "at most 0");
            }
        }
    }
    Ok(())
}

/// The tensors that must be on one device.
fn all_of<'t>(hidden: &'t Tensor, weight: &'t Tensor, teacher: &Teacher<'t>) -> Vec<&'t Tensor> {
    let mut all = vec![hidden, weight];
    if let Teacher::Head { hidden, weight, .. } = *teacher {
        all.extend([hidden, weight]);
    }
    all
}

/// Logits of tokens `v0..` of a block of rows, not yet capped.
fn tile_logits<R: Real>(x: Mat<'_, R>, weight: &Tensor, v0: usize, width: usize, out: &mut [R]) -> Result<()> {
    dispatch_float!(OP, weight.dtype(), W => {
        gemm(x, matrix::<W>(weight).narrow_rows(v0, width).t(), out, Store::Set);
    });
    Ok(())
}

/// The divergences.
///
/// # Errors
/// Shapes, vocabularies or dtypes that do not agree; β outside of 0 to 1; a temperature that is not positive.
pub fn forward(
    hidden: &Tensor,
    weight: &Tensor,
    options: &LmHead,
    teacher: &Teacher<'_>,
    what: &Divergence,
) -> Result<DivergenceOutput> {
    check(hidden, weight, options, teacher, what)?;
    if let Some(on) = device::of(OP, all_of(hidden, weight, teacher))? {
        return device::ops::lm_head_divergence::forward(&on, hidden, weight, options, teacher, what);
    }
    let hidden = hidden.contiguous()?;
    dispatch_real!(OP, hidden.dtype(), R => scratch::with(|b: &mut Logits<R>| match teacher {
        Teacher::Head { hidden: theirs, weight: head, options: cap } => {
            let theirs = theirs.contiguous()?;
            with_head(&hidden, weight, options, (&theirs, *head, cap), what, b)
        }
        Teacher::Top { ids, logprobs, k } => with_top(&hidden, weight, options, (ids, logprobs, *k), what, b),
    }))
}

/// dhidden, and dW added to `dweight` if given, from the upstream gradient `ddivergence`, (rows), and what the forward
/// pass gave.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    ddivergence: &Tensor,
    hidden: &Tensor,
    weight: &Tensor,
    options: &LmHead,
    teacher: &Teacher<'_>,
    what: &Divergence,
    out: &DivergenceOutput,
    mut dweight: Option<&mut Tensor>,
) -> Result<Tensor> {
    check(hidden, weight, options, teacher, what)?;
    let rows = hidden.dims()[0];
    if ddivergence.dims() != [rows] || out.lse.len() != rows {
        let (lhs, rhs) = (ddivergence.dims().to_vec(), vec![rows, out.lse.len()]);
        return Err(Error::ShapeMismatch { op: OP, what: "gradient of the divergences", lhs, rhs });
    }
    if let Some(on) = device::of(OP, all_of(hidden, weight, teacher).into_iter().chain([ddivergence]))? {
        return device::ops::lm_head_divergence::backward(
            &on,
            ddivergence,
            hidden,
            weight,
            options,
            teacher,
            what,
            out,
            dweight,
        );
    }
    let (hidden, upstream) = (hidden.contiguous()?, ddivergence.contiguous()?);
    let (size, vocabulary) = (hidden.dims()[1], weight.dims()[0]);
    let mut dhidden = Tensor::zeros(hidden.shape(), hidden.dtype())?;
    let ours = tempered(options, what.temperature);
    dispatch_real!(OP, hidden.dtype(), R => scratch::with(|buffer: &mut Logits<R>| -> Result<()> {
        let theirs = match teacher {
            Teacher::Head { hidden, .. } => Some(hidden.contiguous()?),
            Teacher::Top { .. } => None,
        };
        let (g, dx) = (upstream.as_slice::<R>()?, dhidden.as_slice_mut::<R>()?);
        let block = ROWS.min(rows) * TILE.min(vocabulary);
        buffer.student.resize(block, R::ZERO);
        buffer.teacher.resize(block, R::ZERO);
        let terms = Terms::<R>::new(what.beta);
        for r0 in (0..rows).step_by(ROWS) {
            let n = ROWS.min(rows - r0);
            let dx = &mut dx[r0 * size..(r0 + n) * size];
            for v0 in (0..vocabulary).step_by(TILE) {
                let width = TILE.min(vocabulary - v0);
                let (zs, zt) = (&mut buffer.student[..n * width], &mut buffer.teacher[..n * width]);
                tile_logits(block_of(&hidden, r0, n)?, weight, v0, width, zs)?;
                if let (Teacher::Head { weight: head, .. }, Some(theirs)) = (teacher, &theirs) {
                    tile_logits(block_of(theirs, r0, n)?, head, v0, width, zt)?;
                }
                let zt = &*zt;
                parallel::chunks(zs, width, |start, zs| {
                    for (i, z) in zs.chunks_exact_mut(width).enumerate() {
                        let r = r0 + start / width + i;
                        let lse = R::from_f64(out.lse[r]);
                        match teacher {
                            Teacher::Head { options, .. } => {
                                let zt = &zt[(r - r0) * width..(r - r0 + 1) * width];
                                let cap = tempered(options, what.temperature);
                                let theirs = (R::from_f64(out.teacher[r]), R::from_f64(out.centre[r]));
                                head_gradient(z, zt, &terms, (lse, theirs.0), theirs.1, g[r], &ours, &cap);
                            }
                            Teacher::Top { ids, k, .. } => {
                                let (ids, top) = (&ids[r * k..(r + 1) * k], &out.top[r * k..(r + 1) * k]);
                                top_gradient(z, v0, (ids, top), lse, R::from_f64(out.teacher[r]), g[r], &ours);
                            }
                        }
                    }
                });
                let (dz, x) = (Mat::new(&*zs, n, width), block_of::<R>(&hidden, r0, n)?);
                dispatch_float!(OP, weight.dtype(), W => {
                    gemm(dz, matrix::<W>(weight).narrow_rows(v0, width), dx, Store::Add);
                });
                if let Some(dweight) = dweight.as_deref_mut() {
                    let dw = &mut dweight.as_slice_mut::<R>()?[v0 * size..(v0 + width) * size];
                    gemm(dz.t(), x, dw, Store::Add);
                }
            }
        }
        Ok(())
    })?);
    Ok(dhidden)
}

/// Rows `r0..r0 + n` of hidden states.
fn block_of<R: Real>(x: &Tensor, r0: usize, n: usize) -> Result<Mat<'_, R>> {
    let size = x.dims()[1];
    Ok(Mat::new(&x.as_slice::<R>()?[r0 * size..(r0 + n) * size], n, size))
}

#[cfg(test)]
mod tests;
