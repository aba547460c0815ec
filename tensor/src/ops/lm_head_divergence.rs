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

use super::lm_head::{LmHead, ROWS, Running, TILE, slope, take_tile, validate};
use crate::gemm::{Mat, Store, gemm};
use crate::ops::linear::matrix;
use crate::scratch;
use crate::{Element, Error, Real, Result, Tensor, dispatch_float, dispatch_real, parallel};

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
    lse: Vec<f64>,
    /// Normalisers of the teacher; by k tokens the factor on P of all other tokens.
    teacher: Vec<f64>,
    /// Σ P g, or nothing.
    centre: Vec<f64>,
    /// ∂D/∂z of the k tokens, or nothing.
    top: Vec<f64>,
}

/// One block of logits of each model: kept by the thread, so that it is no allocation of a step.
#[derive(Default)]
struct Logits<R> {
    student: Vec<R>,
    teacher: Vec<R>,
}

fn tempered(options: &LmHead, temperature: f64) -> LmHead {
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
    crate::device::cpu_only(OP, [hidden, weight])?;
    check(hidden, weight, options, teacher, what)?;
    let hidden = hidden.contiguous()?;
    dispatch_real!(OP, hidden.dtype(), R => scratch::with(|b: &mut Logits<R>| match teacher {
        Teacher::Head { hidden: theirs, weight: head, options: cap } => {
            let theirs = theirs.contiguous()?;
            with_head(&hidden, weight, options, (&theirs, *head, cap), what, b)
        }
        Teacher::Top { ids, logprobs, k } => with_top(&hidden, weight, options, (ids, logprobs, *k), what, b),
    }))
}

fn with_head<R: Real>(
    hidden: &Tensor,
    weight: &Tensor,
    options: &LmHead,
    (theirs, head, cap): (&Tensor, &Tensor, &LmHead),
    what: &Divergence,
    buffer: &mut Logits<R>,
) -> Result<DivergenceOutput> {
    let (rows, vocabulary) = (hidden.dims()[0], weight.dims()[0]);
    let sides =
        [(hidden, weight, tempered(options, what.temperature)), (theirs, head, tempered(cap, what.temperature))];
    let mut states = [vec![Running::<R>::NEW; rows], vec![Running::<R>::NEW; rows]];
    let mut sums = vec![(R::ZERO, R::ZERO); rows];
    let block = ROWS.min(rows) * TILE.min(vocabulary);
    buffer.student.resize(block, R::ZERO);
    buffer.teacher.resize(block, R::ZERO);
    for r0 in (0..rows).step_by(ROWS) {
        let n = ROWS.min(rows - r0);
        for v0 in (0..vocabulary).step_by(TILE) {
            let width = TILE.min(vocabulary - v0);
            let logits = &mut buffer.student[..n * width];
            for ((x, w, o), states) in sides.iter().zip(&mut states) {
                tile_logits(block_of(x, r0, n)?, w, v0, width, logits)?;
                let (scale, softcap) = (R::from_f64(o.scale), o.softcap.map(R::from_f64));
                parallel::chunks2(logits, width, &mut states[r0..r0 + n], 1, |_, logits, states| {
                    for (state, z) in states.iter_mut().zip(logits.chunks_exact_mut(width)) {
                        take_tile(state, z, v0, usize::MAX, scale, softcap);
                    }
                });
            }
        }
        let [ours, other] = &states;
        for v0 in (0..vocabulary).step_by(TILE) {
            let width = TILE.min(vocabulary - v0);
            let (zs, zt) = (&mut buffer.student[..n * width], &mut buffer.teacher[..n * width]);
            tile_logits(block_of(hidden, r0, n)?, weight, v0, width, zs)?;
            tile_logits(block_of(theirs, r0, n)?, head, v0, width, zt)?;
            let zt = &*zt;
            parallel::chunks2(zs, width, &mut sums[r0..r0 + n], 1, |first, zs, sums| {
                for (i, (sum, zs)) in sums.iter_mut().zip(zs.chunks_exact_mut(width)).enumerate() {
                    let r = first + i;
                    let lse = (ours[r0 + r].finish().2, other[r0 + r].finish().2);
                    let zt = &zt[r * width..(r + 1) * width];
                    let (d, g) = tile_divergence(zs, zt, &Terms::new(what.beta), lse, &sides[0].2, &sides[1].2);
                    *sum = (sum.0 + d, sum.1 + g);
                }
            });
        }
    }
    let [ours, other] = &states;
    let wide = |x: R| x.to_f64();
    Ok(DivergenceOutput {
        divergence: Tensor::from_vec(sums.iter().map(|s| s.0).collect(), [rows])?,
        entropy: Tensor::from_vec(ours.iter().map(|s| s.finish().1).collect(), [rows])?,
        agrees: ours.iter().zip(other).map(|(a, b)| a.argmax == b.argmax).collect(),
        lse: ours.iter().map(|s| wide(s.finish().2)).collect(),
        teacher: other.iter().map(|s| wide(s.finish().2)).collect(),
        centre: sums.iter().map(|s| wide(s.1)).collect(),
        top: Vec::new(),
    })
}

