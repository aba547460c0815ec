//! Instructions that lanes of a warp run together, by member mask or all 32.

use super::block::{After, Block, Failure};
use super::exec::registers::FULL;
use super::exec::{Group, State, Warp, matrix};
use super::fault::FaultKind;
use super::isa::{Inst, Kernel, Op};

impl Block<'_> {
    /// An instruction that all lanes of its member mask run at once.
    pub(crate) fn together(
        &mut self,
        at: usize,
        own: usize,
        pc: u32,
        inst: &Inst,
        mask: u32,
    ) -> Result<After, Failure> {
        let kernel = self.grid.kernel;
        let slots = &kernel.pool[inst.at as usize..][..usize::from(inst.defs) + usize::from(inst.uses)];
        let mut waiting = 0;
        let mut rest = mask;
        while rest != 0 {
            let warp = &mut self.warps[at];
            let lane = rest.trailing_zeros();
            let named = members(warp, inst, kernel, lane);
            let part = super::exec::memory::lanes(rest)
                .filter(|other| members(warp, inst, kernel, *other as u32) == named)
                .fold(0, |part, other| part | 1 << other);
            rest &= !part;
            if part & !named != 0 {
                return Err(((part & !named).trailing_zeros(), pc, FaultKind::NotAMember { mask: named }));
            }
            let needed = match inst.op {
                // Whole warps only.
                _ if whole_warp(inst.op) => FULL,
                _ => named & warp.alive,
            };
            // `bar.warp.sync` may be met at different places of the code.
            let mut met = part;
            if inst.op == Op::WarpSync {
                for group in &warp.groups {
                    let there = &kernel.code[group.pc as usize];
                    if group.state == State::Warp && there.op == Op::WarpSync && group.mask & !named == 0 {
                        met |= group.mask;
                    }
                }
            }
            if met & needed != needed {
                waiting |= part;
                continue;
            }
            let common = &mut self.common;
            let done = match inst.op {
                Op::LoadMatrix { count, transposed } => common.load_matrix(warp, inst, count.into(), transposed, pc),
                Op::StoreMatrix { count, transposed } => common.store_matrix(warp, inst, count.into(), transposed, pc),
                Op::GroupMma { .. } => common.begin_product(warp, inst, pc),
                Op::GroupFence => {
                    warp.fence_products();
                    Ok(())
                }
                Op::GroupCommit => {
                    warp.product_groups += 1;
                    Ok(())
                }
                Op::GroupWait => {
                    common.await_products(warp, inst.imm.try_into().unwrap_or(u32::MAX))?;
                    Ok(())
                }
                Op::Mma { k, a, wide } => {
                    matrix::multiply(warp, slots, k.into(), a, wide);
                    Ok(())
                }
                Op::WarpSync => {
                    common.clocks[at][warp.overall as usize] += 1;
                    for group in &mut warp.groups {
                        let there = &kernel.code[group.pc as usize];
                        if group.state == State::Warp && there.op == Op::WarpSync && group.mask & !named == 0 {
                            group.state = State::Ready;
                            group.pc += 1;
                        }
                    }
                    Ok(())
                }
                _ => warp.collective(inst, slots, part),
            };
            done.map_err(|(lane, kind)| (lane, pc, kind))?;
        }
        if waiting == 0 {
            return Ok(After::Next);
        }
        Ok(self.wait(at, own, pc, waiting))
    }

    /// The lanes of `waiting` wait for others of their warp; the rest of the group goes on.
    pub(crate) fn wait(&mut self, at: usize, own: usize, pc: u32, waiting: u32) -> After {
        let groups = &mut self.warps[at].groups;
        let rest = groups[own].mask & !waiting;
        groups[own] = Group { pc, mask: waiting, state: State::Warp };
        if rest != 0 {
            groups.push(Group { pc: pc + 1, mask: rest, state: State::Ready });
        }
        After::Choose
    }
}

/// Whether all 32 lanes run an instruction together, always.
fn whole_warp(op: Op) -> bool {
    matches!(
        op,
        Op::LoadMatrix { .. }
            | Op::StoreMatrix { .. }
            | Op::Mma { .. }
            | Op::GroupMma { .. }
            | Op::GroupFence
            | Op::GroupCommit
            | Op::GroupWait
    )
}

/// The lanes that an instruction names, as lane `lane` sees it.
pub(crate) fn members(warp: &Warp, inst: &Inst, kernel: &Kernel, lane: u32) -> u32 {
    match inst.op {
        op if whole_warp(op) => FULL,
        _ => {
            let slot = kernel.pool[inst.at as usize + usize::from(inst.defs)];
            warp.registers.words[usize::from(slot)][lane as usize]
        }
    }
}
