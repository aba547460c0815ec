//! Running a grid.
//!
//! Blocks run on all of rayon's threads, in no order, if the kernel can only tell by a race of its own: results are the
//! same each time. A kernel whose result may depend on the order of blocks (atomics on global memory that return the
//! old value, sums of floats, volatile accesses) runs its blocks on one thread, by number, and a block that has run long
//! gives its turn to the next, so that blocks may wait for one another.

use std::collections::VecDeque;
use std::sync::Mutex;

use rayon::prelude::*;

use super::block::{Block, Grid};
use super::fault::Fault;
use super::report::Stats;
use super::trace::Step;

/// Warp instructions of a block before the next has its turn.
const SLICE: u64 = 1 << 14;
/// Blocks that take turns.
const RESIDENT: usize = 256;

/// A worker's block, whose counts go into the total when it is done.
struct Worker<'a, 's> {
    block: Block<'a>,
    total: &'s Mutex<Stats>,
}

impl Drop for Worker<'_, '_> {
    fn drop(&mut self) {
        if let Ok(mut total) = self.total.lock() {
            total.add(&self.block.common.stats);
        }
    }
}

/// What a run of a grid leaves.
pub(crate) struct Done {
    pub(crate) stats: Stats,
    /// The steps of the watched warp, and whether there were more.
    pub(crate) watched: Option<(Vec<Step>, bool)>,
}

/// The steps of a block's watched warp, if it has one.
fn steps(block: &mut Block<'_>) -> Option<(Vec<Step>, bool)> {
    block.common.watched.take().map(|(steps, _)| (steps, block.common.cut))
}

/// Runs all blocks; the first fault, by the number of the block.
pub(crate) fn run(grid: &Grid<'_>) -> Result<Done, Box<Fault>> {
    let blocks = grid.blocks.iter().map(|size| u64::from(*size)).product::<u64>();
    if grid.kernel.ordered {
        return in_turns(grid, blocks);
    }
    let total = Mutex::new(Stats::new(grid.kernel.code.len()));
    let watched = Mutex::new(None);
    let fault = (0..blocks)
        .into_par_iter()
        .map_init(
            || Worker { block: Block::new(grid), total: &total },
            |worker, number| {
                worker.block.begin(number);
                loop {
                    match worker.block.run(u64::MAX) {
                        Ok(true) => {
                            if let Some(found) = steps(&mut worker.block) {
                                *watched.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(found);
                            }
                            return None;
                        }
                        Ok(false) => {}
                        Err(fault) => return Some(fault),
                    }
                }
            },
        )
        .find_map_first(|fault| fault);
    match fault {
        Some(fault) => Err(fault),
        None => Ok(Done {
            stats: total.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()),
            watched: watched.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()),
        }),
    }
}

fn in_turns(grid: &Grid<'_>, blocks: u64) -> Result<Done, Box<Fault>> {
    let mut total = Stats::new(grid.kernel.code.len());
    let (mut next, mut watched) = (0, None);
    let mut active: VecDeque<Block<'_>> = VecDeque::new();
    let mut spare: Vec<Block<'_>> = Vec::new();
    while next < blocks || !active.is_empty() {
        // A block that is new has its first turn before an old one has another.
        let mut block = if next < blocks && active.len() < RESIDENT {
            let mut block = spare.pop().unwrap_or_else(|| Block::new(grid));
            block.begin(next);
            next += 1;
            block
        } else {
            match active.pop_front() {
                Some(block) => block,
                None => break,
            }
        };
        if block.run(SLICE)? {
            watched = steps(&mut block).or(watched);
            spare.push(block);
        } else {
            active.push_back(block);
        }
    }
    for block in &spare {
        total.add(&block.common.stats);
    }
    Ok(Done { stats: total, watched })
}
