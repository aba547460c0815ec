//! Dropout with a counter-based mask: y_i = x_i / (1 - p) with probability 1 - p, else 0.
//!
//! Whether element i (in row-major order) is kept is a function of the stream and i alone, so the mask
//! is drawn again in the backward pass instead of being saved, on any number of threads.
//!
//! # Source
//! Srivastava et al., JMLR 15 (2014), in its inverted form.

use crate::rng::Stream;
use crate::{Element, Error, Result, Tensor, dispatch_real, parallel};

const OP: &str = "dropout";

/// Applies the mask of `stream`.
///
/// # Errors
/// p outside [0, 1); a dtype other than f32 and f64.
pub fn forward(x: &Tensor, p: f64, stream: Stream) -> Result<Tensor> {
    if !(0.0..1.0).contains(&p) {
        return Err(Error::InvalidValue { op: OP, name: "p", value: p, expected: "in [0, 1)" });
    }
    if p == 0.0 {
        return Ok(x.clone());
    }
    let threshold = (p * (1u64 << 32) as f64) as u32;
    let x = x.contiguous()?;
    let mut y = Tensor::scratch(x.shape(), x.dtype())?;
    dispatch_real!(OP, x.dtype(), R => {
        let x = x.as_slice::<R>()?;
        let scale = <R as Element>::from_f64(1.0 / (1.0 - p));
        // Runs start at multiples of 4, so that each draws whole blocks of the generator.
        parallel::chunks(y.as_slice_mut::<R>()?, 4, |start, y| {
            for (b, y) in y.chunks_mut(4).enumerate() {
                let words = stream.block((start / 4 + b) as u64);
                for (i, y) in y.iter_mut().enumerate() {
                    if words[i] >= threshold {
                        *y = x[start + b * 4 + i] * scale;
                    }
                }
            }
        });
    });
    Ok(y)
}

/// dx: the upstream gradient under the same mask.
///
/// # Errors
/// As [`forward`].
pub fn backward(dy: &Tensor, p: f64, stream: Stream) -> Result<Tensor> {
    forward(dy, p, stream)
}
