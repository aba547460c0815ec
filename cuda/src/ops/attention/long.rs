//! Attention of few rows over long caches; see `cuda/kernels/attention_long.cu` and `attention_long_hopper.cu`.
//!
//! The bits are those of the one kernel that does it otherwise, so whether a step goes here may depend on what is fast, on the
//! batch, the room of the caches and the card, and on what room there is for the scores.

use super::{Attention, Caches, Segments, TILE, hopper};
use crate::driver::Arg;
use crate::kernels::{ATTENTION_LONG, ATTENTION_LONG_HOPPER};
use crate::memory::{DeviceBuffer, Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

/// Keys that caches have room for, from which on it may be worth a second launch: a block goes over fewer in about the time
/// that a launch takes.
pub const LONG: usize = 1024;

/// Rows of a segment and head of keys; columns of a block, tiles of a round, and stages of the rings, as in the kernels.
const ROWS: usize = 16;
const COLUMNS: usize = 32;
const ROUND: usize = 4;
const STAGES: usize = 3;

/// On Hopper: columns of a block, steps in the ring of v.
const HOPPER_COLUMNS: usize = 64;
const RING: usize = 3 * ROUND;

/// Keys that a segment may have, at most, as long as recorded work is replayed, which goes on when segments grow.
pub(super) fn bound(caches: Option<&Caches>, of: &Segments) -> usize {
    caches.map_or(of.max_pages() * TILE, Caches::longest)
}

/// Tiles of `tile` keys that a segment's rows may see, of so many keys.
fn tiles(keys: usize, tile: usize, of: &Segments, attention: &Attention) -> usize {
    let all = keys.div_ceil(tile);
    match attention.window {
        Some(window) => all.min(window.saturating_add(of.max_queries()).div_ceil(tile).saturating_add(1)),
        None => all,
    }
}

/// Scores of 8 rows a tile and the largest of each row, between the two kernels: their memory, and the tiles of a segment and
/// head of keys that it has room for.
struct Between {
    scores: DeviceBuffer,
    tops: DeviceBuffer,
    room: usize,
    halves: usize,
    /// Blocks of the first kernel for a segment and head.
    parts: usize,
}

impl Between {
    /// `None` where there is no room for it.
    fn new(
        queue: Queue<'_>,
        keys: usize,
        tile: usize,
        of: &Segments,
        attention: &Attention,
    ) -> Result<Option<Between>> {
        let (room, heads) = (tiles(keys, tile, of, attention), of.len() * attention.kv_heads);
        let halves = (of.max_queries() * attention.group()).div_ceil(8);
        let alloc = |n| queue.alloc("attention over a long cache", heads * room * n, DType::F32);
        let parts = (2 * multiprocessors(queue)).div_ceil(heads).min(room);
        match (alloc(halves * 8 * tile), alloc(ROWS)) {
            (Ok(scores), Ok(tops)) => Ok(Some(Between { scores, tops, room, halves, parts })),
            (Err(Error::NoRoom { .. }), _) | (_, Err(Error::NoRoom { .. })) => Ok(None),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    fn memory(&self) -> [Arg<'static>; 2] {
        [&self.scores, &self.tops].map(|buffer| buffer.slice(DType::F32).arg())
    }

    fn sizes(&self) -> [Arg<'static>; 2] {
        [self.room, self.halves].map(|n| Arg::U32(n as u32))
    }
}

fn multiprocessors(queue: Queue<'_>) -> usize {
    queue.device.driver().properties().multiprocessors.max(1) as usize
}

/// Whether blocks for each segment and head of keys would be too few for the card, and long at work.
pub(super) fn takes(queue: Queue<'_>, keys: usize, of: &Segments, attention: &Attention) -> bool {
    let blocks = of.len() * attention.kv_heads;
    let rows = of.max_queries() * attention.group();
    (1..=ROWS).contains(&rows)
        && tiles(keys, TILE, of, attention) * TILE >= LONG
        && 2 * blocks <= multiprocessors(queue)
}

/// Everything has been checked, and heads are of a size that tensor cores take. `keys`: as [`bound`] says. `false`, and nothing
/// done, if there is no room for the scores.
pub(super) fn forward(
    queue: Queue<'_>,
    out: &SliceMut<'_>,
    lse: &SliceMut<'_>,
    q: Slice<'_>,
    [k, v]: [Arg<'_>; 2],
    [table, layer]: [Arg<'_>; 2],
    keys: usize,
    of: &Segments,
    attention: &Attention,
) -> Result<bool> {
    let Some(between) = Between::new(queue, keys, TILE, of, attention)? else { return Ok(false) };
    let options = attention.bytes(of.max_pages())?;
    let [cu_q, k_start, k_len, pages] = of.args();
    let keys = [k, v, cu_q, k_start, k_len, pages, table, layer];
    let (memory, sizes, options) = (between.memory(), between.sizes(), [Arg::Bytes(&options)]);
    let defines = attention.defines(q.dtype());
    let launch =
        |name, shape, args: &[&[Arg<'_>]]| queue.launch(&ATTENTION_LONG, name, &defines, shape, &args.concat());

    let shape =
        Shape::grid([attention.kv_heads, between.parts, of.len()], 128).shared(STAGES * TILE * attention.size * 2);
    launch("attention_scores", shape, &[&memory, &[q.arg()], &keys, &sizes, &options])?;
    let shape = Shape::grid([attention.kv_heads, attention.size / COLUMNS, of.len()], 128)
        .shared(STAGES * ROUND * TILE * COLUMNS * 2 + ROUND * (TILE / 16 * 32 * 16 + 2 * ROWS * 4));
    launch("attention_values", shape, &[&[out.arg(), lse.arg()], &memory, &keys, &sizes, &options])?;
    Ok(true)
}

/// The same on Hopper, over a layer of caches.
pub(super) fn forward_hopper(
    queue: Queue<'_>,
    out: &SliceMut<'_>,
    lse: &SliceMut<'_>,
    q: Slice<'_>,
    (caches, layer): (&Caches, usize),
    of: &Segments,
    attention: &Attention,
) -> Result<bool> {
    let step = hopper::step(attention.size);
    let Some(between) = Between::new(queue, caches.longest(), step, of, attention)? else { return Ok(false) };
    let options = attention.bytes(0)?;
    let [cu_q, _, k_len, _] = of.args();
    let keys = [caches.arg(), Arg::U32(layer as u32), cu_q, k_len];
    let (memory, sizes, options) = (between.memory(), between.sizes(), [Arg::Bytes(&options)]);
    let defines = attention.defines(q.dtype());
    let launch =
        |name, shape, args: &[&[Arg<'_>]]| queue.launch(&ATTENTION_LONG_HOPPER, name, &defines, shape, &args.concat());

    let shape = Shape::grid([attention.kv_heads, between.parts, of.len()], 128)
        .shared(STAGES * (step * attention.size * 2 + 8));
    launch("attention_scores_hopper", shape, &[&memory, &[q.arg()], &keys, &sizes, &options])?;
    let shape = Shape::grid([attention.kv_heads, attention.size / HOPPER_COLUMNS, of.len()], 128)
        .shared(RING * (step * HOPPER_COLUMNS * 2 + 8) + ROUND * (step / 16 * 32 * 16 + 2 * ROWS * 4));
    launch("attention_values_hopper", shape, &[&[out.arg(), lse.arg()], &memory, &keys, &sizes, &options])?;
    Ok(true)
}
