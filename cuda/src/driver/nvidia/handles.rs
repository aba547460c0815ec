//! What this device gave out: numbers for the driver's pointers, and the ranges of its memory.

use std::collections::{BTreeMap, HashMap};

use cudarc::driver::sys;

use crate::{Error, Result};

/// Pointers of one kind behind numbers that are never used twice.
#[derive(Debug)]
pub(super) struct Table<P> {
    what: &'static str,
    next: u64,
    entries: HashMap<u64, P>,
}

impl<P: Copy> Table<P> {
    pub(super) fn new(what: &'static str) -> Table<P> {
        Table { what, next: 1, entries: HashMap::new() }
    }

    pub(super) fn insert(&mut self, pointer: P) -> u64 {
        let handle = self.next;
        self.next += 1;
        self.entries.insert(handle, pointer);
        handle
    }

    /// Puts an entry under a number of the caller's choice.
    pub(super) fn insert_at(&mut self, handle: u64, pointer: P) {
        self.entries.insert(handle, pointer);
    }

    pub(super) fn get(&self, handle: u64) -> Result<P> {
        self.entries.get(&handle).copied().ok_or(Error::Handle { what: self.what, handle })
    }

    pub(super) fn remove(&mut self, handle: u64) -> Result<P> {
        self.entries.remove(&handle).ok_or(Error::Handle { what: self.what, handle })
    }

    pub(super) fn retain(&mut self, keep: impl Fn(P) -> bool) {
        self.entries.retain(|_, pointer| keep(*pointer));
    }

    pub(super) fn drain(&mut self) -> Vec<P> {
        self.entries.drain().map(|(_, pointer)| pointer).collect()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = P> {
        self.entries.values().copied()
    }
}

/// Allocations: address to bytes.
#[derive(Debug, Default)]
pub(super) struct Ranges(BTreeMap<u64, usize>);

impl Ranges {
    pub(super) fn insert(&mut self, start: u64, bytes: usize) {
        self.0.insert(start, bytes);
    }

    /// Takes an allocation out by its first address.
    pub(super) fn remove(&mut self, start: u64) -> Result<()> {
        self.0.remove(&start).map(drop).ok_or(Error::Handle { what: "the allocation", handle: start })
    }

    /// Whether `bytes` from `start` lie within one allocation.
    pub(super) fn check(&self, start: u64, bytes: usize) -> Result<()> {
        let within = self.0.range(..=start).next_back().is_some_and(|(first, length)| {
            let offset = start - first;
            (offset as usize).checked_add(bytes).is_some_and(|end| end <= *length)
        });
        if within { Ok(()) } else { Err(Error::Handle { what: "the memory at", handle: start }) }
    }

    pub(super) fn drain(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.0).into_keys().collect()
    }
}

/// A kernel with what a launch must agree with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    pub(super) function: sys::CUfunction,
    pub(super) module: u64,
    /// Index into `Handles::signatures`.
    pub(super) signature: usize,
    /// Dynamic shared memory that the kernel was opted into, bytes.
    pub(super) shared: u32,
}

/// Name and sizes of parameters, in order.
#[derive(Debug)]
pub(super) struct Signature {
    pub(super) name: String,
    pub(super) sizes: Vec<usize>,
}

/// Everything that was given out.
#[derive(Debug)]
pub(super) struct Handles {
    pub(super) streams: Table<sys::CUstream>,
    pub(super) events: Table<sys::CUevent>,
    pub(super) modules: Table<sys::CUmodule>,
    pub(super) kernels: Table<Kernel>,
    pub(super) graphs: Table<sys::CUgraphExec>,
    pub(super) signatures: Vec<Signature>,
    pub(super) memory: Ranges,
}

impl Handles {
    pub(super) fn new() -> Handles {
        Handles {
            streams: Table::new("the stream"),
            events: Table::new("the event"),
            modules: Table::new("the module"),
            kernels: Table::new("the kernel"),
            graphs: Table::new("the graph"),
            signatures: Vec::new(),
            memory: Ranges::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_handles_are_errors() {
        let mut table = Table::new("the stream");
        let (a, b) = (table.insert(10), table.insert(11));
        assert_eq!(table.remove(a).unwrap(), 10);
        let c = table.insert(12);
        assert!(c != a && c != b, "a number is not used again");
        assert_eq!(table.get(a).unwrap_err().to_string(), "the stream 1 is not one of this device's");
        assert_eq!(table.get(b).unwrap(), 11);
    }

    #[test]
    fn ranges_end_where_allocations_end() {
        let mut ranges = Ranges::default();
        ranges.insert(1024, 100);
        ranges.insert(2048, 16);
        for (start, bytes, ok) in [
            (1024, 100, true),
            (1024, 101, false),
            (1100, 24, true),
            (1124, 0, true),
            (1125, 0, false),
            (2050, 14, true),
            (1000, 1, false),
        ] {
            assert_eq!(ranges.check(start, bytes).is_ok(), ok, "{bytes} from {start}");
        }
        assert!(ranges.remove(1025).is_err());
        ranges.remove(1024).unwrap();
        assert!(ranges.check(1024, 1).is_err());
    }
}
