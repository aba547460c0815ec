//! Loads, stores, atomics and asynchronous copies.

use super::{Copy, Warp};
use crate::emulator::block::Common;
use crate::emulator::fault::{AccessKind, FaultKind};
use crate::emulator::float::{bf16_to_f32, f16_to_f32, f64_to_bf16, f64_to_f16, max_f32, min_f32, odd_sum};
use crate::emulator::isa::{Access, AtomicOp, Inst, Round, Space, Ty};
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

impl Common<'_> {
    /// Splits the lanes of a generic access by the space that each lies in, and gives addresses in their spaces.
    fn by_space(space: Space, addresses: &mut [u64; 32], mask: u32) -> Vec<(Space, u32)> {
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
                let mut value = [0; 64];
                let value = &mut value[..total as usize];
                self.read_near(space, warp, lane, addresses[lane], value, access.strong, pc)?;
                let bytes = usize::from(access.bytes);
                for (slot, element) in slots[..count].iter().zip(value.chunks_exact(bytes)) {
                    let mut bits = [0; 8];
                    bits[..bytes].copy_from_slice(element);
                    put(warp, *slot, lane, u64::from_le_bytes(bits), access);
                }
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
        warp.number * 32 + lane as u32
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
                match self.shared.read(address, bytes, &by) {
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
                self.shared
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

    pub(crate) fn atomic(
        &mut self,
        warp: &mut Warp,
        inst: &Inst,
        (space, op, ty, count, returns): (Space, AtomicOp, Ty, u8, bool),
        mask: u32,
        pc: u32,
    ) -> Result<()> {
        let kernel = self.kernel;
        let slots = &kernel.pool[inst.at as usize..];
        let count = usize::from(count);
        let (defs, uses) = slots.split_at(if returns { count } else { 0 });
        let mut addresses = addresses(warp, inst, uses[0]);
        let bytes = u64::from(ty.bits() / 8);
        let wide = bytes == 8;
        let get = |warp: &Warp, at: usize, lane: usize| -> u64 {
            let slot = usize::from(uses[at]);
            if wide { warp.registers.wides[slot][lane] } else { warp.registers.words[slot][lane].into() }
        };
        for (space, mask) in Self::by_space(space, &mut addresses, mask) {
            self.count_memory(space, &addresses, mask, bytes * count as u64, pc);
            let mut cached = None;
            // Lanes in order, lowest first.
            for lane in lanes(mask) {
                for element in 0..count {
                    let address = addresses[lane].wrapping_add(element as u64 * bytes);
                    let a = get(warp, 1 + element, lane);
                    let b = if op == AtomicOp::Cas { get(warp, 2, lane) } else { 0 };
                    let change = |old: u64| apply(op, ty, old, a, b);
                    let old = match space {
                        Space::Global => {
                            let (allocation, at) =
                                global(self.memory, &mut cached, address, bytes, AccessKind::Write, lane)?;
                            if !allocation.is_written(at, bytes) && self.checks.unwritten {
                                return Err((lane as u32, FaultKind::Unwritten { space: "global", address, bytes }));
                            }
                            allocation.mark(at, bytes);
                            allocation.update(at, bytes, change)
                        }
                        Space::Shared => {
                            let clocks = &self.clocks[warp.number as usize];
                            let by = Accessor { thread: warp.number * 32 + lane as u32, pc, strong: true, clocks };
                            let old = self.shared.update(address, bytes, &by, change);
                            old.map_err(|fault| (lane as u32, fault.resolve(|pc| kernel.line(pc))))?
                        }
                        _ => return Err((lane as u32, outside("global", AccessKind::Write, address, bytes))),
                    };
                    if let Some(slot) = defs.get(element) {
                        let slot = usize::from(*slot);
                        if wide {
                            warp.registers.wides[slot][lane] = old;
                        } else {
                            warp.registers.words[slot][lane] = old as u32;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads the source now, and lets the bytes arrive when they are waited for.
    pub(crate) fn copy_async(
        &mut self,
        warp: &mut Warp,
        inst: &Inst,
        (bytes, ignore, sized): (u8, bool, bool),
        mask: u32,
        pc: u32,
    ) -> Result<()> {
        let kernel = self.kernel;
        let slots = &kernel.pool[inst.at as usize..];
        let to = addresses(warp, inst, slots[0]);
        let from = warp.registers.wides[usize::from(slots[1])];
        self.count_memory(Space::Global, &from, mask, bytes.into(), pc);
        let mut cached = None;
        for lane in lanes(mask) {
            let mut taken = u64::from(bytes);
            if sized {
                let slot = usize::from(slots[2]);
                let given = if ignore {
                    if warp.registers.preds[slot] >> lane & 1 == 1 { 0 } else { taken }
                } else {
                    warp.registers.words[slot][lane].into()
                };
                taken = taken.min(given);
            }
            let mut data = [0; 16];
            if !from[lane].is_multiple_of(bytes.into()) {
                return Err((lane as u32, FaultKind::Misaligned { address: from[lane], bytes: bytes.into() }));
            }
            // A whole copy at once; a part of one byte by byte.
            let step = if taken == u64::from(bytes) { taken.min(8) } else { 1 };
            for at in (0..taken).step_by(step as usize) {
                let address = from[lane].wrapping_add(at);
                let (allocation, place) = global(self.memory, &mut cached, address, step, AccessKind::Read, lane)?;
                if !allocation.is_written(place, step) && self.checks.unwritten {
                    return Err((lane as u32, FaultKind::Unwritten { space: "global", address, bytes: step }));
                }
                let value = allocation.load(place, step).to_le_bytes();
                data[at as usize..(at + step) as usize].copy_from_slice(&value[..step as usize]);
            }
            let clocks = &self.clocks[warp.number as usize];
            let by = Accessor { thread: warp.number * 32 + lane as u32, pc, strong: false, clocks };
            let begun = self.shared.begin_copy(to[lane], bytes.into(), &by);
            begun.map_err(|fault| (lane as u32, fault.resolve(|pc| kernel.line(pc))))?;
            warp.copies.push(Copy { lane: lane as u8, bytes, group: warp.committed[lane], pc, to: to[lane], data });
        }
        Ok(())
    }

    /// Lets the copies of `mask`'s lanes arrive, all but the last `left` groups of each; `None` for all.
    pub(crate) fn await_copies(&mut self, warp: &mut Warp, mask: u32, left: Option<u32>) {
        let clocks = &self.clocks[warp.number as usize];
        let (number, committed, shared) = (warp.number, &warp.committed, &mut self.shared);
        warp.copies.retain(|copy| {
            let lane = usize::from(copy.lane);
            let due = left.is_none_or(|left| copy.group < committed[lane].saturating_sub(left));
            if mask >> lane & 1 == 0 || !due {
                return true;
            }
            let by = Accessor { thread: number * 32 + lane as u32, pc: copy.pc, strong: false, clocks };
            shared.end_copy(copy.to, &copy.data[..usize::from(copy.bytes)], &by);
            false
        });
    }

    /// Counts a request for the report.
    fn count_memory(&mut self, space: Space, addresses: &[u64; 32], mask: u32, bytes: u64, pc: u32) {
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
fn global<'m>(
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

fn outside(space: &'static str, access: AccessKind, address: u64, bytes: u64) -> FaultKind {
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

/// What an atomic leaves in memory.
fn apply(op: AtomicOp, ty: Ty, old: u64, a: u64, b: u64) -> u64 {
    let real = |f: fn(f32, f32) -> f32| u64::from(f(f32::from_bits(old as u32), f32::from_bits(a as u32)).to_bits());
    let half = |old: u16, a: u16| -> u16 {
        let f16 = matches!(ty, Ty::F16 | Ty::F16x2);
        let widen = |x| if f16 { f16_to_f32(x) } else { bf16_to_f32(x) };
        let (x, y) = (f64::from(widen(old)), f64::from(widen(a)));
        let exact = match op {
            AtomicOp::Add => odd_sum(x, y),
            AtomicOp::Min => min_f32(x as f32, y as f32, false).into(),
            _ => max_f32(x as f32, y as f32, false).into(),
        };
        if f16 { f64_to_f16(exact, Round::Nearest) } else { f64_to_bf16(exact, Round::Nearest) }
    };
    match (op, ty) {
        (AtomicOp::Add, Ty::F32) => real(|x, y| x + y),
        (AtomicOp::Add, Ty::F64) => (f64::from_bits(old) + f64::from_bits(a)).to_bits(),
        (_, Ty::F16 | Ty::Bf16) => half(old as u16, a as u16).into(),
        (_, Ty::F16x2 | Ty::Bf16x2) => {
            u64::from(half((old >> 16) as u16, (a >> 16) as u16)) << 16 | u64::from(half(old as u16, a as u16))
        }
        (AtomicOp::And, _) => old & a,
        (AtomicOp::Or, _) => old | a,
        (AtomicOp::Xor, _) => old ^ a,
        (AtomicOp::Exch, _) => a,
        (AtomicOp::Cas, _) => {
            if old == a {
                b
            } else {
                old
            }
        }
        (AtomicOp::Add, _) => old.wrapping_add(a),
        (AtomicOp::Inc, _) => {
            if old >= a {
                0
            } else {
                old + 1
            }
        }
        (AtomicOp::Dec, _) => {
            if old == 0 || old > a {
                a
            } else {
                old - 1
            }
        }
        (AtomicOp::Min, Ty::S32) => (old as i32).min(a as i32) as u32 as u64,
        (AtomicOp::Max, Ty::S32) => (old as i32).max(a as i32) as u32 as u64,
        (AtomicOp::Min, Ty::S64) => (old as i64).min(a as i64) as u64,
        (AtomicOp::Max, Ty::S64) => (old as i64).max(a as i64) as u64,
        (AtomicOp::Min, _) => old.min(a),
        (AtomicOp::Max, _) => old.max(a),
    }
}
