//! Running instructions: a warp's lanes in step where they are together.

mod atomic;
pub(crate) mod bulk;
mod copy;
pub(crate) mod float;
mod group;
pub(crate) mod integer;
pub(crate) mod matrix;
pub(crate) mod memory;
pub(crate) mod registers;
mod tensor;
pub(crate) mod warp;

use registers::{LANES, Registers};

use super::cluster::NOT_ARRIVED;
use super::isa::{Bank, IntOp, Kernel, Logic, Op, Special};

/// Lanes that are at the same instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    pub(crate) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// Waits for other lanes of its warp at an instruction that they share.
    Warp,
    /// Waits at a barrier of the block.
    Block(u32),
    /// Waits for the other blocks of its cluster.
    Cluster,
}

/// A copy that has not arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy {
    pub(crate) lane: u8,
    pub(crate) bytes: u8,
    pub(crate) group: u32,
    pub(crate) pc: u32,
    pub(crate) to: u64,
    pub(crate) data: [u8; 16],
}

/// 32 threads.
#[derive(Debug, Default)]
pub(crate) struct Warp {
    /// In its block, and counted on through the blocks of a cluster.
    pub(crate) number: u32,
    pub(crate) overall: u32,
    pub(crate) registers: Registers,
    /// Lanes that have not finished.
    pub(crate) alive: u32,
    pub(crate) groups: Vec<Group>,
    pub(crate) local: Vec<u8>,
    pub(crate) copies: Vec<Copy>,
    /// Groups of copies that each lane has committed.
    pub(crate) committed: [u32; LANES],
    /// Copies out of shared memory in flight, and the groups of them that each lane has committed.
    pub(crate) leaving: Vec<bulk::Leaving>,
    pub(crate) leaving_groups: [u32; LANES],
    /// Products in flight, and what they hold of each word register.
    pub(crate) products: Vec<group::Product>,
    pub(crate) held: Vec<group::Held>,
    /// Groups of products that were committed.
    pub(crate) product_groups: u32,
    /// The word registers at the last `wgmma.fence`; empty before it.
    pub(crate) fenced: Vec<[u32; LANES]>,
    /// Registers a thread that the last `setmaxnreg` claimed, and where that is.
    pub(crate) claimed: Option<(u32, u32)>,
    /// The meeting of the cluster that each lane has arrived at and not waited for, or `NOT_ARRIVED`.
    pub(crate) gathered: [u64; LANES],
}

/// Where a warp stands in its grid.
pub(crate) struct Origin {
    pub(crate) block: [u32; 3],
    pub(crate) blocks: [u32; 3],
    pub(crate) cluster: [u32; 3],
    /// The block's number in its cluster.
    pub(crate) rank: u32,
    pub(crate) threads: [u32; 3],
    pub(crate) dynamic_shared: u32,
    pub(crate) total_shared: u32,
    pub(crate) multiprocessors: u32,
    pub(crate) grid_id: u64,
}

impl Warp {
    /// Begins at the first instruction.
    pub(crate) fn begin(&mut self, number: u32, kernel: &Kernel, origin: &Origin) {
        let threads = origin.threads.iter().product::<u32>();
        let lanes = (threads - number * 32).min(32);
        self.number = number;
        self.overall = origin.rank * threads.div_ceil(32) + number;
        self.gathered = [NOT_ARRIVED; LANES];
        self.alive = if lanes == 32 { u32::MAX } else { (1 << lanes) - 1 };
        self.groups.clear();
        self.groups.push(Group { pc: 0, mask: self.alive, state: State::Ready });
        self.copies.clear();
        self.committed = [0; LANES];
        self.leaving.clear();
        self.leaving_groups = [0; LANES];
        self.products.clear();
        self.held.clear();
        self.product_groups = 0;
        self.fenced.clear();
        self.claimed = None;
        self.local.clear();
        self.local.resize(kernel.local_bytes as usize * LANES, 0);
        let [words, wides, preds] = kernel.slots;
        let r = &mut self.registers;
        r.words.resize(words, [0; LANES]);
        r.wides.resize(wides, [0; LANES]);
        r.preds.resize(preds, 0);
        for (bank, slot, init) in &kernel.init {
            let value = |lane: u32| match init {
                super::isa::Init::Value(bits) => *bits,
                super::isa::Init::Special(special) => origin.special(*special, number, lane),
            };
            match bank {
                Bank::Word => {
                    for lane in 0..32 {
                        r.words[usize::from(*slot)][lane as usize] = value(lane) as u32;
                    }
                }
                Bank::Wide => {
                    for lane in 0..32 {
                        r.wides[usize::from(*slot)][lane as usize] = value(lane);
                    }
                }
                Bank::Pred => r.preds[usize::from(*slot)] = 0,
            }
        }
    }
}

