//! Gated linear units: y = act(gate) · up.
//!
//! gate, up, y: any one shape, f32 or f64. Bound by memory: two reads and a write forward.
//!
//! # Source
//! Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202; GELU: arXiv:1606.08415.

use super::check;
use crate::device::{self, ops::functions as on_device};
use crate::simd::simd_fn;
use crate::{Real, Result, Tensor, dispatch_real, parallel};

const OP: &str = "glu";

/// The gate's nonlinearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// x σ(x).
    Silu,
    /// x Φ(x), by the error function.
    Gelu,
    /// 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))).
    GeluTanh,
    /// max(x, 0); its slope at 0 is 0, as in PyTorch.
    Relu,
}

/// √(2/π)
const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;

impl Act {
    /// act(x) and act'(x).
    #[inline(always)]
    pub(crate) fn both<R: Real>(self, x: R) -> (R, R) {
        let c = R::from_f64;
        match self {
            Act::Silu => {
                let s = R::ONE / (R::ONE + (-x).exp());
                // For x so low that exp overflows s is 0, and x·s is 0 as it should be.
                (x * s, s + x * s * (R::ONE - s))
            }
            Act::Gelu => {
                let cdf = c(0.5) * (R::ONE + (x * c(std::f64::consts::FRAC_1_SQRT_2)).erf());
                let pdf = (-(x * x) * c(0.5)).exp() * c(0.5 * SQRT_2_OVER_PI);
                (x * cdf, cdf + x * pdf)
            }
            Act::Relu => {
                // A NaN passes through: it is not under 0.
                if x <= R::ZERO { (R::ZERO, R::ZERO) } else { (x, R::ONE) }
            }
            Act::GeluTanh => {
                let inner = c(SQRT_2_OVER_PI) * (x + c(0.044_715) * x * x * x);
                let t = inner.tanh();
                let slope = c(SQRT_2_OVER_PI) * (R::ONE + c(3.0 * 0.044_715) * x * x);
                let half = c(0.5);
                (half * x * (R::ONE + t), half * (R::ONE + t) + half * x * (R::ONE - t * t) * slope)
            }
        }
    }
}

/// y = act(gate) · up.
///
/// # Errors
/// Shapes or dtypes that differ; a dtype other than f32 and f64.
pub fn forward(act: Act, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    check::same(OP, "up against gate", up, gate)?;
    if let Some(on) = device::of(OP, [gate, up])? {
        return on_device::glu_forward(&on, act, gate, up);
    }
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let mut y = Tensor::scratch(gate.shape(), gate.dtype())?;
    dispatch_real!(OP, gate.dtype(), R => {
        parallel::later::<R, 1>([(&mut y, 1)], move |start, [y]| {
            forward_run(act, y, &gate.checked::<R>()[start..], &up.checked::<R>()[start..]);
        })?;
    });
    Ok(y)
}

simd_fn! {
    fn forward_run<R: Real>(act: Act, y: &mut [R], gate: &[R], up: &[R]) {
        // The choice outside the loop, so that each loop vectorises.
        match act {
            Act::Silu => y.iter_mut().zip(gate).zip(up).for_each(|((y, &g), &u)| *y = Act::Silu.both(g).0 * u),
            Act::Gelu => y.iter_mut().zip(gate).zip(up).for_each(|((y, &g), &u)| *y = Act::Gelu.both(g).0 * u),
            Act::GeluTanh => y.iter_mut().zip(gate).zip(up).for_each(|((y, &g), &u)| *y = Act::GeluTanh.both(g).0 * u),
            Act::Relu => y.iter_mut().zip(gate).zip(up).for_each(|((y, &g), &u)| *y = Act::Relu.both(g).0 * u),
        }
    }
}

/// (dgate, dup): dgate = dy · up · act'(gate), dup = dy · act(gate). Written over gate and up where these
/// are shared with nothing.
///
/// # Errors
/// As [`forward`].
pub fn backward(act: Act, dy: &Tensor, mut gate: Tensor, mut up: Tensor) -> Result<(Tensor, Tensor)> {
    check::same(OP, "up against gate", &up, &gate)?;
    check::same(OP, "upstream gradient against gate", dy, &gate)?;
    if let Some(on) = device::of(OP, [dy, &gate, &up])? {
        return on_device::glu_backward(&on, act, dy, &gate, &up);
    }
    let dy = dy.contiguous()?;
    dispatch_real!(OP, dy.dtype(), R => {
        let dy = dy.as_slice::<R>()?;
        parallel::chunks2(gate.as_slice_mut::<R>()?, 1, up.as_slice_mut::<R>()?, 1, |start, gate, up| {
            backward_run(act, &dy[start..], gate, up);
        });
    });
    Ok((gate, up))
}

simd_fn! {
    fn backward_run<R: Real>(act: Act, dy: &[R], gate: &mut [R], up: &mut [R]) {
        let n = gate.len();
        let (dy, up) = (&dy[..n], &mut up[..n]);
        macro_rules! run {
            ($act:expr) => {
                for i in 0..n {
                    let (a, slope) = $act.both(gate[i]);
                    gate[i] = dy[i] * up[i] * slope;
                    up[i] = dy[i] * a;
                }
            };
        }
        match act {
            Act::Silu => run!(Act::Silu),
            Act::Gelu => run!(Act::Gelu),
            Act::GeluTanh => run!(Act::GeluTanh),
            Act::Relu => run!(Act::Relu),
        }
    }
}
