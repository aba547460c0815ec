//! Copies of boxes of tensors, by tensor maps.
//!
//! # Source
//! PTX ISA 9.0, 5.5 (tensors, boxes, swizzles) and 9.7.9.25.5 (`cp.async.bulk.tensor`); CUDA programming guide, "Using TMA
//! to transfer multi-dimensional arrays", for the places of swizzled chunks.

use super::Warp;
use super::bulk::{Bulk, Leaving, Target};
use super::memory::{Result, global, lanes};
use crate::driver::TENSOR_MAP_BYTES;
use crate::emulator::block::Common;
use crate::emulator::fault::{AccessKind, FaultKind};
use crate::emulator::isa::{Inst, Space};
use crate::emulator::memory::Allocation;
use crate::emulator::shared::Accessor;
use crate::emulator::tensor_map::{Map, decode};
use crate::emulator::window;

/// What the shared address of a box must be a multiple of.
const BOX: u64 = 128;
/// What the address of a map must be a multiple of.
const MAP: u64 = 64;

impl Common<'_> {
    /// The map at a generic address: among the arguments, or in global or constant memory.
    fn map(&self, address: u64, lane: usize) -> Result<Map> {
        let mut bytes = [0; TENSOR_MAP_BYTES];
        if !address.is_multiple_of(MAP) {
            return Err((lane as u32, FaultKind::Misaligned { address, bytes: MAP }));
        }
        let bad = |problem| (lane as u32, FaultKind::BadTensorMap { address, problem });
        match window::space(address) {
            Space::Param => {
                let at = address.wrapping_sub(window::of(Space::Param)) as usize;
                let found = self.arguments.get(at..at + TENSOR_MAP_BYTES);
                bytes.copy_from_slice(found.ok_or_else(|| bad("does not lie within the kernel's arguments"))?);
            }
            Space::Global => {
                let mut cached = None;
                for at in (0..TENSOR_MAP_BYTES).step_by(8) {
                    let from = address.wrapping_add(at as u64);
                    let (allocation, place) = global(self.memory, &mut cached, from, 8, AccessKind::Read, lane)?;
                    bytes[at..at + 8].copy_from_slice(&allocation.load(place, 8).to_le_bytes());
                }
            }
            _ => return Err(bad("lies neither among the arguments nor in global or constant memory")),
        }
        decode(&bytes).ok_or_else(|| bad("is none that the driver made"))
    }

    /// `prefetch.tensormap`: nothing but a check of the map.
    pub(crate) fn map_prefetch(&mut self, warp: &Warp, inst: &Inst, mask: u32) -> Result<()> {
        let slot = usize::from(self.kernel.pool[inst.at as usize]);
        lanes(mask).try_for_each(|lane| self.map(warp.registers.wides[slot][lane], lane).map(drop))
    }

    /// The map and the first coordinates of a copy. The slots are those after the shared address.
    fn tensor(&self, warp: &Warp, map: u16, coordinates: &[u16], lane: usize) -> Result<(Map, [i64; 5])> {
        let address = warp.registers.wides[usize::from(map)][lane];
        let map = self.map(address, lane)?;
        if map.rank != coordinates.len() {
            let problem = "has another number of dimensions than the copy";
            return Err((lane as u32, FaultKind::BadTensorMap { address, problem }));
        }
        let mut first = [0; 5];
        for (to, slot) in first.iter_mut().zip(coordinates) {
            *to = i64::from(warp.registers.words[usize::from(*slot)][lane] as i32);
        }
        Ok((map, first))
    }

    /// Reads the box now; its bytes arrive when somebody asks the mbarrier.
    pub(crate) fn tensor_load(&mut self, warp: &Warp, inst: &Inst, multicast: bool, mask: u32, pc: u32) -> Result<()> {
        let uses = &self.kernel.pool[inst.at as usize..][..usize::from(inst.uses)];
        for lane in lanes(mask) {
            let wide = |at: usize| warp.registers.wides[usize::from(uses[at])][lane];
            let (to, barrier) = (wide(0) & 0xffff_ffff, wide(2) & 0xffff_ffff);
            let (map, first) = self.tensor(warp, uses[1], &uses[3 + usize::from(multicast)..], lane)?;
            let multicast = multicast.then(|| warp.registers.words[usize::from(uses[3])][lane]);
            if !to.is_multiple_of(BOX) {
                return Err((lane as u32, FaultKind::Misaligned { address: to, bytes: BOX }));
            }
            let mut data = vec![0; map.bytes() as usize];
            let mut cached = None;
            for (at, row) in map.rows(first) {
                let to = &mut data[at as usize..][..(map.tile[0] * map.element) as usize];
                self.load_row(&map, row, first[0], to, &mut cached, lane)?;
            }
            let targets = self.targets(multicast, to, barrier, lane)?;
            let clocks = self.clocks[warp.number as usize].clone();
            let (thread, barrier, to) = (warp.overall * 32 + lane as u32, window::within(barrier), window::within(to));
            self.come(warp, &Bulk { barrier, to, data, exchange: map.exchange, thread, pc, clocks }, &targets)?;
        }
        Ok(())
    }

    fn load_row<'m>(
        &'m self,
        map: &Map,
        row: Option<u64>,
        first: i64,
        to: &mut [u8],
        cached: &mut Option<&'m Allocation>,
        lane: usize,
    ) -> Result<()> {
        let element = map.element;
        let outside = map.outside.to_le_bytes();
        let inside = row.map_or(0..0, |_| inner(map, first));
        let (begin, end) = ((inside.start * element) as usize, (inside.end * element) as usize);
        for hole in [0..begin, end..to.len()] {
            to[hole].chunks_exact_mut(element as usize).for_each(|to| to.copy_from_slice(&outside[..element as usize]));
        }
        let Some(row) = row else { return Ok(()) };
        let from = row.wrapping_add_signed(first.wrapping_mul(element as i64));
        let mut at = begin as u64;
        while at < end as u64 {
            let address = from.wrapping_add(at);
            let step = if address.is_multiple_of(8) && end as u64 - at >= 8 { 8 } else { element };
            let (allocation, place) = global(self.memory, cached, address, step, AccessKind::Read, lane)?;
            if !allocation.is_written(place, step) && self.checks.unwritten {
                return Err((lane as u32, FaultKind::Unwritten { space: "global", address, bytes: step }));
            }
            to[at as usize..(at + step) as usize]
                .copy_from_slice(&allocation.load(place, step).to_le_bytes()[..step as usize]);
            at += step;
        }
        Ok(())
    }

    /// `cp.async.bulk.tensor` out of shared memory: the box leaves when it is waited for.
    pub(crate) fn tensor_store(&mut self, warp: &mut Warp, inst: &Inst, mask: u32, pc: u32) -> Result<()> {
        let uses = &self.kernel.pool[inst.at as usize..][..usize::from(inst.uses)];
        for lane in lanes(mask) {
            let from = warp.registers.wides[usize::from(uses[0])][lane] & 0xffff_ffff;
            let (map, first) = self.tensor(warp, uses[1], &uses[2..], lane)?;
            if !from.is_multiple_of(BOX) {
                return Err((lane as u32, FaultKind::Misaligned { address: from, bytes: BOX }));
            }
            self.leave(warp, lane, pc, from, Target::Box { map, first });
        }
        Ok(())
    }

    /// Writes what lies inside of the tensor.
    pub(super) fn store_box(&mut self, warp: &Warp, store: &Leaving, map: &Map, first: [i64; 5]) -> Result<()> {
        let (kernel, lane) = (self.kernel, usize::from(store.lane));
        let clocks = &self.clocks[warp.number as usize];
        let by = Accessor { thread: warp.overall * 32 + lane as u32, pc: store.pc, strong: false, clocks };
        let mut cached = None;
        for (at, row) in map.rows(first) {
            let Some(row) = row else { continue };
            for i in inner(map, first[0]) {
                let from = map.place(store.from, at + i * map.element);
                let value = self.near.shared.read_asynchronously(from, map.element, &by, Some(store.begun));
                let value = value.map_err(|fault| (lane as u32, fault.resolve(|pc| kernel.line(pc))))?;
                let value = value.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
                let address = row.wrapping_add_signed((first[0] + i as i64).wrapping_mul(map.element as i64));
                let (allocation, place) =
                    global(self.memory, &mut cached, address, map.element, AccessKind::Write, lane)?;
                allocation.store(place, map.element, value);
                allocation.mark(place, map.element);
            }
        }
        Ok(())
    }
}

/// The elements of a row of a box that lie inside of the tensor along the innermost dimension.
fn inner(map: &Map, first: i64) -> std::ops::Range<u64> {
    let clamp = |at: i64| at.clamp(0, map.tile[0] as i64) as u64;
    let (begin, end) = (clamp(first.saturating_neg()), clamp((map.sizes[0] as i64).saturating_sub(first)));
    begin..end.max(begin)
}
