//! Bytes behind tensors: owned and aligned, or mapped from a file.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use memmap2::Mmap;

use crate::device::Memory;
use crate::pool::{self, Block, Line};
use crate::quant::Quantized;
use crate::{Error, Result, stream};

/// Alignment of owned buffers: a cache line, and the widest vector register.
pub(crate) const ALIGN: usize = 64;

/// An owned, initialised, 64-byte-aligned run of bytes, out of the [`pool`].
///
/// Always initialised: there is no way for safe code to see bytes that nothing wrote.
pub(crate) struct Buffer {
    /// None for no bytes at all.
    block: Option<Block>,
    len: usize,
    /// Pieces of work left to a [`stream`] that write to it.
    pending: AtomicU32,
}

impl Buffer {
    /// All zero.
    pub(crate) fn zeroed(len: usize) -> Result<Buffer> {
        let mut buffer = Buffer::take(len)?;
        if buffer.block.as_ref().is_some_and(|b| !b.zero) {
            buffer.bytes_mut().fill(0);
        }
        Ok(buffer)
    }

    /// For a caller that writes every byte: what it holds is whatever its last user left there. Tests fill
    /// it with ones, which are NaN in every float dtype.
    pub(crate) fn scratch(len: usize) -> Result<Buffer> {
        let mut buffer = Buffer::take(len)?;
        if cfg!(debug_assertions) {
            buffer.bytes_mut().fill(0xff);
        }
        Ok(buffer)
    }

    fn take(len: usize) -> Result<Buffer> {
        let block = match len {
            0 => None,
            _ => Some(pool::take(len).ok_or(Error::OutOfMemory { bytes: len })?),
        };
        crate::memory::allocated(len);
        Ok(Buffer { block, len, pending: AtomicU32::new(0) })
    }

    /// One more piece of work writes to it, or one less.
    pub(crate) fn count_pending(&self) {
        self.pending.fetch_add(1, SeqCst);
    }

    pub(crate) fn count_filled(&self) {
        self.pending.fetch_sub(1, SeqCst);
    }

    /// Waits until what was left to a stream is written.
    pub(crate) fn wait(&self) {
        if self.pending.load(SeqCst) > 0 {
            stream::wait(&self.pending);
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.wait();
        match &self.block {
            Some(block) => &block.bytes()[..self.len],
            // Aligned, so that empty slices of any element type may be made of it.
            None => bytemuck::cast_slice::<Line, u8>(&[]),
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.wait();
        match &mut self.block {
            Some(block) => &mut block.bytes_mut()[..self.len],
            None => bytemuck::cast_slice_mut::<Line, u8>(&mut []),
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        crate::memory::freed(self.len);
        if let Some(block) = self.block.take() {
            pool::give(block);
        }
    }
}

/// What holds the elements of one or more tensors.
pub(crate) enum Storage {
    /// Owned bytes; the only kind that can be written.
    Owned(Buffer),
    /// Part of a file, mapped read-only.
    Mapped { map: Arc<Mmap>, offset: usize, len: usize },
    /// Memory of a device.
    Device(Memory),
    /// A quantised weight, which has no elements in memory.
    Packed(Box<Quantized>),
}

impl Storage {
    /// The bytes in the processor's memory.
    ///
    /// # Panics
    /// If they are on a device: ops ask where their operands are before they read.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Storage::Owned(buffer) => buffer.bytes(),
            Storage::Mapped { map, offset, len } => &map[*offset..*offset + *len],
            Storage::Device(memory) => panic!("an op read a tensor on {} as if it were here", memory.on().device()),
            Storage::Packed(_) => &[],
        }
    }
}
