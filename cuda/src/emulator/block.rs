//! A block: its warps take turns, and meet at barriers.
//!
//! A warp runs the lanes at the lowest instruction first, until they meet others; so lanes that a branch parted come
//! together again as soon as they can. A group that turns in a loop while others wait hands over after a while, so
//! that a lane may wait for another of its warp, as PTX promises since sm_70.

use super::barrier::Meeting;
use super::cluster::{Gathering, Near};
use super::exec::{Arithmetic, Group, Origin, State, Warp};
use super::fault::{Fault, FaultKind, Line};
use super::isa::{Inst, Kernel, Op};
use super::memory::Memory;
use super::report::Stats;
use super::shared::Checks;
use super::together::members;
use super::trace::{Step, Watch};

/// Instructions that a warp runs before the next has its turn.
const TURN: u64 = 1024;
/// Instructions of a warp that tests a barrier in vain.
const LOOKS: u64 = 8;
/// Registers of a multiprocessor, and of a thread at most.
const REGISTERS: u64 = 65536;
const MOST_REGISTERS: u64 = 255;
/// Turns of a loop after which a group lets others of its warp run.
const PATIENCE: u32 = 64;

/// What a launch fixes for all its blocks.
pub(crate) struct Grid<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) memory: &'a Memory,
    pub(crate) arguments: &'a [u8],
    pub(crate) blocks: [u32; 3],
    /// Blocks of a cluster.
    pub(crate) cluster: [u32; 3],
    pub(crate) threads: [u32; 3],
    pub(crate) dynamic_shared: u32,
    pub(crate) multiprocessors: u32,
    pub(crate) grid_id: u64,
    pub(crate) checks: Checks,
    /// Warp instructions that a block may run.
    pub(crate) budget: u64,
    pub(crate) arithmetic: Arithmetic,
    pub(crate) watch: Option<Watch>,
}

/// What all warps of a block share.
pub(crate) struct Common<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) memory: &'a Memory,
    pub(crate) arguments: &'a [u8],
    pub(crate) checks: Checks,
    /// What other blocks of the cluster may reach.
    pub(crate) near: Near,
    /// The block's number in its cluster, and what it may reach of the others, by their numbers; its own place is empty.
    pub(crate) rank: u32,
    pub(crate) others: Vec<Near>,
    /// `barrier.cluster`, while this block has its turn.
    pub(crate) gathering: Gathering,
    /// For each warp, what it knows of the clocks of all warps of the cluster.
    pub(crate) clocks: Vec<Vec<u32>>,
    /// The same of products' reads only, which copies of the warp come after: mbarriers tell more of them.
    pub(crate) for_copies: Vec<Vec<u32>>,
    pub(crate) stats: Stats,
    pub(crate) meetings: Vec<Meeting>,
    /// What the watched warp did, and how much of that is kept; in the watched block only.
    pub(crate) watched: Option<(Vec<Step>, usize)>,
    /// Whether it did more.
    pub(crate) cut: bool,
    /// Number of the watched warp, or of none.
    watched_warp: usize,
    instructions: u64,
    /// A test that failed: let others run.
    pub(crate) yields: bool,
}

/// A block in progress.
pub(crate) struct Block<'a> {
    pub(crate) grid: &'a Grid<'a>,
    index: [u32; 3],
    pub(crate) warps: Vec<Warp>,
    pub(crate) common: Common<'a>,
}

pub(crate) type Failure = (u32, u32, FaultKind);

/// What became of the instruction at hand.
pub(crate) enum After {
    Next,
    Jump(u32),
    /// The group changed: choose again.
    Choose,
}

impl Kernel {
    /// The line of an instruction.
    pub(crate) fn line(&self, pc: u32) -> Line {
        let place = self.places.get(pc as usize).copied().unwrap_or_default();
        let (file, line) = place.source;
        Line {
            line: place.line,
            text: self.text.get(&place.line).cloned().unwrap_or_default(),
            source: self.sources.get(&file).filter(|_| line > 0).map(|name| (name.clone(), line)),
        }
    }
}

