//! A block-diagonal linear map of the features: y\[t, g n + c\] = Σ_k x\[t, g n + k\] R_g\[k, c\].
//!
//! x, y: (…, groups · n), R: (groups, n, n), or (1, n, n) for one that all groups share. Sums in the order of k, so a
//! row of y is a function of the row of x alone. 2 n operations a feature: a share n / out of a linear map's.

use super::linear::flat;
use crate::device::{self, ops::rotations as on_device};
use crate::{Error, Real, Result, Tensor, dispatch_real, parallel};

const OP: &str = "block_rotate";

crate::simd::simd_fn! {
    /// Rows of y = x R; `r` holds one block or one a group.
    fn rotate_rows<R: Real>(x: &[R], y: &mut [R], r: &[R], n: usize, width: usize) {
        let shared = r.len() == n * n;
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            for (g, (x, y)) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)).enumerate() {
                let block = if shared { r } else { &r[g * n * n..(g + 1) * n * n] };
                y.fill(R::ZERO);
                for (&x, row) in x.iter().zip(block.chunks_exact(n)) {
                    for (y, &r) in y.iter_mut().zip(row) {
                        *y = x.mul_add(r, *y);
                    }
                }
            }
        }
    }
}

/// (groups, n) after checking x against R.
fn sizes(x: &Tensor, r: &Tensor) -> Result<(usize, usize)> {
    let width = x.dims().last().copied().unwrap_or(0);
    let fit = r.rank() == 3 && r.dims()[1] == r.dims()[2] && {
        let (blocks, n) = (r.dims()[0], r.dims()[1]);
        n > 0 && width.is_multiple_of(n) && (blocks == 1 || blocks * n == width)
    };
    if !fit {
        let (lhs, rhs) = (x.dims().to_vec(), r.dims().to_vec());
        return Err(Error::ShapeMismatch { op: OP, what: "x (…, groups n) against R (groups or 1, n, n)", lhs, rhs });
    }
    Ok((width / r.dims()[1], r.dims()[1]))
}

/// y. On a device x may be a half, beside R in f32.
///
/// # Errors
/// Shapes that do not agree; dtypes that differ or are neither f32 nor f64.
pub fn forward(x: &Tensor, r: &Tensor) -> Result<Tensor> {
    let (groups, n) = sizes(x, r)?;
    if let Some(on) = device::of(OP, [x, r])? {
        return on_device::rotate(&on, x, r, false);
    }
    let (x, r) = (x.contiguous()?, r.contiguous()?);
    let width = groups * n;
    let mut y = Tensor::scratch(x.shape(), x.dtype())?;
    dispatch_real!(OP, x.dtype(), R => {
        let (x, r) = (x.as_slice::<R>()?, r.as_slice::<R>()?);
        parallel::chunks(y.as_slice_mut::<R>()?, width, |start, y| {
            rotate_rows(&x[start..start + y.len()], y, r, n, width);
        });
    });
    Ok(y)
}

/// dx = dy Rᵀ, block by block.
///
/// # Errors
/// As [`forward`].
pub fn backward_input(dy: &Tensor, r: &Tensor) -> Result<Tensor> {
    if let Some(on) = device::of(OP, [dy, r])? {
        sizes(dy, r)?;
        return on_device::rotate(&on, dy, r, true);
    }
    forward(dy, &r.transpose(1, 2)?)
}

/// dR_g\[k, c\] += Σ_t x\[t, g n + k\] dy\[t, g n + c\], in the order of t (and of g, where one block is shared).
///
/// # Errors
/// As [`forward`].
pub fn backward_r_add(dy: &Tensor, x: &Tensor, dr: &mut Tensor) -> Result<()> {
    let (groups, n) = sizes(x, dr)?;
    super::check::same(OP, "gradient against x", dy, x)?;
    let (x, dy) = (flat(x, OP)?.contiguous()?, flat(dy, OP)?.contiguous()?);
    if let Some(on) = device::of(OP, [&dy, &x, &*dr])? {
        return on_device::blocks_add(&on, &dy, &x, dr);
    }
    let (width, shared) = (groups * n, dr.dims()[0] == 1);
    dispatch_real!(OP, x.dtype(), R => {
        let (x, dy) = (x.as_slice::<R>()?, dy.as_slice::<R>()?);
        let of = |g: usize, sum: &mut [R]| {
            for (x, dy) in x.chunks_exact(width.max(1)).zip(dy.chunks_exact(width.max(1))) {
                let (x, dy) = (&x[g * n..(g + 1) * n], &dy[g * n..(g + 1) * n]);
                for (&x, sum) in x.iter().zip(sum.chunks_exact_mut(n)) {
                    for (s, &dy) in sum.iter_mut().zip(dy) {
                        *s = x.mul_add(dy, *s);
                    }
                }
            }
        };
        let sums = parallel::map(groups, |g| {
            let mut sum = vec![R::ZERO; n * n];
            of(g, &mut sum);
            sum
        });
        let dr = dr.as_slice_mut::<R>()?;
        for (g, sum) in sums.iter().enumerate() {
            let at = if shared { 0 } else { g * n * n };
            dr[at..at + n * n].iter_mut().zip(sum).for_each(|(d, &s)| *d += s);
        }
    });
    Ok(())
}