fn with_top<R: Real>(
    hidden: &Tensor,
    weight: &Tensor,
    options: &LmHead,
    (ids, logprobs, k): (&[u32], &[f64], usize),
    what: &Divergence,
    buffer: &mut Logits<R>,
) -> Result<DivergenceOutput> {
    let (rows, vocabulary) = (hidden.dims()[0], weight.dims()[0]);
    let o = tempered(options, what.temperature);
    let (scale, softcap) = (R::from_f64(o.scale), o.softcap.map(R::from_f64));
    // The whole distribution, and all tokens but the k, whose logits are set aside.
    let mut states = vec![[Running::<R>::NEW; 2]; rows];
    let mut top = vec![R::ZERO; rows * k];
    buffer.student.resize(ROWS.min(rows) * TILE.min(vocabulary), R::ZERO);
    for r0 in (0..rows).step_by(ROWS) {
        let n = ROWS.min(rows - r0);
        let top = parallel::Disjoint::new(&mut top[r0 * k..(r0 + n) * k]);
        for v0 in (0..vocabulary).step_by(TILE) {
            let width = TILE.min(vocabulary - v0);
            let logits = &mut buffer.student[..n * width];
            tile_logits(block_of(hidden, r0, n)?, weight, v0, width, logits)?;
            parallel::chunks2(logits, width, &mut states[r0..r0 + n], 1, |first, logits, states| {
                for (i, ([all, rest], z)) in states.iter_mut().zip(logits.chunks_exact_mut(width)).enumerate() {
                    take_tile(all, z, v0, usize::MAX, scale, softcap);
                    // SAFETY: a row belongs to one task.
                    let top = unsafe { top.part((first + i) * k, k) };
                    for (id, top) in ids[(r0 + first + i) * k..][..k].iter().zip(top) {
                        if let Some(z) = (*id as usize).checked_sub(v0).and_then(|at| z.get_mut(at)) {
                            // Hidden from what follows, as e^-∞ is 0.
                            (*top, *z) = (*z, R::NEG_INFINITY);
                        }
                    }
                    take_rest(rest, z);
                }
            });
        }
    }
    let terms = Terms::<f64>::new(what.beta);
    let (mut divergence, mut factor, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
    for (r, [all, rest]) in states.iter().enumerate() {
        let lse = all.finish().2.to_f64();
        let theirs = &logprobs[r * k..(r + 1) * k];
        let ours: Vec<f64> = top[r * k..(r + 1) * k].iter().map(|z| z.to_f64() - lse).collect();
        let left = (1.0 - theirs.iter().map(|t| t.exp()).sum::<f64>()).max(LEAST).ln();
        // No token may be left.
        let others = (rest.sum > R::ZERO).then(|| (rest.maximum.to_f64() + rest.sum.to_f64().ln() - lse, left));
        let (mut d, mut total) = (0.0, 0.0);
        let mut event = |s: f64, t: f64| {
            d += terms.divergence(s, t);
            let a = terms.slope(s, t);
            total += a;
            a
        };
        let at_top: Vec<f64> = ours.iter().zip(theirs).map(|(s, t)| event(*s, *t)).collect();
        let rest = others.map(|(s, t)| event(s, t) / s.exp());
        divergence.push(R::from_f64(d));
        factor.push(rest.map_or(0.0, |a| a - total));
        slopes.extend(at_top.iter().zip(&ours).map(|(a, s)| a - s.exp() * total));
    }
    Ok(DivergenceOutput {
        divergence: Tensor::from_vec(divergence, [rows])?,
        entropy: Tensor::from_vec(states.iter().map(|[all, _]| all.finish().1).collect(), [rows])?,
        agrees: states.iter().enumerate().map(|(r, [all, _])| all.argmax == ids[r * k] as usize).collect(),
        lse: states.iter().map(|[all, _]| all.finish().2.to_f64()).collect(),
        teacher: factor,
        centre: Vec::new(),
        top: slopes,
    })
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
    crate::device::cpu_only(OP, [hidden, weight])?;
    check(hidden, weight, options, teacher, what)?;
    let rows = hidden.dims()[0];
    if ddivergence.dims() != [rows] || out.lse.len() != rows {
        let (lhs, rhs) = (ddivergence.dims().to_vec(), vec![rows, out.lse.len()]);
        return Err(Error::ShapeMismatch { op: OP, what: "gradient of the divergences", lhs, rhs });
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

/// The arithmetic of one entry.
#[derive(Clone, Copy)]
struct Terms<R> {
    kind: Kind,
    /// 1 - β, and the logarithms of β and of it.
    other: R,
    beta: R,
    ln_beta: R,
    ln_other: R,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Forward,
    Reverse,
    Mixed,
}

impl<R: Real> Terms<R> {
    fn new(beta: f64) -> Terms<R> {
        let kind = match beta {
            0.0 => Kind::Forward,
            1.0 => Kind::Reverse,
            _ => Kind::Mixed,
        };
        let [other, beta, ln_beta, ln_other] = [1.0 - beta, beta, beta.ln(), (1.0 - beta).ln()].map(R::from_f64);
        Terms { kind, other, beta, ln_beta, ln_other }
    }

    /// log(β e^t + (1 - β) e^s).
    #[inline(always)]
    fn mixture(&self, s: R, t: R) -> R {
        let (a, b) = (s + self.ln_other, t + self.ln_beta);
        let top = a.max(b);
        top + ln_1p((a + b - top - top).exp())
    }

    /// A term of D, with what sums to 0 added.
    #[inline(always)]
    fn divergence(&self, s: R, t: R) -> R {
        match self.kind {
            Kind::Forward => t.exp() * (t - s) - t.exp() + s.exp(),
            Kind::Reverse => s.exp() * (s - t) - s.exp() + t.exp(),
            Kind::Mixed => {
                let m = self.mixture(s, t);
                self.beta * t.exp() * (t - m) + self.other * s.exp() * (s - m)
            }
        }
    }

    /// P g: with it ∂D/∂z = P g - P Σ P g. For β = 0 that is -Q.
    #[inline(always)]
    fn slope(&self, s: R, t: R) -> R {
        match self.kind {
            Kind::Forward => -t.exp(),
            Kind::Reverse => s.exp() * (s - t),
            Kind::Mixed => self.other * s.exp() * (s - self.mixture(s, t)),
        }
    }
}

/// log(1 + x) for x in \[0, 1\]: 2 artanh(x / (2 + x)), whose series falls by 9 a term. A loop over it vectorises.
#[inline(always)]
fn ln_1p<R: Real>(x: R) -> R {
    let z = x / (x + R::from_f64(2.0));
    let squared = z * z;
    let terms = if R::DTYPE == crate::DType::F64 { 18 } else { 8 };
    let mut sum = R::ZERO;
    for i in (0..terms).rev() {
        sum = sum.mul_add(squared, R::from_f64(2.0 / (2 * i + 1) as f64));
    }
    sum * z
}

crate::simd::simd_fn! {
    /// Σ of D and of P g over one tile of raw logits, in 16 lanes.
    fn tile_divergence<R: Real>(zs: &[R], zt: &[R], terms: &Terms<R>, lse: (R, R), ours: &LmHead, theirs: &LmHead) -> (R, R) {
        let caps = [ours, theirs].map(|o| (R::from_f64(o.scale), o.softcap.map(R::from_f64)));
        let one = |zs: R, zt: R| {
            let s = super::attention::cap(zs, caps[0].0, caps[0].1) - lse.0;
            let t = super::attention::cap(zt, caps[1].0, caps[1].1) - lse.1;
            (terms.divergence(s, t), terms.slope(s, t))
        };
        let (mut d, mut g) = ([R::ZERO; 16], [R::ZERO; 16]);
        for (zs, zt) in zs.chunks(16).zip(zt.chunks(16)) {
            for (l, (&zs, &zt)) in zs.iter().zip(zt).enumerate() {
                let (a, b) = one(zs, zt);
                d[l] += a;
                g[l] += b;
            }
        }
        let sum = |lanes: [R; 16]| lanes.into_iter().fold(R::ZERO, |sum, x| sum + x);
        (sum(d), sum(g))
    }
}

crate::simd::simd_fn! {
    /// From raw logits of both to the gradient by the student's, in place.
    fn head_gradient<R: Real>(zs: &mut [R], zt: &[R], terms: &Terms<R>, lse: (R, R), centre: R, g: R, ours: &LmHead, theirs: &LmHead) {
        let caps = [ours, theirs].map(|o| (R::from_f64(o.scale), o.softcap.map(R::from_f64)));
        // Σ P g is -1 for the forward KL: not the sum that rounding made of it.
        let centre = if terms.kind == Kind::Forward { -R::ONE } else { centre };
        for (zs, zt) in zs.iter_mut().zip(zt) {
            let capped = super::attention::cap(*zs, caps[0].0, caps[0].1);
            let (s, t) = (capped - lse.0, super::attention::cap(*zt, caps[1].0, caps[1].1) - lse.1);
            let dz = terms.slope(s, t) - s.exp() * centre;
            *zs = g * dz * slope(capped, caps[0].0, caps[0].1);
        }
    }
}

/// From raw logits to the gradient of a divergence from k tokens, in place: `factor` · P, and for the k what is known.
fn top_gradient<R: Real>(
    z: &mut [R],
    v0: usize,
    (ids, top): (&[u32], &[f64]),
    lse: R,
    factor: R,
    g: R,
    options: &LmHead,
) {
    let (scale, softcap) = (R::from_f64(options.scale), options.softcap.map(R::from_f64));
    let place = |id: &u32| (*id as usize).checked_sub(v0).filter(|at| *at < z.len());
    let known: Vec<(usize, R)> = ids
        .iter()
        .zip(top)
        .filter_map(|(id, dz)| Some((place(id)?, *dz)))
        .map(|(at, dz)| (at, g * R::from_f64(dz) * slope(super::attention::cap(z[at], scale, softcap), scale, softcap)))
        .collect();
    others_gradient(z, lse, factor * g, scale, softcap);
    known.into_iter().for_each(|(at, dz)| z[at] = dz);
}

crate::simd::simd_fn! {
    fn others_gradient<R: Real>(z: &mut [R], lse: R, factor: R, scale: R, softcap: Option<R>) {
        for z in z {
            let capped = super::attention::cap(*z, scale, softcap);
            *z = factor * (capped - lse).exp() * slope(capped, scale, softcap);
        }
    }
}

crate::simd::simd_fn! {
    /// Takes capped logits into a running maximum and sum; -∞ counts nothing.
    fn take_rest<R: Real>(state: &mut Running<R>, z: &[R]) {
        let mut top = state.maximum;
        for &z in z {
            top = top.max(z);
        }
        if top == R::NEG_INFINITY {
            return;
        }
        let mut lanes = [R::ZERO; 16];
        for z in z.chunks(16) {
            for (lane, &z) in lanes.iter_mut().zip(z) {
                *lane += (z - top).exp();
            }
        }
        let sum = lanes.into_iter().fold(R::ZERO, |sum, x| sum + x);
        state.sum = state.sum.mul_add((state.maximum - top).exp(), sum);
        state.maximum = top;
    }
}

#[cfg(test)]
#[path = "lm_head_divergence_tests.rs"]
mod tests;
