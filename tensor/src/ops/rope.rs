//! Rotary position embedding, in the rotate-half layout of transformers.
//!
//! Of each head's leading `2 m` dimensions, pairs (x_i, x_{i+m}) turn by the angle of (token, i):
//! y_i = x_i cos - x_{i+m} sin, y_{i+m} = x_{i+m} cos + x_i sin; the others pass. x: (tokens, heads,
//! size), cos, sin: (tokens, m) in the dtype of x. Bound by memory.
//!
//! # Source
//! Su et al., "RoFormer", arXiv:2104.09864, equation 34.

use crate::device;
use crate::simd::simd_fn;
use crate::{Error, Real, Result, Tensor, dispatch_real, parallel};

const OP: &str = "rope";

/// Turns x forward.
///
/// # Errors
/// Shapes or dtypes that do not agree.
pub fn forward(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    turn(x, cos, sin, false)
}

/// dx: the upstream gradient turned back.
///
/// # Errors
/// As [`forward`].
pub fn backward(dy: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    turn(dy, cos, sin, true)
}

/// Checks x (tokens, heads, size) against its tables; gives these sizes.
pub(super) fn check(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<[usize; 3]> {
    if x.rank() != 3 {
        return Err(Error::Rank { op: OP, expected: 3, shape: x.dims().to_vec() });
    }
    let (tokens, heads, size) = (x.dims()[0], x.dims()[1], x.dims()[2]);
    if cos.rank() != 2 || cos.dims() != sin.dims() || cos.dims()[0] != tokens || 2 * cos.dims()[1] > size {
        let (lhs, rhs) = (x.dims().to_vec(), cos.dims().to_vec());
        return Err(Error::ShapeMismatch {
            op: OP,
            what: "x (tokens, heads, size) against cos (tokens, ≤ size/2)",
            lhs,
            rhs,
        });
    }
    Ok([tokens, heads, size])
}

/// What turns rows of tokens one by one, on the processor.
pub(super) struct Turn {
    cos: Tensor,
    sin: Tensor,
    size: usize,
}

impl Turn {
    /// For tokens like those of x: (tokens, heads, size).
    ///
    /// # Errors
    /// As [`forward`].
    pub(super) fn new(x: &Tensor, [cos, sin]: [&Tensor; 2]) -> Result<Turn> {
        let [_, _, size] = check(x, cos, sin)?;
        device::cpu_only(OP, [cos, sin])?;
        if let Some(table) = [cos, sin].into_iter().find(|table| table.dtype() != x.dtype()) {
            return Err(Error::DTypeMismatch { op: OP, expected: x.dtype(), got: table.dtype() });
        }
        Ok(Turn { cos: cos.contiguous()?, sin: sin.contiguous()?, size })
    }

    /// Heads x of token t, turned, into y.
    pub(super) fn token<R: Real>(&self, t: usize, x: &[R], y: &mut [R]) {
        let half = self.cos.dims()[1];
        let table = t * half..(t + 1) * half;
        turn_token(y, x, &self.cos.checked::<R>()[table.clone()], &self.sin.checked::<R>()[table], self.size, false);
    }
}

fn turn(x: &Tensor, cos: &Tensor, sin: &Tensor, back: bool) -> Result<Tensor> {
    let [_, heads, size] = check(x, cos, sin)?;
    if let Some(on) = device::of(OP, [x, cos, sin])? {
        return device::ops::rope::turn(&on, x, cos, sin, back);
    }
    let half = cos.dims()[1];
    let (x, cos, sin) = (x.contiguous()?, cos.contiguous()?, sin.contiguous()?);
    let mut y = Tensor::scratch(x.shape(), x.dtype())?;
    dispatch_real!(OP, x.dtype(), R => {
        let (x, cos, sin) = (x.as_slice::<R>()?, cos.as_slice::<R>()?, sin.as_slice::<R>()?);
        let width = heads * size;
        parallel::chunks(y.as_slice_mut::<R>()?, width, |start, y| {
            for (i, y) in y.chunks_exact_mut(width).enumerate() {
                let t = start / width + i;
                let table = t * half..(t + 1) * half;
                turn_token(y, &x[t * width..(t + 1) * width], &cos[table.clone()], &sin[table], size, back);
            }
        });
    });
    Ok(y)
}

simd_fn! {
    fn turn_token<R: Real>(y: &mut [R], x: &[R], cos: &[R], sin: &[R], size: usize, back: bool) {
        let half = cos.len();
        for (y, x) in y.chunks_exact_mut(size).zip(x.chunks_exact(size)) {
            let (y1, rest) = y.split_at_mut(half);
            let (y2, y3) = rest.split_at_mut(half);
            let (x1, x2, x3) = (&x[..half], &x[half..2 * half], &x[2 * half..]);
            for i in 0..half {
                let s = if back { -sin[i] } else { sin[i] };
                y1[i] = x1[i] * cos[i] - x2[i] * s;
                y2[i] = x2[i] * cos[i] + x1[i] * s;
            }
            y3.copy_from_slice(x3);
        }
    }
}
