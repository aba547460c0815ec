//! From the setting `device` to a device, and what is not done on devices yet.
//!
//! A run says what it is going to do before it begins; what a device cannot do is refused by name then, and `auto`
//! takes the processor instead.

use planish_nn::decoder::Model;
use planish_tensor::{DType, Device};

use crate::config::{BF16_ON_CPU, ConfigError, DeviceChoice, OptimSettings, OptimizerChoice};
use crate::optim::{OptimArgs, Rounding};
use crate::{Error, Result};

/// What a command is going to do with the device.
#[derive(Debug, Default)]
pub struct Demands {
    lacking: Vec<String>,
    bf16: Option<bool>,
}

impl Demands {
    /// Nothing that a device cannot do.
    pub fn none() -> Demands {
        Demands::default()
    }

    /// Something that devices do not do.
    #[must_use]
    pub fn lacks(mut self, what: impl Into<String>) -> Demands {
        self.lacking.push(what.into());
        self
    }

    /// The setting `bf16`: activations in bfloat16, which is the default on a device and what the processor does not do.
    #[must_use]
    pub fn bf16(self, wanted: Option<bool>) -> Demands {
        Demands { bf16: wanted, ..self }
    }

    /// Training with these settings.
    #[must_use]
    pub fn training(self, optim: &OptimSettings) -> Demands {
        let demands = match optim.optim {
            OptimizerChoice::AdamW => self,
            OptimizerChoice::AdamW8bit if rounds_by_table(optim) => self.lacks("optim_args rounding=table"),
            OptimizerChoice::AdamW8bit => self,
            other => self.lacks(format!("the optimizer {other}")),
        };
        match optim.memory_budget {
            Some(_) => demands.lacks("memory_budget, which counts the processor's memory,"),
            None => demands,
        }
    }
}

/// Whether 8 bits are to be found by bitsandbytes' table. Arguments that cannot be read are refused elsewhere.
fn rounds_by_table(optim: &OptimSettings) -> bool {
    OptimArgs::of(optim).is_ok_and(|args| args.rounding == Rounding::Table)
}

/// The device that `choice` means, opened.
///
/// # Errors
/// [`Error::NotOnDevice`] for what it cannot do; [`Error::Tensor`] where it cannot be opened, with what is missing;
/// [`Error::Config`] for bf16 on the processor.
pub fn choose(choice: DeviceChoice, demands: &Demands) -> Result<Device> {
    let device = match choice {
        DeviceChoice::On(device) => device,
        DeviceChoice::Auto if !demands.lacking.is_empty() => Device::Cpu,
        DeviceChoice::Auto => Device::best(),
    };
    if device.is_cpu() {
        let (key, problem) = BF16_ON_CPU;
        return match demands.bf16 {
            Some(true) => Err(ConfigError::Conflict { key, problem }.into()),
            _ => Ok(device),
        };
    }
    if let Some(what) = demands.lacking.first() {
        return Err(Error::NotOnDevice { device, what: what.clone() });
    }
    device.open()?;
    Ok(device)
}

/// Moves the model to the device that `choice` means. There its activations are bf16, unless the demands say otherwise.
///
/// # Errors
/// As [`choose`]; no room.
pub fn place(model: &mut Model, choice: DeviceChoice, demands: &Demands) -> Result<()> {
    let device = choose(choice, demands)?;
    model.to_device(device).map_err(|e| Error::from(e).advised(|| ROOM_FOR_WEIGHTS))?;
    if !device.is_cpu() && demands.bf16 != Some(false) {
        model.set_activations(DType::BF16)?;
    }
    Ok(())
}

/// What makes room on a device for weights alone.
const ROOM_FOR_WEIGHTS: &str =
    "set dtype to bfloat16, quantise them (load_in_4bit; trained are adapters then), or take a smaller model";

/// Moves a model to where `other` is, with the activations that it has there: a reference beside what is trained.
///
/// # Errors
/// No room.
pub fn beside(model: &mut Model, other: &Model) -> Result<()> {
    if !other.device().is_cpu() {
        model.to_device(other.device()).map_err(|e| Error::from(e).advised(|| ROOM_FOR_WEIGHTS))?;
        model.set_activations(other.activations())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_cannot_do_is_named() {
        let emulator = DeviceChoice::On(Device::Emulator(0));
        let optim = OptimSettings { optim: OptimizerChoice::Lion, ..OptimSettings::default() };
        let refused = choose(emulator, &Demands::none().training(&optim)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "--device emulator: the optimizer lion_32bit is not supported there yet; use --device cpu"
        );
        assert!(refused.is_usage());
        for choice in [DeviceChoice::Auto, DeviceChoice::On(Device::Cpu)] {
            assert_eq!(choose(choice, &Demands::none().lacks("this")).unwrap(), Device::Cpu);
            let refused = choose(choice, &Demands::none().lacks("this").bf16(Some(true))).unwrap_err();
            assert!(
                refused.is_usage() && refused.to_string().contains("the processor computes in float32"),
                "{refused}"
            );
        }
    }
}
