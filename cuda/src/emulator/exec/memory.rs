//! Loads and stores.

use super::Warp;
use crate::emulator::block::Common;
use crate::emulator::fault::{AccessKind, FaultKind};
use crate::emulator::isa::{Access, Inst, Space};
use crate::emulator::memory::{Allocation, Memory};
use crate::emulator::shared::{Accessor, bank_passes, sectors};
use crate::emulator::window;

/// A fault and the lane that it is of.
pub(crate) type Result<T> = std::result::Result<T, (u32, FaultKind)>;

/// The lanes of a mask.
pub(crate) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let lane = rest.trailing_zeros();
        rest &= rest - 1;
        Some(lane as usize)
    })
}

/// The addresses of an instruction whose base is in `slot`.
#[inline(always)]
pub(crate) fn addresses(warp: &Warp, inst: &Inst, slot: u16) -> [u64; 32] {
    let mut all = if inst.wide {
        warp.registers.wides[usize::from(slot)]
    } else {
        warp.registers.words[usize::from(slot)].map(u64::from)
    };
    for address in &mut all {
        *address = address.wrapping_add_signed(inst.imm);
    }
    all
}

/// Up to eight bytes as a number. Each size is read as such: eight bytes, of which four have just been written, would wait for
/// them to get through to the cache.
#[inline(always)]
fn little_endian(bytes: &[u8]) -> u64 {
    match *bytes {
        [a] => a.into(),
        [a, b] => u16::from_le_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => unreachable!("an element has 1, 2, 4 or 8 bytes"),
    }
}

/// What was read for a lane, to its registers.
#[inline(always)]
fn put_elements(warp: &mut Warp, slots: &[u16], lane: usize, from: &[u8], access: Access) {
    for (slot, element) in slots.iter().zip(from.chunks_exact(usize::from(access.bytes))) {
        put(warp, *slot, lane, little_endian(element), access);
    }
}

