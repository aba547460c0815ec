//! A block's shared memory, and who touched which bytes when.
//!
//! Races are found by vector clocks of warps (Flanagan and Freund, *FastTrack*, 2009). A warp's own clock ticks at
//! each barrier; a barrier tells it the clocks of all that met there. An access is ordered after another if the
//! other's clock was told. Lanes of one warp are ordered by `bar.warp.sync` and barriers only, for PTX promises no more.
//! Each granule remembers its last write and two unordered reads. So a race with a third reader, unordered with
//! two others that both are ordered with the writer, goes unseen, as does one between lanes that a `bar.warp.sync`
//! of other lanes of the warp lies between.

use super::fault::{AccessKind, FaultKind, Line};
use super::window::{self, SHARED_BEGIN};

/// An access, packed: pending copy, strong; 14 bits of thread; read by a product; 23 of clock, 24 of instruction. Threads are counted through the
/// blocks of a cluster, in whole warps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Record(u64);

const PENDING: u64 = 1 << 63;
const STRONG: u64 = 1 << 62;
const PRODUCT: u64 = 1 << 47;
/// Of a cell's stamp: written by the asynchronous proxy, which needs no fence to be read by it.
const ASYNCHRONOUS: u32 = 1 << 31;

/// The way that an access takes to memory. `cp.async` goes the generic way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proxy {
    /// Loads, stores, atomics.
    Generic,
    /// Bulk copies and `wgmma`.
    Asynchronous,
}

impl Record {
    fn new(by: &Accessor<'_>, flags: u64) -> Self {
        let strong = if by.strong { STRONG } else { 0 };
        let own = by.clocks[by.thread as usize / 32] & 0x7f_ffff;
        Self(flags | strong | u64::from(by.thread) << 48 | u64::from(own) << 24 | u64::from(by.pc & 0xff_ffff))
    }

    fn thread(self) -> u32 {
        (self.0 >> 48) as u32 & 0x3fff
    }

    fn clock(self) -> u32 {
        (self.0 >> 24) as u32 & 0x7f_ffff
    }

    fn pc(self) -> u32 {
        self.0 as u32 & 0xff_ffff
    }

    /// Whether nothing needs to come between it and `by`.
    #[inline(always)]
    fn ordered(self, by: &Accessor<'_>) -> bool {
        let warp = self.thread() / 32;
        self.0 == 0
            || self.thread() == by.thread
            || if warp == by.thread / 32 {
                self.clock() < by.clocks[warp as usize]
            } else {
                self.clock() <= by.clocks[warp as usize]
            }
            || (by.strong && self.0 & STRONG != 0)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    write: Record,
    reads: [Record; 2],
    /// When it was written, by `Shared::now`, and `ASYNCHRONOUS` if by a bulk copy.
    stamp: u32,
}

/// Who accesses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accessor<'a> {
    pub(crate) thread: u32,
    pub(crate) pc: u32,
    /// An atomic or a volatile or stronger access.
    pub(crate) strong: bool,
    /// What its warp knows of every warp's clock.
    pub(crate) clocks: &'a [u32],
}

/// What to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checks {
    /// Reads of memory that nothing wrote.
    pub unwritten: bool,
    /// Races on shared memory.
    pub races: bool,
    /// A barrier that threads wait at while others of the block have finished without it. Hardware lets it pass, CUDA
    /// does not promise so.
    pub finished_at_barrier: bool,
    /// Shared memory that a store wrote and a bulk copy or `wgmma` reads without `fence.proxy.async` between.
    pub proxies: bool,
}

impl Default for Checks {
    fn default() -> Self {
        Self { unwritten: true, races: true, finished_at_barrier: true, proxies: true }
    }
}

/// A block's shared memory.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    bytes: Vec<u8>,
    cells: Vec<Cell>,
    /// log2 of the bytes of a cell.
    shift: u32,
    /// Counts fences and products, so that a write is before or after each.
    now: u32,
    /// For each thread, when it last ran `fence.proxy.async`.
    fences: Vec<u32>,
    checks: Checks,
}

