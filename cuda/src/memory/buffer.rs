//! A piece of device memory that gives itself back.

use std::sync::Arc;

use super::{Pod, Pool, Slice, SliceMut};
use crate::driver::{DevicePtr, Stream};
use crate::{DType, Error, Result};

/// Memory of a [`Pool`], given back when dropped, after the work that its stream has by then.
#[derive(Debug)]
pub struct DeviceBuffer {
    pool: Arc<Pool>,
    ptr: DevicePtr,
    bytes: usize,
    reserved: u64,
    stream: Stream,
}

impl DeviceBuffer {
    pub(super) fn new(pool: Arc<Pool>, ptr: DevicePtr, bytes: usize, reserved: u64, stream: Stream) -> DeviceBuffer {
        DeviceBuffer { pool, ptr, bytes, reserved, stream }
    }

    /// Its address.
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    /// Bytes asked for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The stream whose work it is for.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// All of it as elements of `dtype`; bytes that make no whole element are left out.
    pub fn slice(&self, dtype: DType) -> Slice<'_> {
        Slice::new(self.ptr, self.bytes / dtype.size(), dtype)
    }

    /// As [`slice`](DeviceBuffer::slice), to be written.
    pub fn slice_mut(&mut self, dtype: DType) -> SliceMut<'_> {
        SliceMut::new(self.ptr, self.bytes / dtype.size(), dtype)
    }

    /// Copies from the host. Shorter data fills the beginning.
    ///
    /// # Errors
    /// Data longer than the buffer; those of the driver.
    pub fn upload<T: Pod>(&mut self, data: &[T]) -> Result<()> {
        let bytes = T::bytes(data);
        if bytes.len() > self.bytes {
            return Err(Error::Length { op: "upload", what: "the buffer", expected: bytes.len(), got: self.bytes });
        }
        self.pool.driver().upload(self.ptr, bytes, self.stream)
    }

    /// Copies all whole elements to the host, after the stream's work.
    ///
    /// # Errors
    /// Those of the driver, such as a kernel that failed.
    pub fn download<T: Pod>(&self) -> Result<Vec<T>> {
        let mut out = vec![T::ZERO; self.bytes / size_of::<T>()];
        self.pool.driver().download(T::bytes_mut(&mut out), self.ptr, self.stream)?;
        Ok(out)
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn fill(&mut self, byte: u8) -> Result<()> {
        self.pool.driver().fill(self.ptr, byte, self.bytes, self.stream)
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        self.pool.give_back(self.ptr, self.reserved, self.stream);
    }
}
