//! A case of an op, and how it is held against f64.
//!
//! The op runs twice on the same numbers: in f32, and in f64 on the inputs widened, which changes none of
//! them. All outputs get a random upstream gradient. For each output and each gradient the error is the
//! largest difference over the largest magnitude of the reference.
//!
//! # The bound
//! n u, where u = 2⁻²⁴ is the rounding of f32 and n the number of roundings on the longest way from an
//! input to a result, as each case states it. The worst case is n u Σ|terms|, which is larger; but the
//! inputs are drawn at random, so the roundings know nothing of each other and add up as √n (Higham and
//! Mary, 2019), and the sums do too: a right kernel stays under n u with a factor of about √n to spare,
//! and one that leaves out a single term of n, or rounds to bf16 on the way, is far over. Ops that only
//! move numbers must be exact.
//!
//! On a device the ops of a decoder run with bf16 activations as well, which the f64 side is given too. Results and what
//! is kept on the way (weights, probabilities, the low-rank activations) are then rounded to bf16, by 2⁻⁹ of themselves:
//! [`HALF_ROUNDINGS`] of these are added to the bound.

use planish_autograd::{Result, Tape, Var};
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Device, Tensor};

use super::sizes::Sizes;

/// What an input is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Computed by another op: a gradient is wanted.
    Activation,
    /// A parameter: a gradient is wanted and, when it is timed, added to one that is there.
    Weight,
    /// No gradient is wanted.
    Frozen,
}

/// An input of an op.
pub(super) struct Input {
    pub(super) tensor: Tensor,
    pub(super) kind: Kind,
}

/// How exact a case must be.
#[derive(Clone, Copy)]
pub(super) enum Rounding {
    /// Not one bit may differ.
    Exact,
    /// This many roundings on the longest way.
    Terms(usize),
}

/// What a case costs: forward, and backward on top of it.
#[derive(Clone, Copy)]
pub(super) enum Work {
    /// Floating-point operations.
    Flops(f64, f64),
    /// Bytes that must be read and written.
    Bytes(f64, f64),
    /// Bytes that must be read, in a pass that has no backward: decoding.
    Reads(f64),
    /// Nothing to time: a view, or something that no training step does.
    None,
}

/// Roundings to bf16 on the longest way through an op: of a weight, of what is kept within, of a gradient, of the result.
const HALF_ROUNDINGS: f64 = 4.0;

/// Makes the cases of an op at given sizes.
pub(super) type Make = fn(&Sizes) -> Result<Vec<Case>>;

type Run = Box<dyn Fn(&[Var]) -> Result<Vec<Var>> + Send + Sync>;

/// An op with its inputs.
pub(super) struct Case {
    pub(super) variant: &'static str,
    pub(super) inputs: Vec<Input>,
    pub(super) run: Run,
    pub(super) rounding: Rounding,
    pub(super) work: Work,
    /// Why it does not run on a device, though its op does.
    pub(super) cpu_only: Option<&'static str>,
    /// Whether activations are bf16.
    pub(super) half: bool,
}

impl Case {
    /// A case of an op with one output.
    pub(super) fn new(
        variant: &'static str,
        inputs: Vec<Input>,
        rounding: Rounding,
        work: Work,
        run: impl Fn(&[Var]) -> Result<Var> + Send + Sync + 'static,
    ) -> Case {
        Case::of_several(variant, inputs, rounding, work, move |vars| Ok(vec![run(vars)?]))
    }

    /// A case of an op with several outputs.
    pub(super) fn of_several(
        variant: &'static str,
        inputs: Vec<Input>,
        rounding: Rounding,
        work: Work,
        run: impl Fn(&[Var]) -> Result<Vec<Var>> + Send + Sync + 'static,
    ) -> Case {
        Case { variant, inputs, run: Box::new(run), rounding, work, cpu_only: None, half: false }
    }

    /// Whether there is a gradient to check.
    #[cfg(test)]
    pub(super) fn has_gradient(&self) -> bool {
        self.inputs.iter().any(|input| input.kind != Kind::Frozen)
    }

