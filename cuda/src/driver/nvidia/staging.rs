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
        Ok(Staging { slots: all_or_none(2, Slot::new, Slot::release)?, next: 0 })
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
        self.slots.drain(..).for_each(Slot::release);
    }
}

impl Slot {
    fn new() -> Result<Slot> {
        let mut host = ptr::null_mut::<c_void>();
        // SAFETY: the pointer is valid for the call. Flags 0: plain cached memory of this context.
        call("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&raw mut host, BYTES, 0) })?;
        match result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING) {
            Ok(free) => Ok(Slot { host: host.cast(), free }),
            Err(error) => {
                // SAFETY: allocated above, used by nobody.
                let _ = unsafe { sys::cuMemFreeHost(host) };
                Err(super::error("cuEventCreate", error.0))
            }
        }
    }

    /// As [`Staging::release`].
    fn release(self) {
        // SAFETY: made by `new`, given back once, as it is taken by value; nothing is copied any more. A context that
        // failed answers with an error, which changes nothing.
        unsafe {
            let _ = sys::cuEventDestroy_v2(self.free);
            let _ = sys::cuMemFreeHost(self.host.cast());
        }
    }
}

/// So many of what `make` makes. If one fails, those before it are given back.
fn all_or_none<S>(count: usize, mut make: impl FnMut() -> Result<S>, release: impl FnMut(S)) -> Result<Vec<S>> {
    let mut made = Vec::with_capacity(count);
    for _ in 0..count {
        match make() {
            Ok(one) => made.push(one),
            Err(error) => {
                made.into_iter().for_each(release);
                return Err(error);
            }
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn a_slot_that_fails_gives_back_those_before_it() {
        let (mut made, mut released) = (0, Vec::new());
        let make = |fails: usize, made: &mut usize| {
            *made += 1;
            if *made == fails { Err(Error::Driver { call: "cuMemHostAlloc", reason: "no".into() }) } else { Ok(*made) }
        };
        let done = all_or_none(3, || make(3, &mut made), |slot| released.push(slot));
        assert!(done.is_err());
        assert_eq!(released, [1, 2]);
        let done = all_or_none(2, || make(9, &mut made), |slot| released.push(slot));
        assert_eq!((done.unwrap(), released.len()), (vec![4, 5], 2));
    }
}
