//! Sums over a row, in an order that depends on the row alone.
//!
//! Element i goes to lane i mod 16; the lanes are added in halves at the end. The order is the same on
//! every machine and vectorises on each.

use crate::Real;
use crate::parallel;
use crate::simd::simd_fn;

/// Lanes of a sum.
const LANES: usize = 16;

/// Elements that are one partial sum when a whole tensor is summed: part of the order.
const STRETCH: usize = 4096;

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
        tree(fold(x, R::ZERO, |s, x| s + x))
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

/// Each element folded into its lane.
#[inline(always)]
fn fold<R: Real>(x: &[R], init: R, f: impl Fn(R, R) -> R) -> [R; LANES] {
    let mut lanes = [init; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(tail) {
        *lane = f(*lane, x);
    }
    lanes
}

simd_fn! {
    /// Σ (x - mean)².
    pub(crate) fn sum_squared_deviations<R: Real>(x: &[R], mean: R) -> R {
        tree(fold(x, R::ZERO, |s, x| (x - mean).mul_add(x - mean, s)))
    }
}

simd_fn! {
    /// Σ x (y - mean), for slices of one length. (Σ x y - mean Σ x would cancel where the mean is large.)
    pub(crate) fn dot_deviations<R: Real>(x: &[R], y: &[R], mean: R) -> R {
        let mut lanes = [R::ZERO; LANES];
        for (x, y) in x.chunks(LANES).zip(y.chunks(LANES)) {
            for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
                *lane = x.mul_add(y - mean, *lane);
            }
        }
        tree(lanes)
    }
}

simd_fn! {
    /// Σ e^(x - shift).
    pub(crate) fn sum_exp<R: Real>(x: &[R], shift: R) -> R {
        tree(fold(x, R::ZERO, |s, x| s + (x - shift).exp()))
    }
}

simd_fn! {
    /// The largest; NaN are passed over, and nothing at all gives -∞.
    pub(crate) fn max<R: Real>(x: &[R]) -> R {
        // The element as the receiver: there a NaN loses.
        fold(x, R::NEG_INFINITY, |m, x| x.max(m)).into_iter().fold(R::NEG_INFINITY, |m, x| x.max(m))
    }
}

/// Σ x over any number of elements, in stretches that several threads may take and that are added as a
/// row is.
pub(crate) fn sum_all<R: Real>(x: &[R]) -> R {
    let n = x.len().div_ceil(STRETCH);
    if n <= 1 {
        return sum(x);
    }
    sum(&parallel::map(n, |i| sum(&x[i * STRETCH..x.len().min((i + 1) * STRETCH)])))
}

/// Rows whose column sums are made together before they are added to the total: part of the order.
const ROW_BLOCK: usize = 256;

/// sums[c] += Σ over rows r of `row(r)` summed per column, in blocks of rows: `add(r, block_sums)` adds
/// row r. Blocks are summed in parallel and added in order, so the result does not depend on threads.
pub(crate) fn column_sums<R: Real>(rows: usize, sums: &mut [R], add: impl Fn(usize, &mut [R]) + Sync + Send) {
    let blocks = rows.div_ceil(ROW_BLOCK);
    let partial = parallel::map(blocks, |b| {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize) -> Vec<f64> {
        (0..n).map(|i| ((i * 37 + 11) % 101) as f64 - 50.0).collect()
    }

    /// Small integers: every order gives the same, exact result.
    #[test]
    fn sums_are_right_at_every_length() {
        for n in (0..70).chain([4095, 4096, 4097, 9000]) {
            let x = values(n);
            let y: Vec<f64> = x.iter().rev().copied().collect();
            assert_eq!(sum(&x), x.iter().sum::<f64>(), "{n}");
            assert_eq!(sum_all(&x), x.iter().sum::<f64>(), "{n}");
            assert_eq!(sum_squared_deviations(&x, 3.0), x.iter().map(|x| (x - 3.0).powi(2)).sum::<f64>(), "{n}");
            assert_eq!(dot(&x, &y), x.iter().zip(&y).map(|(x, y)| x * y).sum::<f64>(), "{n}");
            assert_eq!(dot_deviations(&x, &y, 3.0), x.iter().zip(&y).map(|(x, y)| x * (y - 3.0)).sum::<f64>(), "{n}");
            assert_eq!(max(&x), x.iter().copied().fold(f64::NEG_INFINITY, f64::max), "{n}");
        }
    }

    #[test]
    fn a_maximum_passes_over_nan_wherever_it_stands() {
        for at in 0..40 {
            let mut x = values(40);
            x[at] = f64::NAN;
            let want = x.iter().copied().filter(|x| !x.is_nan()).fold(f64::NEG_INFINITY, f64::max);
            assert_eq!(max(&x), want, "{at}");
        }
    }

    /// A single chain of f32 ones would stop at 2^24.
    #[test]
    fn a_long_sum_does_not_saturate() {
        let ones = vec![1.0f32; (1 << 24) + (1 << 20)];
        assert_eq!(sum(&ones), ones.len() as f32);
        assert_eq!(sum_all(&ones), ones.len() as f32);
    }

    #[test]
    fn columns_are_added_to_what_is_there() {
        for rows in [0, 1, 255, 256, 257, 1000] {
            let x = values(rows * 3);
            let mut out = vec![1.0, 2.0, 3.0];
            column_sums(rows, &mut out, |r, sums| {
                for (s, &x) in sums.iter_mut().zip(&x[r * 3..]) {
                    *s += x;
                }
            });
            for (c, &got) in out.iter().enumerate() {
                let want = (c + 1) as f64 + (0..rows).map(|r| x[r * 3 + c]).sum::<f64>();
                assert_eq!(got, want, "{rows} rows, column {c}");
            }
        }
    }
}