/// A race or another fault whose other line is still an instruction's number.
pub(crate) enum SharedFault {
    Plain(FaultKind),
    Race { address: u64, access: AccessKind, other: AccessKind, thread: u32, pc: u32 },
    Pending { address: u64, thread: u32, pc: u32 },
    NoFence { address: u64, thread: u32, pc: u32 },
    Overwritten { address: u64, thread: u32, pc: u32 },
}

impl SharedFault {
    pub(crate) fn resolve(self, line: impl Fn(u32) -> Line) -> FaultKind {
        match self {
            Self::Plain(kind) => kind,
            Self::Race { address, access, other, thread, pc } => {
                FaultKind::Race { address, access, other, other_thread: thread, other_at: line(pc) }
            }
            Self::Pending { address, thread, pc } => FaultKind::PendingCopy { address, copier: thread, copy: line(pc) },
            Self::NoFence { address, thread, pc } => {
                FaultKind::NoProxyFence { address, writer: thread, write: line(pc) }
            }
            Self::Overwritten { address, thread, pc } => {
                FaultKind::OperandOverwritten { address, writer: thread, write: line(pc) }
            }
        }
    }
}

impl Shared {
    /// Forgets everything, for a new block.
    pub(crate) fn reset(&mut self, bytes: u32, granule: u32, threads: u32, checks: Checks) {
        self.shift = granule.max(1).ilog2();
        self.checks = checks;
        self.now = 0;
        self.fences.clear();
        self.fences.resize(threads as usize, 0);
        let bytes = bytes.next_multiple_of(16) as usize;
        self.bytes.clear();
        self.bytes.resize(bytes, 0);
        self.cells.clear();
        self.cells.resize(bytes >> self.shift, Cell::default());
    }

    /// The place of an access of `bytes` bytes, checked.
    fn place(&self, address: u64, bytes: u64, access: AccessKind) -> Result<usize, SharedFault> {
        let at = address.wrapping_sub(SHARED_BEGIN);
        if at.checked_add(bytes).is_none_or(|end| end > self.bytes.len() as u64) {
            if let Some(rank) = window::rank(address) {
                return Err(SharedFault::Plain(FaultKind::OtherBlock {
                    access,
                    address: window::within(address),
                    rank,
                }));
            }
            let near = Some((SHARED_BEGIN, self.bytes.len() as u64)).filter(|_| address >= SHARED_BEGIN);
            return Err(SharedFault::Plain(FaultKind::OutOfBounds { space: "shared", access, address, bytes, near }));
        }
        if address & (bytes - 1) != 0 {
            return Err(SharedFault::Plain(FaultKind::Misaligned { address, bytes }));
        }
        Ok(at as usize)
    }

    /// The bytes of a checked read.
    #[inline(always)]
    pub(crate) fn read(&mut self, address: u64, bytes: u64, by: &Accessor<'_>) -> Result<&[u8], SharedFault> {
        let at = self.place(address, bytes, AccessKind::Read)?;
        let (first, last) = (at >> self.shift, (at + bytes as usize - 1) >> self.shift);
        for cell in &mut self.cells[first..=last] {
            let write = cell.write;
            if write.0 & PENDING != 0 {
                return Err(SharedFault::Pending { address, thread: write.thread(), pc: write.pc() });
            }
            if write.0 == 0 && self.checks.unwritten {
                return Err(SharedFault::Plain(FaultKind::Unwritten { space: "shared", address, bytes }));
            }
            if self.checks.races {
                if !write.ordered(by) {
                    let (access, other) = (AccessKind::Read, AccessKind::Write);
                    return Err(SharedFault::Race { address, access, other, thread: write.thread(), pc: write.pc() });
                }
                if cell.reads[0].ordered(by) {
                    cell.reads[0] = Record::new(by, 0);
                } else {
                    cell.reads[1] = Record::new(by, 0);
                }
            }
        }
        Ok(&self.bytes[at..at + bytes as usize])
    }

    /// A thread runs `fence.proxy.async`: what it knows of is seen by bulk copies and products from now on.
    pub(crate) fn fence(&mut self, thread: u32) {
        self.now += 1;
        if let Some(last) = self.fences.get_mut(thread as usize) {
            *last = self.now;
        }
    }

