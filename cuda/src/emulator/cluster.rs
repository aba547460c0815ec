//! Clusters: blocks that run at the same time, meet at `barrier.cluster`, and reach into one another's shared memory.
//!
//! The blocks of a cluster take turns on one thread. While one has its turn it holds what the others let it reach
//! ([`Near`]), so that nothing is locked and results are the same each time. A block without clusters is one of its own.
//!
//! What is checked is the order, not the luck of a run: a block may be reached only by who knows (by the clocks of
//! `shared.rs`) that the mbarrier there was initialised, and it may end only when it knows of all that reached it.

use std::collections::HashMap;

use super::block::{After, Block, Common, Grid};
use super::exec::bulk::Bulk;
use super::exec::memory::{Result, lanes};
use super::exec::{Group, State, Warp};
use super::fault::{Fault, FaultKind};
use super::isa::{Inst, Op};
use super::mbarrier::{Mbarrier, join};
use super::shared::{Accessor, Shared};
use super::window;

/// What the blocks of a cluster may reach of one another.
#[derive(Debug, Default)]
pub(crate) struct Near {
    pub(crate) shared: Shared,
    pub(crate) mbarriers: HashMap<u64, Mbarrier>,
    /// Copies into this shared memory that have not arrived.
    pub(crate) bulks: Vec<Bulk>,
    /// When warps of other blocks reached in here last, by their number: their clock then, and the instruction.
    visits: HashMap<u32, (u32, u32)>,
    /// Threads that have not finished.
    pub(crate) alive: u32,
}

impl Near {
    pub(crate) fn begin(&mut self, threads: u32) {
        self.mbarriers.clear();
        self.bulks.clear();
        self.visits.clear();
        self.alive = threads;
    }
}

/// The state of `barrier.cluster`.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    /// Meetings that are complete.
    phase: u64,
    /// Threads that have arrived at the next and have not finished.
    arrived: u32,
    /// What those know that arrived with release, and what a waiter learns.
    clocks: Vec<u32>,
    released: Vec<u32>,
}

/// A thread that has not arrived at `barrier.cluster` since it waited last.
pub(crate) const NOT_ARRIVED: u64 = u64::MAX;

