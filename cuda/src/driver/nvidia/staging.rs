//! Pinned memory through which uploads go: the driver copies from it while the caller goes on.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::{result, sys};

use super::call;
use crate::Result;

/// Bytes of a slot.
const BYTES: usize = 4 << 20;

/// A piece of pinned memory, and the event behind the last copy out of it.
#[derive(Debug)]
struct Slot {
    host: *mut u8,
    free: sys::CUevent,
}

/// Slots, taken in turn.
#[derive(Debug)]
pub(super) struct Staging {
    slots: Vec<Slot>,
    next: usize,
}

impl Staging {
    /// Two slots, so that one is filled while the other is copied. The device's context must be current.
    pub(super) fn new() -> Result<Staging> {
        let mut staging = Staging { slots: Vec::new(), next: 0 };
        for _ in 0..2 {
            let mut host = ptr::null_mut::<c_void>();
            // SAFETY: the pointer is valid for the call. Flags 0: plain cached memory of this context.
            call("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&raw mut host, BYTES, 0) })?;
            let free = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
            let free = match free {
                Ok(event) => event,
                Err(error) => {
                    // SAFETY: allocated above, used by nobody.
                    let _ = unsafe { sys::cuMemFreeHost(host) };
                    return Err(super::error("cuEventCreate", error.0));
                }
            };
            staging.slots.push(Slot { host: host.cast(), free });
        }
        Ok(staging)
    }

    /// Copies `src` to the device in the order of the stream. Returns when `src` may be changed.
    ///
    /// # Safety
    /// `dst` must be `src.len()` bytes of device memory; the stream must be alive; the context current.
    pub(super) unsafe fn upload(&mut self, dst: u64, src: &[u8], stream: sys::CUstream) -> Result<()> {
        for (i, part) in src.chunks(BYTES).enumerate() {
            let slot = &self.slots[self.next];
            self.next = (self.next + 1) % self.slots.len();
            // SAFETY: the event is alive; one that was never recorded counts as done. After it no copy reads the
            // slot, which has room for `part`. The device's range is the caller's promise.
            unsafe {
                call("cuEventSynchronize", sys::cuEventSynchronize(slot.free))?;
                ptr::copy_nonoverlapping(part.as_ptr(), slot.host, part.len());
                let to = dst + (i * BYTES) as u64;
                call("cuMemcpyHtoDAsync", sys::cuMemcpyHtoDAsync_v2(to, slot.host.cast(), part.len(), stream))?;
                call("cuEventRecord", sys::cuEventRecord(slot.free, stream))?;
            }
        }
        Ok(())
    }

    /// Gives everything back. The context must be current, and its work done.
    pub(super) fn release(&mut self) {
        for slot in self.slots.drain(..) {
            // SAFETY: made by `new`, given back once; nothing is copied any more. A context that failed answers with
            // an error, which changes nothing.
            unsafe {
                let _ = sys::cuEventDestroy_v2(slot.free);
                let _ = sys::cuMemFreeHost(slot.host.cast());
            }
        }
    }
}