impl<'a> Block<'a> {
    /// Room for blocks of a grid; `begin` makes it one.
    pub(crate) fn new(grid: &'a Grid<'a>) -> Self {
        let warps = grid.threads.iter().product::<u32>().div_ceil(32) as usize;
        let mut all = Vec::new();
        all.resize_with(warps, Warp::default);
        Self {
            grid,
            index: [0; 3],
            warps: all,
            common: Common {
                kernel: grid.kernel,
                memory: grid.memory,
                arguments: grid.arguments,
                checks: grid.checks,
                near: Near::default(),
                rank: 0,
                others: Vec::new(),
                gathering: Gathering::default(),
                clocks: Vec::new(),
                for_copies: Vec::new(),
                stats: Stats::new(grid.kernel.code.len()),
                meetings: Vec::new(),
                watched: None,
                cut: false,
                watched_warp: usize::MAX,
                instructions: 0,
                yields: false,
            },
        }
    }

    /// Begins the block of this index, which is number `rank` of its cluster.
    pub(crate) fn begin(&mut self, index: [u32; 3], rank: u32) {
        self.index = index;
        let blocks = self.grid.cluster.iter().product::<u32>();
        let static_shared = self.grid.kernel.static_shared;
        let total_shared = static_shared + self.grid.dynamic_shared;
        let origin = Origin {
            block: self.index,
            blocks: self.grid.blocks,
            cluster: self.grid.cluster,
            rank,
            threads: self.grid.threads,
            dynamic_shared: self.grid.dynamic_shared,
            total_shared,
            multiprocessors: self.grid.multiprocessors,
            grid_id: self.grid.grid_id,
        };
        for (number, warp) in self.warps.iter_mut().enumerate() {
            warp.begin(number as u32, self.grid.kernel, &origin);
        }
        let common = &mut self.common;
        let (own, warps) = (self.warps.len() as u32, self.warps.len() as u32 * blocks);
        common.near.begin(self.grid.threads.iter().product());
        common.near.shared.reset(total_shared, self.grid.kernel.granule, warps * 32, self.grid.checks);
        common.rank = rank;
        common.others.resize_with(blocks as usize, Near::default);
        let clocks = |own: u32| (0..warps).map(|warp| u32::from(warp == own)).collect();
        common.clocks = (rank * own..(rank + 1) * own).map(clocks).collect();
        common.for_copies = vec![vec![0; warps as usize]; own as usize];
        common.meetings = vec![Meeting::default(); 16];
        common.instructions = 0;
        common.watched_warp = usize::MAX;
        if let Some(watch) = self.grid.watch.filter(|watch| watch.block == self.index) {
            common.watched_warp = watch.warp as usize;
            common.watched = Some((Vec::new(), watch.most));
            common.cut = false;
        }
    }

    /// Runs for about so many warp instructions; whether the block has finished.
    pub(crate) fn run(&mut self, instructions: u64) -> Result<bool, Box<Fault>> {
        let until = self.common.instructions.saturating_add(instructions);
        let alone = self.common.others.len() == 1;
        self.resume();
        loop {
            let before = self.common.instructions;
            let mut alive = false;
            for at in 0..self.warps.len() {
                self.turn(at).map_err(|(lane, pc, kind)| self.fault(at, lane, pc, kind))?;
                alive |= self.warps[at].alive != 0;
            }
            if !alive {
                return self.registers_are_there().map(|()| true);
            }
            let ran = self.common.instructions - before;
            if ran == 0 && !self.let_finished_pass() {
                // Another block may be what is waited for.
                return if self.awaits_cluster() { Ok(false) } else { Err(self.stall()) };
            }
            if self.common.instructions > self.grid.budget {
                let (warp, group) = self.first(|_| true);
                let kind = FaultKind::OutOfBudget { instructions: self.common.instructions };
                return Err(self.fault(warp, group.mask.trailing_zeros(), group.pc, kind));
            }
            // Warps that did nothing but look may wait for another block.
            let looked = !alone && ran > 0 && ran <= LOOKS * self.warps.len() as u64;
            if looked || self.common.instructions >= until {
                return Ok(false);
            }
        }
    }

