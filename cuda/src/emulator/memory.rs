//! Global memory: allocations with guard gaps between them, and a record of which bytes were written.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::fault::{AccessKind, FaultKind};
use super::window::GLOBAL_BEGIN;

/// Addresses between two allocations that belong to none.
const GAP: u64 = 1 << 20;
/// How many freed allocations are remembered.
const REMEMBERED: usize = 1 << 16;

/// Some memory. Blocks run on several threads, so every access is a relaxed atomic: a race of the kernel is a
/// wrong number, not undefined behaviour.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) base: u64,
    /// What may be accessed: what was asked for, or less while a pool lends it; nothing while a pool keeps it.
    pub(crate) bytes: u64,
    /// What was asked for.
    room: u64,
    lent: bool,
    words: Box<[AtomicU64]>,
    /// A bit a byte.
    written: Box<[AtomicU64]>,
    all_written: AtomicBool,
    pub(crate) read_only: bool,
}

fn zeros(count: usize) -> Box<[AtomicU64]> {
    let words = vec![0_u64; count].into_boxed_slice();
    // SAFETY: `AtomicU64` has the size and bit validity of `u64`, and on every target with 64-bit atomics that this
    // crate builds for (x86-64, aarch64) its alignment; the box keeps its length. Zeroed pages stay untouched.
    unsafe { Box::from_raw(Box::into_raw(words) as *mut [AtomicU64]) }
}

impl Allocation {
    fn new(base: u64, bytes: u64) -> Self {
        let words = bytes.div_ceil(8) as usize;
        Self {
            base,
            bytes,
            room: bytes,
            lent: true,
            words: zeros(words),
            written: zeros(words.div_ceil(8)),
            all_written: AtomicBool::new(bytes == 0),
            read_only: false,
        }
    }

    /// As if it were new and of so many bytes. What it holds stays, but nothing has written it.
    fn lend(&mut self, bytes: u64) {
        (self.bytes, self.lent) = (bytes.min(self.room), true);
        self.all_written = AtomicBool::new(self.bytes == 0);
        let words = self.bytes.div_ceil(64) as usize;
        self.written[..words].iter_mut().for_each(|word| *word.get_mut() = 0);
    }

    fn reclaim(&mut self) {
        (self.bytes, self.lent) = (0, false);
    }

    fn byte(&self, at: usize) -> *mut u8 {
        self.words.as_ptr().cast::<u8>().wrapping_add(at).cast_mut()
    }

    /// # Panics
    /// If the access is not within the allocation and aligned: callers have checked it.
    #[inline(always)]
    fn check(&self, at: u64, bytes: u64) {
        assert!(at & (bytes - 1) == 0 && at + bytes <= self.words.len() as u64 * 8, "an unchecked access");
    }

    /// 1, 2, 4 or 8 bytes.
    #[inline(always)]
    pub(crate) fn load(&self, at: u64, bytes: u64) -> u64 {
        self.check(at, bytes);
        let from = self.byte(at as usize);
        // SAFETY: in bounds and aligned by the check; the words are atomics, which may be shared and written; all
        // accesses to them are atomic.
        unsafe {
            match bytes {
                1 => AtomicU8::from_ptr(from).load(Ordering::Relaxed).into(),
                2 => AtomicU16::from_ptr(from.cast()).load(Ordering::Relaxed).into(),
                4 => AtomicU32::from_ptr(from.cast()).load(Ordering::Relaxed).into(),
                _ => AtomicU64::from_ptr(from.cast()).load(Ordering::Relaxed),
            }
        }
    }

    /// 1, 2, 4 or 8 bytes.
    #[inline(always)]
    pub(crate) fn store(&self, at: u64, bytes: u64, value: u64) {
        self.check(at, bytes);
        let to = self.byte(at as usize);
        // SAFETY: as in `load`.
        unsafe {
            match bytes {
                1 => AtomicU8::from_ptr(to).store(value as u8, Ordering::Relaxed),
                2 => AtomicU16::from_ptr(to.cast()).store(value as u16, Ordering::Relaxed),
                4 => AtomicU32::from_ptr(to.cast()).store(value as u32, Ordering::Relaxed),
                _ => AtomicU64::from_ptr(to.cast()).store(value, Ordering::Relaxed),
            }
        }
    }

