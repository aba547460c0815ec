//! Atomics.

use super::Warp;
use super::memory::{Result, addresses, global, lanes, outside};
use crate::emulator::block::Common;
use crate::emulator::fault::{AccessKind, FaultKind};
use crate::emulator::float::{bf16_to_f32, f16_to_f32, f64_to_bf16, f64_to_f16, max_f32, min_f32, odd_sum};
use crate::emulator::isa::{AtomicOp, Inst, Round, Space, Ty};
use crate::emulator::shared::Accessor;

impl Common<'_> {
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
                            let by = Accessor { thread: warp.overall * 32 + lane as u32, pc, strong: true, clocks };
                            let old = self.near.shared.update(address, bytes, &by, change);
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
