//! dS between the kernel that makes it and the one that makes dQ of it: `struct Stored` in
//! `cuda/kernels/backward_hopper.cuh`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Attention, OP, Segments, TILE};
use crate::driver::{Fill, Swizzle, TENSOR_MAP_BYTES, TensorMap};
use crate::memory::DeviceBuffer;
use crate::ops::size;
use crate::{DType, Error, Queue, Result};

/// Of a device's memory dS takes one part in so many at most.
const PARTS: u64 = 64;

/// The least heads whose dS is stored: those of 64 would read as many bytes for half the arithmetic.
const LEAST: usize = 128;

/// Elements of a tile.
const ELEMENTS: usize = TILE * TILE;

/// The most bytes of dS on a device.
fn most(queue: Queue<'_>) -> u64 {
    queue.device.driver().properties().memory_bytes / PARTS
}

/// The heads of keys whose dS, so many tiles of each head that shares them, is no more than `most` bytes, and what is asked for: of
/// few sizes, as the pool keeps blocks of each. `None` if that is no head, or more than the map counts rows of.
fn room(dtype: DType, tiles: usize, attention: &Attention, most: u64) -> Option<(usize, u64)> {
    let tiles = (attention.group() * tiles) as u64;
    let of_head = tiles * (ELEMENTS * dtype.size()) as u64;
    let heads = most.checked_div(of_head)?.min(attention.kv_heads as u64);
    let fits = heads > 0 && heads * tiles * TILE as u64 <= 1 << 31;
    fits.then(|| (heads as usize, (heads * of_head).next_power_of_two().min(most).next_multiple_of(8)))
}

/// Bytes of dS that [`backward`](super::backward) has beside its arguments and results on the queue's device, of segments of so many
/// queries and as many keys, where there is room for it.
pub fn stored_bytes(queue: Queue<'_>, dtype: DType, lengths: &[usize], attention: &Attention) -> u64 {
    if !super::hopper::takes(queue, dtype, attention.size) || attention.size < LEAST {
        return 0;
    }
    let blocks = |n: usize| (0..n.div_ceil(TILE)).map(move |block| seen_tiles(n, n, block, attention));
    let tiles = lengths.iter().map(|&n| blocks(n).sum::<usize>()).sum();
    room(dtype, tiles, attention, most(queue)).map_or(0, |(_, bytes)| bytes)
}

/// Where the tiles of each block of 64 queries begin.
#[derive(Debug)]
struct Places {
    table: DeviceBuffer,
    /// Of a head, in all segments.
    tiles: u32,
}

impl Places {
    fn new(queue: Queue<'_>, of: &Segments, attention: &Attention) -> Result<Places> {
        let mut table = vec![0; of.queries / TILE + of.len];
        let (mut begin, mut tiles) = (0, 0);
        for (s, (&queries, &keys)) in of.queries_of.iter().zip(&of.keys_of).enumerate() {
            for block in 0..queries.div_ceil(TILE) {
                table[begin / TILE + s + block] = size(OP, "tiles of scores", tiles)?;
                tiles += seen_tiles(queries, keys as usize, block, attention);
            }
            begin += queries;
        }
        Ok(Places { table: queue.upload("a table of scores", &table)?, tiles: size(OP, "tiles of scores", tiles)? })
    }
}

/// Tiles of keys that some query of a block sees, as the kernels say.
fn seen_tiles(queries: usize, keys: usize, block: usize, attention: &Attention) -> usize {
    let behind = keys - keys.min(queries);
    let (first, last) = (block * TILE + behind, queries.min((block + 1) * TILE) - 1 + behind);
    let end = if attention.causal { keys.min(last + 1) } else { keys };
    let begin = attention.window.map_or(0, |window| (first + 1).saturating_sub(window)).min(end);
    end.div_ceil(TILE) - begin / TILE
}

/// What a batch knows of dS: where its tiles are, for each kind of attention in the model, and whether there was no room.
#[derive(Debug, Default)]
pub(super) struct Known {
    places: Mutex<Vec<(Kind, Arc<Places>)>>,
    refused: AtomicBool,
    /// Bytes, if not the device's.
    pub(super) most: Option<u64>,
}