impl Common<'_> {
    /// Of what block `rank` of the cluster lets others reach, for an instruction by `by` that reaches there.
    pub(crate) fn reach(&mut self, rank: u32, by: &Accessor<'_>, lane: usize) -> Result<&mut Near> {
        if rank == self.rank {
            return Ok(&mut self.near);
        }
        let blocks = self.others.len() as u32;
        let near = self.others.get_mut(rank as usize);
        let near = near.ok_or((lane as u32, FaultKind::NoSuchRank { rank, blocks }))?;
        if near.alive == 0 {
            return Err((lane as u32, FaultKind::BlockHasEnded { rank }));
        }
        let warp = by.thread / 32;
        near.visits.insert(warp, (by.clocks[warp as usize], by.pc));
        Ok(near)
    }

    /// `mapa`: the address of the same place in block `rank`. An address of this block stays as it is.
    pub(crate) fn map_address(&self, warp: &mut Warp, inst: &Inst, wide: bool, mask: u32) -> Result<()> {
        let [to, from, rank] = self.kernel.pool[inst.at as usize..][..3] else { return Ok(()) };
        for lane in lanes(mask) {
            let rank = warp.registers.words[usize::from(rank)][lane];
            let blocks = self.others.len() as u32;
            if rank >= blocks {
                return Err((lane as u32, FaultKind::NoSuchRank { rank, blocks }));
            }
            let mapped = |address: u64| if rank == self.rank { address } else { window::in_block(address, rank) };
            if wide {
                let address = warp.registers.wides[usize::from(from)][lane];
                warp.registers.wides[usize::from(to)][lane] = mapped(address);
            } else {
                let address = warp.registers.words[usize::from(from)][lane];
                warp.registers.words[usize::from(to)][lane] = mapped(address.into()) as u32;
            }
        }
        Ok(())
    }

    /// The blocks that a copy to `to` writes: those of a mask, or the one that the address is of. Its mbarrier lies in the
    /// same; a multicast's addresses are of this block, and stand for the same places in the others.
    pub(crate) fn targets(&self, multicast: Option<u32>, to: u64, barrier: u64, lane: usize) -> Result<Vec<u32>> {
        let rank = |address| window::rank(address).unwrap_or(self.rank);
        let blocks = self.others.len() as u32;
        if rank(to) != rank(barrier) || (multicast.is_some() && rank(to) != self.rank) {
            let problem = "lies in another block than what is copied";
            return Err((lane as u32, FaultKind::BadMbarrier { address: window::within(barrier), problem }));
        }
        let Some(mask) = multicast.map(|mask| mask & 0xffff) else { return Ok(vec![rank(to)]) };
        if mask == 0 || mask >> blocks != 0 {
            return Err((lane as u32, FaultKind::BadMulticast { mask, blocks }));
        }
        Ok((0..blocks).filter(|rank| mask >> rank & 1 == 1).collect())
    }

    /// Threads of the cluster that have not finished.
    fn alive(&self) -> u32 {
        self.near.alive + self.others.iter().map(|near| near.alive).sum::<u32>()
    }

    fn gather_if_due(&mut self) {
        let alive = self.alive();
        let gathering = &mut self.gathering;
        if gathering.arrived == alive && alive > 0 {
            gathering.phase += 1;
            gathering.arrived = 0;
            gathering.released = std::mem::take(&mut gathering.clocks);
        }
    }

    /// Threads of a warp finish.
    ///
    /// # Errors
    /// The block has ended, and another of the cluster may still reach its shared memory.
    pub(crate) fn threads_end(&mut self, warp: &Warp, mask: u32) -> Result<()> {
        self.near.alive -= mask.count_ones();
        for lane in lanes(mask) {
            self.gathering.arrived -= u32::from(warp.gathered[lane] == self.gathering.phase);
        }
        self.gather_if_due();
        if self.near.alive > 0 || self.others.len() == 1 {
            return Ok(());
        }
        let (kernel, warps) = (self.kernel, self.clocks.len() as u32);
        let reached = |thread: u32, pc| {
            let kind = FaultKind::EndsTooEarly { rank: thread / 32 / warps, reach: kernel.line(pc) };
            Err((mask.trailing_zeros(), kind))
        };
        if let Some(bulk) = self.near.bulks.iter().find(|bulk| bulk.thread / 32 / warps != self.rank) {
            return reached(bulk.thread, bulk.pc);
        }
        let mut known = Vec::new();
        self.clocks.iter().for_each(|clocks| join(&mut known, clocks));
        let unknown = self.near.visits.iter().filter(|(warp, (clock, _))| known[**warp as usize] < *clock);
        // The first, for the same words each time.
        match unknown.min_by_key(|(warp, _)| **warp) {
            Some((warp, (_, pc))) => reached(warp * 32, *pc),
            None => Ok(()),
        }
    }
}

impl Block<'_> {
    /// `barrier.cluster.arrive` and `.wait`. Both order: arriving with release what came before it for those that wait.
    pub(crate) fn gather(&mut self, at: usize, own: usize, pc: u32, inst: &Inst, mask: u32) -> Result<After> {
        let warp = &mut self.warps[at];
        let aligned = matches!(inst.op, Op::ClusterArrive { aligned: true, .. } | Op::ClusterWait { aligned: true });
        if aligned && mask != warp.alive {
            if mask != warp.groups[own].mask {
                let kind = FaultKind::DivergentBarrier { reached: mask, alive: warp.alive };
                return Err((mask.trailing_zeros(), kind));
            }
            return Ok(self.wait(at, own, pc, mask));
        }
        let common = &mut self.common;
        let overall = warp.overall as usize;
        let misused = |lane: usize, problem| Err((lane as u32, FaultKind::BadClusterBarrier { problem }));
        if let Op::ClusterArrive { release, .. } = inst.op {
            common.stats.barriers += 1;
            for lane in lanes(mask) {
                if warp.gathered[lane] != NOT_ARRIVED {
                    return misused(lane, "arrives twice without a wait between");
                }
                warp.gathered[lane] = common.gathering.phase;
            }
            if release {
                join(&mut common.gathering.clocks, &common.clocks[at]);
                common.clocks[at][overall] += 1;
            }
            common.gathering.arrived += mask.count_ones();
            common.gather_if_due();
            self.resume();
            return Ok(After::Next);
        }
        let mut waiting = 0;
        for lane in lanes(mask) {
            let phase = warp.gathered[lane];
            if phase == NOT_ARRIVED {
                return misused(lane, "is waited for without having been arrived at");
            }
            if phase == common.gathering.phase {
                waiting |= 1 << lane;
            } else {
                warp.gathered[lane] = NOT_ARRIVED;
            }
        }
        if waiting != mask {
            join(&mut common.clocks[at], &common.gathering.released);
            common.clocks[at][overall] += 1;
        }
        if waiting == 0 {
            return Ok(After::Next);
        }
        let groups = &mut warp.groups;
        let rest = groups[own].mask & !waiting;
        groups[own] = Group { pc, mask: waiting, state: State::Cluster };
        if rest != 0 {
            groups.push(Group { pc: pc + 1, mask: rest, state: State::Ready });
        }
        Ok(After::Choose)
    }

    /// Those that wait for a meeting that is complete look again.
    pub(crate) fn resume(&mut self) {
        let phase = self.common.gathering.phase;
        for warp in &mut self.warps {
            for group in warp.groups.iter_mut().filter(|group| group.state == State::Cluster) {
                if warp.gathered[group.mask.trailing_zeros() as usize] != phase {
                    group.state = State::Ready;
                }
            }
        }
    }

    /// Whether somebody waits at `barrier.cluster`.
    pub(crate) fn awaits_cluster(&self) -> bool {
        self.warps.iter().flat_map(|warp| &warp.groups).any(|group| group.state == State::Cluster)
    }
}

