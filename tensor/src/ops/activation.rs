//! Nonlinearities on their own: y = act(x), with the formulas of [`Act`].
//!
//! x, y: any one shape, f32 or f64. Bound by memory, GELU by the error function.
//!
//! # Source
//! Hendrycks, Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415; SiLU: arXiv:1702.03118.

use super::check;
pub use super::glu::Act;
use crate::device::{self, ops::functions as on_device};
use crate::simd::simd_fn;
use crate::{Real, Result, Tensor, dispatch_real, parallel};

const OP: &str = "activation";

/// y = act(x).
///
/// # Errors
/// A dtype other than f32 and f64.
pub fn forward(act: Act, x: &Tensor) -> Result<Tensor> {
    if let Some(on) = device::of(OP, [x])? {
        return on_device::activation_forward(&on, act, x);
    }
    let x = x.contiguous()?;
    let mut y = Tensor::zeros(x.shape(), x.dtype())?;
    dispatch_real!(OP, x.dtype(), R => {
        let x = x.as_slice::<R>()?;
        parallel::chunks(y.as_slice_mut::<R>()?, 1, |start, y| run(act, &x[start..], y));
    });
    Ok(y)
}

/// dx = dy · act'(x).
///
/// # Errors
/// As [`forward`]; dy not like x.
pub fn backward(act: Act, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    check::same(OP, "upstream gradient against x", dy, x)?;
    if let Some(on) = device::of(OP, [dy, x])? {
        return on_device::activation_backward(&on, act, dy, x);
    }
    let (dy, x) = (dy.contiguous()?, x.contiguous()?);
    let mut dx = Tensor::zeros(x.shape(), x.dtype())?;
    dispatch_real!(OP, x.dtype(), R => {
        let (dy, x) = (dy.as_slice::<R>()?, x.as_slice::<R>()?);
        parallel::chunks(dx.as_slice_mut::<R>()?, 1, |start, dx| run_backward(act, &dy[start..], &x[start..], dx));
    });
    Ok(dx)
}

simd_fn! {
    fn run<R: Real>(act: Act, x: &[R], y: &mut [R]) {
        // The choice outside the loop, so that each loop vectorises.
        macro_rules! each {
            ($act:expr) => {
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = $act.both(x).0)
            };
        }
        match act {
            Act::Silu => each!(Act::Silu),
            Act::Gelu => each!(Act::Gelu),
            Act::GeluTanh => each!(Act::GeluTanh),
            Act::Relu => each!(Act::Relu),
        }
    }
}

simd_fn! {
    fn run_backward<R: Real>(act: Act, dy: &[R], x: &[R], dx: &mut [R]) {
        macro_rules! each {
            ($act:expr) => {
                dx.iter_mut().zip(dy).zip(x).for_each(|((dx, &dy), &x)| *dx = dy * $act.both(x).1)
            };
        }
        match act {
            Act::Silu => each!(Act::Silu),
            Act::Gelu => each!(Act::Gelu),
            Act::GeluTanh => each!(Act::GeluTanh),
            Act::Relu => each!(Act::Relu),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{assert_close, random, values};
    use super::*;
    use crate::DType;

    const ALL: [Act; 4] = [Act::Silu, Act::Gelu, Act::GeluTanh, Act::Relu];

    #[test]
    fn single_precision_is_close_to_double() {
        let x = random(&[1001], DType::F64, 0);
        let x = super::super::elementwise::scale(&x, 4.0).unwrap().to_dtype(DType::F32).unwrap();
        let dy = random(&[1001], DType::F32, 1);
        for act in ALL {
            let all = |dtype| {
                let (x, dy) = (x.to_dtype(dtype).unwrap(), dy.to_dtype(dtype).unwrap());
                [values(&forward(act, &x).unwrap()), values(&backward(act, &dy, &x).unwrap())]
            };
            for (single, double) in all(DType::F32).iter().zip(all(DType::F64)) {
                // A dozen roundings of 6e-8, and x up to 16 in front of a difference in the slopes.
                assert_close(single, &double, 3e-6);
            }
        }
    }

    #[test]
    fn far_out_nothing_overflows() {
        let x = Tensor::from_vec(vec![-1e12f32, -200.0, -90.0, 90.0, 200.0, 1e12], [6]).unwrap();
        for act in ALL {
            let y = forward(act, &x).unwrap().to_vec::<f32>().unwrap();
            let slope = backward(act, &Tensor::full(1.0f32, [6]).unwrap(), &x).unwrap().to_vec::<f32>().unwrap();
            assert!(y[..3].iter().chain(&slope[..3]).all(|v| v.abs() < 1e-30), "{act:?}: {y:?} {slope:?}");
            assert_eq!(y[3..], x.as_slice::<f32>().unwrap()[3..], "{act:?}");
            assert_eq!(slope[3..], [1.0; 3], "{act:?}");
        }
    }

    #[test]
    fn nan_stays_nan() {
        let x = Tensor::full(f32::NAN, [3]).unwrap();
        for act in ALL {
            assert!(values(&forward(act, &x).unwrap()).iter().all(|y| y.is_nan()), "{act:?}");
        }
    }
}