/// Whether attention is causal, and its window.
type Kind = (bool, Option<usize>);

impl Known {
    fn places(&self, queue: Queue<'_>, of: &Segments, attention: &Attention) -> Result<Arc<Places>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = (attention.causal, attention.window);
        if let Some((_, found)) = places.iter().find(|(known, _)| *known == kind) {
            return Ok(found.clone());
        }
        let made = Arc::new(Places::new(queue, of, attention)?);
        places.push((kind, made.clone()));
        Ok(made)
    }
}

/// Room for dS of some heads of keys at a time.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) scores: DeviceBuffer,
    places: Arc<Places>,
    /// Heads of keys whose dS it holds.
    pub(super) heads: usize,
}

impl Stored {
    /// `None` where heads are of a size whose dS is made again, where dS of one head of keys takes more than it may, or
    /// where there is no room for it; of a batch that is asked once.
    pub(super) fn new(queue: Queue<'_>, dtype: DType, of: &Segments, attention: &Attention) -> Result<Option<Stored>> {
        if attention.size < LEAST || of.stored.refused.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let places = of.stored.places(queue, of, attention)?;
        let most = of.stored.most.unwrap_or_else(|| most(queue));
        let Some((heads, bytes)) = room(dtype, places.tiles as usize, attention, most) else { return Ok(None) };
        match queue.alloc("scores of attention's backward pass", bytes as usize / dtype.size(), dtype) {
            Ok(scores) => Ok(Some(Stored { scores, places, heads })),
            Err(Error::NoRoom { .. }) => {
                of.stored.refused.store(true, Ordering::Relaxed);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Boxes of the tiles.
    pub(super) fn map(&self, queue: Queue<'_>, dtype: DType) -> Result<[u8; TENSOR_MAP_BYTES]> {
        let rows = self.scores.slice(dtype).len() / TILE;
        queue.device.driver().tensor_map(&TensorMap {
            base: self.scores.ptr(),
            dtype,
            sizes: &[TILE as u64, rows as u64],
            strides: &[(TILE * dtype.size()) as u64],
            tile: &[TILE as u32; 2],
            swizzle: Swizzle::Bytes128,
            fill: Fill::Zeros,
        })
    }

    /// `struct Stored` of the kernels, of `heads` heads of keys from `first` on.
    pub(super) fn bytes(&self, first: usize, heads: usize) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.places.table.ptr().0.to_le_bytes());
        for (to, word) in bytes[8..].chunks_exact_mut(4).zip([self.places.tiles, first as u32, heads as u32]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By asking each query of each block of each key.
    #[test]
    fn tiles_are_those_that_queries_see() {
        for (queries, keys) in [(1, 1), (64, 64), (65, 65), (130, 400), (70, 333), (200, 90)] {
            for (causal, window) in
                [(true, None), (true, Some(1)), (true, Some(64)), (true, Some(90)), (true, Some(1000)), (false, None)]
            {
                if causal && queries > keys {
                    continue;
                }
                let of = Attention { heads: 1, kv_heads: 1, size: LEAST, scale: 1.0, causal, window, softcap: None };
                for block in 0..usize::div_ceil(queries, TILE) {
                    let sees = |i: usize, j: usize| {
                        let at = i + keys - keys.min(queries);
                        !causal || (j <= at && window.is_none_or(|window| j + window > at))
                    };
                    let own = block * TILE..queries.min((block + 1) * TILE);
                    let seen = (0..keys.div_ceil(TILE)).filter(|tile| {
                        let mut of_tile = tile * TILE..keys.min((tile + 1) * TILE);
                        of_tile.any(|j| own.clone().any(|i| sees(i, j)))
                    });
                    let what = format!("{queries} queries, {keys} keys, {causal}, {window:?}, block {block}");
                    assert_eq!(seen_tiles(queries, keys, block, &of), seen.count(), "{what}");
                }
            }
        }
    }
}