    /// Changes 2, 4 or 8 bytes as one step; returns what they were.
    pub(crate) fn update(&self, at: u64, bytes: u64, f: impl Fn(u64) -> u64) -> u64 {
        self.check(at, bytes);
        let at = self.byte(at as usize);
        // SAFETY: as in `load`.
        unsafe {
            match bytes {
                2 => AtomicU16::from_ptr(at.cast())
                    .update(Ordering::Relaxed, Ordering::Relaxed, |x| f(x.into()) as u16)
                    .into(),
                4 => AtomicU32::from_ptr(at.cast())
                    .update(Ordering::Relaxed, Ordering::Relaxed, |x| f(x.into()) as u32)
                    .into(),
                _ => AtomicU64::from_ptr(at.cast()).update(Ordering::Relaxed, Ordering::Relaxed, f),
            }
        }
    }

    /// Whether all of so many bytes were written; they lie within 64 aligned ones.
    #[inline(always)]
    pub(crate) fn is_written(&self, at: u64, bytes: u64) -> bool {
        if self.all_written.load(Ordering::Relaxed) {
            return true;
        }
        let mask = ((1_u64 << bytes) - 1) << (at % 64);
        self.written[at as usize / 64].load(Ordering::Relaxed) & mask == mask
    }

    /// Remembers that bytes were written; they lie within 64 aligned ones.
    #[inline(always)]
    pub(crate) fn mark(&self, at: u64, bytes: u64) {
        if self.all_written.load(Ordering::Relaxed) {
            return;
        }
        let mask = ((1_u64 << bytes) - 1) << (at % 64);
        let word = &self.written[at as usize / 64];
        if word.load(Ordering::Relaxed) & mask != mask {
            word.fetch_or(mask, Ordering::Relaxed);
        }
    }

    fn mark_range(&self, at: u64, bytes: u64) {
        if at == 0 && bytes == self.bytes {
            self.all_written.store(true, Ordering::Relaxed);
            return;
        }
        let mut now = at;
        while now < at + bytes {
            let step = (64 - now % 64).min(at + bytes - now);
            if step == 64 {
                self.written[now as usize / 64].store(u64::MAX, Ordering::Relaxed);
            } else {
                self.mark(now, step);
            }
            now += step;
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let mut at = at;
        let mut rest = bytes;
        while !rest.is_empty() {
            if at.is_multiple_of(8) && rest.len() >= 8 {
                let (word, after) = rest.split_at(8);
                self.store(at, 8, u64::from_le_bytes(word.try_into().unwrap_or_default()));
                (at, rest) = (at + 8, after);
            } else {
                self.store(at, 1, rest[0].into());
                (at, rest) = (at + 1, &rest[1..]);
            }
        }
    }

    fn read(&self, at: u64, bytes: &mut [u8]) {
        let mut at = at;
        let mut rest = bytes;
        while !rest.is_empty() {
            let step = if at.is_multiple_of(8) && rest.len() >= 8 { 8 } else { 1 };
            let word = self.load(at, step as u64).to_le_bytes();
            let (now, after) = rest.split_at_mut(step);
            now.copy_from_slice(&word[..step]);
            (at, rest) = (at + step as u64, after);
        }
    }
}

/// All global memory of a device.
#[derive(Debug)]
pub(crate) struct Memory {
    live: BTreeMap<u64, Allocation>,
    freed: BTreeMap<u64, u64>,
    next: u64,
    pub(crate) used: u64,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self { live: BTreeMap::new(), freed: BTreeMap::new(), next: GLOBAL_BEGIN, used: 0 }
    }

    /// New memory; no address is ever given out twice.
    pub(crate) fn alloc(&mut self, bytes: u64) -> u64 {
        let base = self.next;
        self.next = (base + bytes + GAP).next_multiple_of(GAP);
        self.live.insert(base, Allocation::new(base, bytes));
        self.used += bytes;
        base
    }

    /// A variable of a module, which begins as its initial values and zeros.
    pub(crate) fn alloc_variable(&mut self, bytes: u64, init: &[u8], read_only: bool) -> u64 {
        let base = self.next;
        self.next = (base + bytes + GAP).next_multiple_of(GAP);
        let mut allocation = Allocation::new(base, bytes);
        allocation.write(0, init);
        allocation.mark_range(0, bytes);
        allocation.read_only = read_only;
        self.live.insert(base, allocation);
        self.used += bytes;
        base
    }