    /// Whether a block has the registers that its warps claimed: it keeps as many as it began with, and on a card
    /// `setmaxnreg.inc` waits until others gave enough of them back. Those of warps that have finished are not counted on.
    fn registers_are_there(&self) -> Result<(), Box<Fault>> {
        // Without a bound on its threads the assembler ignores the instruction.
        let Some(most) = self.grid.kernel.most_threads else { return Ok(()) };
        let each = (REGISTERS / most.max(1) / 8 * 8).min(MOST_REGISTERS);
        let claimed = |warp: &Warp| warp.claimed.map_or(each, |(registers, _)| registers.into());
        let all = 32 * self.warps.iter().map(claimed).sum::<u64>();
        let there = 32 * each * self.warps.len() as u64;
        if all <= there {
            return Ok(());
        }
        let largest =
            (0..self.warps.len()).max_by_key(|&at| (self.warps[at].claimed, std::cmp::Reverse(at))).unwrap_or(0);
        let pc = self.warps[largest].claimed.map_or(0, |(_, pc)| pc);
        Err(self.fault(largest, 0, pc, FaultKind::TooManyRegisters { claimed: all, there }))
    }

    /// Warp instructions that it has run.
    pub(crate) fn instructions(&self) -> u64 {
        self.common.instructions
    }

    /// The fault of a cluster of which no thread can go on, and some of this block wait at `barrier.cluster`.
    pub(crate) fn stranded(&self, arrived: u32, threads: u32, finished: u32) -> Box<Fault> {
        let (at, group) = self.first(|group| group.state == State::Cluster);
        let kind = FaultKind::ClusterNotGathered { arrived, threads, finished };
        self.fault(at, group.mask.trailing_zeros(), group.pc, kind)
    }

    fn fault(&self, warp: usize, lane: u32, pc: u32, kind: FaultKind) -> Box<Fault> {
        let [x, y, _] = self.grid.threads;
        let thread = warp as u32 * 32 + lane;
        Box::new(Fault {
            kernel: self.grid.kernel.name.clone(),
            block: self.index,
            thread: [thread % x, thread / x % y, thread / x / y],
            at: self.grid.kernel.line(pc),
            kind,
        })
    }

    fn first(&self, which: impl Fn(&Group) -> bool) -> (usize, Group) {
        let found = self
            .warps
            .iter()
            .enumerate()
            .find_map(|(at, warp)| warp.groups.iter().find(|group| which(group)).map(|group| (at, *group)));
        found.unwrap_or((0, Group { pc: 0, mask: 1, state: State::Ready }))
    }

    /// Nothing moves: which rule was broken.
    fn stall(&self) -> Box<Fault> {
        let code = &self.grid.kernel.code;
        let in_warp = self.first(|group| group.state == State::Warp);
        if in_warp.1.state == State::Warp {
            let (at, group) = in_warp;
            let warp = &self.warps[at];
            let inst = &code[group.pc as usize];
            let lane = group.mask.trailing_zeros();
            let kind = match inst.op {
                Op::Barrier { .. } => FaultKind::DivergentBarrier { reached: group.mask, alive: warp.alive },
                _ => {
                    FaultKind::WarpNotJoined { named: members(warp, inst, self.grid.kernel, lane), reached: group.mask }
                }
            };
            return self.fault(at, lane, group.pc, kind);
        }
        let (at, group) = self.first(|group| matches!(group.state, State::Block(_)));
        let State::Block(barrier) = group.state else {
            unreachable!("lanes are ready, or wait for their warp or block")
        };
        let groups = || self.warps.iter().flat_map(|warp| &warp.groups);
        let elsewhere = groups().find_map(|group| match group.state {
            State::Block(other) if other != barrier => Some(other),
            _ => None,
        });
        let kind = match elsewhere {
            Some(other) => FaultKind::Deadlock { barrier, other },
            None => FaultKind::BarrierNotReached {
                barrier,
                waiting: groups().map(|group| group.mask.count_ones()).sum(),
                needed: self.common.meetings[barrier as usize].needed.min(self.grid.threads.iter().product()),
                finished: self.finished(),
            },
        };
        self.fault(at, group.mask.trailing_zeros(), group.pc, kind)
    }