    /// Holds the op in f32 on `device` against itself in f64 on the processor.
    pub(super) fn check(&self, device: Device) -> Outcome {
        let compared = || -> Result<Outcome> {
            let (got, want) = (self.numbers(Some(device))?, self.numbers(None)?);
            Ok(self.compare(&got, &want))
        };
        compared().unwrap_or_else(|error| Outcome::Failed(error.to_string()))
    }

    /// Whether the op refuses `device`, as one without a kernel must.
    pub(super) fn is_refused(&self, device: Device) -> bool {
        let refused = |error: &planish_tensor::Error| matches!(error, planish_tensor::Error::NotOnDevice { .. });
        matches!(self.numbers(Some(device)), Err(planish_autograd::Error::Tensor(error)) if refused(&error))
    }

    /// The same, which no device takes for this reason.
    pub(super) fn only_on_cpu(self, reason: &'static str) -> Case {
        Case { cpu_only: Some(reason), ..self }
    }

    /// The same with activations, and the gradients of results, that bf16 holds.
    pub(super) fn in_bf16(mut self) -> Result<Case> {
        for input in self.inputs.iter_mut().filter(|input| input.kind == Kind::Activation) {
            input.tensor = input.tensor.to_dtype(DType::BF16)?;
        }
        Ok(Case { half: true, ..self })
    }

    fn compare(&self, got: &[Numbers], want: &[Numbers]) -> Outcome {
        let (mut worst, mut of) = (0.0_f64, String::new());
        for (got, want) in got.iter().zip(want) {
            let error = relative_error(&got.values, &want.values);
            if !(error <= worst) || of.is_empty() {
                (worst, of) = (if error.is_nan() { f64::INFINITY } else { error }, want.name.clone());
            }
        }
        let (bound, terms) = match self.rounding {
            Rounding::Exact => (0.0, 0),
            Rounding::Terms(n) => (n as f64 * f64::from(f32::EPSILON) / 2.0, n),
        };
        let bound = if self.half && terms > 0 { bound + HALF_ROUNDINGS * 2f64.powi(-9) } else { bound };
        // Written so that a NaN fails.
        let passed = worst <= bound && got.len() == want.len() && !got.is_empty();
        Outcome::Compared { error: worst, bound, terms, of, passed }
    }

    /// All outputs and gradients, in f64 numbers; computed in f32 on a device, or in f64.
    fn numbers(&self, on: Option<Device>) -> Result<Vec<Numbers>> {
        let tape = Tape::new();
        let mut vars = Vec::new();
        for Input { tensor, kind } in &self.inputs {
            let tensor = match on {
                Some(device) => tensor.to_device(device)?,
                None if tensor.dtype().is_float() => tensor.to_dtype(DType::F64)?,
                None => tensor.clone(),
            };
            vars.push(if *kind == Kind::Frozen { Var::constant(tensor) } else { tape.leaf(tensor) });
        }
        let outputs = (self.run)(&vars)?;
        let mut numbers = Vec::new();
        let mut seeds = Vec::new();
        for (i, out) in outputs.into_iter().enumerate() {
            numbers.push(Numbers { name: format!("output {i}"), values: values(out.value())? });
            if out.is_tracked() {
                let upstream = upstream(out.value(), i as u64, self.half)?;
                seeds.push((out, upstream));
            }
        }
        if !seeds.is_empty() {
            let gradients = tape.backward_from(seeds)?;
            for (i, var) in vars.iter().enumerate().filter(|(_, var)| var.is_tracked()) {
                if let Some(gradient) = gradients.get(var) {
                    numbers.push(Numbers { name: format!("gradient of input {i}"), values: values(gradient)? });
                }
            }
        }
        Ok(numbers)
    }
}

struct Numbers {
    name: String,
    values: Vec<f64>,
}

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(tensor.to_device(Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>()?)
}

