//! Barriers that live in shared memory.

use super::block::Common;
use super::exec::Warp;
use super::exec::memory::{Result, addresses, lanes};
use super::fault::FaultKind;
use super::isa::{Inst, Op};
use super::shared::Accessor;

/// An mbarrier. Its 64 bits in memory are opaque to programs, so they stay zero.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mbarrier {
    expected: u32,
    pending: u32,
    /// Bytes that are still to come; negative if they came before they were expected.
    bytes: i64,
    /// Phases that are complete.
    phase: u64,
    /// Clocks of those that have arrived, and those that a waiter learns.
    arrived: Vec<u32>,
    released: Vec<u32>,
}

impl Mbarrier {
    fn complete_if_due(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.expected;
            self.released = self.arrived.clone();
        }
    }
}

fn join(into: &mut Vec<u32>, from: &[u32]) {
    into.resize(from.len().max(into.len()), 0);
    into.iter_mut().zip(from).for_each(|(into, from)| *into = (*into).max(*from));
}

impl Common<'_> {
    pub(crate) fn mbarrier(&mut self, warp: &mut Warp, inst: &Inst, mask: u32, pc: u32) -> Result<()> {
        let kernel = self.kernel;
        let slots = &kernel.pool[inst.at as usize..][..usize::from(inst.defs) + usize::from(inst.uses)];
        let uses = &slots[usize::from(inst.defs)..];
        let at = addresses(warp, inst, uses[0]);
        for lane in lanes(mask) {
            // Generic addresses of shared memory are allowed too.
            let address = at[lane] & 0xffff_ffff;
            let operand = |warp: &Warp| warp.registers.words[usize::from(uses[1])][lane];
            let bad = |problem| (lane as u32, FaultKind::BadMbarrier { address, problem });
            if let Op::MbarrierInit = inst.op {
                let count = operand(warp);
                if count == 0 || count >= 1 << 20 {
                    return Err(bad("is initialised with a count that is not in 1 to 2^20 - 1"));
                }
                let clocks = &self.clocks[warp.number as usize];
                let by = Accessor { thread: warp.number * 32 + lane as u32, pc, strong: true, clocks };
                let written = self.shared.write(address, &[0; 8], &by);
                written.map_err(|fault| (lane as u32, fault.resolve(|pc| kernel.line(pc))))?;
                self.mbarriers.insert(address, Mbarrier { expected: count, pending: count, ..Mbarrier::default() });
                continue;
            }
            if let Op::MbarrierArriveCopies { .. } = inst.op {
                // The copies arrive at once, which is one of the times at which they may.
                self.await_copies(warp, 1 << lane, None);
            }
            if let Op::MbarrierTest { .. } = inst.op {
                // All together: bytes that nobody announced must not open the barrier halfway.
                let arrived = self.await_bulks(address);
                if let Some(barrier) = self.mbarriers.get_mut(&address)
                    && !arrived.is_empty()
                {
                    for (bytes, clocks) in &arrived {
                        barrier.bytes -= bytes;
                        join(&mut barrier.arrived, clocks);
                    }
                    barrier.complete_if_due();
                }
            }
            let number = warp.number as usize;
            let Some(barrier) = self.mbarriers.get_mut(&address) else {
                return Err(bad("was not initialised"));
            };
            match inst.op {
                Op::MbarrierInvalidate => {
                    self.mbarriers.remove(&address);
                }
                Op::MbarrierExpect => barrier.bytes += i64::from(operand(warp)),
                Op::MbarrierArrive { count, expect, returns } => {
                    let many = if count { operand(warp) } else { 1 };
                    if expect {
                        barrier.bytes += i64::from(operand(warp));
                    }
                    if many == 0 || many > barrier.pending {
                        return Err(bad("has more arrivals than its count"));
                    }
                    let state = barrier.phase;
                    barrier.pending -= many;
                    join(&mut barrier.arrived, &self.clocks[number]);
                    self.clocks[number][number] += 1;
                    barrier.complete_if_due();
                    if returns {
                        warp.registers.wides[usize::from(slots[0])][lane] = state;
                    }
                }
                Op::MbarrierArriveCopies { noinc } => {
                    // Without `.noinc` the arrival was not among the count.
                    if noinc {
                        if barrier.pending == 0 {
                            return Err(bad("has more arrivals than its count"));
                        }
                        barrier.pending -= 1;
                    }
                    join(&mut barrier.arrived, &self.clocks[number]);
                    self.clocks[number][number] += 1;
                    barrier.complete_if_due();
                }
                Op::MbarrierTest { parity } => {
                    let done = if parity {
                        barrier.phase & 1 != u64::from(operand(warp) & 1)
                    } else {
                        barrier.phase > warp.registers.wides[usize::from(uses[1])][lane]
                    };
                    if done {
                        let released = barrier.released.clone();
                        join(&mut self.clocks[number], &released);
                        // What lanes of this warp wrote or copied before lies behind now.
                        self.clocks[number][number] += 1;
                    } else {
                        self.yields = true;
                    }
                    warp.registers.put_pred(slots[0], if done { u32::MAX } else { 0 }, 1 << lane);
                }
                _ => unreachable!("not an mbarrier"),
            }
        }
        Ok(())
    }
}