    fn finished(&self) -> u32 {
        let alive: u32 = self.warps.iter().map(|warp| warp.alive.count_ones()).sum();
        self.grid.threads.iter().product::<u32>() - alive
    }

    /// Where the check is off, threads that have finished count as having reached a barrier of the whole block.
    fn let_finished_pass(&mut self) -> bool {
        if self.grid.checks.finished_at_barrier {
            return false;
        }
        let (finished, all) = (self.finished(), self.warps.len() as u32 * 32);
        for at in 0..self.common.meetings.len() {
            let meeting = &self.common.meetings[at];
            if meeting.needed == all && meeting.arrived + finished >= all {
                self.release(at as u32);
                return true;
            }
        }
        false
    }

    /// Runs a warp until it waits, has finished or has had its turn.
    fn turn(&mut self, at: usize) -> Result<(), Failure> {
        let until = self.common.instructions + TURN;
        let mut patience = PATIENCE;
        while self.common.instructions < until {
            let warp = &mut self.warps[at];
            merge(&mut warp.groups);
            let ready = |group: &&Group| group.state == State::Ready;
            // Out of patience, the last in the code runs instead of the first, for a while.
            let forced = patience == 0;
            let chosen = if forced {
                patience = PATIENCE;
                warp.groups.iter().filter(ready).max_by_key(|group| group.pc)
            } else {
                warp.groups.iter().filter(ready).min_by_key(|group| group.pc)
            };
            let Some(chosen) = chosen.copied() else { return Ok(()) };
            let own = warp.groups.iter().position(|group| *group == chosen).unwrap_or(0);
            let others = warp.groups.iter().filter(ready).filter(|group| group.pc > chosen.pc);
            let limit = others.map(|group| group.pc).min().unwrap_or(u32::MAX);
            let alone = warp.groups.iter().filter(ready).count() == 1;
            let until = if forced { self.common.instructions + TURN / 4 } else { until };
            self.follow(at, own, limit, until, if alone { None } else { Some(&mut patience) })?;
            if self.common.yields {
                self.common.yields = false;
                if alone {
                    return Ok(());
                }
                patience = 0;
            }
        }
        Ok(())
    }

    /// Runs one group until it splits, waits, finishes or reaches `limit`.
    fn follow(
        &mut self,
        at: usize,
        own: usize,
        limit: u32,
        until: u64,
        mut patience: Option<&mut u32>,
    ) -> Result<(), Failure> {
        let kernel = self.grid.kernel;
        let Group { mut pc, mask: lanes, .. } = self.warps[at].groups[own];
        loop {
            let inst = &kernel.code[pc as usize];
            let warp = &mut self.warps[at];
            let mut mask = lanes;
            if inst.guard != u16::MAX {
                let guard = warp.registers.preds[usize::from(inst.guard)];
                mask &= if inst.negated { !guard } else { guard };
            }
            self.common.instructions += 1;
            let count = &mut self.common.stats.counts[pc as usize];
            count.issued += 1;
            count.lanes += u64::from(mask.count_ones());
            let slots = &kernel.pool[inst.at as usize..][..usize::from(inst.defs) + usize::from(inst.uses)];
            let (clock, ran) = (self.common.instructions, pc);
            if !warp.products.is_empty()
                && mask != 0
                && let Some(kind) = warp.touches(kernel, inst)
            {
                return Err((mask.trailing_zeros(), pc, kind));
            }
            if (self.grid.arithmetic)(&mut warp.registers, inst.op, slots, mask, clock) {
                pc += 1;
            } else {
                warp.groups[own].pc = pc;
                match self.special(at, own, pc, inst, mask)? {
                    After::Next => pc += 1,
                    After::Jump(target) => {
                        if target <= pc
                            && let Some(patience) = patience.as_deref_mut()
                        {
                            *patience -= 1;
                            if *patience == 0 {
                                if self.common.watched_warp == at {
                                    self.common.note(kernel, &self.warps[at], ran, mask);
                                }
                                self.warps[at].groups[own].pc = target;
                                return Ok(());
                            }
                        }
                        pc = target;
                    }
                    After::Choose => {
                        if self.common.watched_warp == at {
                            self.common.note(kernel, &self.warps[at], ran, mask);
                        }
                        return Ok(());
                    }
                }
            }
            if self.common.watched_warp == at {
                self.common.note(kernel, &self.warps[at], ran, mask);
            }
            if pc >= limit || self.common.instructions >= until || self.common.yields {
                self.warps[at].groups[own].pc = pc;
                return Ok(());
            }
        }
    }

