//! Steps that a device is told once and does again and again: see [`Recorder`].
//!
//! A step of hundreds of launches costs the host some microseconds for each. Recorded, it is one call: the same kernels on
//! the same memory. What changes from step to step lies in [`Table`]s, which the host writes before.

use std::sync::Arc;

use planish_cuda::driver::Graph;

use super::context::{self, Recording};
use super::memory::HostBytes;
use super::{Context, Device};
use crate::{DType, Error, Result, Shape, Tensor};

/// Records work of a device, to be done again. Several pieces of work may be recorded, of which one runs at a time: they
/// share the memory that they use in between.
pub struct Recorder {
    on: Arc<Context>,
    inner: planish_cuda::Recorder<Arc<planish_cuda::Device>>,
}

/// Recorded work of a [`Recorder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded(Graph);

impl Recorder {
    /// Of a device.
    ///
    /// # Errors
    /// [`Error::OnlyOnDevice`] for the processor; as [`Device::open`].
    pub fn new(device: Device) -> Result<Recorder> {
        if device.is_cpu() {
            return Err(Error::OnlyOnDevice { op: "recording" });
        }
        let on = context::get(device)?;
        let inner = planish_cuda::Recorder::new(on.gpu().clone())?;
        Ok(Recorder { on, inner })
    }

    /// Does `work`, and records it to be done again.
    ///
    /// It runs twice, once for good and once to be recorded, and must launch the same both times. It reads and writes only
    /// tensors that are there before, stay where they are, and live as long as it is replayed; and keeps none that it made.
    /// Kernels should be compiled and weights rounded by then: do the same once before without recording.
    ///
    /// # Errors
    /// Those of `work`, such as [`Error::NotRecorded`] for what comes from the host or goes to it, or is measured launch by
    /// launch; those of the driver. Work that fails may have been done for good all the same.
    pub fn record<E: From<Error>>(&mut self, mut work: impl FnMut() -> Result<(), E>) -> Result<Recorded, E> {
        let (device, gpu) = (self.on.device(), self.on.gpu().clone());
        if gpu.is_profiled() {
            return Err(Error::NotRecorded { what: "work that is profiled" }.into());
        }
        let recorded = self.inner.record(gpu.queue(), |queue| {
            let _recording = Recording::to(device, queue.stream);
            work()
        });
        recorded.map_err(Error::from)?.map(Recorded)
    }

    /// Whether the work can be done again: if the device has run out of room meanwhile, some may have been forgotten.
    pub fn has(&self, recorded: Recorded) -> bool {
        self.inner.has(recorded.0)
    }

    /// Does recorded work again, after all that the device was asked for before.
    ///
    /// # Errors
    /// Those of the driver; work that is not recorded here.
    pub fn replay(&mut self, recorded: Recorded) -> Result<()> {
        self.inner.replay(recorded.0, self.on.gpu().queue())?;
        self.on.replayed();
        Ok(())
    }

    /// Forgets recorded work.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn forget(&mut self, recorded: Recorded) -> Result<()> {
        Ok(self.inner.forget(recorded.0)?)
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recorder({})", self.on.device())
    }
}

/// A tensor on a device that stays where it is and is written in place, so that recorded work finds new numbers there.
///
/// Unlike other writes, these are seen through every handle of [`Table::tensor`].
#[derive(Debug)]
pub struct Table(Tensor);

impl Table {
    /// Zeros.
    ///
    /// # Errors
    /// [`Error::OnlyOnDevice`] for the processor; as [`Tensor::zeros_on`].
    pub fn new(device: Device, shape: impl Into<Shape>, dtype: DType) -> Result<Table> {
        if device.is_cpu() {
            return Err(Error::OnlyOnDevice { op: "a table for recorded work" });
        }
        Ok(Table(Tensor::zeros_on(device, shape, dtype)?))
    }

    /// What it holds.
    pub fn tensor(&self) -> &Tensor {
        &self.0
    }

    fn expect(&self, other: &Tensor) -> Result<()> {
        crate::ops::check::same("a table for recorded work", "what is written against it", other, &self.0)
    }

    /// Writes the elements of a tensor of the processor, after the device's work so far.
    ///
    /// # Errors
    /// Shapes or dtypes that differ; in recorded work.
    pub fn tell(&mut self, host: &Tensor) -> Result<()> {
        self.expect(host)?;
        if !host.device().is_cpu() {
            return Err(Error::MixedDevices { op: "telling a table", lhs: Device::Cpu, rhs: host.device() });
        }
        let (host, (on, at, _)) = (host.contiguous()?, self.0.place()?);
        on.not_recorded("an upload")?;
        let bytes = host.host_bytes();
        on.gpu().driver().upload(at, bytes, on.queue().stream)?;
        on.uploaded(bytes.len());
        self.0.written_in_place();
        Ok(())
    }

    /// Copies a tensor of the same device; in recorded work too.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that differ.
    pub fn take(&mut self, from: &Tensor) -> Result<()> {
        self.expect(from)?;
        context::of("a table for recorded work", [&self.0, from])?;
        let from = from.contiguous()?;
        let ((on, to, bytes), (_, from, _)) = (self.0.place()?, from.place()?);
        on.gpu().driver().copy(to, from, bytes, on.queue().stream)?;
        self.0.written_in_place();
        Ok(())
    }
}
