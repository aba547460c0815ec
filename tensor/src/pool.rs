//! Large blocks of memory, kept for reuse: a training step asks for the same sizes again and again, and
//! the operating system's fresh pages cost more than the arithmetic on them.
//!
//! Blocks below [`SMALL`] come from the allocator, and each thread keeps a few: a step of decoding asks for hundreds, which
//! the system's allocator takes longer over than some ops do. Larger ones are mappings of their own (so that what is
//! given back really goes back), rounded up to one of eight sizes per power of two and, when freed, kept by
//! size. Passes differ in their tokens: where none that is kept is large enough, the next smaller one grows, on Linux, and
//! keeps the pages that it has. What is in use and what is kept never exceed the most
//! that was in use at once by more than a twentieth of it (or 16 MiB): beyond that, the blocks that
//! were kept longest are given back first.
//!
//! A block holds initialised bytes always: zeros from the system, then whatever its last user wrote.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use memmap2::MmapMut;

use crate::storage::ALIGN;

/// Blocks below this many bytes are not kept.
pub const SMALL: usize = 64 << 10;

/// Bytes of such blocks that a thread keeps at most.
const NEAR: usize = 512 << 10;

/// Share of the peak that may be kept beyond it.
const SLACK: f64 = 0.05;

/// Bytes that may always be kept.
const MIN_SLACK: usize = 16 << 20;

