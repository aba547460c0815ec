//! Devices: where a tensor's elements are, and what computes with them there.
//!
//! A tensor lives on the processor ([`Device::Cpu`]), on an NVIDIA GPU ([`Device::Cuda`]) or in the emulator of one
//! ([`Device::Emulator`]), which runs the same kernels without a GPU. The device is a property of the storage: views
//! share it, and the result of an op is where its operands are.
//!
//! - [`Tensor::to_device`] copies. Nothing else does: reading the elements of a tensor that is on a device
//!   ([`Tensor::as_slice`]) is an error, and so is an op on tensors of two devices.
//! - An op either has a kernel or refuses, [`Error::NotOnDevice`]. None computes on the processor instead.
//! - Small tables that come from the host with each call (token ids, segment tables, keys of dropout) are uploaded
//!   by the op, and kept while the same come again.
//! - Kernels of a device run one after the other on one stream; calls return before they have run. An error of a
//!   kernel is reported by a later call, at the latest when something is copied back.
//!
//! A device is opened when it is first used, or by [`Device::open`]. A program that uses none loads no driver.

mod context;
mod kept;
mod memory;
pub(crate) mod ops;
pub mod optim;
pub mod replay;
#[cfg(test)]
mod tests;

use std::fmt;

pub(crate) use context::{Context, of};
pub use context::{MemoryUse, Transfers};
pub(crate) use memory::{Memory, add_into, convert, copied};

use crate::{Error, Result, Tensor};

/// Where tensors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Device {
    /// The processor's memory.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(u32),
    /// An emulated GPU; each number is one of its own.
    Emulator(u32),
}

impl Device {
    /// Reads `cpu`, `cuda`, `cuda:N`, `emulator` or `emulator:N`.
    ///
    /// ```
    /// use planish_tensor::Device;
    /// assert_eq!(Device::parse("cuda:1"), Some(Device::Cuda(1)));
    /// assert_eq!(Device::parse("emulator").map(|d| d.to_string()).as_deref(), Some("emulator"));
    /// assert_eq!(Device::parse("tpu"), None);
    /// ```
    pub fn parse(text: &str) -> Option<Device> {
        let (name, number) = match text.split_once(':') {
            None => (text, 0),
            Some((name, number)) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => {
                (name, number.parse().ok()?)
            }
            Some(_) => return None,
        };
        match name {
            "cpu" if name == text => Some(Device::Cpu),
            "cuda" | "gpu" => Some(Device::Cuda(number)),
            "emulator" => Some(Device::Emulator(number)),
            _ => None,
        }
    }

    /// Whether it is the processor.
    pub fn is_cpu(self) -> bool {
        self == Device::Cpu
    }

    /// The first GPU if there is one that can be used, or else the processor.
    pub fn best() -> Device {
        match planish_cuda::probe().unavailable() {
            None if Device::Cuda(0).open().is_ok() => Device::Cuda(0),
            _ => Device::Cpu,
        }
    }

    /// Opens the device, if it is not open yet: loads the driver and finds the compiler of kernels.
    ///
    /// # Errors
    /// [`Error::NoDevice`]: no driver, no such GPU, no compiler; says what is missing and how to get it.
    pub fn open(self) -> Result<()> {
        if self.is_cpu() {
            return Ok(());
        }
        context::get(self).map(drop)
    }

    /// Lets a device that was made elsewhere be this one: an emulator with other checks or less memory, a cache of
    /// kernels in another folder.
    ///
    /// # Errors
    /// [`Error::DeviceOpen`] if the device is open already, or is the processor.
    pub fn install(self, gpu: planish_cuda::Device) -> Result<()> {
        context::install(self, gpu)
    }

    /// Its name, such as `NVIDIA H100 80GB HBM3`.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn name(self) -> Result<String> {
        match self {
            Device::Cpu => Ok("the processor".to_owned()),
            _ => Ok(context::get(self)?.name()),
        }
    }

    /// Memory that tensors take on it. `None` for the processor, of which [`crate::memory`] knows.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn memory(self) -> Result<Option<MemoryUse>> {
        if self.is_cpu() { Ok(None) } else { context::get(self)?.memory().map(Some) }
    }

    /// Copies between the host and the device so far. Zeros for the processor.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn transfers(self) -> Result<Transfers> {
        if self.is_cpu() { Ok(Transfers::default()) } else { Ok(context::get(self)?.transfers()) }
    }

    /// How often recorded work of this device was done again so far ([`replay`]). 0 for the processor.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn replays(self) -> Result<u64> {
        if self.is_cpu() { Ok(0) } else { Ok(context::get(self)?.replays()) }
    }

    /// Whether its launches are being measured one by one.
    ///
    /// # Errors
    /// As [`Device::open`].
    pub fn is_profiled(self) -> Result<bool> {
        if self.is_cpu() { Ok(false) } else { Ok(context::get(self)?.gpu().is_profiled()) }
    }

    /// Gives `f` what is beneath tensors: driver, memory and compiled kernels. For what launches kernels itself, such as a
    /// benchmark of them.
    ///
    /// # Errors
    /// [`Error::OnlyOnDevice`] for the processor; as [`Device::open`].
    pub fn with_gpu<T>(self, f: impl FnOnce(&planish_cuda::Device) -> T) -> Result<T> {
        match self {
            Device::Cpu => Err(Error::OnlyOnDevice { op: "with_gpu" }),
            _ => Ok(f(context::get(self)?.gpu())),
        }
    }

    /// Waits until all work of the device is done.
    ///
    /// # Errors
    /// What failed in it.
    pub fn synchronize(self) -> Result<()> {
        if self.is_cpu() {
            return Ok(());
        }
        Ok(context::get(self)?.queue().synchronize()?)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
            Device::Emulator(0) => f.write_str("emulator"),
            Device::Emulator(n) => write!(f, "emulator:{n}"),
        }
    }
}

/// Refuses tensors on a device: at the head of an op that has no kernel.
///
/// # Errors
/// [`Error::NotOnDevice`].
pub(crate) fn cpu_only<'a>(op: &'static str, tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<()> {
    match tensors.into_iter().find(|t| !t.device().is_cpu()) {
        Some(t) => Err(Error::NotOnDevice { op, device: t.device() }),
        None => Ok(()),
    }
}
