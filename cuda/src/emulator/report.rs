//! What a launch did, counted.

use std::collections::BTreeMap;
use std::fmt;

use super::class::Class;
use super::fault::Line;
use super::isa::{Kernel, Op, Space};

/// Counts of one instruction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    /// Warps that ran it.
    pub(crate) issued: u64,
    /// Lanes that ran it.
    pub(crate) lanes: u64,
    /// Requests to memory.
    pub(crate) requests: u64,
    /// Sectors or passes that they took.
    pub(crate) used: u64,
    /// The fewest that would have done.
    pub(crate) least: u64,
}

/// Counts of a kernel's instructions.
#[derive(Clone, Debug)]
pub(crate) struct Stats {
    pub(crate) counts: Vec<Count>,
    pub(crate) barriers: u64,
}

impl Stats {
    pub(crate) fn new(instructions: usize) -> Self {
        Self { counts: vec![Count::default(); instructions], barriers: 0 }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            sum.issued += count.issued;
            sum.lanes += count.lanes;
            sum.requests += count.requests;
            sum.used += count.used;
            sum.least += count.least;
        }
        self.barriers += other.barriers;
    }
}

/// Requests to a memory, and what they cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests of a warp.
    pub requests: u64,
    /// What they took: sectors of 32 bytes for global memory, passes over the banks for shared.
    pub used: u64,
    /// The fewest that their bytes need.
    pub least: u64,
}

impl Traffic {
    fn add(&mut self, count: &Count) {
        self.requests += count.requests;
        self.used += count.used;
        self.least += count.least;
    }
}

/// A line that wastes memory traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct Waste {
    /// The line.
    pub at: Line,
    /// `sectors` or `passes`.
    pub unit: &'static str,
    /// Its traffic.
    pub traffic: Traffic,
}

/// What a launch did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The kernel.
    pub kernel: String,
    /// Blocks.
    pub blocks: u64,
    /// Blocks of a cluster; 1 where there are none.
    pub cluster: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Instructions, each counted once a warp.
    pub warp_instructions: u64,
    /// Instructions, each counted once a lane that ran it.
    pub thread_instructions: u64,
    /// Warp instructions by class.
    pub classes: BTreeMap<Class, u64>,
    /// Global memory; sectors of 32 bytes.
    pub global: Traffic,
    /// Shared memory; passes over its banks.
    pub shared: Traffic,
    /// Times that a warp reached a barrier.
    pub barriers: u64,
    /// The lines that waste most traffic, worst first; eight at most.
    pub waste: Vec<Waste>,
    /// Seconds that the emulator took.
    pub seconds: f64,
}

impl Report {
    pub(crate) fn new(kernel: &Kernel, stats: &Stats, [blocks, cluster, threads]: [u64; 3], seconds: f64) -> Self {
        let mut report = Self {
            kernel: kernel.name.clone(),
            blocks,
            cluster: cluster as u32,
            threads: threads as u32,
            warp_instructions: 0,
            thread_instructions: 0,
            classes: BTreeMap::new(),
            global: Traffic::default(),
            shared: Traffic::default(),
            barriers: stats.barriers,
            waste: Vec::new(),
            seconds,
        };
        for (pc, (count, inst)) in stats.counts.iter().zip(&kernel.code).enumerate() {
            if count.issued == 0 {
                continue;
            }
            report.warp_instructions += count.issued;
            report.thread_instructions += count.lanes;
            *report.classes.entry(inst.op.class()).or_default() += count.issued;
            let shared = match inst.op {
                Op::LoadMatrix { .. } | Op::StoreMatrix { .. } => true,
                Op::Load(access) | Op::Store(access) => access.space == Space::Shared,
                Op::Atomic { space, .. } => space == Space::Shared,
                _ => false,
            };
            if shared { &mut report.shared } else { &mut report.global }.add(count);
            if count.used > count.least {
                report.waste.push(Waste {
                    at: kernel.line(pc as u32),
                    unit: if shared { "passes" } else { "sectors" },
                    traffic: Traffic { requests: count.requests, used: count.used, least: count.least },
                });
            }
        }
        report.waste.sort_by_key(|waste| std::cmp::Reverse(waste.traffic.used - waste.traffic.least));
        report.waste.truncate(8);
        report
    }

    /// Of 32 lanes, how many ran an instruction on average.
    pub fn active_lanes(&self) -> f64 {
        self.thread_instructions as f64 / self.warp_instructions.max(1) as f64
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clusters = if self.cluster > 1 { format!(" in clusters of {}", self.cluster) } else { String::new() };
        writeln!(
            f,
            "{}: {} blocks of {} threads{clusters}, {} warp instructions with {:.1} of 32 lanes active, {:.3} s",
            self.kernel,
            self.blocks,
            self.threads,
            self.warp_instructions,
            self.active_lanes(),
            self.seconds
        )?;
        for (class, count) in &self.classes {
            let share = 100.0 * *count as f64 / self.warp_instructions.max(1) as f64;
            writeln!(f, "  {class:<10} {count:>12} {share:>5.1} %")?;
        }
        for (name, unit, traffic) in [("global", "sectors", self.global), ("shared", "passes", self.shared)] {
            if traffic.requests > 0 {
                let each = traffic.used as f64 / traffic.requests as f64;
                writeln!(
                    f,
                    "  {name} memory: {} requests, {} {unit} ({each:.2} a request), {} would do",
                    traffic.requests, traffic.used, traffic.least
                )?;
            }
        }
        if self.barriers > 0 {
            writeln!(f, "  barriers: reached {} times by a warp", self.barriers)?;
        }
        for waste in &self.waste {
            writeln!(f, "  {} {} for {}: {}", waste.traffic.used, waste.unit, waste.traffic.least, waste.at)?;
        }
        Ok(())
    }
}