    /// A product or a copy out of here begins: the time that what it reads may not be written after.
    pub(crate) fn begin_reading(&mut self) -> u32 {
        self.now += 1;
        self.now
    }

    /// A read by a bulk copy or a product. What was written the generic way needs a fence between, of the writer or of
    /// the thread that asks for the read; what was written since the product began must not be there.
    pub(crate) fn read_asynchronously(
        &mut self,
        address: u64,
        bytes: u64,
        by: &Accessor<'_>,
        begun: Option<u32>,
    ) -> Result<&[u8], SharedFault> {
        self.read(address, bytes, by)?;
        let at = (address - SHARED_BEGIN) as usize;
        let own = Record::new(by, 0);
        for cell in &mut self.cells[at >> self.shift..=(at + bytes as usize - 1) >> self.shift] {
            cell.reads.iter_mut().filter(|read| **read == own).for_each(|read| read.0 |= PRODUCT);
        }
        let fence = |thread: u32| self.fences.get(thread as usize).copied().unwrap_or(0);
        for cell in &self.cells[at >> self.shift..=(at + bytes as usize - 1) >> self.shift] {
            let (thread, pc, stamp) = (cell.write.thread(), cell.write.pc(), cell.stamp & !ASYNCHRONOUS);
            // Of bytes that nothing wrote there is nothing to say, where they may be read.
            if cell.write.0 == 0 {
                continue;
            }
            if begun.is_some_and(|begun| stamp >= begun) {
                return Err(SharedFault::Overwritten { address, thread, pc });
            }
            let fenced = cell.stamp & ASYNCHRONOUS != 0 || fence(thread) > stamp || fence(by.thread) > stamp;
            if self.checks.proxies && !fenced {
                return Err(SharedFault::NoFence { address, thread, pc });
            }
        }
        Ok(&self.bytes[at..at + bytes as usize])
    }

    /// `for_copies`: of a bulk copy, what its warp knows of products' reads besides.
    fn claim(
        &mut self,
        at: usize,
        address: u64,
        bytes: u64,
        by: &Accessor<'_>,
        (flags, for_copies): (u64, &[u32]),
    ) -> Result<(), SharedFault> {
        let (first, last) = (at >> self.shift, (at + bytes as usize - 1) >> self.shift);
        for cell in &mut self.cells[first..=last] {
            let write = cell.write;
            if write.0 & PENDING != 0 {
                return Err(SharedFault::Pending { address, thread: write.thread(), pc: write.pc() });
            }
            let before = |record: Record| {
                let known = for_copies.get(record.thread() as usize / 32);
                record.0 & PRODUCT != 0 && known.is_some_and(|known| record.clock() <= *known)
            };
            if self.checks.races {
                let others =
                    [(write, AccessKind::Write), (cell.reads[0], AccessKind::Read), (cell.reads[1], AccessKind::Read)];
                for (record, other) in others {
                    if !record.ordered(by) && !before(record) {
                        let (thread, pc) = (record.thread(), record.pc());
                        return Err(SharedFault::Race { address, access: AccessKind::Write, other, thread, pc });
                    }
                }
            }
            *cell = Cell { write: Record::new(by, flags), reads: Default::default(), stamp: self.now };
        }
        Ok(())
    }

    /// A checked write. Lanes of one instruction may write the same value to one place.
    #[inline(always)]
    pub(crate) fn write(&mut self, address: u64, value: &[u8], by: &Accessor<'_>) -> Result<(), SharedFault> {
        let bytes = value.len() as u64;
        let at = self.place(address, bytes, AccessKind::Write)?;
        let write = self.cells[at >> self.shift].write;
        let same = write.pc() == by.pc & 0xff_ffff
            && write.0 & PENDING == 0
            && write.thread() / 32 == by.thread / 32
            && self.bytes[at..at + value.len()] == *value;
        if same && write.thread() != by.thread && write.clock() == by.clocks[by.thread as usize / 32] {
            return Ok(());
        }
        self.claim(at, address, bytes, by, (0, &[]))?;
        self.bytes[at..at + value.len()].copy_from_slice(value);
        Ok(())
    }

