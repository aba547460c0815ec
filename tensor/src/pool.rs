//! Large blocks of memory, kept for reuse: a training step asks for the same sizes again and again, and
//! the operating system's fresh pages cost more than the arithmetic on them.
//!
//! Blocks below [`SMALL`] come from the allocator. Larger ones are mappings of their own (so that what is
//! given back really goes back), rounded up to one of eight sizes per power of two and, when freed, kept by
//! size. What is in use and what is kept never exceed the most
//! that was in use at once by more than a twentieth of it (or 16 MiB): beyond that, the blocks that
//! were kept longest are given back first.
//!
//! A block holds initialised bytes always: zeros from the system, then whatever its last user wrote.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use memmap2::MmapMut;

use crate::storage::ALIGN;

/// Blocks below this many bytes are not kept.
pub const SMALL: usize = 64 << 10;

/// Share of the peak that may be kept beyond it.
const SLACK: f64 = 0.05;

/// Bytes that may always be kept.
const MIN_SLACK: usize = 16 << 20;

/// A block may serve a request this much smaller.
const FIT: f64 = 1.25;

/// What the pool has done and holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Bytes of blocks in use.
    pub used: usize,
    /// Bytes of blocks kept for reuse.
    pub kept: usize,
    /// The most bytes that were in use at once.
    pub peak: usize,
    /// Blocks that had to come from the system.
    pub fresh: u64,
    /// Blocks that were reused.
    pub reused: u64,
}

/// Bytes from which a mapping asks for huge pages: fewer faults, fewer misses of the address cache.
const HUGE: usize = 4 << 20;

/// A block in hand.
pub(crate) struct Block {
    memory: Memory,
    /// Whether every byte is known to be 0.
    pub(crate) zero: bool,
}

enum Memory {
    /// Of the pool: as long as its size says.
    Mapped(MmapMut),
    /// Lines of a cache, which align the bytes.
    Small(Vec<Line>),
}

/// [`ALIGN`] bytes, aligned to themselves.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; ALIGN]);

impl Block {
    /// A block from the system.
    fn fresh(capacity: usize) -> Option<Block> {
        let memory = if capacity < SMALL {
            Memory::Small(vec![Line([0; ALIGN]); capacity.div_ceil(ALIGN)])
        } else {
            let map = MmapMut::map_anon(capacity).ok()?;
            #[cfg(target_os = "linux")]
            if capacity >= HUGE {
                // Advice: without it the pages are small ones.
                let _ = map.advise(memmap2::Advice::HugePage);
            }
            Memory::Mapped(map)
        };
        Some(Block { memory, zero: true })
    }

    /// Bytes of the pool's account; none for a small block.
    fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Mapped(map) => map.len(),
            Memory::Small(_) => 0,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Mapped(map) => map,
            Memory::Small(lines) => bytemuck::cast_slice(lines),
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Mapped(map) => map,
            Memory::Small(lines) => bytemuck::cast_slice_mut(lines),
        }
    }
}

#[derive(Default)]
struct Pool {
    /// By size; in each the block that was kept longest first, with the time it came.
    kept: BTreeMap<usize, VecDeque<(u64, Block)>>,
    clock: u64,
    stats: PoolStats,
}

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

fn with_pool<T>(f: impl FnOnce(&mut Pool) -> T) -> T {
    f(POOL.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert_default())
}

/// What the pool holds now.
pub fn stats() -> PoolStats {
    with_pool(|pool| pool.stats)
}

/// Forgets the peak, so that [`stats`] gives that of what comes.
pub fn reset_peak() {
    with_pool(|pool| pool.stats.peak = pool.stats.used);
}

/// Gives everything that is kept back to the system.
pub fn clear() {
    drop(with_pool(|pool| pool.shrink(0)));
}

/// The pool's size for `len` bytes: up to an eighth more. `None` if that is no size.
fn class(len: usize) -> Option<usize> {
    if len < SMALL {
        return Some(len);
    }
    let step = 1 << (len.ilog2() - 3);
    len.checked_next_multiple_of(step)
}

/// A block of at least `len` bytes, `len` > 0; `None` if there is no memory.
pub(crate) fn take(len: usize) -> Option<Block> {
    let capacity = class(len)?;
    if capacity < SMALL {
        return Block::fresh(capacity);
    }
    if let Some(block) = with_pool(|pool| pool.reuse(capacity)) {
        return Some(block);
    }
    let block = Block::fresh(capacity).or_else(|| {
        clear();
        Block::fresh(capacity)
    });
    if block.is_none() {
        with_pool(|pool| pool.stats.used -= capacity);
    }
    block
}

