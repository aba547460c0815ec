//! What the optimizers beside AdamW share: a parameter with its buffers, saved and restored by name.

use planish_autograd::Param;
use planish_tensor::{Real, Tensor, dispatch_real};

use super::Rates;
use super::adamw::decays;
use crate::Result;

/// One parameter, its buffers, and its weight in f32 if it is stored narrower.
pub(super) struct Slot {
    pub(super) param: Param,
    /// Whether weight decay applies.
    pub(super) decay: bool,
    /// Factor on the learning rate.
    pub(super) rate: f64,
    buffers: Vec<(&'static str, Tensor)>,
    master: Option<Tensor>,
}

/// An update of one parameter, in its compute type.
pub(super) trait Rule {
    /// Changes the weights `w` of this shape by the gradient `g`, which is scaled already.
    fn apply<R: Real>(
        &self,
        shape: &[usize],
        w: &mut [R],
        g: &[R],
        buffers: &mut [&mut [R]],
    ) -> planish_tensor::Result<()>;
}

/// Slots of the trainable ones among `params`, with the buffers (name and shape) that each needs.
pub(super) fn slots(
    params: &[Param],
    rates: &Rates,
    buffers: impl Fn(&[usize]) -> Vec<(&'static str, Vec<usize>)>,
) -> Result<Vec<Slot>> {
    let mut all = Vec::new();
    for param in params.iter().filter(|p| p.is_trainable()) {
        let (value, dtype) = (param.value(), param.grad_dtype());
        let buffers = buffers(value.dims()).into_iter();
        let buffers = buffers.map(|(name, shape)| Ok((name, Tensor::zeros(shape, dtype)?))).collect::<Result<_>>()?;
        let master = if value.dtype() == dtype { None } else { Some(value.to_dtype(dtype)?) };
        let (decay, rate) = (decays(param.name()), rates.of(param));
        all.push(Slot { decay, rate, param: param.clone(), buffers, master });
    }
    Ok(all)
}

impl Slot {
    /// Takes the gradient and applies `rule`; nothing without a gradient.
    pub(super) fn update(&mut self, grad_scale: f64, rule: &impl Rule) -> Result<()> {
        let Some(grad) = self.param.take_grad() else { return Ok(()) };
        let grad = planish_tensor::ops::elementwise::scale(&grad, grad_scale)?.contiguous()?;
        self.apply(Some(&grad), rule)
    }

    /// Applies a rule that needs no gradient, in place; it gets an empty one.
    pub(super) fn change(&mut self, rule: &impl Rule) -> Result<()> {
        self.apply(None, rule)
    }

    fn apply(&mut self, grad: Option<&Tensor>, rule: &impl Rule) -> Result<()> {
        let shape = self.param.value().dims().to_vec();
        let (param, buffers, master) = (&self.param, &mut self.buffers, &mut self.master);
        let mut inner = || -> planish_tensor::Result<()> {
            dispatch_real!("optimizer", param.grad_dtype(), R => {
                let mut slices = Vec::with_capacity(buffers.len());
                for (_, buffer) in buffers.iter_mut() {
                    slices.push(buffer.as_slice_mut::<R>()?);
                }
                let g = grad.map(|g| g.as_slice::<R>()).transpose()?.unwrap_or_default();
                match master {
                    None => param.update(|value| rule.apply(&shape, value.as_slice_mut::<R>()?, g, &mut slices)),
                    Some(master) => {
                        rule.apply(&shape, master.as_slice_mut::<R>()?, g, &mut slices)?;
                        let narrow = master.to_dtype(param.value().dtype())?;
                        param.update(|value| {
                            *value = narrow;
                            Ok(())
                        })
                    }
                }
            })
        };
        Ok(inner()?)
    }

    /// Puts a buffer in place.
    pub(super) fn set_buffer(&mut self, name: &str, value: Tensor) {
        if let Some((_, buffer)) = self.buffers.iter_mut().find(|(n, _)| *n == name) {
            *buffer = value;
        }
    }

    /// Fills the first buffer with the weights.
    pub(super) fn fill_first(&mut self) -> Result<()> {
        let weight = self.weight();
        if let Some((_, buffer)) = self.buffers.first_mut() {
            // Never two of them at a time: the plan counts one.
            *buffer = Tensor::zeros([0], weight.dtype())?;
            *buffer = weight.copied()?;
        }
        Ok(())
    }

    /// The weight in the compute type.
    pub(super) fn weight(&self) -> Tensor {
        self.master.clone().unwrap_or_else(|| self.param.value())
    }

    /// Puts a weight in place, as it is given and rounded to the parameter's type.
    pub(super) fn set_weight(&mut self, value: Tensor) -> Result<()> {
        let narrow = value.to_dtype(self.param.value().dtype())?;
        if let Some(master) = &mut self.master {
            *master = value;
        }
        self.param.update(|v| -> Result<()> {
            *v = narrow;
            Ok(())
        })
    }
}

/// The state of all slots as named tensors: `BUFFER.NAME` and, where there is one, `master.NAME`.
pub(super) fn state(slots: &[Slot]) -> Vec<(String, Tensor)> {
    let mut all = Vec::new();
    for slot in slots {
        let name = slot.param.name();
        all.extend(slot.buffers.iter().map(|(kind, t)| (format!("{kind}.{name}"), t.clone())));
        all.extend(slot.master.clone().map(|t| (format!("master.{name}"), t)));
    }
    all
}

/// Takes up a state.
///
/// # Errors
/// Those of `get`; a tensor of another shape or dtype.
pub(super) fn restore(slots: &mut [Slot], get: &dyn Fn(&str) -> Result<Tensor>) -> Result<()> {
    for slot in slots {
        let name = slot.param.name().to_string();
        let buffers = slot.buffers.iter_mut().map(|(kind, t)| (*kind, t));
        for (kind, place) in buffers.chain(slot.master.iter_mut().map(|t| ("master", t))) {
            let tensor = get(&format!("{kind}.{name}"))?;
            if tensor.dims() != place.dims() || tensor.dtype() != place.dtype() {
                let (lhs, rhs) = (tensor.dims().to_vec(), place.dims().to_vec());
                let what = "a tensor of the optimizer's state against the weight";
                return Err(planish_tensor::Error::ShapeMismatch { op: "optimizer", what, lhs, rhs }.into());
            }
            *place = tensor.copied()?;
        }
    }
    Ok(())
}

/// Implements [`super::Optimizer`] for a struct with `slots`, `step` and a method `rule(&Slot, Update)`.
macro_rules! optimizer_of_slots {
    ($name:ty) => {
        impl super::Optimizer for $name {
            fn params(&self) -> Vec<planish_autograd::Param> {
                self.slots.iter().map(|s| s.param.clone()).collect()
            }

            fn step(&mut self, update: super::Update) -> crate::Result<()> {
                self.step += 1;
                let mut slots = std::mem::take(&mut self.slots);
                let done = slots.iter_mut().try_for_each(|slot| {
                    let rule = self.rule(slot, update);
                    slot.update(update.grad_scale, &rule)
                });
                self.slots = slots;
                done
            }

            fn state(&self) -> crate::Result<Vec<(String, planish_tensor::Tensor)>> {
                Ok(super::slots::state(&self.slots))
            }

            fn restore(
                &mut self,
                step: u64,
                get: &dyn Fn(&str) -> crate::Result<planish_tensor::Tensor>,
            ) -> crate::Result<()> {
                self.step = step;
                super::slots::restore(&mut self.slots, get)
            }
        }
    };
}
pub(super) use optimizer_of_slots;
