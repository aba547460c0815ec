//! Property-testing gradients: analytic against numeric.

use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor};

use crate::{Error, Param, Result, Tape, Var};

/// How a gradient check is done.
#[derive(Debug, Clone, Copy)]
pub struct GradCheck {
    /// Step of the central difference.
    pub step: f64,
    /// Absolute tolerance.
    pub atol: f64,
    /// Relative tolerance.
    pub rtol: f64,
    /// Seed of the random upstream gradient.
    pub seed: u64,
}

impl Default for GradCheck {
    /// Step 1e-6: the truncation error (of order step²) and the rounding error (of order 1e-16/step)
    /// are then both about 1e-10, well under the tolerances.
    fn default() -> Self {
        GradCheck { step: 1e-6, atol: 1e-7, rtol: 1e-5, seed: 0 }
    }
}

/// Where an analytic and a numeric gradient differ most.
#[derive(Debug, Clone, PartialEq)]
pub struct Mismatch {
    /// Which input.
    pub input: usize,
    /// Which element, in row-major order.
    pub element: usize,
    /// The gradient the backward rule gave.
    pub analytic: f64,
    /// The central difference.
    pub numeric: f64,
    /// How it was computed: as a leaf, or into a parameter that already held a gradient.
    pub path: &'static str,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "gradient of input {} at element {}: analytic {:e} ({}), numeric {:e}",
            self.input, self.element, self.analytic, self.path, self.numeric
        )
    }
}

/// Checks the gradients of `f` at `inputs` against central differences.
///
/// All outputs of `f` are weighted with a random upstream gradient u, and for every element x of
/// every input dL/dx, L = Σ u·f(inputs), is compared with (L(x + h) - L(x - h)) / 2h:
/// |analytic - numeric| ≤ atol + rtol·|numeric|. Seeding with ones, as is common, would miss any
/// error whose parts cancel in the sum. Inputs may be views (transposed, narrowed, broadcast) and
/// may be empty. Every input is also passed as a [`Param`] that already holds a gradient, so that a
/// rule that overwrites instead of adding is caught.
///
/// ```
/// use planish_autograd::{gradcheck, GradCheck, Var, ops};
/// use planish_tensor::Tensor;
///
/// let x = Tensor::from_vec(vec![0.3, -1.2, 0.7, 2.0, 0.1, -0.4], [2, 3])?;
/// let w = Tensor::from_vec(vec![0.5, 1.5, -0.2, 0.9, 0.4, -1.1], [2, 3])?;
/// gradcheck(|v| Ok(vec![ops::linear::linear(&v[0], &v[1], None)?]), &[x, w], GradCheck::default())?;
/// # Ok::<(), planish_autograd::Error>(())
/// ```
///
/// # Errors
/// [`Error::GradientMismatch`] for the worst element; dtypes other than f64; those of `f`.
pub fn gradcheck(f: impl Fn(&[Var]) -> Result<Vec<Var>>, inputs: &[Tensor], options: GradCheck) -> Result<()> {
    for input in inputs {
        if input.dtype() != DType::F64 {
            let (expected, got) = (DType::F64, input.dtype());
            return Err(planish_tensor::Error::DTypeMismatch { op: "gradcheck", expected, got }.into());
        }
    }
    let constants = |at: Option<(usize, &Tensor)>| -> Vec<Var> {
        let value = |i: usize, t: &Tensor| match at {
            Some((j, changed)) if i == j => changed.clone(),
            _ => t.clone(),
        };
        inputs.iter().enumerate().map(|(i, t)| Var::constant(value(i, t))).collect()
    };
    let upstream = f(&constants(None))?
        .iter()
        .enumerate()
        .map(|(i, out)| random_like(out.value(), options.seed, i as u64))
        .collect::<Result<Vec<_>>>()?;
    let loss = |vars: &[Var]| -> Result<f64> {
        let mut sum = 0.0;
        for (out, u) in f(vars)?.iter().zip(&upstream) {
            for (x, u) in out.value().to_vec::<f64>()?.iter().zip(u.as_slice::<f64>()?) {
                sum += x * u;
            }
        }
        Ok(sum)
    };
    let leaves = leaf_gradients(&f, inputs, &upstream)?;
    let (preset, params) = param_gradients(&f, inputs, &upstream, options.seed)?;
    for (i, input) in inputs.iter().enumerate() {
        let mut changed = input.copied()?;
        for e in 0..input.numel() {
            let x = changed.as_slice::<f64>()?[e];
            let mut at = |x: f64| -> Result<f64> {
                changed.as_slice_mut::<f64>()?[e] = x;
                loss(&constants(Some((i, &changed))))
            };
            let difference = at(x + options.step)? - at(x - options.step)?;
            at(x)?;
            // The step actually taken: x ± h are rounded.
            let numeric = difference / ((x + options.step) - (x - options.step));
            let paths = [("as a leaf", leaves[i][e]), ("added to a parameter", params[i][e] - preset[i][e])];
            for (path, analytic) in paths {
                // Written so that a NaN fails.
                if !((analytic - numeric).abs() <= options.atol + options.rtol * numeric.abs()) {
                    let mismatch = Mismatch { input: i, element: e, analytic, numeric, path };
                    return Err(Error::GradientMismatch(Box::new(mismatch)));
                }
            }
        }
    }
    Ok(())
}