/// Blocks that run together.
pub(crate) struct Cluster<'a> {
    grid: &'a Grid<'a>,
    pub(crate) blocks: Vec<Block<'a>>,
    ended: Vec<bool>,
    gathering: Gathering,
}

impl<'a> Cluster<'a> {
    /// Room for clusters of a grid; `begin` makes it one.
    pub(crate) fn new(grid: &'a Grid<'a>) -> Self {
        let size = grid.cluster.iter().product::<u32>();
        Self {
            grid,
            blocks: (0..size).map(|_| Block::new(grid)).collect(),
            ended: Vec::new(),
            gathering: Gathering::default(),
        }
    }

    /// How many there are in a grid.
    pub(crate) fn count(grid: &Grid<'_>) -> u64 {
        grid.blocks.iter().zip(grid.cluster).map(|(blocks, of)| u64::from(blocks / of)).product()
    }

    /// Begins cluster number `number`, x fastest.
    pub(crate) fn begin(&mut self, number: u64) {
        let of = self.grid.cluster;
        let [x, y, _] = std::array::from_fn(|axis| u64::from(self.grid.blocks[axis] / of[axis]));
        let first = [(number % x) as u32, (number / x % y) as u32, (number / x / y) as u32];
        for (rank, block) in self.blocks.iter_mut().enumerate() {
            let rank = rank as u32;
            let within = [rank % of[0], rank / of[0] % of[1], rank / of[0] / of[1]];
            block.begin(std::array::from_fn(|axis| first[axis] * of[axis] + within[axis]), rank);
        }
        self.ended = vec![false; self.blocks.len()];
        self.gathering = Gathering::default();
    }

    /// Runs its blocks by turns until one has run about so many warp instructions; whether all have finished.
    pub(crate) fn run(&mut self, instructions: u64) -> std::result::Result<bool, Box<Fault>> {
        let most = |blocks: &[Block<'_>]| blocks.iter().map(Block::instructions).max().unwrap_or(0);
        let until = most(&self.blocks).saturating_add(instructions);
        while !self.ended.iter().all(|ended| *ended) {
            let mut moved = false;
            for rank in (0..self.blocks.len()).filter(|rank| !self.ended[*rank]).collect::<Vec<_>>() {
                let before = self.blocks[rank].instructions();
                self.exchange(rank);
                let ended = self.blocks[rank].run(instructions);
                self.exchange(rank);
                self.ended[rank] = ended?;
                moved |= self.ended[rank] || self.blocks[rank].instructions() != before;
            }
            if !moved && let Some(block) = self.blocks.iter().find(|block| block.awaits_cluster()) {
                let threads = self.grid.threads.iter().product::<u32>() * self.blocks.len() as u32;
                let finished = threads - self.blocks.iter().map(|block| block.common.near.alive).sum::<u32>();
                return Err(block.stranded(self.gathering.arrived, threads, finished));
            }
            if most(&self.blocks) >= until {
                break;
            }
        }
        Ok(self.ended.iter().all(|ended| *ended))
    }

    /// Gives a block what it may reach of the others, or takes it back.
    fn exchange(&mut self, rank: usize) {
        let mut others = std::mem::take(&mut self.blocks[rank].common.others);
        for (other, near) in others.iter_mut().enumerate().filter(|(other, _)| *other != rank) {
            std::mem::swap(near, &mut self.blocks[other].common.near);
        }
        let common = &mut self.blocks[rank].common;
        common.others = others;
        std::mem::swap(&mut common.gathering, &mut self.gathering);
    }
}