impl Origin {
    fn special(&self, special: Special, warp: u32, lane: u32) -> u64 {
        let thread = warp * 32 + lane;
        let [x, y, _] = self.threads;
        let bit = 1_u64 << lane;
        let of = |axis: u8, value: &dyn Fn(usize) -> u32| u64::from(value(usize::from(axis)));
        match special {
            Special::Tid(0) => (thread % x).into(),
            Special::Tid(1) => (thread / x % y).into(),
            Special::Tid(_) => (thread / x / y).into(),
            Special::Ntid(axis) => self.threads[usize::from(axis)].into(),
            Special::Ctaid(axis) => self.block[usize::from(axis)].into(),
            Special::Nctaid(axis) => self.blocks[usize::from(axis)].into(),
            Special::Laneid => lane.into(),
            Special::Warpid => warp.into(),
            Special::Nwarpid => self.threads.iter().product::<u32>().div_ceil(32).into(),
            Special::Smid => u64::from(self.block[0] % self.multiprocessors.max(1)),
            Special::Nsmid => self.multiprocessors.into(),
            Special::Gridid => self.grid_id,
            Special::MaskEq => bit,
            Special::MaskLt => bit - 1,
            Special::MaskLe => bit | (bit - 1),
            Special::MaskGt => !(bit | (bit - 1)) & 0xffff_ffff,
            Special::MaskGe => !(bit - 1) & 0xffff_ffff,
            Special::DynamicShared => self.dynamic_shared.into(),
            Special::TotalShared => self.total_shared.into(),
            Special::Clusterid(axis) => of(axis, &|axis| self.block[axis] / self.cluster[axis]),
            Special::Nclusterid(axis) => of(axis, &|axis| self.blocks[axis] / self.cluster[axis]),
            Special::ClusterCtaid(axis) => of(axis, &|axis| self.block[axis] % self.cluster[axis]),
            Special::ClusterNctaid(axis) => of(axis, &|axis| self.cluster[axis]),
            Special::ClusterCtarank => self.rank.into(),
            Special::ClusterNctarank => self.cluster.iter().product::<u32>().into(),
        }
    }
}

