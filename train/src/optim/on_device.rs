//! AdamW with its state in 8 bits, on a device: [`super::Blockwise`]'s state and arithmetic, by kernels.

use planish_autograd::Param;
use planish_tensor::{DType, Device, Tensor, optim};

use super::adamw::{OnDevice, decays, on_device_settings, update_on_device};
use super::codes::{BLOCK, signed, unsigned};
use super::rules::{Field, Rule};
use super::{AdamWSettings, Optimizer, Rates, Update};
use crate::Result;

/// AdamW of parameters on a device with the moments in 8 bits, where the tensor is large enough and no embedding.
///
/// Each update gives the bits that [`super::Blockwise`] gives on the processor, from the same state and gradient, but for
/// small tensors, whose moments are full: those are [`super::AdamW`]'s. Checkpoints have the same tensors.
pub struct AdamW8 {
    settings: AdamWSettings,
    slots: Vec<Slot>,
    /// (2, 256): codes with a sign, and without.
    codes: Option<Tensor>,
    step: u64,
}

/// One parameter.
struct Slot {
    param: Param,
    decays: bool,
    /// Factor on the learning rate.
    rate: f64,
    fields: Vec<Field>,
    /// One tensor a field, in their order.
    state: Vec<Tensor>,
}

/// The name of a master among the fields.
const MASTER: &str = "master";

impl AdamW8 {
    /// Of the trainable ones among `params`.
    ///
    /// # Errors
    /// No room.
    pub fn new(params: &[Param], settings: AdamWSettings, rates: &Rates) -> Result<AdamW8> {
        let rule = Rule::AdamW(settings);
        let (mut slots, mut codes) = (Vec::new(), None);
        for param in params.iter().filter(|p| p.is_trainable()) {
            let (value, fields) = (param.value(), super::blockwise::fields(&rule, param, true));
            let device = value.device();
            if codes.is_none() {
                codes = Some(table(device)?);
            }
            let made = fields.iter().map(|f| match f.name {
                MASTER => value.to_dtype(f.dtype),
                _ => Tensor::zeros_on(device, shape(f, &value), f.dtype),
            });
            let made = made.collect::<planish_tensor::Result<Vec<_>>>();
            let name = || format!("AdamW's moments of {}", param.name());
            let state = made.map_err(|source| planish_nn::Error::Placing { name: name(), source })?;
            let (decays, rate) = (decays(param.name()), rates.of(param));
            slots.push(Slot { param: param.clone(), decays, rate, fields, state });
        }
        Ok(AdamW8 { settings, slots, codes, step: 0 })
    }
}

/// Both sets of codes.
fn table(device: Device) -> Result<Tensor> {
    let all: Vec<f32> = [signed(), unsigned()].iter().flat_map(|codes| codes.values).collect();
    Ok(Tensor::from_vec(all, [2, BLOCK])?.to_device(device)?)
}

/// The shape of a field, in memory and in a checkpoint.
fn shape(field: &Field, value: &Tensor) -> Vec<usize> {
    if field.per == 1 { value.dims().to_vec() } else { vec![field.len(value.numel())] }
}

impl Optimizer for AdamW8 {
    fn params(&self) -> Vec<Param> {
        self.slots.iter().map(|s| s.param.clone()).collect()
    }

    fn step(&mut self, update: Update) -> Result<()> {
        self.step += 1;
        let (step, scale) = (self.step, update.grad_scale);
        let mut full = Vec::new();
        for slot in &mut self.slots {
            let Some(gradient) = slot.param.take_grad() else { continue };
            let settings = on_device_settings(&self.settings, update, slot.decays, slot.rate);
            let Slot { param, state, .. } = slot;
            let mut value = param.write();
            match (&mut state[..], &self.codes) {
                ([m, m_largest, v, v_largest, master @ ..], Some(codes)) => {
                    let moments =
                        [(m, m_largest), (v, v_largest)].map(|(bytes, largest)| optim::Moment8 { bytes, largest });
                    let (p, weight) = match master.first_mut() {
                        None => (&mut *value, None),
                        Some(master) => (master, Some(&mut *value)),
                    };
                    optim::adamw8(p, weight, moments, &gradient, codes, &settings, step, scale)?;
                }
                ([m, v, master @ ..], _) => {
                    full.push(OnDevice { value, moments: [m, v], master: master.first_mut(), gradient, settings });
                }
                _ => unreachable!("fields are of one of these kinds"),
            }
        }
        update_on_device(&mut full, step, update)
    }

    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let of = |s: &Slot| {
            let named = s.fields.iter().zip(&s.state);
            named.map(|(f, t)| (format!("{}.{}", f.name, s.param.name()), t.clone())).collect::<Vec<_>>()
        };
        Ok(self.slots.iter().flat_map(of).collect())
    }

    fn restore(&mut self, step: u64, get: &dyn Fn(&str) -> Result<Tensor>) -> Result<()> {
        for slot in &mut self.slots {
            for (field, to) in slot.fields.iter().zip(&mut slot.state) {
                let tensor = get(&format!("{}.{}", field.name, slot.param.name()))?;
                if tensor.dims() != to.dims() || tensor.dtype() != to.dtype() {
                    let (lhs, rhs) = (tensor.dims().to_vec(), to.dims().to_vec());
                    let what = "a tensor of the optimizer's state against the weight";
                    return Err(planish_tensor::Error::ShapeMismatch { op: "optimizer", what, lhs, rhs }.into());
                }
                *to = tensor.to_device(to.device())?;
            }
        }
        self.step = step;
        Ok(())
    }
}

/// Bytes of the state of a parameter on a device.
pub(super) fn bytes(fields: &[Field], value: &Tensor) -> u64 {
    fields.iter().map(|f| value.device().taken(f.bytes(value.numel()) as u64)).sum()
}

const _: () = assert!(BLOCK == 256 && DType::U8.size() == 1, "what the kernel takes");
