//! Inputs for gradient checks.

use planish_autograd::{GradCheck, Result, Var};
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor};
use proptest::prelude::*;

/// How an input lies in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Layout {
    Plain,
    /// The last two dimensions exchanged.
    Transposed,
    /// Cut out of something larger along the last dimension.
    Narrowed,
    /// The first dimension stretched, with stride 0.
    Broadcast,
}

pub(crate) fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::Plain), Just(Layout::Transposed), Just(Layout::Narrowed), Just(Layout::Broadcast)]
}

/// A size: none, one, or a few.
pub(crate) fn size() -> impl Strategy<Value = usize> {
    0usize..6
}

/// Few cases, as each takes two forward passes an element.
pub(crate) fn config() -> ProptestConfig {
    ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() }
}

/// Standard normal values in f64, laid out as asked where the rank allows.
pub(crate) fn random(shape: &[usize], seed: u64, layout: Layout) -> Tensor {
    made(shape, layout, |i| Stream::new(seed, Purpose::Data, 77).normal(i))
}

/// As [`random`], with `f` applied: to keep values off points where there is no gradient.
pub(crate) fn random_map(shape: &[usize], seed: u64, layout: Layout, f: impl Fn(f64) -> f64) -> Tensor {
    made(shape, layout, |i| f(Stream::new(seed, Purpose::Data, 77).normal(i)))
}

/// Away from 0 by at least `gap`.
pub(crate) fn off_zero(gap: f64) -> impl Fn(f64) -> f64 {
    move |x| x + gap.copysign(x)
}

/// Positive, at least `low`.
pub(crate) fn positive(low: f64) -> impl Fn(f64) -> f64 {
    move |x| x.abs() + low
}

/// Values of which no two are closer than 0.1, in an order that looks random.
pub(crate) fn distinct(shape: &[usize], seed: u64) -> Tensor {
    let n = shape.iter().product::<usize>();
    let start = seed % 1000;
    // 7919 is a prime larger than n: the places are a permutation.
    let value = |i: usize| ((i as u64 * 7919 + start) % n as u64) as f64 * 0.1 - 1.0;
    Tensor::from_vec((0..n).map(value).collect(), shape).unwrap()
}

fn made(shape: &[usize], layout: Layout, value: impl Fn(u64) -> f64) -> Tensor {
    let plain = |shape: &[usize]| {
        let n = shape.iter().product::<usize>();
        Tensor::from_vec((0..n).map(|i| value(i as u64)).collect(), shape).unwrap()
    };
    let rank = shape.len();
    let mut other = shape.to_vec();
    match layout {
        Layout::Transposed if rank >= 2 => {
            other.swap(rank - 2, rank - 1);
            plain(&other).transpose(rank - 2, rank - 1).unwrap()
        }
        Layout::Narrowed if rank >= 1 => {
            other[rank - 1] += 3;
            plain(&other).narrow(rank - 1, 2, shape[rank - 1]).unwrap()
        }
        Layout::Broadcast if rank >= 1 => {
            other[0] = 1;
            plain(&other).broadcast_to(shape).unwrap()
        }
        _ => plain(shape),
    }
}

/// Runs the gradient check as part of a property.
pub(crate) fn check(f: impl Fn(&[Var]) -> Result<Var>, inputs: &[Tensor], seed: u64) -> Result<(), TestCaseError> {
    assert!(inputs.iter().all(|t| t.dtype() == DType::F64));
    let options = GradCheck { seed, ..GradCheck::default() };
    planish_autograd::gradcheck(|v| Ok(vec![f(v)?]), inputs, options).map_err(|e| TestCaseError::fail(e.to_string()))
}