/// Runs an instruction that touches registers only; `false` if it is none of these.
#[inline(always)]
fn arithmetic(r: &mut Registers, op: Op, s: &[u16], mask: u32, clock: u64) -> bool {
    match op {
        Op::Mov => r.unary(s, mask, |a: u32| a),
        Op::MovWide => r.unary(s, mask, |a: u64| a),
        Op::Int(op, ty) => match (op, ty) {
            // The most frequent ones need one jump only.
            (IntOp::Add, super::isa::Ty::S32 | super::isa::Ty::U32) => {
                r.binary(s, mask, |a: u32, b: u32| a.wrapping_add(b));
            }
            (IntOp::Add, super::isa::Ty::S64 | super::isa::Ty::U64) => {
                r.binary(s, mask, |a: u64, b: u64| a.wrapping_add(b));
            }
            _ => integer::run(r, op, ty, s, mask),
        },
        Op::Float(op, ty, mods) => float::run(r, op, ty, mods, s, mask),
        Op::Compare(compare, ty, ftz) => float::compare(r, compare, ty, ftz, s, mask),
        Op::Convert { to, from, register_bits, mods, integral } => {
            float::convert(r, (to, from), register_bits.into(), mods, integral, s, mask);
        }
        Op::ConvertPair(ty, mods) => float::convert_pair(r, ty, mods, s, mask),
        Op::Select => {
            let p = r.pred(s[3]);
            let (a, b) = (r.words[usize::from(s[1])], r.words[usize::from(s[2])]);
            let mut d = [0; LANES];
            for lane in 0..LANES {
                d[lane] = if p >> lane & 1 == 1 { a[lane] } else { b[lane] };
            }
            registers::Lane::put(r, s[0], &d, mask);
        }
        Op::SelectWide => {
            let p = r.pred(s[3]);
            let (a, b) = (r.wides[usize::from(s[1])], r.wides[usize::from(s[2])]);
            let mut d = [0; LANES];
            for lane in 0..LANES {
                d[lane] = if p >> lane & 1 == 1 { a[lane] } else { b[lane] };
            }
            registers::Lane::put(r, s[0], &d, mask);
        }
        Op::Logic(logic) => {
            let bits = match logic {
                Logic::And => r.pred(s[1]) & r.pred(s[2]),
                Logic::Or => r.pred(s[1]) | r.pred(s[2]),
                Logic::Xor => r.pred(s[1]) ^ r.pred(s[2]),
                Logic::Not => !r.pred(s[1]),
                Logic::Mov => r.pred(s[1]),
                Logic::True => u32::MAX,
                Logic::False => 0,
            };
            r.put_pred(s[0], bits, mask);
        }
        Op::Pack { part, wide } => pack(r, part.into(), wide, s, mask),
        Op::Unpack { part, wide } => unpack(r, part.into(), wide, s, mask),
        Op::Dp4a(left, right) => r.ternary(s, mask, |a: u32, b: u32, c: u32| {
            let byte = |x: u32, at: u32, signed: bool| {
                let byte = (x >> (8 * at)) as u8;
                if signed { i32::from(byte as i8) } else { i32::from(byte) }
            };
            (0..4).fold(c, |sum, at| sum.wrapping_add((byte(a, at, left) * byte(b, at, right)) as u32))
        }),
        Op::Clock => registers::Lane::put(r, s[0], &[clock as u32; LANES], mask),
        Op::ClockWide => registers::Lane::put(r, s[0], &[clock; LANES], mask),
        Op::ToGeneric(space) => {
            let window = super::window::of(space);
            r.unary(s, mask, |a: u64| a.wrapping_add(window));
        }
        Op::FromGeneric(space) => {
            let window = super::window::of(space);
            r.unary(s, mask, |a: u64| a.wrapping_sub(window));
        }
        Op::IsSpace(space) => {
            let a = r.wides[usize::from(s[1])];
            let bits =
                (0..LANES).fold(0, |bits, lane| bits | u32::from(super::window::space(a[lane]) == space) << lane);
            r.put_pred(s[0], bits, mask);
        }
        Op::Nothing => {}
        _ => return false,
    }
    true
}

fn pack(r: &mut Registers, part: u32, wide: bool, s: &[u16], mask: u32) {
    let mut d = [0_u64; LANES];
    for (at, slot) in s[1..].iter().enumerate() {
        let from = &r.words[usize::from(*slot)];
        for lane in 0..LANES {
            d[lane] |= u64::from(from[lane]) << (at as u32 * part);
        }
    }
    if wide {
        registers::Lane::put(r, s[0], &d, mask);
    } else {
        registers::Lane::put(r, s[0], &d.map(|bits| bits as u32), mask);
    }
}

fn unpack(r: &mut Registers, part: u32, wide: bool, s: &[u16], mask: u32) {
    let Some((from, to)) = s.split_last() else { return };
    let a = if wide { r.wides[usize::from(*from)] } else { r.words[usize::from(*from)].map(u64::from) };
    let keep = (1_u64 << part) - 1;
    for (at, slot) in to.iter().enumerate() {
        let d = a.map(|bits| (bits >> (at as u32 * part) & keep) as u32);
        registers::Lane::put(r, *slot, &d, mask);
    }
}

/// With the vector units that the machine has.
pub(crate) type Arithmetic = fn(&mut Registers, Op, &[u16], u32, u64) -> bool;

/// The fastest version that this machine runs; all give the same bits.
pub(crate) fn fastest() -> Arithmetic {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        return |r, op, s, mask, clock| {
            // SAFETY: this closure is given out only where AVX2 and FMA were detected.
            unsafe { arithmetic_avx2(r, op, s, mask, clock) }
        };
    }
    |r, op, s, mask, clock| arithmetic(r, op, s, mask, clock)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn arithmetic_avx2(r: &mut Registers, op: Op, s: &[u16], mask: u32, clock: u64) -> bool {
    arithmetic(r, op, s, mask, clock)
}
