//! Bulk copies: into shared memory by way of an mbarrier, and out of it.

use super::Warp;
use super::memory::{Result, global, lanes};
use crate::emulator::block::{Common, Failure};
use crate::emulator::fault::{AccessKind, FaultKind};
use crate::emulator::isa::Inst;
use crate::emulator::shared::{Accessor, Proxy};
use crate::emulator::tensor_map::{Map, place};
use crate::emulator::window;

/// A bulk copy that has not arrived.
#[derive(Clone, Debug)]
pub(crate) struct Bulk {
    /// The mbarrier that counts its bytes.
    pub(crate) barrier: u64,
    pub(crate) to: u64,
    pub(crate) data: Vec<u8>,
    /// The swizzle, as in a map.
    pub(crate) exchange: u64,
    pub(crate) thread: u32,
    pub(crate) pc: u32,
    /// What its warp knew when it asked.
    pub(crate) clocks: Vec<u32>,
}

/// A copy out of shared memory that was asked for and not waited for.
#[derive(Clone, Debug)]
pub(crate) struct Leaving {
    pub(crate) lane: u8,
    /// The group that it was or will be committed with.
    group: u32,
    pub(crate) pc: u32,
    pub(crate) begun: u32,
    pub(crate) from: u64,
    target: Target,
}

/// Where it goes.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Bytes { to: u64, bytes: u64 },
    Box { map: Map, first: [i64; 5] },
}

/// Bytes go in pieces of this size, which is what addresses and sizes must be multiples of.
pub(crate) const PIECE: u64 = 16;

fn checked(lane: usize, address: u64) -> Result<()> {
    if address.is_multiple_of(PIECE) {
        Ok(())
    } else {
        Err((lane as u32, FaultKind::Misaligned { address, bytes: PIECE }))
    }
}

