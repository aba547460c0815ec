//! Sums over a row, in an order that depends on the row alone.
//!
//! Element i goes to lane i mod 16; the lanes are added in halves at the end. The order is the same on
//! every machine and vectorises on each.

use crate::Real;
use crate::simd::simd_fn;

/// Lanes of a sum.
const LANES: usize = 16;

/// The lanes of a sum, added in halves.
#[inline(always)]
fn tree<R: Real>(mut lanes: [R; LANES]) -> R {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            let other = lanes[i + width];
            lanes[i] += other;
        }
    }
    lanes[0]
}

simd_fn! {
    /// Σ x.
    pub(crate) fn sum<R: Real>(x: &[R]) -> R {
        let mut lanes = [R::ZERO; LANES];
        let mut chunks = x.chunks_exact(LANES);
        for chunk in &mut chunks {
            for l in 0..LANES {
                lanes[l] += chunk[l];
            }
        }
        for (l, &x) in chunks.remainder().iter().enumerate() {
            lanes[l] += x;
        }
        tree(lanes)
    }
}

simd_fn! {
    /// Σ x y over the shorter of the two.
    pub(crate) fn dot<R: Real>(x: &[R], y: &[R]) -> R {
        let n = x.len().min(y.len());
        let (x, y) = (&x[..n], &y[..n]);
        let mut lanes = [R::ZERO; LANES];
        let (mut xs, mut ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
        for (x, y) in (&mut xs).zip(&mut ys) {
            for l in 0..LANES {
                lanes[l] = x[l].mul_add(y[l], lanes[l]);
            }
        }
        for (l, (&x, &y)) in xs.remainder().iter().zip(ys.remainder()).enumerate() {
            lanes[l] = x.mul_add(y, lanes[l]);
        }
        tree(lanes)
    }
}

/// Rows whose column sums are made together before they are added to the total: part of the order.
const ROW_BLOCK: usize = 256;

/// sums[c] += Σ over rows r of `row(r)` summed per column, in blocks of rows: `add(r, block_sums)` adds
/// row r. Blocks are summed in parallel and added in order, so the result does not depend on threads.
pub(crate) fn column_sums<R: Real>(rows: usize, sums: &mut [R], add: impl Fn(usize, &mut [R]) + Sync + Send) {
    let blocks = rows.div_ceil(ROW_BLOCK);
    let partial = crate::parallel::map(blocks, |b| {
        let mut block = vec![R::ZERO; sums.len()];
        for r in b * ROW_BLOCK..rows.min((b + 1) * ROW_BLOCK) {
            add(r, &mut block);
        }
        block
    });
    for block in partial {
        for (s, x) in sums.iter_mut().zip(block) {
            *s += x;
        }
    }
}
