//! Tensors in a device's memory: made, copied, moved.

use std::sync::{Arc, Mutex, PoisonError};

use planish_cuda::DType as Type;
use planish_cuda::driver::DevicePtr;
use planish_cuda::memory::{DeviceBuffer, Slice, SliceMut};
use planish_cuda::ops::cast;
use planish_cuda::ops::copy::{self, Dim};

use super::{Context, Device, context};
use crate::quant::Layout;
use crate::storage::{Buffer, Storage};
use crate::{DType, Element, Error, Result, Shape, Tensor};

/// Elements on a device.
pub(crate) struct Memory {
    on: Arc<Context>,
    buffer: DeviceBuffer,
    /// The same numbers in another type, as [`Tensor::rounded`] made them; none after a write.
    rounded: Mutex<Option<Tensor>>,
}

impl Memory {
    fn new(on: Arc<Context>, buffer: DeviceBuffer) -> Memory {
        Memory { on, buffer, rounded: Mutex::new(None) }
    }

    pub(crate) fn on(&self) -> &Arc<Context> {
        &self.on
    }

    /// Whoever may write makes what was rounded before worthless.
    pub(crate) fn forget_rounded(&mut self) {
        *self.rounded.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The device's name of a dtype, if it has it.
pub(super) fn type_of(op: &'static str, dtype: DType) -> Result<Type> {
    Ok(match dtype {
        DType::F64 => Type::F64,
        DType::F32 => Type::F32,
        DType::BF16 => Type::BF16,
        DType::F16 => Type::F16,
        DType::U32 => Type::U32,
        // As bytes: those of quantised weights, which their kernels know the sign of.
        DType::U8 | DType::I8 => Type::U8,
        DType::I64 | DType::I32 | DType::Bool | DType::Packed => {
            return Err(Error::UnsupportedDType { op, dtype });
        }
    })
}

impl Context {
    /// A tensor for a kernel that writes every element. `what` asks for it, in errors.
    pub(crate) fn scratch(
        self: &Arc<Context>,
        what: &'static str,
        shape: impl Into<Shape>,
        dtype: DType,
    ) -> Result<Tensor> {
        let shape = shape.into();
        let bytes = shape.bytes(dtype)?;
        type_of(what, dtype)?;
        let buffer = self.gpu().pool().alloc(what, bytes, self.queue().stream)?;
        Ok(Tensor::over(Storage::Device(Memory::new(self.clone(), buffer)), shape, dtype))
    }

    /// Zeros.
    pub(crate) fn zeros(
        self: &Arc<Context>,
        what: &'static str,
        shape: impl Into<Shape>,
        dtype: DType,
    ) -> Result<Tensor> {
        let mut out = self.scratch(what, shape, dtype)?;
        if out.numel() > 0 {
            out.memory_mut().expect("just made").buffer.fill(0)?;
        }
        Ok(out)
    }

    /// One f32 everywhere.
    pub(crate) fn full(self: &Arc<Context>, what: &'static str, value: f32, shape: impl Into<Shape>) -> Result<Tensor> {
        let mut out = self.scratch(what, shape, DType::F32)?;
        copy::fill(self.queue(), out.cells_mut()?, u64::from(value.to_bits()))?;
        Ok(out)
    }
}

impl Tensor {
    /// Where its elements are.
    pub fn device(&self) -> Device {
        self.context().map_or(Device::Cpu, |on| on.device())
    }

    /// Zeros on a device.
    ///
    /// # Errors
    /// As [`Tensor::zeros`]; no room on the device; a dtype that devices do not have.
    pub fn zeros_on(device: Device, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        if device.is_cpu() {
            return Tensor::zeros(shape, dtype);
        }
        context::get(device)?.zeros("a tensor", shape, dtype)
    }

    /// The same elements on another device: a copy in row-major order, or `self` shared if it is there already. Of a view of
    /// a quantised weight the blocks of all of it are copied.
    ///
    /// # Errors
    /// As [`Device::open`]; no room; a dtype that devices do not have (int64, int32, bool); a kernel that failed
    /// earlier.
    ///
    /// ```no_run
    /// use planish_tensor::{Device, Tensor, ops::elementwise::add};
    /// let x = Tensor::full(1.0f32, [3])?.to_device(Device::Emulator(0))?;
    /// assert_eq!(add(&x, &x)?.to_device(Device::Cpu)?.to_vec::<f32>()?, [2.0; 3]);
    /// # Ok::<(), planish_tensor::Error>(())
    /// ```
    pub fn to_device(&self, device: Device) -> Result<Tensor> {
        if self.device() == device {
            return Ok(self.clone());
        }
        if let Some(weight) = self.quantized() {
            if let Layout::Panels(panels) = weight.layout() {
                // An order for the processor.
                return self.to_dtype(panels.dtype())?.to_device(device);
            }
            return Ok(self.over_packed(weight.to_device(device)?));
        }
        if device.is_cpu() {
            return self.download();
        }
        if self.memory().is_some() {
            return self.download()?.to_device(device);
        }
        let on = context::get(device)?;
        on.not_recorded("an upload")?;
        let host = self.contiguous()?;
        let mut out = on.scratch("a tensor", host.shape(), host.dtype())?;
        let bytes = host.host_bytes();
        if !bytes.is_empty() {
            out.memory_mut().expect("just made").buffer.upload(bytes)?;
            on.uploaded(bytes.len());
        }
        Ok(out)
    }

    fn download(&self) -> Result<Tensor> {
        let dense = self.contiguous()?;
        let memory = dense.memory().expect("only tensors of devices are downloaded");
        memory.on.not_recorded("a download")?;
        let mut host = Buffer::scratch(dense.shape().bytes(dense.dtype())?)?;
        let bytes = host.bytes_mut();
        if !bytes.is_empty() {
            let at = DevicePtr(memory.buffer.ptr().0 + (dense.offset() * dense.dtype().size()) as u64);
            memory.on.gpu().driver().download(bytes, at, memory.buffer.stream())?;
            memory.on.downloaded(bytes.len());
        }
        Ok(Tensor::over(Storage::Owned(host), dense.shape().clone(), dense.dtype()))
    }

    /// The same numbers in another float type, without gaps: for a weight on a device, which is read many times before it
    /// is written. The result is kept with the weight until then; that of a part of one is not, nor are the values of a
    /// quantised one.
    pub(crate) fn rounded(&self, dtype: DType) -> Result<Tensor> {
        if self.dtype() == dtype {
            return self.contiguous();
        }
        let bytes = self.numel() * self.dtype().size();
        let Some(memory) = self.memory().filter(|m| self.is_contiguous() && bytes == m.buffer.bytes()) else {
            return self.contiguous()?.to_dtype(dtype);
        };
        let mut kept = memory.rounded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = kept.as_ref().filter(|found| found.dtype() == dtype) {
            return found.reshape(self.shape());
        }
        let made = self.to_dtype(dtype)?;
        *kept = Some(made.clone());
        Ok(made)
    }

    /// What [`Tensor::rounded`] keeps, taken from there: for who writes all of the tensor, and with it the same rounded. None
    /// if a write would go elsewhere.
    pub(super) fn take_rounded(&mut self) -> Option<Tensor> {
        let bytes = self.numel() * self.dtype().size();
        let whole = self.is_contiguous() && !self.is_shared();
        let memory = self.memory().filter(|m| whole && bytes == m.buffer.bytes())?;
        memory.rounded.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Gives back what [`Tensor::take_rounded`] took, with the numbers that the tensor has now.
    pub(super) fn keep_rounded(&mut self, rounded: Tensor) {
        if let Some(memory) = self.memory() {
            *memory.rounded.lock().unwrap_or_else(PoisonError::into_inner) = Some(rounded);
        }
    }

    /// The elements of a contiguous tensor on a device.
    pub(crate) fn cells(&self) -> Result<Slice<'_>> {
        debug_assert!(self.is_contiguous());
        let kind = type_of("cells", self.dtype())?;
        let memory = self.memory().expect("ops dispatch before they ask for cells");
        Ok(memory.buffer.slice(kind).part(self.offset_or_0(), self.numel())?)
    }

    /// The same for writing. Copies first if the storage is shared or the view is not contiguous.
    pub(crate) fn cells_mut(&mut self) -> Result<SliceMut<'_>> {
        let kind = type_of("cells", self.dtype())?;
        if !self.is_contiguous() || self.memory_mut().is_none() {
            *self = self.copied()?;
        }
        let (at, n) = (self.offset_or_0(), self.numel());
        let memory = self.memory_mut().expect("a fresh copy is unshared");
        Ok(memory.buffer.slice_mut(kind).part(at, n)?)
    }

    /// The storage from the view's first element on, whatever its strides.
    fn span(&self) -> Result<Slice<'_>> {
        let kind = type_of("cells", self.dtype())?;
        let all = self.memory().expect("ops dispatch before they ask for cells").buffer.slice(kind);
        Ok(all.part(self.offset(), all.len() - self.offset())?)
    }

