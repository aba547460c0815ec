//! Asynchronous copies: they arrive when they are waited for.

use super::memory::{Result, addresses, global, lanes};
use super::{Copy, Warp};
use crate::emulator::block::Common;
use crate::emulator::fault::{AccessKind, FaultKind};
use crate::emulator::isa::{Inst, Space};
use crate::emulator::shared::{Accessor, Proxy};

impl Common<'_> {
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
            let by = Accessor { thread: warp.overall * 32 + lane as u32, pc, strong: false, clocks };
            let begun = self.near.shared.begin_copy(to[lane], bytes.into(), &by, &[]);
            begun.map_err(|fault| (lane as u32, fault.resolve(|pc| kernel.line(pc))))?;
            warp.copies.push(Copy { lane: lane as u8, bytes, group: warp.committed[lane], pc, to: to[lane], data });
        }
        Ok(())
    }

    /// Lets the copies of `mask`'s lanes arrive, all but the last `left` groups of each; `None` for all.
    pub(crate) fn await_copies(&mut self, warp: &mut Warp, mask: u32, left: Option<u32>) {
        let clocks = &self.clocks[warp.number as usize];
        let (number, committed, shared) = (warp.overall, &warp.committed, &mut self.near.shared);
        warp.copies.retain(|copy| {
            let lane = usize::from(copy.lane);
            let due = left.is_none_or(|left| copy.group < committed[lane].saturating_sub(left));
            if mask >> lane & 1 == 0 || !due {
                return true;
            }
            let by = Accessor { thread: number * 32 + lane as u32, pc: copy.pc, strong: false, clocks };
            shared.end_copy(copy.to, &copy.data[..usize::from(copy.bytes)], &by, Proxy::Generic);
            false
        });
    }
}
