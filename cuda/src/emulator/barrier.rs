//! `bar` and `barrier`: where the threads of a block meet.

use super::block::{After, Block, Failure};
use super::exec::registers::{FULL, Lane};
use super::exec::{Group, State};
use super::fault::FaultKind;
use super::isa::{Barrier, Inst, Op};

/// A barrier that some threads have reached.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meeting {
    /// Threads that it needs, in whole warps; 0 when nobody is there.
    pub(crate) needed: u32,
    pub(crate) arrived: u32,
    votes: u32,
    voters: u32,
    clocks: Vec<u32>,
}

impl Block<'_> {
    pub(crate) fn barrier(&mut self, at: usize, own: usize, pc: u32, inst: &Inst, mask: u32) -> Result<After, Failure> {
        let Op::Barrier { kind, aligned, counted } = inst.op else { return Ok(After::Next) };
        let kernel = self.grid.kernel;
        let warps = self.warps.len() as u32;
        let warp = &mut self.warps[at];
        let lane = mask.trailing_zeros();
        let slots = &kernel.pool[inst.at as usize..][..usize::from(inst.defs) + usize::from(inst.uses)];
        let uses = &slots[usize::from(inst.defs)..];
        if aligned && mask != warp.alive {
            if mask != warp.groups[own].mask {
                return Err((lane, pc, FaultKind::DivergentBarrier { reached: mask, alive: warp.alive }));
            }
            return Ok(self.wait(at, own, pc, mask));
        }
        let number = warp.registers.words[usize::from(uses[0])][lane as usize];
        let needed = if counted { warp.registers.words[usize::from(uses[1])][lane as usize] } else { warps * 32 };
        let bad = FaultKind::BadBarrier { barrier: number.into(), threads: needed.into() };
        if number >= 16 || needed == 0 || needed % 32 != 0 || needed > warps * 32 {
            return Err((lane, pc, bad));
        }
        // Lanes that the last warp does not have count as here.
        let threads = self.grid.threads.iter().product::<u32>();
        let missing = 32 - (threads - at as u32 * 32).min(32);
        let meeting = &mut self.common.meetings[number as usize];
        let own_clocks = &mut self.common.clocks[at];
        meeting.clocks.resize(own_clocks.len(), 0);
        meeting.clocks.iter_mut().zip(own_clocks.iter()).for_each(|(all, own)| *all = (*all).max(*own));
        own_clocks[warp.overall as usize] += 1;
        if meeting.needed != 0 && meeting.needed != needed {
            return Err((lane, pc, bad));
        }
        meeting.needed = needed;
        meeting.arrived += mask.count_ones() + missing;
        if matches!(kind, Barrier::Popc | Barrier::And | Barrier::Or) {
            let votes = warp.registers.pred(uses[uses.len() - 1]) & mask;
            meeting.votes += votes.count_ones();
            meeting.voters += mask.count_ones();
        }
        if meeting.arrived > meeting.needed {
            return Err((lane, pc, bad));
        }
        let complete = meeting.arrived == meeting.needed;
        self.common.stats.barriers += 1;
        if kind == Barrier::Arrive {
            if complete {
                self.release(number);
            }
            return Ok(After::Next);
        }
        let rest = warp.groups[own].mask & !mask;
        warp.groups[own] = Group { pc, mask, state: State::Block(number) };
        if rest != 0 {
            warp.groups.push(Group { pc: pc + 1, mask: rest, state: State::Ready });
        }
        if complete {
            self.release(number);
        }
        Ok(After::Choose)
    }

    /// All are here: those that wait go on.
    pub(crate) fn release(&mut self, number: u32) {
        let meeting = std::mem::take(&mut self.common.meetings[number as usize]);
        let kernel = self.grid.kernel;
        for (at, warp) in self.warps.iter_mut().enumerate() {
            let registers = &mut warp.registers;
            for group in warp.groups.iter_mut().filter(|group| group.state == State::Block(number)) {
                let inst = &kernel.code[group.pc as usize];
                let to = kernel.pool[inst.at as usize];
                let all = |yes: bool| if yes { FULL } else { 0 };
                if let Op::Barrier { kind, .. } = inst.op {
                    match kind {
                        Barrier::Popc => {
                            Lane::put(registers, to, &[meeting.votes; 32], group.mask);
                        }
                        Barrier::And => registers.put_pred(to, all(meeting.votes == meeting.voters), group.mask),
                        Barrier::Or => registers.put_pred(to, all(meeting.votes > 0), group.mask),
                        Barrier::Sync | Barrier::Arrive => {}
                    }
                }
                group.state = State::Ready;
                group.pc += 1;
                let own = &mut self.common.clocks[at];
                own.iter_mut().zip(&meeting.clocks).for_each(|(own, all)| *own = (*own).max(*all));
            }
        }
    }
}
