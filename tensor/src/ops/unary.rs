//! Elementary functions, element by element: y = f(x), any shape, f32 or f64.

use super::check;
use crate::device::{self, ops::functions as on_device};
use crate::simd::simd_fn;
use crate::{Error, Real, Result, Tensor, dispatch_real, parallel};

/// Which function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unary {
    /// e^x.
    Exp,
    /// Natural logarithm.
    Ln,
    /// Square root.
    Sqrt,
    /// Hyperbolic tangent.
    Tanh,
    /// 1 / (1 + e^-x).
    Sigmoid,
    /// c · tanh(x / c): x near 0, never beyond ±c.
    Softcap(f64),
}

impl Unary {
    /// Its name in errors and in the registry.
    pub const fn name(self) -> &'static str {
        match self {
            Unary::Exp => "exp",
            Unary::Ln => "ln",
            Unary::Sqrt => "sqrt",
            Unary::Tanh => "tanh",
            Unary::Sigmoid => "sigmoid",
            Unary::Softcap(_) => "softcap",
        }
    }

    /// f(x) and f'(x).
    #[inline(always)]
    fn both<R: Real>(self, x: R) -> (R, R) {
        match self {
            Unary::Exp => {
                let y = x.exp();
                (y, y)
            }
            Unary::Ln => (x.ln(), R::ONE / x),
            Unary::Sqrt => {
                let y = x.sqrt();
                (y, R::from_f64(0.5) / y)
            }
            Unary::Tanh => {
                let y = x.tanh();
                (y, R::ONE - y * y)
            }
            Unary::Sigmoid => {
                let y = R::ONE / (R::ONE + (-x).exp());
                (y, y * (R::ONE - y))
            }
            Unary::Softcap(c) => {
                let t = (x * R::from_f64(1.0 / c)).tanh();
                (R::from_f64(c) * t, R::ONE - t * t)
            }
        }
    }

    fn check(self) -> Result<()> {
        match self {
            Unary::Softcap(c) if !(c > 0.0 && c.is_finite()) => {
                Err(Error::InvalidValue { op: self.name(), name: "cap", value: c, expected: "positive and finite" })
            }
            _ => Ok(()),
        }
    }
}

/// y = f(x).
///
/// # Errors
/// A dtype other than f32 and f64; a cap that is not positive.
pub fn forward(f: Unary, x: &Tensor) -> Result<Tensor> {
    f.check()?;
    if let Some(on) = device::of(f.name(), [x])? {
        return on_device::unary_forward(&on, f, x);
    }
    let x = x.contiguous()?;
    let mut y = Tensor::zeros(x.shape(), x.dtype())?;
    dispatch_real!(f.name(), x.dtype(), R => {
        let x = x.as_slice::<R>()?;
        parallel::chunks(y.as_slice_mut::<R>()?, 1, |start, y| run(f, &x[start..], y));
    });
    Ok(y)
}

/// dx = dy · f'(x).
///
/// # Errors
/// As [`forward`]; dy not like x.
pub fn backward(f: Unary, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    f.check()?;
    check::same(f.name(), "upstream gradient against x", dy, x)?;
    if let Some(on) = device::of(f.name(), [dy, x])? {
        return on_device::unary_backward(&on, f, dy, x);
    }
    let (dy, x) = (dy.contiguous()?, x.contiguous()?);
    let mut dx = Tensor::zeros(x.shape(), x.dtype())?;
    dispatch_real!(f.name(), x.dtype(), R => {
        let (dy, x) = (dy.as_slice::<R>()?, x.as_slice::<R>()?);
        parallel::chunks(dx.as_slice_mut::<R>()?, 1, |start, dx| run_backward(f, &dy[start..], &x[start..], dx));
    });
    Ok(dx)
}

/// Runs the macro with the function as a constant: the choice is made outside the loop, so that each
/// loop vectorises.
macro_rules! choose {
    ($f:expr, $each:ident) => {
        match $f {
            Unary::Exp => $each!(Unary::Exp),
            Unary::Ln => $each!(Unary::Ln),
            Unary::Sqrt => $each!(Unary::Sqrt),
            Unary::Tanh => $each!(Unary::Tanh),
            Unary::Sigmoid => $each!(Unary::Sigmoid),
            Unary::Softcap(c) => $each!(Unary::Softcap(c)),
        }
    };
}

simd_fn! {
    fn run<R: Real>(f: Unary, x: &[R], y: &mut [R]) {
        macro_rules! each {
            ($f:expr) => {
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = $f.both(x).0)
            };
        }
        choose!(f, each)
    }
}

simd_fn! {
    fn run_backward<R: Real>(f: Unary, dy: &[R], x: &[R], dx: &mut [R]) {
        macro_rules! each {
            ($f:expr) => {
                dx.iter_mut().zip(dy).zip(x).for_each(|((dx, &dy), &x)| *dx = dy * $f.both(x).1)
            };
        }
        choose!(f, each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_the_standard_library() {
        let x = [0.1, 0.5, 1.0, 2.5, 7.0];
        let t = Tensor::from_slice(&x, [5]).unwrap();
        type Plain = fn(f64) -> f64;
        let cases: [(Unary, Plain); 6] = [
            (Unary::Exp, f64::exp),
            (Unary::Ln, f64::ln),
            (Unary::Sqrt, f64::sqrt),
            (Unary::Tanh, f64::tanh),
            (Unary::Sigmoid, |x| x.exp() / (1.0 + x.exp())),
            (Unary::Softcap(2.0), |x| 2.0 * (x / 2.0).tanh()),
        ];
        for (f, want) in cases {
            for (y, &x) in forward(f, &t).unwrap().to_vec::<f64>().unwrap().iter().zip(&x) {
                // Two or three roundings of 1.1e-16.
                assert!((y - want(x)).abs() <= 1e-15 * want(x).abs(), "{f:?} of {x}");
            }
        }
    }

    #[test]
    fn a_cap_must_be_positive() {
        let x = Tensor::full(1.0f32, [2]).unwrap();
        for cap in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(forward(Unary::Softcap(cap), &x), Err(Error::InvalidValue { name: "cap", .. })));
        }
        assert!(forward(Unary::Exp, &Tensor::full(1i64, [2]).unwrap()).is_err());
    }
}