/// Standard normal values that f32 holds, or bf16 if that is what `out` or activations are, in the shape of `out` and in
/// the compute dtype.
pub(super) fn upstream(out: &Tensor, salt: u64, half: bool) -> Result<Tensor> {
    let stream = Stream::new(salt, Purpose::Noise, 0);
    let values: Vec<f32> = (0..out.numel() as u64).map(|i| stream.normal(i) as f32).collect();
    let dtype = if out.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let values = Tensor::from_vec(values, out.dims())?;
    let values = if half || out.dtype() == DType::BF16 { values.to_dtype(DType::BF16)? } else { values };
    Ok(values.to_dtype(dtype)?.to_device(out.device())?)
}

/// max |got − want| / max |want|; infinite where the lengths differ.
fn relative_error(got: &[f64], want: &[f64]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let size = want.iter().fold(0.0_f64, |size, x| size.max(x.abs()));
    let mut error = 0.0_f64;
    for (got, want) in got.iter().zip(want) {
        let difference = (got - want).abs();
        if !(difference <= error) {
            error = difference;
        }
        if error.is_nan() {
            return f64::NAN;
        }
    }
    if error == 0.0 { 0.0 } else { error / size }
}

/// A row of the report.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Checked {
    /// The op's name in the registry.
    pub(crate) op: &'static str,
    /// Which case of it.
    pub(crate) variant: &'static str,
    /// Whether activations are bf16: f32 otherwise.
    pub(crate) bf16: bool,
    /// What came of it.
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
}

/// What came of a check.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// There is nothing to check, for this reason.
    Skipped(&'static str),
    /// The op refused, for this reason.
    Failed(String),
    /// It ran.
    #[serde(untagged)]
    Compared {
        /// Largest error relative to the largest magnitude, of the worst output or gradient.
        error: f64,
        /// How large it may be.
        bound: f64,
        /// Roundings that the bound counts; 0 where bits must agree.
        terms: usize,
        /// The output or gradient with the largest error.
        of: String,
        /// Whether the bound holds.
        passed: bool,
    },
}

impl Checked {
    /// Whether nothing is wrong.
    pub(crate) fn passed(&self) -> bool {
        match self.outcome {
            Outcome::Compared { passed, .. } => passed,
            Outcome::Skipped(_) => true,
            Outcome::Failed(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use planish_autograd::ops::linear::linear;
    use planish_tensor::Error;

    /// x W, with something done to the result.
    fn case(wrong: impl Fn(Tensor) -> planish_tensor::Result<Tensor> + Send + Sync + 'static) -> Case {
        let stream = Stream::new(1, Purpose::Data, 0);
        let normal = |n: usize, m: usize, salt: u64| {
            let values = (0..(n * m) as u64).map(|i| stream.normal(i + salt) as f32).collect();
            Input { tensor: Tensor::from_vec(values, [n, m]).unwrap(), kind: Kind::Frozen }
        };
        Case::new("", vec![normal(9, 500, 0), normal(7, 500, 1 << 20)], Rounding::Terms(500), Work::None, move |v| {
            let y = linear(&v[0], &v[1], None)?;
            Ok(Var::constant(wrong(y.into_value())?))
        })
    }

    #[test]
    fn a_right_kernel_passes_and_wrong_ones_fail() {
        let passes = |case: Case| match case.check(Device::Cpu) {
            Outcome::Compared { passed, .. } => passed,
            other => panic!("{other:?}"),
        };
        assert!(passes(case(Ok)));
        // Rounded to bf16 on the way; a NaN; one element a little off: all of them in f32 only.
        let in_f32 = |f: fn(&mut [f32])| {
            case(move |mut y| {
                if y.dtype() == DType::F32 {
                    f(y.as_slice_mut::<f32>()?);
                }
                Ok(y)
            })
        };
        assert!(!passes(in_f32(|y| y.iter_mut().for_each(|y| *y = planish_tensor::bf16::from_f32(*y).to_f32()))));
        assert!(!passes(in_f32(|y| y[3] = f32::NAN)));
        assert!(!passes(in_f32(|y| y[3] += 1e-2)));
        let refuses = case(|_| Err(Error::InvalidValue { op: "x", name: "y", value: 0.0, expected: "more" }));
        assert!(matches!(refuses.check(Device::Cpu), Outcome::Failed(_)));
    }
}