    /// A view without elements may point anywhere.
    fn offset_or_0(&self) -> usize {
        if self.numel() == 0 { 0 } else { self.offset() }
    }

    /// Where a contiguous tensor of a device is: its address, and its bytes.
    pub(super) fn place(&self) -> Result<(&Context, DevicePtr, usize)> {
        let memory = self.memory().expect("only what lies on a device has a place");
        let at = (self.offset_or_0() * self.dtype().size()) as u64;
        Ok((&memory.on, DevicePtr(memory.buffer.ptr().0 + at), self.shape().bytes(self.dtype())?))
    }

    /// Somebody writes where it is, whoever else looks.
    pub(super) fn written_in_place(&self) {
        if let Some(memory) = self.memory() {
            *memory.rounded.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Copies `from`, of the same shape and device, into the part `start..` along `axis` of this tensor.
    ///
    /// Like all writes, this is seen through no other handle.
    ///
    /// # Errors
    /// Shapes, dtypes or devices that do not agree; no room where the storage is shared.
    pub fn write(&mut self, axis: usize, start: usize, from: &Tensor) -> Result<()> {
        const OP: &str = "write";
        let len = from.dims().get(axis).copied().unwrap_or(0);
        let part = self.narrow(axis, start, len)?;
        crate::ops::check::same(OP, "what is written against its place", from, &part)?;
        let (dims, at) = (dims_of(from, &part), part.offset());
        drop(part);
        let on = context::of(OP, [&*self, from])?;
        if from.numel() == 0 {
            return Ok(());
        }
        let Some(on) = on else { return self.write_host(axis, start, from) };
        // As for all writes: a copy if somebody else looks.
        if !self.is_contiguous() || self.memory_mut().is_none() {
            *self = self.copied()?;
            return self.write(axis, start, from);
        }
        let at = at - self.offset();
        let into = self.cells_mut()?;
        let room = into.len() - at;
        Ok(copy::strided(on.queue(), into.part(at, room)?, from.span()?, &dims)?)
    }
}

/// Dimensions of a copy from x to a place of y's layout.
fn dims_of(x: &Tensor, y: &Tensor) -> Vec<Dim> {
    let strides = x.strides().iter().zip(y.strides());
    x.dims().iter().zip(strides).map(|(&size, (&x, &y))| Dim { size, x, y }).collect()
}

/// A fresh contiguous copy.
pub(crate) fn copied(src: &Tensor) -> Result<Tensor> {
    let memory = src.memory().expect("dispatched");
    let on = memory.on.clone();
    let mut out = on.scratch("a copy", src.shape(), src.dtype())?;
    if src.numel() == 0 {
        return Ok(out);
    }
    if src.is_contiguous() {
        let bytes = src.numel() * src.dtype().size();
        let from = DevicePtr(memory.buffer.ptr().0 + (src.offset() * src.dtype().size()) as u64);
        let to = out.memory_mut().expect("just made").buffer.ptr();
        on.gpu().driver().copy(to, from, bytes, on.queue().stream)?;
        return Ok(out);
    }
    let dims = dims_of(src, &out);
    copy::strided(on.queue(), out.cells_mut()?, src.span()?, &dims)?;
    Ok(out)
}

/// Another float type.
pub(crate) fn convert(src: &Tensor, dtype: DType) -> Result<Tensor> {
    let on = src.memory().expect("dispatched").on.clone();
    for dtype in [src.dtype(), dtype] {
        if !matches!(dtype, DType::F32 | DType::BF16 | DType::F16) {
            return Err(Error::UnsupportedDType { op: "cast", dtype });
        }
    }
    let src = src.contiguous()?;
    let mut out = on.scratch("a cast", src.shape(), dtype)?;
    cast::cast(on.queue(), out.cells_mut()?, src.cells()?)?;
    Ok(out)
}

/// dx at the places of `narrow(axis, start, …)` += dy.
pub(crate) fn add_into(on: &Context, dy: &Tensor, axis: usize, start: usize, dx: &mut Tensor) -> Result<()> {
    if dy.numel() == 0 {
        return Ok(());
    }
    if !dx.is_contiguous() || dx.memory_mut().is_none() {
        *dx = dx.copied()?;
    }
    let part = dx.narrow(axis, start, dy.dims()[axis])?;
    let (dims, at) = (dims_of(dy, &part), part.offset() - dx.offset());
    drop(part);
    let into = dx.cells_mut()?;
    let room = into.len() - at;
    Ok(copy::add(on.queue(), into.part(at, room)?, dy.span()?, &dims)?)
}

/// Bytes of a contiguous tensor of the processor.
pub(super) trait HostBytes {
    fn host_bytes(&self) -> &[u8];
}

impl HostBytes for Tensor {
    fn host_bytes(&self) -> &[u8] {
        fn go<T: Element>(t: &Tensor) -> &[u8] {
            bytemuck::cast_slice(t.as_slice::<T>().expect("contiguous, and of this dtype"))
        }
        crate::dispatch!(self.dtype(), T => go::<T>(self))
    }
}

impl Tensor {
    /// [`Tensor::write`] on the processor; everything has been checked.
    fn write_host(&mut self, axis: usize, start: usize, from: &Tensor) -> Result<()> {
        fn go<T: Element>(to: &mut Tensor, axis: usize, start: usize, from: &Tensor) -> Result<()> {
            let (_, size, inner) = crate::ops::check::around(to.dims(), axis);
            let run = from.dims()[axis] * inner;
            let from = from.contiguous()?;
            let rows = to.as_slice_mut::<T>()?.chunks_exact_mut(size * inner);
            for (to, from) in rows.zip(from.as_slice::<T>()?.chunks_exact(run)) {
                to[start * inner..][..run].copy_from_slice(from);
            }
            Ok(())
        }
        crate::dispatch!(self.dtype(), T => go::<T>(self, axis, start, from))
    }
}