    /// Everything that is not arithmetic.
    fn special(&mut self, at: usize, own: usize, pc: u32, inst: &Inst, mask: u32) -> Result<After, Failure> {
        let kernel = self.grid.kernel;
        let warp = &mut self.warps[at];
        let lanes = warp.groups[own].mask;
        match inst.op {
            Op::Branch => return Ok(branch(warp, own, pc, inst.imm as u32, mask)),
            Op::BranchIndexed => return self.branch_indexed(at, own, pc, inst, mask),
            Op::Exit => {
                if mask == 0 {
                    return Ok(After::Next);
                }
                self.common.await_stores(warp, mask, None)?;
                warp.alive &= !mask;
                self.common.threads_end(warp, mask).map_err(|(lane, kind)| (lane, pc, kind))?;
                for group in &mut warp.groups {
                    if group.state == State::Warp {
                        group.state = State::Ready;
                    }
                }
                if mask == lanes {
                    warp.groups.remove(own);
                } else {
                    warp.groups[own].mask = lanes & !mask;
                    warp.groups[own].pc = pc + 1;
                }
                self.resume();
                return Ok(After::Choose);
            }
            _ if mask == 0 => return Ok(After::Next),
            Op::Trap => return Err((mask.trailing_zeros(), pc, FaultKind::Trap)),
            Op::ActiveMask => {
                let slot = kernel.pool[inst.at as usize];
                super::exec::registers::Lane::put(&mut warp.registers, slot, &[mask; 32], mask);
                return Ok(After::Next);
            }
            Op::Shuffle(..)
            | Op::Vote(_)
            | Op::Match { .. }
            | Op::Redux(..)
            | Op::Elect
            | Op::WarpSync
            | Op::LoadMatrix { .. }
            | Op::StoreMatrix { .. }
            | Op::Mma { .. }
            | Op::GroupMma { .. }
            | Op::GroupFence
            | Op::GroupCommit
            | Op::GroupWait => return self.together(at, own, pc, inst, mask),
            Op::Barrier { .. } => return self.barrier(at, own, pc, inst, mask),
            Op::ClusterArrive { .. } | Op::ClusterWait { .. } => {
                return self.gather(at, own, pc, inst, mask).map_err(|(lane, kind)| (lane, pc, kind));
            }
            _ => {}
        }
        let common = &mut self.common;
        let done = match inst.op {
            Op::Load(access) => common.load(warp, inst, access, mask, pc),
            Op::Store(access) => common.store(warp, inst, access, mask, pc),
            Op::Param(access) => common.param(warp, inst, access, mask),
            Op::Atomic { space, op, ty, count, returns } => {
                common.atomic(warp, inst, (space, op, ty, count, returns), mask, pc)
            }
            Op::CopyAsync { bytes, ignore, sized } => common.copy_async(warp, inst, (bytes, ignore, sized), mask, pc),
            Op::CopyCommit => {
                for lane in super::exec::memory::lanes(mask) {
                    warp.committed[lane] += 1;
                }
                Ok(())
            }
            Op::CopyWait => {
                common.await_copies(warp, mask, Some(inst.imm.try_into().unwrap_or(u32::MAX)));
                Ok(())
            }
            Op::CopyWaitAll => {
                common.await_copies(warp, mask, None);
                Ok(())
            }
            Op::BulkLoad { multicast } => common.bulk_load(warp, inst, multicast, mask, pc),
            Op::BulkStore => common.bulk_store(warp, inst, mask, pc),
            Op::BulkCommit => {
                super::exec::memory::lanes(mask).for_each(|lane| warp.leaving_groups[lane] += 1);
                Ok(())
            }
            Op::BulkWait => {
                common.await_stores(warp, mask, Some(inst.imm.try_into().unwrap_or(u32::MAX)))?;
                Ok(())
            }
            Op::TensorLoad { multicast } => common.tensor_load(warp, inst, multicast, mask, pc),
            Op::TensorStore => common.tensor_store(warp, inst, mask, pc),
            Op::MapAddress { wide } => common.map_address(warp, inst, wide, mask),
            Op::MapPrefetch => common.map_prefetch(warp, inst, mask),
            Op::ProxyFence => {
                super::exec::memory::lanes(mask)
                    .for_each(|lane| common.near.shared.fence(warp.overall * 32 + lane as u32));
                Ok(())
            }
            Op::SetRegisters => {
                warp.claimed = Some((inst.imm as u32, pc));
                Ok(())
            }
            _ => common.mbarrier(warp, inst, mask, pc),
        };
        done.map_err(|(lane, kind)| (lane, pc, kind))?;
        Ok(After::Next)
    }

