//! The divergence from a teacher whose head is at hand.

use super::terms::{Kind, Terms};
use super::{Divergence, DivergenceOutput, Logits, block_of, tempered, tile_logits};
use crate::ops::attention::cap;
use crate::ops::lm_head::{LmHead, ROWS, Running, TILE, slope, take_tile};
use crate::{Real, Result, Tensor, parallel};

pub(super) fn with_head<R: Real>(
    hidden: &Tensor,
    weight: &Tensor,
    options: &LmHead,
    (theirs, head, theirs_options): (&Tensor, &Tensor, &LmHead),
    what: &Divergence,
    buffer: &mut Logits<R>,
) -> Result<DivergenceOutput> {
    let (rows, vocabulary) = (hidden.dims()[0], weight.dims()[0]);
    let sides = [
        (hidden, weight, tempered(options, what.temperature)),
        (theirs, head, tempered(theirs_options, what.temperature)),
    ];
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

crate::simd::simd_fn! {
    /// Σ of D and of P g over one tile of raw logits, in 16 lanes.
    fn tile_divergence<R: Real>(zs: &[R], zt: &[R], terms: &Terms<R>, lse: (R, R), ours: &LmHead, theirs: &LmHead) -> (R, R) {
        let caps = [ours, theirs].map(|o| (R::from_f64(o.scale), o.softcap.map(R::from_f64)));
        let one = |zs: R, zt: R| {
            let s = cap(zs, caps[0].0, caps[0].1) - lse.0;
            let t = cap(zt, caps[1].0, caps[1].1) - lse.1;
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
    pub(super) fn head_gradient<R: Real>(zs: &mut [R], zt: &[R], terms: &Terms<R>, lse: (R, R), centre: R, g: R, ours: &LmHead, theirs: &LmHead) {
        let caps = [ours, theirs].map(|o| (R::from_f64(o.scale), o.softcap.map(R::from_f64)));
        // Σ P g is -1 for the forward KL: not the sum that rounding made of it.
        let centre = if terms.kind == Kind::Forward { -R::ONE } else { centre };
        for (zs, zt) in zs.iter_mut().zip(zt) {
            let capped = cap(*zs, caps[0].0, caps[0].1);
            let (s, t) = (capped - lse.0, cap(*zt, caps[1].0, caps[1].1) - lse.1);
            let dz = terms.slope(s, t) - s.exp() * centre;
            *zs = g * dz * slope(capped, caps[0].0, caps[0].1);
        }
    }
}