fn leaf_gradients(
    f: &impl Fn(&[Var]) -> Result<Vec<Var>>,
    inputs: &[Tensor],
    upstream: &[Tensor],
) -> Result<Vec<Vec<f64>>> {
    let tape = Tape::new();
    let leaves: Vec<Var> = inputs.iter().map(|t| tape.leaf(t.clone())).collect();
    let seeds = seeds(f(&leaves)?, upstream);
    let gradients = tape.backward_from(seeds)?;
    leaves.iter().map(|leaf| values_or_zeros(gradients.get(leaf), leaf.value())).collect()
}

/// Gradients preset in parameters, and what they are after a backward pass.
type Preset = (Vec<Vec<f64>>, Vec<Vec<f64>>);

fn param_gradients(
    f: &impl Fn(&[Var]) -> Result<Vec<Var>>,
    inputs: &[Tensor],
    upstream: &[Tensor],
    seed: u64,
) -> Result<Preset> {
    let tape = Tape::new();
    let mut preset = Vec::new();
    let mut params = Vec::new();
    for (i, input) in inputs.iter().enumerate() {
        let param = Param::trainable(format!("input {i}"), input.clone());
        let before = random_like(input, seed, 1000 + i as u64)?;
        preset.push(before.to_vec::<f64>()?);
        param.set_grad(Some(before));
        params.push(param);
    }
    let vars: Vec<Var> = params.iter().map(|p| tape.param(p)).collect();
    tape.backward_from(seeds(f(&vars)?, upstream))?;
    let after = params.iter().zip(inputs).map(|(p, t)| values_or_zeros(p.grad().as_ref(), t)).collect::<Result<_>>()?;
    Ok((preset, after))
}

fn seeds(outputs: Vec<Var>, upstream: &[Tensor]) -> Vec<(Var, Tensor)> {
    outputs.into_iter().zip(upstream.iter().cloned()).filter(|(out, _)| out.is_tracked()).collect()
}

fn values_or_zeros(grad: Option<&Tensor>, like: &Tensor) -> Result<Vec<f64>> {
    Ok(match grad {
        Some(g) => g.to_vec::<f64>()?,
        None => vec![0.0; like.numel()],
    })
}

/// Standard normal values in the shape of `t`.
fn random_like(t: &Tensor, seed: u64, salt: u64) -> Result<Tensor> {
    let stream = Stream::new(seed, Purpose::Data, salt);
    let values: Vec<f64> = (0..t.numel()).map(|i| stream.normal(i as u64)).collect();
    Ok(Tensor::from_vec(values, t.dims())?)
}