    fn branch_indexed(&mut self, at: usize, own: usize, pc: u32, inst: &Inst, mask: u32) -> Result<After, Failure> {
        let kernel = self.grid.kernel;
        let warp = &mut self.warps[at];
        let index = warp.registers.words[usize::from(kernel.pool[inst.at as usize])];
        let table = &kernel.tables[inst.imm as usize];
        let rest = warp.groups[own].mask & !mask;
        let mut parts: Vec<(u32, u32)> = if rest == 0 { vec![] } else { vec![(pc + 1, rest)] };
        for lane in super::exec::memory::lanes(mask) {
            let index = index[lane];
            let Some(target) = table.get(index as usize) else {
                return Err((lane as u32, pc, FaultKind::BranchIndex { index }));
            };
            match parts.iter_mut().find(|(pc, _)| pc == target) {
                Some((_, lanes)) => *lanes |= 1 << lane,
                None => parts.push((*target, 1 << lane)),
            }
        }
        warp.groups.remove(own);
        warp.groups.extend(parts.into_iter().map(|(pc, mask)| Group { pc, mask, state: State::Ready }));
        Ok(After::Choose)
    }
}

fn branch(warp: &mut Warp, own: usize, pc: u32, target: u32, taken: u32) -> After {
    let lanes = warp.groups[own].mask;
    if taken == 0 {
        After::Next
    } else if taken == lanes {
        After::Jump(target)
    } else {
        warp.groups[own] = Group { pc: pc + 1, mask: lanes & !taken, state: State::Ready };
        warp.groups.push(Group { pc: target, mask: taken, state: State::Ready });
        After::Choose
    }
}

/// Lanes that are at the same instruction become one group.
fn merge(groups: &mut Vec<Group>) {
    let mut at = 0;
    while at < groups.len() {
        let mut other = at + 1;
        while other < groups.len() {
            let joins = |state| matches!(state, State::Ready | State::Warp);
            let (a, b) = (groups[at], groups[other]);
            if a.pc == b.pc && joins(a.state) && joins(b.state) {
                groups[at] = Group { pc: a.pc, mask: a.mask | b.mask, state: State::Ready };
                groups.swap_remove(other);
            } else {
                other += 1;
            }
        }
        at += 1;
    }
}