impl Common<'_> {
    /// Splits the lanes of a generic access by the space that each lies in, and gives addresses in their spaces.
    pub(crate) fn by_space(space: Space, addresses: &mut [u64; 32], mask: u32) -> Vec<(Space, u32)> {
        if space != Space::Generic {
            return vec![(space, mask)];
        }
        let mut all: Vec<(Space, u32)> = Vec::new();
        for lane in lanes(mask) {
            let space = window::space(addresses[lane]);
            addresses[lane] = addresses[lane].wrapping_sub(window::of(space));
            match all.iter_mut().find(|(other, _)| *other == space) {
                Some((_, members)) => *members |= 1 << lane,
                None => all.push((space, 1 << lane)),
            }
        }
        all
    }

    pub(crate) fn load(&mut self, warp: &mut Warp, inst: &Inst, access: Access, mask: u32, pc: u32) -> Result<()> {
        let kernel = self.kernel;
        let slots = &kernel.pool[inst.at as usize..];
        let count = usize::from(access.count);
        let mut addresses = addresses(warp, inst, slots[count]);
        for (space, mask) in Self::by_space(access.space, &mut addresses, mask) {
            let total = u64::from(access.bytes) * count as u64;
            self.count_memory(space, &addresses, mask, total, pc);
            if space == Space::Global {
                if let Some((allocation, places)) = together(self.memory, &addresses, mask, total)
                    && (!self.checks.unwritten || lanes(mask).all(|lane| allocation.is_written(places[lane], total)))
                {
                    let bytes = u64::from(access.bytes);
                    for (element, slot) in slots[..count].iter().enumerate() {
                        let offset = element as u64 * bytes;
                        if bytes == 4 && access.register_bits == 32 {
                            let to = &mut warp.registers.words[usize::from(*slot)];
                            lanes(mask).for_each(|lane| to[lane] = allocation.load(places[lane] + offset, 4) as u32);
                        } else {
                            for lane in lanes(mask) {
                                put(warp, *slot, lane, allocation.load(places[lane] + offset, bytes), access);
                            }
                        }
                    }
                    continue;
                }
                // One by one, to find whose fault it is.
                let mut cached: Option<&Allocation> = None;
                for lane in lanes(mask) {
                    let (allocation, at) =
                        global(self.memory, &mut cached, addresses[lane], total, AccessKind::Read, lane)?;
                    if !allocation.is_written(at, total) && self.checks.unwritten {
                        let kind = FaultKind::Unwritten { space: "global", address: addresses[lane], bytes: total };
                        return Err((lane as u32, kind));
                    }
                    for (element, slot) in slots[..count].iter().enumerate() {
                        let bytes = u64::from(access.bytes);
                        let bits = allocation.load(at + element as u64 * bytes, bytes);
                        put(warp, *slot, lane, bits, access);
                    }
                }
                continue;
            }
            for lane in lanes(mask) {
                if space == Space::Shared {
                    // As below, without a copy.
                    let thread = self.thread(warp, lane);
                    let clocks = &self.clocks[warp.number as usize];
                    let by = Accessor { thread, pc, strong: access.strong, clocks };
                    match self.near.shared.read(addresses[lane], total, &by) {
                        Ok(from) => put_elements(warp, &slots[..count], lane, from, access),
                        Err(fault) => return Err((lane as u32, fault.resolve(|pc| kernel.line(pc)))),
                    }
                    continue;
                }
                let mut value = [0; 64];
                let value = &mut value[..total as usize];
                self.read_near(space, warp, lane, addresses[lane], value, access.strong, pc)?;
                put_elements(warp, &slots[..count], lane, value, access);
            }
        }
        Ok(())
    }

    pub(crate) fn store(&mut self, warp: &mut Warp, inst: &Inst, access: Access, mask: u32, pc: u32) -> Result<()> {
        let kernel = self.kernel;
        let slots = &kernel.pool[inst.at as usize..];
        let count = usize::from(access.count);
        let mut addresses = addresses(warp, inst, slots[0]);
        let value = |warp: &Warp, element: usize, lane: usize| -> u64 {
            let slot = usize::from(slots[1 + element]);
            if access.bytes == 8 { warp.registers.wides[slot][lane] } else { warp.registers.words[slot][lane].into() }
        };
        for (space, mask) in Self::by_space(access.space, &mut addresses, mask) {
            let bytes = u64::from(access.bytes);
            let total = bytes * count as u64;
            self.count_memory(space, &addresses, mask, total, pc);
            if space == Space::Global {
                if let Some((allocation, places)) = together(self.memory, &addresses, mask, total)
                    && !allocation.read_only
                {
                    // Lanes in order: of two that write to one place, the last wins, as below.
                    for lane in lanes(mask) {
                        for element in 0..count {
                            allocation.store(places[lane] + element as u64 * bytes, bytes, value(warp, element, lane));
                        }
                        allocation.mark(places[lane], total);
                    }
                    continue;
                }
                let mut cached: Option<&Allocation> = None;
                for lane in lanes(mask) {
                    let (allocation, at) =
                        global(self.memory, &mut cached, addresses[lane], total, AccessKind::Write, lane)?;
                    for element in 0..count {
                        allocation.store(at + element as u64 * bytes, bytes, value(warp, element, lane));
                    }
                    allocation.mark(at, total);
                }
                continue;
            }
            for lane in lanes(mask) {
                let mut buffer = [0; 64];
                for element in 0..count {
                    let at = element * bytes as usize;
                    let bits = value(warp, element, lane).to_le_bytes();
                    buffer[at..at + bytes as usize].copy_from_slice(&bits[..bytes as usize]);
                }
                self.write_near(space, warp, lane, addresses[lane], &buffer[..total as usize], access.strong, pc)?;
            }
        }
        Ok(())
    }

    fn thread(&self, warp: &Warp, lane: usize) -> u32 {
        warp.overall * 32 + lane as u32
    }

    /// Reads shared, local or argument memory.
    #[allow(clippy::too_many_arguments)]
    fn read_near(
        &mut self,
        space: Space,
        warp: &Warp,
        lane: usize,
        address: u64,
        value: &mut [u8],
        strong: bool,
        pc: u32,
    ) -> Result<()> {
        let bytes = value.len() as u64;
        match space {
            Space::Shared => {
                let by = Accessor {
                    thread: self.thread(warp, lane),
                    pc,
                    strong,
                    clocks: &self.clocks[warp.number as usize],
                };
                match self.near.shared.read(address, bytes, &by) {
                    Ok(from) => value.copy_from_slice(from),
                    Err(fault) => return Err((lane as u32, fault.resolve(|pc| self.kernel.line(pc)))),
                }
            }
            Space::Param => {
                let from =
                    usize::try_from(address).ok().and_then(|at| self.arguments.get(at..at.checked_add(value.len())?));
                match from {
                    Some(from) => value.copy_from_slice(from),
                    None => return Err((lane as u32, outside("param", AccessKind::Read, address, bytes))),
                }
            }
            _ => {
                let at = self.local(lane, address, bytes, AccessKind::Read)?;
                value.copy_from_slice(&warp.local[at..at + value.len()]);
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn write_near(
        &mut self,
        space: Space,
        warp: &mut Warp,
        lane: usize,
        address: u64,
        value: &[u8],
        strong: bool,
        pc: u32,
    ) -> Result<()> {
        let bytes = value.len() as u64;
        match space {
            Space::Shared => {
                let by = Accessor {
                    thread: self.thread(warp, lane),
                    pc,
                    strong,
                    clocks: &self.clocks[warp.number as usize],
                };
                self.near
                    .shared
                    .write(address, value, &by)
                    .map_err(|fault| (lane as u32, fault.resolve(|pc| self.kernel.line(pc))))
            }
            Space::Param => Err((lane as u32, outside("param", AccessKind::Write, address, bytes))),
            _ => {
                let at = self.local(lane, address, bytes, AccessKind::Write)?;
                warp.local[at..at + value.len()].copy_from_slice(value);
                Ok(())
            }
        }
    }

    /// Where a lane's local memory keeps an address.
    fn local(&self, lane: usize, address: u64, bytes: u64, access: AccessKind) -> Result<usize> {
        let size = u64::from(self.kernel.local_bytes);
        let at = address.wrapping_sub(window::LOCAL_BEGIN);
        if at.checked_add(bytes).is_none_or(|end| end > size) {
            return Err((lane as u32, outside("local", access, address, bytes)));
        }
        if !address.is_multiple_of(bytes) {
            return Err((lane as u32, FaultKind::Misaligned { address, bytes }));
        }
        Ok(lane * size as usize + at as usize)
    }

    pub(crate) fn param(&mut self, warp: &mut Warp, inst: &Inst, access: Access, mask: u32) -> Result<()> {
        let kernel = self.kernel;
        let slots = &kernel.pool[inst.at as usize..][..usize::from(access.count)];
        let bytes = usize::from(access.bytes);
        for (element, slot) in slots.iter().enumerate() {
            let at = inst.imm as usize + element * bytes;
            let mut bits = [0; 8];
            match self.arguments.get(at..at + bytes) {
                Some(from) => bits[..bytes].copy_from_slice(from),
                None => {
                    let kind = outside("param", AccessKind::Read, at as u64, bytes as u64);
                    return Err((mask.trailing_zeros(), kind));
                }
            }
            for lane in lanes(mask) {
                put(warp, *slot, lane, u64::from_le_bytes(bits), access);
            }
        }
        Ok(())
    }

    /// Counts a request for the report.
    pub(crate) fn count_memory(&mut self, space: Space, addresses: &[u64; 32], mask: u32, bytes: u64, pc: u32) {
        let (used, least) = match space {
            Space::Global => sectors(addresses, mask, bytes),
            Space::Shared => bank_passes(addresses, mask, bytes),
            _ => return,
        };
        let count = &mut self.stats.counts[pc as usize];
        count.requests += 1;
        count.used += u64::from(used);
        count.least += u64::from(least);
    }
}

/// The allocation of a global access and the place in it; `cached` is the one of the lane before.
#[inline(always)]
pub(crate) fn global<'m>(
    memory: &'m Memory,
    cached: &mut Option<&'m Allocation>,
    address: u64,
    bytes: u64,
    access: AccessKind,
    lane: usize,
) -> Result<(&'m Allocation, u64)> {
    let allocation = match *cached {
        Some(allocation)
            if address.wrapping_sub(allocation.base) < allocation.bytes
                && bytes <= allocation.bytes - (address - allocation.base) =>
        {
            allocation
        }
        _ => memory.find(address, bytes, access).map_err(|kind| (lane as u32, kind))?,
    };
    *cached = Some(allocation);
    if address & (bytes - 1) != 0 {
        return Err((lane as u32, FaultKind::Misaligned { address, bytes }));
    }
    if access == AccessKind::Write && allocation.read_only {
        return Err((lane as u32, FaultKind::ReadOnly { address }));
    }
    Ok((allocation, address - allocation.base))
}

/// The allocation that all lanes access, and their places in it, if all is well.
#[inline(always)]
fn together<'m>(
    memory: &'m Memory,
    addresses: &[u64; 32],
    mask: u32,
    bytes: u64,
) -> Option<(&'m Allocation, [u64; 32])> {
    let first = addresses[mask.trailing_zeros() as usize % 32];
    let allocation = memory.find(first, bytes, AccessKind::Read).ok()?;
    // It begins at a multiple of every size.
    let last = allocation.bytes - bytes;
    let places = addresses.map(|address| address.wrapping_sub(allocation.base));
    let mut bad = 0;
    for (lane, place) in places.iter().enumerate() {
        bad |= u32::from(*place > last || place & (bytes - 1) != 0) << lane;
    }
    (bad & mask == 0).then_some((allocation, places))
}

pub(crate) fn outside(space: &'static str, access: AccessKind, address: u64, bytes: u64) -> FaultKind {
    FaultKind::OutOfBounds { space, access, address, bytes, near: None }
}

/// Puts a loaded element into its register, extended to the register's width.
#[inline(always)]
fn put(warp: &mut Warp, slot: u16, lane: usize, bits: u64, access: Access) {
    let bits = if access.signed {
        let unused = 64 - 8 * u32::from(access.bytes);
        ((bits << unused) as i64 >> unused) as u64
    } else {
        bits
    };
    match access.register_bits {
        64 => warp.registers.wides[usize::from(slot)][lane] = bits,
        32 => warp.registers.words[usize::from(slot)][lane] = bits as u32,
        narrow => warp.registers.words[usize::from(slot)][lane] = bits as u32 & ((1 << narrow) - 1),
    }
}
