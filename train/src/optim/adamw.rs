//! AdamW: Adam with decoupled weight decay.
//!
//! For update t = 1, 2, … with gradient g, in this order:
//!
//! p ← p (1 - lr λ); m ← m + (1 - β₁)(g - m); v ← β₂ v + (1 - β₂) g²;
//! p ← p - lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + ε)
//!
//! in f32 (f64 for f64 weights), as torch does. Weights stored in bf16 or f16 have an f32 master that is
//! updated and rounded to them. One pass over memory: bound by reading p, g, m, v and writing p, m, v.
//!
//! # Source
//! Loshchilov, Hutter, arXiv:1711.05101, algorithm 2; torch.optim.AdamW.

use std::sync::RwLockWriteGuard;

use planish_autograd::Param;
use planish_tensor::{DType, Element, Real, Tensor, dispatch_real, optim};

use super::{Optimizer, Rates, Update};
use crate::Result;

/// Settings of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub eps: f64,
    /// λ, for weights that decay.
    pub weight_decay: f64,
}

/// State of one parameter.
struct State {
    param: Param,
    decay: bool,
    /// Factor on the learning rate.
    rate: f64,
    m: Tensor,
    v: Tensor,
    /// The weight in f32, if it is stored narrower.
    master: Option<Tensor>,
}

/// The optimizer, with its state.
pub struct AdamW {
    settings: AdamWSettings,
    states: Vec<State>,
    step: u64,
}

/// Whether weight decay applies: not to norms and biases, as in transformers' trainer.
pub(super) fn decays(name: &str) -> bool {
    let name = name.strip_suffix(".weight").unwrap_or(name);
    !name.ends_with("bias") && !name.ends_with("norm") && !name.ends_with("layernorm")
}

impl AdamW {
    /// An optimizer of the trainable ones among `params`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(params: &[Param], settings: AdamWSettings) -> Result<AdamW> {
        AdamW::with_rates(params, settings, &Rates::default())
    }

    /// The same with learning rates of their own for some.
    ///
    /// # Errors
    /// Out of memory.
    pub fn with_rates(params: &[Param], settings: AdamWSettings, rates: &Rates) -> Result<AdamW> {
        let mut states = Vec::new();
        for param in params.iter().filter(|p| p.is_trainable()) {
            let value = param.value();
            let dtype = param.grad_dtype();
            let master = if value.dtype() == dtype { None } else { Some(value.to_dtype(dtype)?) };
            let zeros = || {
                let made = Tensor::zeros_on(value.device(), value.shape(), dtype);
                let name = || format!("AdamW's moments of {}", param.name());
                made.map_err(|source| planish_nn::Error::Placing { name: name(), source })
            };
            let (m, v) = (zeros()?, zeros()?);
            let (decay, rate) = (decays(param.name()), rates.of(param));
            states.push(State { decay, rate, param: param.clone(), m, v, master });
        }
        Ok(AdamW { settings, states, step: 0 })
    }

    /// The parameters it updates.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        self.states.iter().map(|s| &s.param)
    }

    /// Updates done.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// One update from the accumulated gradients, which are taken. A parameter without a gradient is
    /// left alone, as in torch.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn step(&mut self, update: Update) -> Result<()> {
        self.step += 1;
        let mut on_device = Vec::new();
        for state in &mut self.states {
            let Some(gradient) = state.param.take_grad() else { continue };
            if gradient.device().is_cpu() {
                dispatch_real_step(state.m.dtype(), state, &gradient, &self.settings, self.step, update)?;
                continue;
            }
            let settings = on_device_settings(&self.settings, update, state.decay, state.rate);
            let State { param, m, v, master, .. } = state;
            let (value, master) = (param.write(), master.as_mut());
            on_device.push(OnDevice { value, moments: [m, v], master, gradient, settings });
        }
        update_on_device(&mut on_device, self.step, update)
    }

    /// Its state as named tensors: `m.NAME`, `v.NAME` and, where there is one, `master.NAME`.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut all = Vec::new();
        for s in &self.states {
            let name = s.param.name();
            all.push((format!("m.{name}"), s.m.clone()));
            all.push((format!("v.{name}"), s.v.clone()));
            all.extend(s.master.clone().map(|t| (format!("master.{name}"), t)));
        }
        all
    }

    /// Takes up a state that [`AdamW::state`] gave, after `step` updates.
    ///
    /// # Errors
    /// Those of `get`; a tensor of another shape or dtype.
    pub fn restore(&mut self, step: u64, get: impl Fn(&str) -> Result<Tensor>) -> Result<()> {
        for s in &mut self.states {
            let name = s.param.name().to_string();
            let mut slots = vec![("m", &mut s.m), ("v", &mut s.v)];
            slots.extend(s.master.as_mut().map(|t| ("master", t)));
            for (kind, slot) in slots {
                let tensor = get(&format!("{kind}.{name}"))?;
                if tensor.dims() != slot.dims() || tensor.dtype() != slot.dtype() {
                    let (lhs, rhs) = (tensor.dims().to_vec(), slot.dims().to_vec());
                    return Err(planish_tensor::Error::ShapeMismatch {
                        op: "adamw",
                        what: "a tensor of the optimizer's state against the weight",
                        lhs,
                        rhs,
                    }
                    .into());
                }
                // Out of the mapped file, so that it can be written.
                *slot = if slot.device().is_cpu() { tensor.copied()? } else { tensor.to_device(slot.device())? };
            }
        }
        self.step = step;
        Ok(())
    }
}

