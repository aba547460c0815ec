//! The divergence from a teacher who is known by k tokens.

use super::terms::Terms;
use super::{Divergence, DivergenceOutput, LEAST, Logits, block_of, tempered, tile_logits};
use crate::ops::attention::cap;
use crate::ops::lm_head::{LmHead, ROWS, Running, TILE, slope, take_tile};
use crate::{Real, Result, Tensor, parallel};

pub(super) fn with_top<R: Real>(
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
    let (mut divergence, mut factor, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
    for (r, [all, rest]) in states.iter().enumerate() {
        let row = r * k..(r + 1) * k;
        let ours: Vec<f64> = top[row.clone()].iter().map(|z| z.to_f64()).collect();
        let rest = (rest.maximum.to_f64(), rest.sum.to_f64());
        let (d, f, s) = finish_top(what.beta, &ours, all.finish().2.to_f64(), rest, &logprobs[row]);
        divergence.push(R::from_f64(d));
        factor.push(f);
        slopes.extend(s);
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

/// D of a row, the factor on P of all tokens but the k, and ∂D/∂z of the k: from the student's logits of these, its ln Σ e^z, of
/// all others the largest and Σ e^(z - largest), and the teacher's log-probabilities.
pub(crate) fn finish_top(
    beta: f64,
    logits: &[f64],
    lse: f64,
    (largest, sum): (f64, f64),
    theirs: &[f64],
) -> (f64, f64, Vec<f64>) {
    let terms = Terms::<f64>::new(beta);
    let ours: Vec<f64> = logits.iter().map(|z| z - lse).collect();
    let left = (1.0 - theirs.iter().map(|t| t.exp()).sum::<f64>()).max(LEAST).ln();
    // No token may be left.
    let others = (sum > 0.0).then(|| (largest + sum.ln() - lse, left));
    let (mut d, mut total) = (0.0, 0.0);
    let mut event = |s: f64, t: f64| {
        d += terms.divergence(s, t);
        let a = terms.slope(s, t);
        total += a;
        a
    };
    let at_top: Vec<f64> = ours.iter().zip(theirs).map(|(s, t)| event(*s, *t)).collect();
    let rest = others.map(|(s, t)| event(s, t) / s.exp());
    let slopes = at_top.iter().zip(&ours).map(|(a, s)| a - s.exp() * total).collect();
    (d, rest.map_or(0.0, |a| a - total), slopes)
}

/// From raw logits to the gradient of a divergence from k tokens, in place: `factor` · P, and for the k what is known.
pub(super) fn top_gradient<R: Real>(
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
        .map(|(at, dz)| (at, g * R::from_f64(dz) * slope(cap(z[at], scale, softcap), scale, softcap)))
        .collect();
    others_gradient(z, lse, factor * g, scale, softcap);
    known.into_iter().for_each(|(at, dz)| z[at] = dz);
}

crate::simd::simd_fn! {
    fn others_gradient<R: Real>(z: &mut [R], lse: R, factor: R, scale: R, softcap: Option<R>) {
        for z in z {
            let capped = cap(*z, scale, softcap);
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
