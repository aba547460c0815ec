//! The caching allocator.
//!
//! Sizes are rounded up so that few distinct ones exist: to 512 bytes up to 1 MiB, above it to eighths of a power of
//! two, which wastes an eighth at most. A block that is given back goes to the list of its size and *stream*, and only
//! work of that stream gets it again: it runs after the last use, so nothing has to be waited for. If the
//! device has no room, all lists are given back, their streams are waited for, and the driver is asked once more.
//!
//! The driver is told what is lent to whom ([`Driver::lend`], [`Driver::reclaim`]), so that one that checks accesses, as
//! the emulator does, sees through the rounding and through reuse.
//!
//! While a stream's work is recorded for a graph, what is asked for should be there already: run the work once before.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use super::DeviceBuffer;
use crate::driver::{DevicePtr, Driver, Stream};
use crate::{Error, Result};

/// Bytes of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Handed out now, after rounding.
    pub in_use: u64,
    /// The most that was ever handed out at once.
    pub peak: u64,
    /// Taken from the driver now: handed out or kept for reuse.
    pub reserved: u64,
    /// The most that was ever taken.
    pub peak_reserved: u64,
}

/// Memory of a device.
#[derive(Debug)]
pub struct Pool {
    driver: Arc<dyn Driver>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    usage: Usage,
    kept: HashMap<(Stream, u64), Vec<DevicePtr>>,
    /// Streams that are no more; a number is never given to another.
    retired: HashSet<Stream>,
    /// Streams whose work is being recorded: what is kept for them may be in the recording already.
    recorded: HashSet<Stream>,
}

/// What `bytes` are rounded up to.
fn class(bytes: usize) -> u64 {
    const SMALL: u64 = 1 << 20;
    let bytes = (bytes as u64).max(1);
    let step = if bytes <= SMALL { 512 } else { (bytes.next_power_of_two() / 16).max(512) };
    bytes.div_ceil(step) * step
}

impl Pool {
    /// A pool that has nothing yet.
    pub fn new(driver: Arc<dyn Driver>) -> Arc<Pool> {
        Arc::new(Pool { driver, state: Mutex::default() })
    }

    /// The device.
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// A panic elsewhere leaves nothing half done: every change below is one statement.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What is used and kept.
    pub fn usage(&self) -> Usage {
        self.state().usage
    }

    /// Lets the peaks begin anew at what is used now.
    pub fn reset_peak(&self) {
        let usage = &mut self.state().usage;
        (usage.peak, usage.peak_reserved) = (usage.in_use, usage.reserved);
    }

    /// `bytes` with contents that nobody may rely on, for work of `stream`. `what` names the asker in errors.
    ///
    /// # Errors
    /// [`Error::NoRoom`], after everything that is kept was given back.
    pub fn alloc(self: &Arc<Pool>, what: &'static str, bytes: usize, stream: Stream) -> Result<DeviceBuffer> {
        let size = class(bytes);
        let kept = self.state().kept.get_mut(&(stream, size)).and_then(Vec::pop);
        let ptr = match kept {
            Some(ptr) => ptr,
            None => {
                let ptr = self.ask_driver(what, size, stream)?;
                let usage = &mut self.state().usage;
                usage.reserved += size;
                usage.peak_reserved = usage.peak_reserved.max(usage.reserved);
                ptr
            }
        };
        self.driver.lend(ptr, bytes, stream);
        let usage = &mut self.state().usage;
        usage.in_use += size;
        usage.peak = usage.peak.max(usage.in_use);
        Ok(DeviceBuffer::new(self.clone(), ptr, bytes, size, stream))
    }

    fn ask_driver(&self, what: &'static str, size: u64, stream: Stream) -> Result<DevicePtr> {
        let ask = || self.driver.alloc(size as usize, stream);
        let first = ask();
        if !matches!(first, Err(Error::OutOfMemory { .. })) {
            return first;
        }
        self.release()?;
        ask().map_err(|error| match error {
            Error::OutOfMemory { free, total, .. } => {
                Error::NoRoom { what, asked: size, in_use: self.usage().in_use, free, total }
            }
            other => other,
        })
    }