impl Optimizer for AdamW {
    fn params(&self) -> Vec<Param> {
        AdamW::params(self).cloned().collect()
    }

    fn step(&mut self, update: Update) -> Result<()> {
        AdamW::step(self, update)
    }

    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(AdamW::state(self))
    }

    fn restore(&mut self, step: u64, get: &dyn Fn(&str) -> Result<Tensor>) -> Result<()> {
        AdamW::restore(self, step, get)
    }
}

fn dispatch_real_step(
    dtype: DType,
    state: &mut State,
    grad: &Tensor,
    settings: &AdamWSettings,
    step: u64,
    update: Update,
) -> Result<()> {
    let mut inner = || -> planish_tensor::Result<()> {
        dispatch_real!("adamw", dtype, R => update_one::<R>(state, grad, settings, step, update))
    };
    Ok(inner()?)
}

/// A parameter on a device with what its update takes; nobody else has the parameter meanwhile.
pub(super) struct OnDevice<'a> {
    pub(super) value: RwLockWriteGuard<'a, Tensor>,
    pub(super) moments: [&'a mut Tensor; 2],
    pub(super) master: Option<&'a mut Tensor>,
    pub(super) gradient: Tensor,
    pub(super) settings: optim::AdamW,
}

impl OnDevice<'_> {
    fn parameter(&mut self) -> optim::Parameter<'_> {
        let [m, v] = &mut self.moments;
        let (p, weight) = match &mut self.master {
            None => (&mut *self.value, None),
            Some(master) => (&mut **master, Some(&mut *self.value)),
        };
        optim::Parameter { state: [p, m, v], weight, gradient: &self.gradient, settings: self.settings }
    }
}

pub(super) fn on_device_settings(s: &AdamWSettings, update: Update, decays: bool, rate: f64) -> optim::AdamW {
    optim::AdamW {
        learning_rate: update.learning_rate * rate,
        beta1: s.beta1,
        beta2: s.beta2,
        eps: s.eps,
        weight_decay: if decays { s.weight_decay } else { 0.0 },
    }
}

/// All by a launch or a few: those of an adapter are hundreds of small ones.
pub(super) fn update_on_device(of: &mut [OnDevice<'_>], step: u64, update: Update) -> Result<()> {
    Ok(optim::adamw(of.iter_mut().map(OnDevice::parameter).collect(), step, update.grad_scale)?)
}

fn update_one<R: Real>(
    state: &mut State,
    grad: &Tensor,
    settings: &AdamWSettings,
    step: u64,
    update: Update,
) -> planish_tensor::Result<()> {
    let grad = grad.contiguous()?;
    let g = grad.as_slice::<R>()?;
    let (m, v) = (state.m.as_slice_mut::<R>()?, state.v.as_slice_mut::<R>()?);
    let decay = if state.decay { settings.weight_decay } else { 0.0 };
    let update = Update { learning_rate: update.learning_rate * state.rate, ..update };
    let coefficients = Coefficients::new(settings, decay, step, update);
    match &mut state.master {
        None => state.param.update(|value| {
            run(value.as_slice_mut::<R>()?, g, m, v, &coefficients);
            Ok(())
        }),
        Some(master) => {
            run(master.as_slice_mut::<R>()?, g, m, v, &coefficients);
            let narrow = master.to_dtype(state.param.value().dtype())?;
            state.param.update(|value| {
                *value = narrow;
                Ok(())
            })
        }
    }
}

/// Scalars of an update, rounded to the compute type once, as torch does.
#[derive(Clone, Copy)]
pub(super) struct Coefficients<R> {
    grad_scale: R,
    keep: R,
    lerp: R,
    beta2: R,
    one_minus_beta2: R,
    root: R,
    eps: R,
    step_size: R,
}

impl<R: Real> Coefficients<R> {
    pub(super) fn new(s: &AdamWSettings, decay: f64, step: u64, update: Update) -> Self {
        let r = <R as Element>::from_f64;
        let t = step as f64;
        let (c1, c2) = (1.0 - s.beta1.powf(t), 1.0 - s.beta2.powf(t));
        Coefficients {
            grad_scale: r(update.grad_scale),
            keep: r(1.0 - update.learning_rate * decay),
            lerp: r(1.0 - s.beta1),
            beta2: r(s.beta2),
            one_minus_beta2: r(1.0 - s.beta2),
            root: r(c2.sqrt()),
            eps: r(s.eps),
            step_size: r(-(update.learning_rate / c1)),
        }
    }

    /// Updates a run of numbers.
    pub(super) fn run(&self, p: &mut [R], g: &[R], m: &mut [R], v: &mut [R]) {
        for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * self.grad_scale;
            *p *= self.keep;
            *m += self.lerp * (g - *m);
            *v = *v * self.beta2 + self.one_minus_beta2 * g * g;
            let denominator = v.sqrt() / self.root + self.eps;
            *p += self.step_size * *m / denominator;
        }
    }
}

fn run<R: Real>(p: &mut [R], g: &[R], m: &mut [R], v: &mut [R], c: &Coefficients<R>) {
    // Elements are independent: any split gives the same bits.
    let len = p.len();
    let run = len.div_ceil(rayon::current_num_threads().max(1)).max(1 << 14);
    let tasks = p.chunks_mut(run).zip(m.chunks_mut(run)).zip(v.chunks_mut(run)).zip(g.chunks(run));
    let tasks: Vec<_> = tasks.collect();
    use rayon::prelude::*;
    tasks.into_par_iter().for_each(|(((p, m), v), g)| c.run(p, g, m, v));
}
