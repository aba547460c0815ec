//! Typed views of device memory.

use std::marker::PhantomData;

use super::DeviceBuffer;
use crate::driver::{Arg, DevicePtr};
use crate::{DType, Error, Result};

/// Elements to be read.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    ptr: DevicePtr,
    len: usize,
    dtype: DType,
    life: PhantomData<&'a DeviceBuffer>,
}

/// Elements to be written.
#[derive(Debug)]
pub struct SliceMut<'a> {
    inner: Slice<'a>,
    life: PhantomData<&'a mut DeviceBuffer>,
}

impl<'a> Slice<'a> {
    pub(super) fn new(ptr: DevicePtr, len: usize, dtype: DType) -> Slice<'a> {
        Slice { ptr, len, dtype, life: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// As a kernel's argument.
    pub fn arg(&self) -> Arg<'static> {
        Arg::Ptr(self.ptr)
    }

    /// Address of the first element, by which two pieces of memory can be told apart.
    pub fn address(&self) -> u64 {
        self.ptr.0
    }

    /// Address of the first element.
    pub(crate) fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    /// `len` elements from `start`.
    ///
    /// # Errors
    /// A range that is not within.
    pub fn part(self, start: usize, len: usize) -> Result<Slice<'a>> {
        if start.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::Length {
                op: "part",
                what: "the slice",
                expected: start.saturating_add(len),
                got: self.len,
            });
        }
        Ok(Slice { ptr: DevicePtr(self.ptr.0 + (start * self.dtype.size()) as u64), len, ..self })
    }

    /// Checks the number of elements.
    pub(crate) fn expect(&self, op: &'static str, what: &'static str, expected: usize) -> Result<()> {
        if self.len == expected { Ok(()) } else { Err(Error::Length { op, what, expected, got: self.len }) }
    }

    /// Checks the type.
    pub(crate) fn expect_dtype(&self, op: &'static str, what: &'static str, dtype: DType) -> Result<()> {
        if self.dtype == dtype {
            return Ok(());
        }
        Err(Error::DType { op, what, expected: dtype.name(), got: self.dtype })
    }

    /// Checks that the address is a multiple of 16 bytes, which what is fetched by `cp.async` must be.
    pub(crate) fn expect_aligned(&self, op: &'static str, what: &'static str) -> Result<()> {
        if self.ptr.0.is_multiple_of(16) {
            return Ok(());
        }
        Err(Error::Alignment { op, what })
    }

    /// Checks that kernels compute with the type.
    pub(crate) fn expect_compute(&self, op: &'static str, what: &'static str) -> Result<()> {
        if self.dtype.is_compute() {
            return Ok(());
        }
        Err(Error::DType { op, what, expected: "f32, bf16 or f16", got: self.dtype })
    }
}

impl<'a> SliceMut<'a> {
    pub(super) fn new(ptr: DevicePtr, len: usize, dtype: DType) -> SliceMut<'a> {
        SliceMut { inner: Slice::new(ptr, len, dtype), life: PhantomData }
    }

    /// The same elements for a shorter while.
    pub fn reborrow(&mut self) -> SliceMut<'_> {
        SliceMut { inner: self.inner, life: PhantomData }
    }

    /// `len` elements from `start`.
    ///
    /// # Errors
    /// A range that is not within.
    pub fn part(self, start: usize, len: usize) -> Result<SliceMut<'a>> {
        Ok(SliceMut { inner: self.inner.part(start, len)?, life: PhantomData })
    }

    /// The first `at` elements, and those after them.
    ///
    /// # Errors
    /// More than there are.
    pub fn split(self, at: usize) -> Result<(SliceMut<'a>, SliceMut<'a>)> {
        let (first, rest) = (self.inner.part(0, at)?, self.inner.part(at, self.inner.len.saturating_sub(at))?);
        let of = |inner| SliceMut { inner, life: PhantomData };
        Ok((of(first), of(rest)))
    }

    /// The same bits as elements of another type of the same size.
    ///
    /// # Errors
    /// Another size.
    pub fn bits_of(self, dtype: DType) -> Result<SliceMut<'a>> {
        if dtype.size() != self.inner.dtype.size() {
            let expected = "another of the same size";
            return Err(Error::DType { op: "bits_of", what: "the type", expected, got: dtype });
        }
        Ok(SliceMut { inner: Slice { dtype, ..self.inner }, life: PhantomData })
    }
}

impl<'a> std::ops::Deref for SliceMut<'a> {
    type Target = Slice<'a>;

    fn deref(&self) -> &Slice<'a> {
        &self.inner
    }
}

/// Numbers that may be copied as bytes.
pub trait Pod: Copy + sealed::Sealed {
    /// What a buffer for a download holds before.
    const ZERO: Self;

    /// As bytes.
    fn bytes(data: &[Self]) -> &[u8] {
        // SAFETY: implemented below only for numbers without padding, of which every byte is initialised; the
        // lifetime is that of the argument.
        unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) }
    }

    /// As bytes to be written.
    fn bytes_mut(data: &mut [Self]) -> &mut [u8] {
        // SAFETY: as above, and every pattern of bits is a value of the type.
        unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), size_of_val(data)) }
    }
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! pod {
    ($($type:ty),*) => {$(
        impl sealed::Sealed for $type {}
        impl Pod for $type {
            const ZERO: Self = 0 as $type;
        }
    )*};
}

pod!(u8, u16, u32, u64, i32, i64, f32, f64);