    /// Gives everything that is kept back to the driver, and waits until it has it; but what is kept for work that is being
    /// recorded, which goes on to use it whenever it is replayed.
    ///
    /// # Errors
    /// The first of the driver's, such as a kernel that failed earlier; the rest is given back all the same.
    pub fn release(&self) -> Result<()> {
        let kept = {
            let State { kept, recorded, .. } = &mut *self.state();
            let given: HashMap<_, _> = kept.extract_if(|(stream, _), _| !recorded.contains(stream)).collect();
            given
        };
        let mut first = Ok(());
        let mut streams = Vec::new();
        for ((stream, size), blocks) in kept {
            for ptr in blocks {
                first = first.and(self.driver.free(ptr, stream));
                self.state().usage.reserved -= size;
            }
            if !streams.contains(&stream) {
                streams.push(stream);
            }
        }
        streams.into_iter().fold(first, |first, stream| first.and(self.driver.synchronize(stream)))
    }

    /// Whether a stream's work is being recorded from now on.
    pub(crate) fn set_recorded(&self, stream: Stream, recorded: bool) {
        let mut state = self.state();
        if recorded {
            state.recorded.insert(stream);
        } else {
            state.recorded.remove(&stream);
        }
    }

    /// Takes what is kept for a stream out of the pool, with its size: for work that is recorded there, which nobody may
    /// share its memory with.
    pub(crate) fn withhold(&self, stream: Stream) -> Vec<(DevicePtr, u64)> {
        let mut state = self.state();
        let mut taken = Vec::new();
        state.kept.retain(|&(of, size), blocks| {
            if of == stream {
                taken.extend(blocks.drain(..).map(|ptr| (ptr, size)));
            }
            of != stream
        });
        state.usage.in_use += taken.iter().map(|(_, size)| size).sum::<u64>();
        state.usage.peak = state.usage.peak.max(state.usage.in_use);
        taken
    }

    /// Keeps blocks that were withheld for the stream again.
    pub(crate) fn hand_back(&self, blocks: &[(DevicePtr, u64)], stream: Stream) {
        let mut state = self.state();
        for &(ptr, size) in blocks {
            state.usage.in_use -= size;
            state.kept.entry((stream, size)).or_default().push(ptr);
        }
    }

    /// Gives blocks that were withheld, and all that is kept for the stream, back to the driver: the stream is about to be
    /// no more. What is still lent for it will be kept for the stream that is always there.
    pub(crate) fn retire(&self, blocks: Vec<(DevicePtr, u64)>, stream: Stream) {
        let kept = self.withhold(stream);
        let mut state = self.state();
        state.retired.insert(stream);
        for (ptr, size) in blocks.into_iter().chain(kept) {
            // A device that has failed has nothing left to free.
            let _ = self.driver.free(ptr, stream);
            state.usage.in_use -= size;
            state.usage.reserved -= size;
        }
    }

    /// Takes a block back.
    pub(super) fn give_back(&self, ptr: DevicePtr, size: u64, stream: Stream) {
        let mut state = self.state();
        let stream = if state.retired.contains(&stream) { Stream::default() } else { stream };
        // Before anybody can be given it again.
        self.driver.reclaim(ptr, stream);
        state.usage.in_use -= size;
        state.kept.entry((stream, size)).or_default().push(ptr);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // A device that has failed has nothing left to free.
        let _ = self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_by_an_eighth_at_most() {
        assert_eq!(class(0), 512);
        assert_eq!(class(513), 1024);
        for bytes in [(1 << 20) + 1, 3 << 20, (5 << 30) + 17] {
            let size = class(bytes);
            assert!(size >= bytes as u64 && size <= bytes as u64 * 9 / 8, "{bytes} to {size}");
        }
        let classes: std::collections::HashSet<u64> = (0..64).map(|i| class((1 << 20) + (i << 14) + 1)).collect();
        assert!(classes.len() <= 8, "{classes:?}");
    }
}
