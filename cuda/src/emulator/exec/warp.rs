//! What lanes of a warp do together: shuffles, votes, matches, reductions.

use super::Warp;
use super::memory::{Result, lanes};
use super::registers::Lane;
use crate::emulator::fault::FaultKind;
use crate::emulator::isa::{Inst, Op, Reduce, Shuffle, Ty, Vote};

impl Warp {
    /// Runs a collective on the lanes that its member mask names, all of which are here. The mask is the first
    /// source.
    pub(crate) fn collective(&mut self, inst: &Inst, s: &[u16], members: u32) -> Result<()> {
        let r = &mut self.registers;
        let uses = &s[usize::from(inst.defs)..];
        match inst.op {
            Op::Shuffle(mode, paired) => {
                let value = r.words[usize::from(uses[1])];
                let by = r.words[usize::from(uses[2])];
                let clamp = r.words[usize::from(uses[3])];
                let (mut out, mut inside) = ([0; 32], 0);
                for lane in lanes(members) {
                    let (from, valid) = source(mode, lane as u32, by[lane], clamp[lane]);
                    if members >> from & 1 == 0 {
                        return Err((lane as u32, FaultKind::ShuffleFromOutside { source: from, members }));
                    }
                    out[lane] = value[from as usize];
                    inside |= u32::from(valid) << lane;
                }
                u32::put(r, s[0], &out, members);
                if paired {
                    r.put_pred(s[1], inside, members);
                }
            }
            Op::Vote(vote) => {
                let votes = r.pred(uses[1]) & members;
                let all = |yes| if yes { u32::MAX } else { 0 };
                match vote {
                    Vote::Ballot => u32::put(r, s[0], &[votes; 32], members),
                    Vote::All => r.put_pred(s[0], all(votes == members), members),
                    Vote::Any => r.put_pred(s[0], all(votes != 0), members),
                    Vote::Uni => r.put_pred(s[0], all(votes == 0 || votes == members), members),
                }
            }
            Op::Match { all, wide, pred } => {
                let value =
                    if wide { r.wides[usize::from(uses[1])] } else { r.words[usize::from(uses[1])].map(u64::from) };
                let alike = |lane: usize| {
                    lanes(members).filter(|other| value[*other] == value[lane]).fold(0, |mask, other| mask | 1 << other)
                };
                if all {
                    let same = alike(members.trailing_zeros() as usize) == members;
                    u32::put(r, s[0], &[if same { members } else { 0 }; 32], members);
                    if pred {
                        r.put_pred(s[1], if same { u32::MAX } else { 0 }, members);
                    }
                } else {
                    let mut out = [0; 32];
                    for lane in lanes(members) {
                        out[lane] = alike(lane);
                    }
                    u32::put(r, s[0], &out, members);
                }
            }
            Op::Redux(op, ty) => {
                let value = r.words[usize::from(uses[1])];
                let total = lanes(members).map(|lane| value[lane]).reduce(|a, b| match (op, ty) {
                    (Reduce::Add, _) => a.wrapping_add(b),
                    (Reduce::Min, Ty::S32) => (a as i32).min(b as i32) as u32,
                    (Reduce::Max, Ty::S32) => (a as i32).max(b as i32) as u32,
                    (Reduce::Min, _) => a.min(b),
                    (Reduce::Max, _) => a.max(b),
                    (Reduce::And, _) => a & b,
                    (Reduce::Or, _) => a | b,
                    (Reduce::Xor, _) => a ^ b,
                });
                u32::put(r, s[0], &[total.unwrap_or(0); 32], members);
            }
            Op::Elect => {
                let leader = members.trailing_zeros();
                u32::put(r, s[0], &[leader; 32], members);
                r.put_pred(s[1], 1 << leader, members);
            }
            // Only an order of memory.
            Op::WarpSync => {}
            _ => unreachable!("not a collective"),
        }
        Ok(())
    }
}

/// The lane that a shuffle reads, and whether it lies in the segment.
fn source(mode: Shuffle, lane: u32, by: u32, clamp: u32) -> (u32, bool) {
    let (by, limit, segment) = (by & 31, clamp & 31, clamp >> 8 & 31);
    let least = lane & segment;
    let most = least | (limit & !segment & 31);
    let (from, valid) = match mode {
        Shuffle::Up => (lane.wrapping_sub(by), lane as i32 - by as i32 >= most as i32),
        Shuffle::Down => (lane + by, lane + by <= most),
        Shuffle::Bfly => (lane ^ by, (lane ^ by) <= most),
        Shuffle::Idx => {
            let from = least | (by & !segment & 31);
            (from, from <= most)
        }
    };
    if valid { (from & 31, true) } else { (lane, false) }
}
