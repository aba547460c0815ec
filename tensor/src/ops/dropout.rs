//! Dropout with a counter-based mask: y_i = x_i / (1 - p) with probability 1 - p, else 0.
//!
//! x: (…, columns) with a row for each token. Whether an element is kept is a function of the stream, its
//! row's key and its column alone ([`Rows`]), so the mask is drawn again in the backward pass instead of
//! being saved, on any number of threads, and a token keeps its mask in whatever batch it comes.
//! Bound by memory: a read and a write; the mask costs 12 integer operations an element, vectorised.
//!
//! # Source
//! Srivastava et al., JMLR 15 (2014), in its inverted form.

use crate::device;
use crate::rng::Rows;
use crate::simd::simd_fn;
use crate::{Element, Error, Real, Result, Tensor, dispatch_real, parallel};

const OP: &str = "dropout";

simd_fn! {
    /// Rows `first..` of y = x under the mask; y and x: whole rows of `columns`.
    fn mask_rows<R: Real>(x: &[R], y: &mut [R], columns: usize, first: usize, rows: &Rows, p: (u32, R)) {
        let (threshold, scale) = p;
        for (r, (x, y)) in x.chunks_exact(columns).zip(y.chunks_exact_mut(columns)).enumerate() {
            let row = rows.row(first + r);
            for (c, (x, y)) in x.iter().zip(y).enumerate() {
                *y = if row.u32(c as u32) >= threshold { *x * scale } else { R::ZERO };
            }
        }
    }
}

/// Applies the mask of `rows`, one for each row of x.
///
/// # Errors
/// p outside [0, 1); keys that are not one for each row of x; a dtype other than f32 and f64.
pub fn forward(x: &Tensor, p: f64, rows: &Rows) -> Result<Tensor> {
    if !(0.0..1.0).contains(&p) {
        return Err(Error::InvalidValue { op: OP, name: "p", value: p, expected: "in [0, 1)" });
    }
    if p == 0.0 {
        return Ok(x.clone());
    }
    let columns = x.dims().last().copied().unwrap_or(1);
    if x.numel() != rows.len() * columns {
        let (lhs, rhs) = (x.dims().to_vec(), vec![rows.len()]);
        return Err(Error::ShapeMismatch { op: OP, what: "a key for each row of x", lhs, rhs });
    }
    if let Some(on) = device::of(OP, [x])? {
        return device::ops::dropout::forward(&on, x, p, rows, columns);
    }
    let threshold = (p * (1u64 << 32) as f64) as u32;
    let x = x.contiguous()?;
    let mut y = Tensor::scratch(x.shape(), x.dtype())?;
    dispatch_real!(OP, x.dtype(), R => {
        let x = x.as_slice::<R>()?;
        let scale = <R as Element>::from_f64(1.0 / (1.0 - p));
        parallel::chunks(y.as_slice_mut::<R>()?, columns, |start, y| {
            let x = &x[start..start + y.len()];
            mask_rows(x, y, columns, start / columns, rows, (threshold, scale));
        });
    });
    Ok(y)
}

/// dx: the upstream gradient under the same mask.
///
/// # Errors
/// As [`forward`].
pub fn backward(dy: &Tensor, p: f64, rows: &Rows) -> Result<Tensor> {
    forward(dy, p, rows)
}