    /// An atomic change of 2, 4 or 8 bytes; returns what they were.
    pub(crate) fn update(
        &mut self,
        address: u64,
        bytes: u64,
        by: &Accessor<'_>,
        f: impl Fn(u64) -> u64,
    ) -> Result<u64, SharedFault> {
        let mut word = [0; 8];
        word[..bytes as usize].copy_from_slice(self.read(address, bytes, by)?);
        let old = u64::from_le_bytes(word);
        let at = (address - SHARED_BEGIN) as usize;
        // The read that it just made is its own.
        self.claim(at, address, bytes, by, (0, &[]))?;
        self.bytes[at..at + bytes as usize].copy_from_slice(&f(old).to_le_bytes()[..bytes as usize]);
        Ok(old)
    }

    /// A copy begins: its bytes are nobody's until `end_copy`. `for_copies` as in `claim`.
    pub(crate) fn begin_copy(
        &mut self,
        address: u64,
        bytes: u64,
        by: &Accessor<'_>,
        for_copies: &[u32],
    ) -> Result<(), SharedFault> {
        let at = self.place(address, bytes, AccessKind::Write)?;
        self.claim(at, address, bytes, by, (PENDING, for_copies))
    }

    /// A copy's bytes arrive, as a write of the thread that asked for it, now.
    pub(crate) fn end_copy(&mut self, address: u64, value: &[u8], by: &Accessor<'_>, proxy: Proxy) {
        let at = (address - SHARED_BEGIN) as usize;
        self.bytes[at..at + value.len()].copy_from_slice(value);
        let stamp = self.now | if proxy == Proxy::Asynchronous { ASYNCHRONOUS } else { 0 };
        let (first, last) = (at >> self.shift, (at + value.len() - 1) >> self.shift);
        for cell in &mut self.cells[first..=last] {
            *cell = Cell { write: Record::new(by, 0), reads: Default::default(), stamp };
        }
    }
}

/// How often the banks are asked for a request of whole warps: 1 without conflicts, for 4 bytes a lane.
///
/// 32 banks of 4 bytes. Accesses of 8 bytes go by half warps, of 16 by quarters. Lanes that read one word share it.
/// Returns the passes, and the passes that a conflict-free request takes.
pub(crate) fn bank_passes(addresses: &[u64; 32], mask: u32, bytes: u64) -> (u32, u32) {
    let lanes = if bytes <= 4 { 32 } else { (128 / bytes) as usize };
    let (mut passes, mut ideal) = (0, 0);
    for group in (0..32).step_by(lanes) {
        let members = mask >> group & if lanes == 32 { u32::MAX } else { (1 << lanes) - 1 };
        if members == 0 {
            continue;
        }
        ideal += 1;
        let mut seen = [u64::MAX; 32];
        let mut most = 1;
        let mut extra: Vec<u64> = Vec::new();
        for lane in (group..group + lanes).filter(|lane| mask >> lane & 1 == 1) {
            for word in addresses[lane] / 4..=addresses[lane].saturating_add(bytes.max(4) - 1) / 4 {
                let bank = word as usize % 32;
                if seen[bank] == u64::MAX {
                    seen[bank] = word;
                } else if seen[bank] != word && !extra.contains(&word) {
                    extra.push(word);
                    most = most.max(1 + extra.iter().filter(|other| **other as usize % 32 == bank).count() as u32);
                }
            }
        }
        passes += most;
    }
    (passes, ideal)
}

/// Sectors of 32 bytes that a request touches, and the fewest that so many bytes need.
pub(crate) fn sectors(addresses: &[u64; 32], mask: u32, bytes: u64) -> (u32, u32) {
    let mut all = [0_u64; 64];
    let mut count = 0;
    let mut last = u64::MAX;
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        for sector in [addresses[lane] / 32, addresses[lane].saturating_add(bytes - 1) / 32] {
            if sector != last && !all[..count].contains(&sector) {
                all[count] = sector;
                count += 1;
            }
            last = sector;
        }
    }
    (count as u32, (u64::from(mask.count_ones()) * bytes).div_ceil(32) as u32)
}
