//! Muon: momentum, made orthogonal. For matrices of the layers; everything else is AdamW's.
//!
//! m ← m + (1 - μ)(g - m); u = g + μ (m - g); O = the orthogonal factor of u, by five Newton-Schulz steps;
//! p ← p (1 - lr λ) - lr √max(1, rows / columns) O
//!
//! A step maps X to a X + (b S + c S²) X with S = X Xᵀ, (a, b, c) = (3.4445, -4.775, 2.0315), X₀ = u / ‖u‖_F; a tall u is
//! transposed first. It brings singular values near 1 (0.7 to 1.2), not to it.
//!
//! # Source
//! Jordan et al., "Muon", 2024; torch.optim.Muon with its defaults μ = 0.95, Nesterov, adjustment "original". torch takes
//! the steps in bfloat16; here they are in the compute type.

use planish_autograd::Param;
use planish_tensor::ops::elementwise::{add, scale};
use planish_tensor::ops::linear::matmul;
use planish_tensor::{Real, Tensor};

use super::slots::{self, Rule, Slot, slots};
use super::{AdamW, AdamWSettings, Optimizer, Rates, Update};
use crate::Result;

/// μ.
const MOMENTUM: f64 = 0.95;
/// a, b, c.
const COEFFICIENTS: (f64, f64, f64) = (3.4445, -4.775, 2.0315);
/// Newton-Schulz steps.
const STEPS: usize = 5;
/// Least norm that u is divided by.
const EPS: f64 = 1e-7;

/// Muon, with AdamW for what is no matrix of a layer.
pub struct Muon {
    weight_decay: f64,
    slots: Vec<Slot>,
    rest: AdamW,
}

/// Whether a parameter is Muon's: a matrix, but not of the vocabulary.
pub(super) fn is_hidden(param: &Param) -> bool {
    param.value().rank() == 2 && !["embed_tokens", "lm_head"].iter().any(|n| param.name().contains(n))
}

impl Muon {
    /// Of the trainable ones among `params`; λ is that of `settings`, which are AdamW's for the rest.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(params: &[Param], settings: AdamWSettings, rates: &Rates) -> Result<Muon> {
        let (matrices, others): (Vec<Param>, Vec<Param>) = params.iter().cloned().partition(is_hidden);
        let slots = slots(&matrices, rates, |shape| vec![("momentum", shape.to_vec())])?;
        Ok(Muon { weight_decay: settings.weight_decay, slots, rest: AdamW::with_rates(&others, settings, rates)? })
    }
}

struct Step {
    rate: f64,
    keep: f64,
}

/// The orthogonal factor of u, nearly.
fn orthogonal(u: &Tensor) -> planish_tensor::Result<Tensor> {
    let (rows, cols) = (u.dims()[0], u.dims()[1]);
    let dtype = u.dtype();
    let wide = if rows > cols { u.transpose(0, 1)?.contiguous()? } else { u.clone() };
    let norm = wide.to_dtype(planish_tensor::DType::F64)?.to_vec::<f64>()?.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut x = scale(&wide, 1.0 / norm.max(EPS))?;
    let (a, b, c) = COEFFICIENTS;
    for _ in 0..STEPS {
        let s = matmul(&x, &x.transpose(0, 1)?, dtype)?;
        let polynomial = add(&scale(&s, b)?, &scale(&matmul(&s, &s, dtype)?, c)?)?;
        x = add(&scale(&x, a)?, &matmul(&polynomial, &x, dtype)?)?;
    }
    if rows > cols { x.transpose(0, 1)?.contiguous() } else { Ok(x) }
}

impl Rule for Step {
    fn apply<R: Real>(
        &self,
        shape: &[usize],
        w: &mut [R],
        g: &[R],
        buffers: &mut [&mut [R]],
    ) -> planish_tensor::Result<()> {
        let r = R::from_f64;
        let (fresh, momentum) = (r(1.0 - MOMENTUM), r(MOMENTUM));
        let mut u = Vec::with_capacity(g.len());
        for (m, &g) in buffers[0].iter_mut().zip(g) {
            *m += fresh * (g - *m);
            u.push(g + momentum * (*m - g));
        }
        let o = orthogonal(&Tensor::from_vec(u, shape)?)?;
        let adjusted = self.rate * (shape[0] as f64 / shape[1].max(1) as f64).max(1.0).sqrt();
        let (rate, keep) = (r(adjusted), r(self.keep));
        w.iter_mut().zip(o.as_slice::<R>()?).for_each(|(w, &o)| *w = *w * keep - rate * o);
        Ok(())
    }
}

impl Optimizer for Muon {
    fn params(&self) -> Vec<Param> {
        let own = self.slots.iter().map(|s| s.param.clone());
        own.chain(self.rest.params().cloned()).collect()
    }

    fn step(&mut self, update: Update) -> Result<()> {
        for slot in &mut self.slots {
            let rate = update.learning_rate * slot.rate;
            let decay = if slot.decay { self.weight_decay } else { 0.0 };
            slot.update(update.grad_scale, &Step { rate, keep: 1.0 - rate * decay })?;
        }
        self.rest.step(update)
    }

    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut all = slots::state(&self.slots);
        all.extend(self.rest.state());
        Ok(all)
    }

    fn restore(&mut self, step: u64, get: &dyn Fn(&str) -> Result<Tensor>) -> Result<()> {
        slots::restore(&mut self.slots, get)?;
        self.rest.restore(step, get)
    }
}