impl Common<'_> {
    /// Reads the source now; the bytes arrive when somebody asks the mbarrier.
    pub(crate) fn bulk_load(&mut self, warp: &Warp, inst: &Inst, multicast: bool, mask: u32, pc: u32) -> Result<()> {
        let uses = &self.kernel.pool[inst.at as usize..];
        for lane in lanes(mask) {
            let wide = |at: usize| warp.registers.wides[usize::from(uses[at])][lane];
            let (to, from, barrier) = (wide(0) & 0xffff_ffff, wide(1), wide(3) & 0xffff_ffff);
            let bytes = u64::from(warp.registers.words[usize::from(uses[2])][lane]);
            for address in [to, from, bytes] {
                checked(lane, address)?;
            }
            let multicast = multicast.then(|| warp.registers.words[usize::from(uses[4])][lane]);
            let mut data = Vec::new();
            let mut cached = None;
            for at in (0..bytes).step_by(8) {
                let address = from.wrapping_add(at);
                let (allocation, place) = global(self.memory, &mut cached, address, 8, AccessKind::Read, lane)?;
                if !allocation.is_written(place, 8) && self.checks.unwritten {
                    return Err((lane as u32, FaultKind::Unwritten { space: "global", address, bytes: 8 }));
                }
                data.extend_from_slice(&allocation.load(place, 8).to_le_bytes());
            }
            let targets = self.targets(multicast, to, barrier, lane)?;
            let clocks = self.clocks[warp.number as usize].clone();
            let (thread, barrier, to) = (warp.overall * 32 + lane as u32, window::within(barrier), window::within(to));
            self.come(warp, &Bulk { barrier, to, data, exchange: 0, thread, pc, clocks }, &targets)?;
        }
        Ok(())
    }

    /// A copy begins, to the same place of each of these blocks.
    pub(super) fn come(&mut self, warp: &Warp, bulk: &Bulk, targets: &[u32]) -> Result<()> {
        let for_copies = self.for_copies[warp.number as usize].clone();
        let (kernel, own, lane) = (self.kernel, self.rank, bulk.thread % 32);
        let by = Accessor { thread: bulk.thread, pc: bulk.pc, strong: false, clocks: &bulk.clocks };
        for rank in targets {
            let near = self.reach(*rank, &by, lane as usize)?;
            let known = near.mbarrier(bulk.barrier, &by, *rank == own).map(drop);
            known.map_err(|problem| (lane, FaultKind::BadMbarrier { address: bulk.barrier, problem }))?;
            for at in (0..bulk.data.len() as u64).step_by(PIECE as usize) {
                let begun = near.shared.begin_copy(place(bulk.exchange, bulk.to, at), PIECE, &by, &for_copies);
                begun.map_err(|fault| (lane, fault.resolve(|pc| kernel.line(pc))))?;
            }
            near.bulks.push(bulk.clone());
        }
        Ok(())
    }

    /// Lets the copies of an mbarrier arrive; their bytes, and what their warps knew.
    pub(crate) fn await_bulks(&mut self, barrier: u64) -> Vec<(i64, Vec<u32>)> {
        let (due, rest) =
            std::mem::take(&mut self.near.bulks).into_iter().partition(|bulk: &Bulk| bulk.barrier == barrier);
        self.near.bulks = rest;
        let due: Vec<Bulk> = due;
        due.into_iter()
            .map(|bulk| {
                let by = Accessor { thread: bulk.thread, pc: bulk.pc, strong: false, clocks: &bulk.clocks };
                for (piece, at) in bulk.data.chunks(PIECE as usize).zip((0..).step_by(PIECE as usize)) {
                    self.near.shared.end_copy(place(bulk.exchange, bulk.to, at), piece, &by, Proxy::Asynchronous);
                }
                (bulk.data.len() as i64, bulk.clocks)
            })
            .collect()
    }

    /// `cp.async.bulk` out of shared memory: the bytes leave when they are waited for.
    pub(crate) fn bulk_store(&mut self, warp: &mut Warp, inst: &Inst, mask: u32, pc: u32) -> Result<()> {
        let uses = &self.kernel.pool[inst.at as usize..];
        for lane in lanes(mask) {
            let wide = |at: usize| warp.registers.wides[usize::from(uses[at])][lane];
            let (to, from) = (wide(0), wide(1) & 0xffff_ffff);
            let bytes = u64::from(warp.registers.words[usize::from(uses[2])][lane]);
            for address in [to, from, bytes] {
                checked(lane, address)?;
            }
            self.leave(warp, lane, pc, from, Target::Bytes { to, bytes });
        }
        Ok(())
    }

    pub(super) fn leave(&mut self, warp: &mut Warp, lane: usize, pc: u32, from: u64, target: Target) {
        let (group, begun) = (warp.leaving_groups[lane], self.near.shared.begin_reading());
        warp.leaving.push(Leaving { lane: lane as u8, group, pc, begun, from, target });
    }

    /// Copies out of shared memory by `mask`'s lanes are done, all but those of the last `left` groups of each; `None` for
    /// all.
    pub(crate) fn await_stores(
        &mut self,
        warp: &mut Warp,
        mask: u32,
        left: Option<u32>,
    ) -> std::result::Result<(), Failure> {
        let groups = warp.leaving_groups;
        let due = |store: &Leaving| {
            let lane = usize::from(store.lane);
            mask >> lane & 1 == 1 && left.is_none_or(|left| store.group < groups[lane].saturating_sub(left))
        };
        let (due, rest): (Vec<Leaving>, Vec<Leaving>) = std::mem::take(&mut warp.leaving).into_iter().partition(due);
        warp.leaving = rest;
        for store in due {
            let done = match &store.target {
                Target::Bytes { to, bytes } => self.store_bytes(warp, &store, *to, *bytes),
                Target::Box { map, first } => self.store_box(warp, &store, map, *first),
            };
            done.map_err(|(lane, kind)| (lane, store.pc, kind))?;
        }
        Ok(())
    }

    fn store_bytes(&mut self, warp: &Warp, store: &Leaving, to: u64, bytes: u64) -> Result<()> {
        let (kernel, lane) = (self.kernel, usize::from(store.lane));
        let clocks = &self.clocks[warp.number as usize];
        let by = Accessor { thread: warp.overall * 32 + lane as u32, pc: store.pc, strong: false, clocks };
        let mut cached = None;
        for at in (0..bytes).step_by(8) {
            let read = self.near.shared.read_asynchronously(store.from.wrapping_add(at), 8, &by, Some(store.begun));
            let read = read.map_err(|fault| (lane as u32, fault.resolve(|pc| kernel.line(pc))))?;
            let value = u64::from_le_bytes(read.try_into().unwrap_or_default());
            let address = to.wrapping_add(at);
            let (allocation, place) = global(self.memory, &mut cached, address, 8, AccessKind::Write, lane)?;
            allocation.store(place, 8, value);
            allocation.mark(place, 8);
        }
        Ok(())
    }
}