/// Takes a block back.
pub(crate) fn give(block: Block) {
    if block.capacity() > 0 {
        // What is given back to the system is unmapped outside the lock.
        drop(with_pool(|pool| pool.keep(block)));
    }
}

impl Pool {
    /// The smallest kept block that fits, or an account of a fresh one.
    fn reuse(&mut self, capacity: usize) -> Option<Block> {
        let most = (capacity as f64 * FIT) as usize;
        let found = self.kept.range(capacity..=most).next().map(|(&size, _)| size);
        let block = found.and_then(|size| {
            let queue = self.kept.get_mut(&size)?;
            // The latest to come is the likeliest to be in a cache.
            let (_, kept) = queue.pop_back()?;
            if queue.is_empty() {
                self.kept.remove(&size);
            }
            self.stats.kept -= size;
            self.stats.reused += 1;
            Some(Block { zero: false, ..kept })
        });
        self.stats.used += block.as_ref().map_or(capacity, Block::capacity);
        self.stats.peak = self.stats.peak.max(self.stats.used);
        if block.is_none() {
            self.stats.fresh += 1;
            drop(self.shrink(self.allowance()));
        }
        block
    }

    /// Keeps a block; gives those that make room for it.
    fn keep(&mut self, block: Block) -> Vec<Block> {
        let capacity = block.capacity();
        self.stats.used -= capacity;
        self.stats.kept += capacity;
        self.clock += 1;
        self.kept.entry(capacity).or_default().push_back((self.clock, block));
        self.shrink(self.allowance())
    }

    /// Bytes that may be kept now.
    fn allowance(&self) -> usize {
        let slack = ((self.stats.peak as f64 * SLACK) as usize).max(MIN_SLACK);
        (self.stats.peak + slack).saturating_sub(self.stats.used)
    }

    /// Takes out the blocks that were kept longest until at most `bytes` are kept.
    fn shrink(&mut self, bytes: usize) -> Vec<Block> {
        let mut out = vec![];
        while self.stats.kept > bytes {
            let oldest = self.kept.iter().min_by_key(|(_, queue)| queue.front().map(|(time, _)| *time));
            let Some((&size, _)) = oldest else { break };
            let queue = self.kept.get_mut(&size).expect("just found");
            if let Some((_, kept)) = queue.pop_front() {
                self.stats.kept -= size;
                out.push(kept);
            }
            if queue.is_empty() {
                self.kept.remove(&size);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_at_most_an_eighth_larger() {
        for len in (SMALL..4 * SMALL).step_by(997).chain([usize::MAX / 2 + 1]) {
            let size = class(len).unwrap();
            assert!(size >= len && size - len <= len / 8 && class(size) == Some(size), "{len} {size}");
        }
        assert_eq!(class(100), Some(100));
        assert_eq!(class(usize::MAX), None);
    }

    /// On a pool of its own: the program's is shared by every test.
    #[test]
    fn what_is_kept_is_bounded_and_reused() {
        let mut pool = Pool::default();
        let get = |pool: &mut Pool, len: usize| {
            let capacity = class(len).unwrap();
            pool.reuse(capacity).unwrap_or_else(|| Block::fresh(capacity).unwrap())
        };
        const MB: usize = 1 << 20;
        let first: Vec<Block> = (0..4).map(|_| get(&mut pool, 8 * MB)).collect();
        assert_eq!((pool.stats.used, pool.stats.peak, pool.stats.fresh), (32 * MB, 32 * MB, 4));
        first.into_iter().for_each(|b| drop(pool.keep(b)));
        assert_eq!((pool.stats.used, pool.stats.kept), (0, 32 * MB));
        let again = get(&mut pool, 7 * MB);
        assert_eq!(
            (again.capacity(), again.zero, pool.stats.reused),
            (8 * MB, false, 1),
            "a slightly larger one serves"
        );
        let other = get(&mut pool, 20 * MB);
        assert_eq!(pool.stats.fresh, 5, "none is large enough");
        let (peak, slack) = (pool.stats.peak, MIN_SLACK);
        assert!(pool.stats.used + pool.stats.kept <= peak + slack, "{:?}", pool.stats);
        [again, other].into_iter().for_each(|b| drop(pool.keep(b)));
        pool.shrink(0);
        assert_eq!((pool.stats.kept, pool.stats.used), (0, 0));
    }
}
