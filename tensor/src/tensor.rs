//! [`Tensor`]: a dtype, a shape, strides and shared storage.

use std::sync::Arc;

use memmap2::Mmap;

use crate::device::{self, Context, Memory};
use crate::quant::Quantized;
use crate::shape::broadcast_shapes;
use crate::storage::{Buffer, Storage};
use crate::{DType, Element, Error, Result, Shape};

/// An n-dimensional array.
///
/// Cloning, transposing, narrowing and broadcasting share storage; nothing is copied until
/// [`Tensor::contiguous`] or a kernel that needs it. A tensor is a value: writing through
/// [`Tensor::as_slice_mut`] copies first if another tensor shares the storage, so no write is
/// ever seen through another handle.
///
/// ```
/// use planish_tensor::Tensor;
/// let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3])?;
/// let t = x.transpose(0, 1)?;
/// assert_eq!(t.shape().dims(), [3, 2]);
/// assert_eq!(t.to_vec::<f32>()?, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
/// # Ok::<(), planish_tensor::Error>(())
/// ```
#[derive(Clone)]
pub struct Tensor {
    storage: Arc<Storage>,
    dtype: DType,
    shape: Shape,
    /// In elements. Every reachable element lies inside the storage: checked where views are made.
    strides: Vec<usize>,
    offset: usize,
}

impl Tensor {
    /// Zeros.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::OutOfMemory`].
    pub fn zeros(shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let shape = shape.into();
        let buffer = Buffer::zeroed(shape.bytes(dtype)?)?;
        Ok(Tensor::owned(buffer, shape, dtype))
    }

    /// A tensor for a kernel that writes every element: what it holds until then is whatever was in the
    /// memory (initialised, so this is safe; but no result may depend on it).
    ///
    /// # Errors
    /// As [`Tensor::zeros`].
    pub(crate) fn scratch(shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let shape = shape.into();
        let buffer = Buffer::scratch(shape.bytes(dtype)?)?;
        Ok(Tensor::owned(buffer, shape, dtype))
    }

    fn owned(buffer: Buffer, shape: Shape, dtype: DType) -> Tensor {
        Tensor::over(Storage::Owned(buffer), shape, dtype)
    }

    /// All of a storage, in row-major order.
    pub(crate) fn over(storage: Storage, shape: Shape, dtype: DType) -> Tensor {
        Tensor { strides: shape.contiguous_strides(), storage: Arc::new(storage), dtype, shape, offset: 0 }
    }

