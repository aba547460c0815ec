//! Bytes behind tensors: owned and aligned, or mapped from a file.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::Mmap;

use crate::{Error, Result};

/// Alignment of owned buffers: a cache line, and the widest vector register.
pub(crate) const ALIGN: usize = 64;

/// An owned, zero-initialised, 64-byte-aligned block of bytes.
///
/// Always initialised: there is no way for safe code to see bytes that nothing wrote. (Large
/// zeroed blocks come straight from the operating system's zero pages, so this costs little.)
pub(crate) struct Buffer {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: Buffer owns its block exclusively, like Vec<u8>.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(crate) fn zeroed(len: usize) -> Result<Buffer> {
        if len == 0 {
            // Dangling but aligned, so that empty slices of any element type may be made of it.
            let ptr = NonNull::new(std::ptr::without_provenance_mut(ALIGN)).expect("ALIGN is not null");
            return Ok(Buffer { ptr, len });
        }
        let layout = Layout::from_size_align(len, ALIGN).map_err(|_| Error::OutOfMemory { bytes: len })?;
        // SAFETY: the layout's size is not zero.
        let ptr = unsafe { alloc_zeroed(layout) };
        let ptr = NonNull::new(ptr).ok_or(Error::OutOfMemory { bytes: len })?;
        crate::memory::allocated(len);
        Ok(Buffer { ptr, len })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: ptr is valid for len initialised bytes (dangling and aligned if len is 0).
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and &mut self makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len > 0 {
            crate::memory::freed(self.len);
            // SAFETY: allocated in `zeroed` with this very layout.
            unsafe { dealloc(self.ptr.as_ptr(), Layout::from_size_align_unchecked(self.len, ALIGN)) }
        }
    }
}

/// What holds the elements of one or more tensors.
pub(crate) enum Storage {
    /// Owned bytes; the only kind that can be written.
    Owned(Buffer),
    /// Part of a file, mapped read-only.
    Mapped { map: Arc<Mmap>, offset: usize, len: usize },
}

impl Storage {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Storage::Owned(buffer) => buffer.bytes(),
            Storage::Mapped { map, offset, len } => &map[*offset..*offset + *len],
        }
    }
}