    /// Whether it was there.
    pub(crate) fn free(&mut self, base: u64) -> bool {
        let Some(allocation) = self.live.remove(&base) else { return false };
        self.used -= allocation.room;
        if self.freed.len() >= REMEMBERED {
            self.freed.pop_first();
        }
        self.freed.insert(base, allocation.room);
        true
    }

    /// A pool hands an allocation out, for its first bytes. One that is not here is none of a pool's.
    pub(crate) fn lend(&mut self, base: u64, bytes: u64) {
        if let Some(allocation) = self.live.get_mut(&base) {
            allocation.lend(bytes);
        }
    }

    /// A pool has it back.
    pub(crate) fn reclaim(&mut self, base: u64) {
        if let Some(allocation) = self.live.get_mut(&base) {
            allocation.reclaim();
        }
    }

    /// The allocation that holds all of an access.
    pub(crate) fn find(&self, address: u64, bytes: u64, access: AccessKind) -> Result<&Allocation, FaultKind> {
        let near = self.live.range(..=address).next_back().map(|(_, allocation)| allocation);
        if let Some(allocation) = near
            && address - allocation.base < allocation.bytes
            && bytes <= allocation.bytes - (address - allocation.base)
        {
            return Ok(allocation);
        }
        if let Some(allocation) = near
            && !allocation.lent
            && address - allocation.base < allocation.room
        {
            let Allocation { base, room, .. } = *allocation;
            return Err(FaultKind::UseAfterReclaim { access, address, base, bytes: room });
        }
        if let Some((base, size)) = self.freed.range(..=address).next_back()
            && address - base < *size
        {
            return Err(FaultKind::UseAfterFree { access, address, base: *base, bytes: *size });
        }
        let near = near
            .map(|allocation| (allocation.base, allocation.bytes))
            .filter(|(base, size)| address - base < size.saturating_add(GAP));
        Err(FaultKind::OutOfBounds { space: "global", access, address, bytes, near })
    }

    pub(crate) fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), FaultKind> {
        if bytes.is_empty() {
            return Ok(());
        }
        let allocation = self.find(to, bytes.len() as u64, AccessKind::Write)?;
        allocation.write(to - allocation.base, bytes);
        allocation.mark_range(to - allocation.base, bytes.len() as u64);
        Ok(())
    }

    pub(crate) fn download(&self, bytes: &mut [u8], from: u64) -> Result<(), FaultKind> {
        if bytes.is_empty() {
            return Ok(());
        }
        let allocation = self.find(from, bytes.len() as u64, AccessKind::Read)?;
        allocation.read(from - allocation.base, bytes);
        Ok(())
    }

    pub(crate) fn fill(&self, to: u64, byte: u8, bytes: u64) -> Result<(), FaultKind> {
        if bytes == 0 {
            return Ok(());
        }
        let allocation = self.find(to, bytes, AccessKind::Write)?;
        let chunk = [byte; 4096];
        let begin = to - allocation.base;
        let mut done = 0;
        while done < bytes {
            let step = (bytes - done).min(4096);
            allocation.write(begin + done, &chunk[..step as usize]);
            done += step;
        }
        allocation.mark_range(begin, bytes);
        Ok(())
    }

    /// Copies bytes, and whether they were written.
    pub(crate) fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<(), FaultKind> {
        if bytes == 0 {
            return Ok(());
        }
        let source = self.find(from, bytes, AccessKind::Read)?;
        let target = self.find(to, bytes, AccessKind::Write)?;
        let (from, to) = (from - source.base, to - target.base);
        let mut chunk = [0; 4096];
        let mut done = 0;
        while done < bytes {
            let step = (bytes - done).min(4096);
            source.read(from + done, &mut chunk[..step as usize]);
            target.write(to + done, &chunk[..step as usize]);
            done += step;
        }
        if source.all_written.load(Ordering::Relaxed) {
            target.mark_range(to, bytes);
        } else if !(target.all_written.load(Ordering::Relaxed)) {
            for at in 0..bytes {
                if source.is_written(from + at, 1) {
                    target.mark(to + at, 1);
                } else {
                    let word = &target.written[(to + at) as usize / 64];
                    word.fetch_and(!(1 << ((to + at) % 64)), Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }
}
