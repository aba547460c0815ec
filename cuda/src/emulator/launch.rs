//! Running a grid.
//!
//! Blocks run on all of rayon's threads, in no order, if the kernel can only tell by a race of its own: results are the
//! same each time. A kernel whose result may depend on the order of blocks (atomics on global memory that return the
//! old value, sums of floats, volatile accesses) runs its blocks on one thread, by number, and a block that has run long
//! gives its turn to the next, so that blocks may wait for one another. Blocks of a cluster always do so among themselves.

use std::collections::VecDeque;
use std::sync::Mutex;

use rayon::prelude::*;

use super::block::{Block, Grid};
use super::cluster::Cluster;
use super::fault::Fault;
use super::report::Stats;
use super::trace::Step;

/// Warp instructions of a block before the next has its turn.
const SLICE: u64 = 1 << 14;
/// Blocks that take turns.
const RESIDENT: usize = 256;

/// A worker's cluster, whose counts go into the total when it is done.
struct Worker<'a, 's> {
    cluster: Cluster<'a>,
    total: &'s Mutex<Stats>,
}

impl Drop for Worker<'_, '_> {
    fn drop(&mut self) {
        if let Ok(mut total) = self.total.lock() {
            self.cluster.blocks.iter().for_each(|block| total.add(&block.common.stats));
        }
    }
}

/// What a run of a grid leaves.
pub(crate) struct Done {
    pub(crate) stats: Stats,
    /// The steps of the watched warp, and whether there were more.
    pub(crate) watched: Option<(Vec<Step>, bool)>,
}

/// The steps of a cluster's watched warp, if it has one.
fn steps(cluster: &mut Cluster<'_>) -> Option<(Vec<Step>, bool)> {
    let of = |block: &mut Block<'_>| block.common.watched.take().map(|(steps, _)| (steps, block.common.cut));
    cluster.blocks.iter_mut().find_map(of)
}

/// Runs all clusters, each of one block where there are none; the first fault, by the number of the cluster.
pub(crate) fn run(grid: &Grid<'_>) -> Result<Done, Box<Fault>> {
    let clusters = Cluster::count(grid);
    if grid.kernel.ordered {
        return in_turns(grid, clusters);
    }
    // Blocks of a cluster wait for one another.
    let slice = if grid.cluster == [1; 3] { u64::MAX } else { SLICE };
    let total = Mutex::new(Stats::new(grid.kernel.code.len()));
    let watched = Mutex::new(None);
    let fault = (0..clusters)
        .into_par_iter()
        .map_init(
            || Worker { cluster: Cluster::new(grid), total: &total },
            |worker, number| {
                worker.cluster.begin(number);
                loop {
                    match worker.cluster.run(slice) {
                        Ok(true) => {
                            if let Some(found) = steps(&mut worker.cluster) {
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

fn in_turns(grid: &Grid<'_>, clusters: u64) -> Result<Done, Box<Fault>> {
    let mut total = Stats::new(grid.kernel.code.len());
    let resident = RESIDENT / grid.cluster.iter().product::<u32>() as usize;
    let (mut next, mut watched) = (0, None);
    let mut active: VecDeque<Cluster<'_>> = VecDeque::new();
    let mut spare: Vec<Cluster<'_>> = Vec::new();
    while next < clusters || !active.is_empty() {
        // What is new has its first turn before an old one has another.
        let mut cluster = if next < clusters && active.len() < resident {
            let mut cluster = spare.pop().unwrap_or_else(|| Cluster::new(grid));
            cluster.begin(next);
            next += 1;
            cluster
        } else {
            match active.pop_front() {
                Some(cluster) => cluster,
                None => break,
            }
        };
        if cluster.run(SLICE)? {
            watched = steps(&mut cluster).or(watched);
            spare.push(cluster);
        } else {
            active.push_back(cluster);
        }
    }
    for block in spare.iter().flat_map(|cluster| &cluster.blocks) {
        total.add(&block.common.stats);
    }
    Ok(Done { stats: total, watched })
}
