//! Barriers that live in shared memory.

use super::block::Common;
use super::cluster::Near;
use super::exec::Warp;
use super::exec::memory::{Result, addresses, lanes};
use super::fault::FaultKind;
use super::isa::{Inst, Op};
use super::shared::Accessor;
use super::window;

/// An mbarrier. Its 64 bits in memory are opaque to programs, so they stay zero.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mbarrier {
    expected: u32,
    pending: u32,
    /// Bytes that are still to come; negative if they came before they were expected.
    bytes: i64,
    /// Phases that are complete.
    phase: u64,
    /// Clocks of those that have arrived, and those that a waiter learns: of this block and of copies; of threads of other
    /// blocks that released to the cluster, for those that acquire from it; of the others, for copies over what products read.
    arrived: [Vec<u32>; 3],
    released: [Vec<u32>; 3],
    /// The warp that initialised it, counted through the cluster, and its clock then.
    pub(crate) made: (u32, u32),
}

impl Mbarrier {
    fn complete_if_due(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.expected;
            self.released.clone_from(&self.arrived);
        }
    }
}

/// Makes clocks the later of both.
pub(crate) fn join(into: &mut Vec<u32>, from: &[u32]) {
    into.resize(from.len().max(into.len()), 0);
    into.iter_mut().zip(from).for_each(|(into, from)| *into = (*into).max(*from));
}

impl Near {
    /// The mbarrier at an address; `own`: it is of the block that asks.
    pub(crate) fn mbarrier(
        &mut self,
        address: u64,
        by: &Accessor<'_>,
        own: bool,
    ) -> std::result::Result<&mut Mbarrier, &'static str> {
        let barrier = self.mbarriers.get_mut(&address).ok_or("was not initialised")?;
        let (warp, clock) = barrier.made;
        if !own && by.clocks[warp as usize] < clock {
            return Err("was initialised by another block, and nothing like barrier.cluster lies between");
        }
        Ok(barrier)
    }
}

impl Common<'_> {
    pub(crate) fn mbarrier(&mut self, warp: &mut Warp, inst: &Inst, mask: u32, pc: u32) -> Result<()> {
        let kernel = self.kernel;
        let slots = &kernel.pool[inst.at as usize..][..usize::from(inst.defs) + usize::from(inst.uses)];
        let uses = &slots[usize::from(inst.defs)..];
        let at = addresses(warp, inst, uses[0]);
        for lane in lanes(mask) {
            // Generic addresses of shared memory are allowed too.
            let whole = at[lane] & 0xffff_ffff;
            let (address, named) = (window::within(whole), window::rank(whole).unwrap_or(self.rank));
            let operand = |warp: &Warp| warp.registers.words[usize::from(uses[1])][lane];
            let bad = |problem| (lane as u32, FaultKind::BadMbarrier { address, problem });
            let remote =
                matches!(inst.op, Op::MbarrierExpect { remote: true } | Op::MbarrierArrive { remote: true, .. });
            if named != self.rank && !remote {
                return Err(bad("lies in another block, where only arrivals in shared::cluster may name it"));
            }
            if let Op::MbarrierInit = inst.op {
                let count = operand(warp);
                if count == 0 || count >= 1 << 20 {
                    return Err(bad("is initialised with a count that is not in 1 to 2^20 - 1"));
                }
                let clocks = &self.clocks[warp.number as usize];
                let by = Accessor { thread: warp.overall * 32 + lane as u32, pc, strong: true, clocks };
                let written = self.near.shared.write(address, &[0; 8], &by);
                written.map_err(|fault| (lane as u32, fault.resolve(|pc| kernel.line(pc))))?;
                let made = (warp.overall, clocks[warp.overall as usize]);
                let barrier = Mbarrier { expected: count, pending: count, made, ..Mbarrier::default() };
                self.near.mbarriers.insert(address, barrier);
                continue;
            }
            if let Op::MbarrierArriveCopies { .. } = inst.op {
                // The copies arrive at once, which is one of the times at which they may.
                self.await_copies(warp, 1 << lane, None);
            }
            if let Op::MbarrierTest { .. } = inst.op {
                // All together: bytes that nobody announced must not open the barrier halfway.
                let arrived = self.await_bulks(address);
                if let Some(barrier) = self.near.mbarriers.get_mut(&address)
                    && !arrived.is_empty()
                {
                    for (bytes, clocks) in &arrived {
                        barrier.bytes -= bytes;
                        join(&mut barrier.arrived[0], clocks);
                    }
                    barrier.complete_if_due();
                }
            }
            let (number, overall) = (warp.number as usize, warp.overall as usize);
            let own = named == self.rank;
            let clocks = self.clocks[number].clone();
            let by = Accessor { thread: warp.overall * 32 + lane as u32, pc, strong: true, clocks: &clocks };
            let barrier = self.reach(named, &by, lane)?.mbarrier(address, &by, own).map_err(bad)?;
            match inst.op {
                Op::MbarrierInvalidate => {
                    self.near.mbarriers.remove(&address);
                }
                Op::MbarrierExpect { .. } => barrier.bytes += i64::from(operand(warp)),
                Op::MbarrierArrive { count, expect, returns, orders, .. } => {
                    let many = if count { operand(warp) } else { 1 };
                    if expect {
                        barrier.bytes += i64::from(operand(warp));
                    }
                    if many == 0 || many > barrier.pending {
                        return Err(bad("has more arrivals than its count"));
                    }
                    let state = barrier.phase;
                    barrier.pending -= many;
                    let whose = if own { 0 } else { 2 - usize::from(orders) };
                    join(&mut barrier.arrived[whose], &clocks);
                    barrier.complete_if_due();
                    self.clocks[number][overall] += 1;
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
                    join(&mut barrier.arrived[0], &clocks);
                    barrier.complete_if_due();
                    self.clocks[number][overall] += 1;
                }
                Op::MbarrierTest { parity, orders } => {
                    let done = if parity {
                        barrier.phase & 1 != u64::from(operand(warp) & 1)
                    } else {
                        barrier.phase > warp.registers.wides[usize::from(uses[1])][lane]
                    };
                    if done {
                        let mut learned = clocks;
                        for released in &barrier.released[..if orders { 2 } else { 1 }] {
                            join(&mut learned, released);
                        }
                        // What lanes of this warp wrote or copied before lies behind now.
                        learned[overall] += 1;
                        let all = barrier.released.clone();
                        all.iter().for_each(|released| join(&mut self.for_copies[number], released));
                        self.clocks[number] = learned;
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