    /// As [`Tensor::scratch`], where this tensor is. `op` asks for it, in errors.
    pub(crate) fn scratch_beside(&self, op: &'static str, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        match self.context() {
            None => Tensor::scratch(shape, dtype),
            Some(on) => on.scratch(op, shape, dtype),
        }
    }

    /// The device that it is on; `None` for the processor.
    pub(crate) fn context(&self) -> Option<&Arc<Context>> {
        match &*self.storage {
            Storage::Device(memory) => Some(memory.on()),
            Storage::Packed(weight) => weight.context(),
            Storage::Owned(_) | Storage::Mapped { .. } => None,
        }
    }

    /// The memory of a device, if it is on one.
    pub(crate) fn memory(&self) -> Option<&Memory> {
        match &*self.storage {
            Storage::Device(memory) => Some(memory),
            _ => None,
        }
    }

    /// The same for writing; `None` too if another tensor shares it.
    pub(crate) fn memory_mut(&mut self) -> Option<&mut Memory> {
        match Arc::get_mut(&mut self.storage) {
            Some(Storage::Device(memory)) => {
                memory.forget_rounded();
                Some(memory)
            }
            _ => None,
        }
    }

    /// Whether another tensor has the same storage.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.storage) > 1
    }

    /// The piece of work that is counted writes to it: see [`stream`](crate::stream).
    pub(crate) fn count_pending(&self) {
        if let Storage::Owned(buffer) = &*self.storage {
            buffer.count_pending();
        }
    }

    /// That piece is complete.
    pub(crate) fn count_filled(&self) {
        if let Storage::Owned(buffer) = &*self.storage {
            buffer.count_filled();
        }
    }

    /// Refuses to read what is not here.
    fn check_here(&self, op: &'static str) -> Result<()> {
        match self.context() {
            None => Ok(()),
            Some(on) => Err(Error::NotHere { op, device: on.device() }),
        }
    }

    /// Every element `value`.
    ///
    /// # Errors
    /// As [`Tensor::zeros`].
    pub fn full<T: Element>(value: T, shape: impl Into<Shape>) -> Result<Tensor> {
        let mut out = Tensor::scratch(shape, T::DTYPE)?;
        out.as_slice_mut::<T>()?.fill(value);
        Ok(out)
    }

    /// A tensor that holds a copy of `data` in row-major order.
    ///
    /// # Errors
    /// [`Error::Length`] if `data` does not fill `shape` exactly.
    pub fn from_slice<T: Element>(data: &[T], shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if shape.checked_numel() != Some(data.len()) {
            return Err(Error::Length { op: "from_slice", len: data.len(), shape: shape.to_vec() });
        }
        let mut out = Tensor::scratch(shape, T::DTYPE)?;
        out.as_slice_mut::<T>()?.copy_from_slice(data);
        Ok(out)
    }

    /// As [`Tensor::from_slice`], by value.
    ///
    /// # Errors
    /// As [`Tensor::from_slice`].
    pub fn from_vec<T: Element>(data: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
        Tensor::from_slice(&data, shape)
    }

    /// A scalar (no dimensions).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn scalar<T: Element>(value: T) -> Result<Tensor> {
        Tensor::from_slice(&[value], ())
    }

    /// A tensor over the bytes of a mapped file from `offset`, without a copy where they are aligned
    /// for the dtype.
    ///
    /// The elements are what the file holds: any bit pattern is a valid element of every dtype.
    ///
    /// # Errors
    /// [`Error::Mapping`] if it reaches past the end, [`Error::TooLarge`].
    pub fn from_mapped(map: &Arc<Mmap>, offset: usize, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let len = shape.bytes(dtype)?;
        let end = offset.saturating_add(len);
        if end > map.len() {
            return Err(Error::Mapping { offset, end, len: map.len() });
        }
        if !(map.as_ptr() as usize + offset).is_multiple_of(dtype.size()) {
            let mut buffer = Buffer::zeroed(len)?;
            buffer.bytes_mut().copy_from_slice(&map[offset..end]);
            let storage = Arc::new(Storage::Owned(buffer));
            return Ok(Tensor { strides: shape.contiguous_strides(), storage, dtype, shape, offset: 0 });
        }
        let storage = Arc::new(Storage::Mapped { map: map.clone(), offset, len });
        Ok(Tensor { strides: shape.contiguous_strides(), storage, dtype, shape, offset: 0 })
    }

    /// A quantised weight as a tensor of [`DType::Packed`]: linear maps take it as their weight, and
    /// [`Tensor::to_dtype`] makes its values; nothing else does.
    pub fn packed(weight: Quantized) -> Tensor {
        let shape = Shape::from(weight.shape().to_vec());
        let strides = shape.contiguous_strides();
        Tensor { storage: Arc::new(Storage::Packed(Box::new(weight))), dtype: DType::Packed, shape, strides, offset: 0 }
    }

    /// The same view of the same weight elsewhere.
    pub(crate) fn over_packed(&self, weight: Quantized) -> Tensor {
        debug_assert_eq!(self.quantized().map(Quantized::shape), Some(weight.shape()));
        Tensor { storage: Arc::new(Storage::Packed(Box::new(weight))), ..self.clone() }
    }

    /// The view of these elements, all of a weight's, that `view` is of the weight.
    pub(crate) fn viewed_as(&self, view: &Tensor) -> Tensor {
        self.view(view.shape.clone(), view.strides.clone(), view.offset)
    }

    /// The quantised weight behind this tensor or view, if there is one.
    pub fn quantized(&self) -> Option<&Quantized> {
        match &*self.storage {
            Storage::Packed(weight) => Some(weight),
            _ => None,
        }
    }

    /// Bytes of its elements, or of the blocks that stand for them.
    pub fn nbytes(&self) -> usize {
        match self.quantized() {
            Some(weight) => weight.nbytes(),
            None => self.numel() * self.dtype.size(),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Sizes as a slice.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Distance, in elements, between neighbours along each dimension; 0 where broadcast.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        // Checked when the tensor was made; a broadcast view can exceed its storage but not usize. With a
        // size of 0 the others may be anything, so their plain product could overflow.
        self.shape.checked_numel().unwrap_or(0)
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        for (&d, &s) in self.shape.iter().zip(&self.strides).rev() {
            if d == 0 {
                return true;
            }
            if d != 1 && s != expected {
                return false;
            }
            expected *= d;
        }
        true
    }

    /// Whether two tensors share the same storage.
    pub fn shares_storage(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
    }

    /// Whether the elements are read from a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(*self.storage, Storage::Mapped { .. })
    }

    fn check_dtype<T: Element>(&self, op: &'static str) -> Result<()> {
        if self.dtype != T::DTYPE {
            return Err(Error::DTypeMismatch { op, expected: T::DTYPE, got: self.dtype });
        }
        Ok(())
    }

    /// The elements, in row-major order, without a copy.
    ///
    /// # Errors
    /// [`Error::DTypeMismatch`]; [`Error::NotContiguous`]; [`Error::NotHere`] on a device.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.check_here("as_slice")?;
        self.check_dtype::<T>("as_slice")?;
        if !self.is_contiguous() {
            return Err(Error::NotContiguous { op: "as_slice", shape: self.dims().to_vec() });
        }
        let n = self.numel();
        if n == 0 {
            return Ok(&[]);
        }
        Ok(&self.elements::<T>()[self.offset..self.offset + n])
    }

    /// As [`Tensor::as_slice`], of a tensor whose dtype and layout were checked.
    ///
    /// # Panics
    /// If it has others.
    pub(crate) fn checked<T: Element>(&self) -> &[T] {
        self.as_slice().expect("dtype and layout were checked")
    }

    /// The elements, for writing, in row-major order. Copies first if the storage is shared,
    /// mapped or the view is not contiguous, so that no other tensor sees the write.
    ///
    /// # Errors
    /// [`Error::DTypeMismatch`]; [`Error::OutOfMemory`] where a copy is needed; [`Error::NotHere`] on a device.
    pub fn as_slice_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        self.check_here("as_slice_mut")?;
        self.check_dtype::<T>("as_slice_mut")?;
        let n = self.numel();
        if n == 0 {
            return Ok(&mut []);
        }
        if let Storage::Owned(buffer) = &*self.storage {
            buffer.wait();
        }
        let writable = self.is_contiguous() && matches!(Arc::get_mut(&mut self.storage), Some(Storage::Owned(_)));
        if !writable {
            *self = self.copied()?;
        }
        let offset = self.offset;
        match Arc::get_mut(&mut self.storage) {
            Some(Storage::Owned(buffer)) => Ok(&mut bytemuck::cast_slice_mut(buffer.bytes_mut())[offset..offset + n]),
            _ => unreachable!("a fresh copy is owned and unshared"),
        }
    }

    /// All elements of the storage, whatever the view.
    pub(crate) fn elements<T: Element>(&self) -> &[T] {
        debug_assert_eq!(self.dtype, T::DTYPE);
        bytemuck::cast_slice(self.storage.bytes())
    }

    /// Position in [`Tensor::elements`] of the view's first element.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// A copy of the elements in row-major order, whatever the layout.
    ///
    /// # Errors
    /// [`Error::DTypeMismatch`]; [`Error::NotHere`] on a device.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.check_here("to_vec")?;
        self.check_dtype::<T>("to_vec")?;
        if self.is_contiguous() {
            return Ok(self.as_slice::<T>()?.to_vec());
        }
        let mut out = Vec::with_capacity(self.numel());
        let data = self.elements::<T>();
        self.for_each_offset(|at| out.push(data[at]));
        Ok(out)
    }

    /// The only element.
    ///
    /// # Errors
    /// [`Error::Length`] if there is not exactly one; [`Error::DTypeMismatch`]; [`Error::NotHere`] on a device.
    pub fn item<T: Element>(&self) -> Result<T> {
        self.check_here("item")?;
        if self.numel() != 1 {
            return Err(Error::Length { op: "item", len: self.numel(), shape: vec![1] });
        }
        self.check_dtype::<T>("item")?;
        Ok(self.elements::<T>()[self.offset])
    }

    /// Calls `f` with the storage position of each element in row-major order.
    pub(crate) fn for_each_offset(&self, mut f: impl FnMut(usize)) {
        if self.numel() == 0 {
            return;
        }
        let rank = self.rank();
        let mut index = vec![0usize; rank];
        let mut at = self.offset;
        loop {
            f(at);
            let mut axis = rank;
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                index[axis] += 1;
                at += self.strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= self.strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
    }

    /// The same values in row-major order; `self` shared if it already is.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn contiguous(&self) -> Result<Tensor> {
        if self.is_contiguous() { Ok(self.clone()) } else { self.copied() }
    }

    /// A fresh contiguous tensor of the same values, shared with nothing.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn copied(&self) -> Result<Tensor> {
        fn go<T: Element>(src: &Tensor) -> Result<Tensor> {
            let mut out = Tensor::scratch(src.shape.clone(), src.dtype)?;
            let dst = out.as_slice_mut::<T>()?;
            if src.is_contiguous() {
                dst.copy_from_slice(src.as_slice::<T>()?);
            } else {
                let data = src.elements::<T>();
                let mut i = 0;
                src.for_each_offset(|at| {
                    dst[i] = data[at];
                    i += 1;
                });
            }
            Ok(out)
        }
        if self.memory().is_some() {
            return device::copied(self);
        }
        match self.quantized() {
            // Nothing can write to it: it is as good as a copy.
            Some(_) if self.is_contiguous() => Ok(self.clone()),
            Some(_) => Err(Error::UnsupportedDType { op: "contiguous", dtype: self.dtype }),
            None => crate::dispatch!(self.dtype, T => go::<T>(self)),
        }
    }

    /// The same values as another dtype, rounded to nearest even where it is narrower. Shares if
    /// the dtype is already that.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn to_dtype(&self, dtype: DType) -> Result<Tensor> {
        if self.dtype == dtype {
            return Ok(self.clone());
        }
        crate::convert::convert(self, dtype)
    }

    fn view(&self, shape: Shape, strides: Vec<usize>, offset: usize) -> Tensor {
        Tensor { storage: self.storage.clone(), dtype: self.dtype, shape, strides, offset }
    }

    fn check_axis(&self, op: &'static str, axis: usize) -> Result<()> {
        if axis >= self.rank() {
            return Err(Error::OutOfRange { op, what: "axis", index: axis as i128, len: self.rank() });
        }
        Ok(())
    }

    /// Dimensions `a` and `b` exchanged, as a view.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn transpose(&self, a: usize, b: usize) -> Result<Tensor> {
        self.check_axis("transpose", a)?;
        self.check_axis("transpose", b)?;
        let (mut dims, mut strides) = (self.dims().to_vec(), self.strides.clone());
        dims.swap(a, b);
        strides.swap(a, b);
        Ok(self.view(dims.into(), strides, self.offset))
    }

    /// Elements `start..start + len` along `axis`, as a view.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Result<Tensor> {
        self.check_axis("narrow", axis)?;
        let size = self.shape[axis];
        if start.checked_add(len).is_none_or(|end| end > size) {
            return Err(Error::OutOfRange { op: "narrow", what: "end", index: start as i128 + len as i128, len: size });
        }
        let mut dims = self.dims().to_vec();
        dims[axis] = len;
        // An empty view must not point past the storage: it points nowhere.
        let offset = if len == 0 { self.offset } else { self.offset + start * self.strides[axis] };
        Ok(self.view(dims.into(), self.strides.clone(), offset))
    }

    /// Stretched to `shape` by NumPy's rule, as a view with stride 0 where it stretches.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`]; [`Error::TooLarge`].
    pub fn broadcast_to(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        shape.bytes(self.dtype)?;
        if broadcast_shapes("broadcast_to", self.dims(), &shape)? != shape {
            return Err(Error::ShapeMismatch {
                op: "broadcast_to",
                what: "shape does not stretch",
                lhs: self.dims().to_vec(),
                rhs: shape.to_vec(),
            });
        }
        let lead = shape.len() - self.rank();
        let strides = (0..shape.len())
            .map(|i| match i.checked_sub(lead) {
                Some(j) if self.shape[j] == shape[i] => self.strides[j],
                _ => 0,
            })
            .collect();
        Ok(self.view(shape, strides, self.offset))
    }

    /// The same elements in row-major order under another shape; a view where the layout allows.
    ///
    /// # Errors
    /// [`Error::Length`] if the number of elements differs; [`Error::OutOfMemory`].
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if shape.checked_numel() != Some(self.numel()) {
            return Err(Error::Length { op: "reshape", len: self.numel(), shape: shape.to_vec() });
        }
        let base = self.contiguous()?;
        let strides = shape.contiguous_strides();
        Ok(base.view(shape, strides, base.offset))
    }

    /// A dimension of size 1 inserted before `axis`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`].
    pub fn unsqueeze(&self, axis: usize) -> Result<Tensor> {
        if axis > self.rank() {
            return Err(Error::OutOfRange { op: "unsqueeze", what: "axis", index: axis as i128, len: self.rank() + 1 });
        }
        let (mut dims, mut strides) = (self.dims().to_vec(), self.strides.clone());
        dims.insert(axis, 1);
        strides.insert(axis, 1);
        Ok(self.view(dims.into(), strides, self.offset))
    }

    /// The tensor's rows and row length: all dimensions but the last flattened, and the last.
    ///
    /// # Errors
    /// [`Error::Rank`] for a scalar.
    pub fn rows(&self, op: &'static str) -> Result<(usize, usize)> {
        match self.dims().split_last() {
            Some((&width, lead)) => Ok((lead.iter().product(), width)),
            None => Err(Error::Rank { op, expected: 1, shape: Vec::new() }),
        }
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {:?}", self.dtype, self.shape)?;
        if self.memory().is_some() {
            write!(f, " on {}", self.device())?;
        } else if let Some(weight) = self.quantized() {
            write!(f, " {}", weight.format())?;
            if self.context().is_some() {
                write!(f, " on {}", self.device())?;
            }
        } else if self.numel() <= 16 {
            let values = crate::dispatch!(self.dtype, T => self.to_vec::<T>().map(|v| v.iter().map(|x| x.to_f64()).collect::<Vec<_>>()));
            if let Ok(values) = values {
                write!(f, " {values:?}")?;
            }
        }
        f.write_str(")")
    }
}

#[cfg(test)]
#[path = "tensor_tests.rs"]
mod tests;