/// A block may serve a request this much smaller, or grow for one this much larger: passes of a run seldom differ by more, and what
/// has another size for another reason (a layer's values are a half, a third, a quarter as wide as others) is left alone.
const FIT: f64 = 1.6;

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
    /// Blocks that were made larger by the system.
    pub grown: u64,
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

    /// Makes a mapping longer where the system can; otherwise, and if it has no memory, the block comes back as it was.
    fn grow(mut self, capacity: usize) -> Result<Block, Block> {
        let Memory::Mapped(map) = &mut self.memory else { return Err(self) };
        debug_assert!(map.len() <= capacity);
        #[cfg(target_os = "linux")]
        {
            // SAFETY: the mapping is anonymous, so there is no file whose end it could pass; nothing points into it, as the
            // block is owned. What is new are zeros.
            if unsafe { map.remap(capacity, memmap2::RemapOptions::new().may_move(true)) }.is_ok() {
                if capacity >= HUGE {
                    let _ = map.advise(memmap2::Advice::HugePage);
                }
                return Ok(Block { zero: false, ..self });
            }
        }
        let _ = map;
        Err(self)
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

/// Small blocks that a thread keeps, by size.
#[derive(Default)]
struct Near {
    kept: BTreeMap<usize, Vec<Block>>,
    bytes: usize,
}

impl Near {
    fn take(&mut self, size: usize) -> Option<Block> {
        let block = self.kept.get_mut(&size)?.pop()?;
        self.bytes -= size;
        Some(Block { zero: false, ..block })
    }

    /// Keeps a block, or gives it back if there is no room.
    fn keep(&mut self, block: Block) -> Option<Block> {
        let size = block.bytes().len();
        if self.bytes + size > NEAR {
            return Some(block);
        }
        self.bytes += size;
        self.kept.entry(size).or_default().push(block);
        None
    }
}

thread_local! {
    static KEPT_NEAR: RefCell<Near> = RefCell::default();
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

/// The pool's size for `len` bytes: up to an eighth more, and whole cache lines. `None` if that is no size.
fn class(len: usize) -> Option<usize> {
    let step = (1 << (len.max(8).ilog2() - 3)).max(ALIGN);
    len.checked_next_multiple_of(step)
}

/// A block of at least `len` bytes, `len` > 0; `None` if there is no memory.
pub(crate) fn take(len: usize) -> Option<Block> {
    let capacity = class(len)?;
    if capacity < SMALL {
        // A thread that is ending keeps nothing.
        let near = KEPT_NEAR.try_with(|near| near.borrow_mut().take(capacity)).ok().flatten();
        return near.or_else(|| Block::fresh(capacity));
    }
    let smaller = match with_pool(|pool| pool.reuse(capacity)) {
        Found::Block(block) => return Some(block),
        Found::Smaller(block) => Some(block),
        Found::Nothing => None,
    };
    // Outside the lock: the system moves pages.
    if let Some(block) = smaller {
        match block.grow(capacity) {
            Ok(block) => {
                with_pool(|pool| pool.stats.grown += 1);
                return Some(block);
            }
            Err(block) => drop(block),
        }
    }
    with_pool(|pool| pool.stats.fresh += 1);
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
    } else {
        let _ = KEPT_NEAR.try_with(|near| near.borrow_mut().keep(block));
    }
}

/// What was kept for a request.
enum Found {
    /// A block that is large enough.
    Block(Block),
    /// One that is to grow.
    Smaller(Block),
    Nothing,
}

impl Pool {
    /// The smallest kept block that fits; or an account of one of `capacity`, with the largest that is to grow, if there is one.
    fn reuse(&mut self, capacity: usize) -> Found {
        let most = (capacity as f64 * FIT) as usize;
        let found = self.kept.range(capacity..=most).next().map(|(&size, _)| size);
        if let Some(block) = found.and_then(|size| self.take_of(size)) {
            self.stats.reused += 1;
            self.account(block.capacity());
            return Found::Block(block);
        }
        let least = (capacity as f64 / FIT).ceil() as usize;
        let smaller = self.kept.range(least.max(SMALL)..capacity).next_back().map(|(&size, _)| size);
        let smaller = smaller.and_then(|size| self.take_of(size));
        self.account(capacity);
        drop(self.shrink(self.allowance()));
        smaller.map_or(Found::Nothing, Found::Smaller)
    }

    /// The block of this size that was kept last: the likeliest to be in a cache.
    fn take_of(&mut self, size: usize) -> Option<Block> {
        let queue = self.kept.get_mut(&size)?;
        let (_, kept) = queue.pop_back()?;
        if queue.is_empty() {
            self.kept.remove(&size);
        }
        self.stats.kept -= size;
        Some(Block { zero: false, ..kept })
    }

    fn account(&mut self, bytes: usize) {
        self.stats.used += bytes;
        self.stats.peak = self.stats.peak.max(self.stats.used);
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
        assert_eq!([1, 64, 100, 512, 577, 60_000].map(class), [64, 64, 128, 512, 640, 61_440].map(Some));
        assert_eq!(class(usize::MAX), None);
    }

    #[test]
    fn small_blocks_are_kept_by_the_thread_up_to_a_bound() {
        let mut near = Near::default();
        let fresh = |size: usize| Block::fresh(size).unwrap();
        assert!(near.take(128).is_none());
        assert!(near.keep(fresh(128)).is_none() && near.keep(fresh(192)).is_none());
        let block = near.take(192).unwrap();
        assert_eq!((block.bytes().len(), block.zero, near.bytes), (192, false, 128));
        assert!(near.take(192).is_none() && near.keep(block).is_none());
        let kept = (0..100).filter(|_| near.keep(fresh(32 << 10)).is_none()).count();
        assert_eq!((kept, near.bytes), (NEAR / (32 << 10) - 1, 320 + kept * (32 << 10)));
    }

    /// On a pool of its own: the program's is shared by every test.
    #[test]
    fn what_is_kept_is_bounded_and_reused() {
        let mut pool = Pool::default();
        let mut fresh = 0;
        let mut get = |pool: &mut Pool, len: usize| {
            let capacity = class(len).unwrap();
            match pool.reuse(capacity) {
                Found::Block(block) => block,
                Found::Smaller(_) => unreachable!("no size of this test is near another"),
                Found::Nothing => {
                    fresh += 1;
                    Block::fresh(capacity).unwrap()
                }
            }
        };
        const MB: usize = 1 << 20;
        let first: Vec<Block> = (0..4).map(|_| get(&mut pool, 8 * MB)).collect();
        assert_eq!((pool.stats.used, pool.stats.peak), (32 * MB, 32 * MB));
        first.into_iter().for_each(|b| drop(pool.keep(b)));
        assert_eq!((pool.stats.used, pool.stats.kept), (0, 32 * MB));
        let again = get(&mut pool, 7 * MB);
        assert_eq!(
            (again.capacity(), again.zero, pool.stats.reused),
            (8 * MB, false, 1),
            "a slightly larger one serves"
        );
        let other = get(&mut pool, 20 * MB);
        assert_eq!(fresh, 5, "none is large enough");
        let (peak, slack) = (pool.stats.peak, MIN_SLACK);
        assert!(pool.stats.used + pool.stats.kept <= peak + slack, "{:?}", pool.stats);
        [again, other].into_iter().for_each(|b| drop(pool.keep(b)));
        pool.shrink(0);
        assert_eq!((pool.stats.kept, pool.stats.used), (0, 0));
    }

    /// A little more than what is kept: the pages that are there stay, with what is in them.
    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_a_little_too_small_grows() {
        let mut pool = Pool::default();
        let size = |len: usize| class(len).unwrap();
        assert!(matches!(pool.reuse(size(6 << 20)), Found::Nothing));
        let mut block = Block::fresh(size(6 << 20)).unwrap();
        block.bytes_mut().fill(7);
        drop(pool.keep(block));
        // Far more is another block's business.
        assert!(matches!(pool.reuse(size(12 << 20)), Found::Nothing));
        pool.stats.used -= size(12 << 20);
        let Found::Smaller(block) = pool.reuse(size(8 << 20)) else { panic!("6 MiB grow to 8") };
        assert_eq!((pool.stats.kept, pool.stats.used), (0, 8 << 20));
        let block = block.grow(8 << 20).unwrap_or_else(|_| panic!("there is memory"));
        assert!(!block.zero);
        let bytes = block.bytes();
        assert_eq!(
            (bytes.len(), bytes[0], bytes[(6 << 20) - 1], bytes[6 << 20], bytes[(8 << 20) - 1]),
            (8 << 20, 7, 7, 0, 0)
        );
        drop(pool.keep(block));
        assert_eq!((pool.stats.kept, pool.stats.used), (8 << 20, 0));
    }
}
