//! Rotary position embedding; see `cuda/kernels/rope.cu`.

use super::attention::{Caches, Segments};
use super::{NULL, each, same, size, types};
use crate::driver::Arg;
use crate::kernels::ROPE;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "rope";

/// Heads of a thread, as in the kernel.
const HEADS: usize = 4;

/// Sizes of x: (tokens, heads, size), of which 2 `half` turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Heads of a token.
    pub heads: usize,
    /// Dimensions of a head.
    pub size: usize,
    /// Pairs of dimensions that turn: the width of the tables.
    pub half: usize,
}

/// y = x turned, or turned back for the backward pass; cos, sin: (tokens, half) f32.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn turn(
    queue: Queue<'_>,
    y: SliceMut<'_>,
    x: Slice<'_>,
    cos: Slice<'_>,
    sin: Slice<'_>,
    of: Heads,
    back: bool,
) -> Result<()> {
    x.expect_compute(OP, "x")?;
    same(OP, x, &[("y", *y)])?;
    launch(queue, *y, x, cos, sin, of, back)
}

/// As [`turn`], over x itself.
///
/// # Errors
/// As [`turn`].
pub fn turn_in_place(
    queue: Queue<'_>,
    x: SliceMut<'_>,
    cos: Slice<'_>,
    sin: Slice<'_>,
    of: Heads,
    back: bool,
) -> Result<()> {
    x.expect_compute(OP, "x")?;
    launch(queue, *x, *x, cos, sin, of, back)
}

fn launch(
    queue: Queue<'_>,
    y: Slice<'_>,
    x: Slice<'_>,
    cos: Slice<'_>,
    sin: Slice<'_>,
    of: Heads,
    back: bool,
) -> Result<()> {
    if 2 * of.half > of.size {
        return Err(Error::Size { op: OP, what: "half", expected: "at most half the size of a head", got: of.half });
    }
    let tokens = super::rows(OP, "heads times size", x, of.heads * of.size)?;
    for (what, table) in [("cos", cos), ("sin", sin)] {
        table.expect(OP, what, tokens * of.half)?;
        table.expect_dtype(OP, what, DType::F32)?;
    }
    let packs = packs(of.size, of.half);
    let groups = of.heads.div_ceil(HEADS);
    let threads = tokens * groups * packs;
    let args = [
        y.arg(),
        x.arg(),
        cos.arg(),
        sin.arg(),
        Arg::F32(if back { -1.0 } else { 1.0 }),
        Arg::U32(size(OP, "tokens times heads times size, in packs of 32,", threads)?),
        Arg::U32(size(OP, "heads", of.heads)?),
        Arg::U32(groups as u32),
        Arg::U32(size(OP, "size", of.size)?),
        Arg::U32(of.half as u32),
        Arg::U32(packs as u32),
    ];
    queue.launch(&ROPE, "rope", &types([("T", x.dtype())]), each(threads), &args)
}

/// Packs of a head, as the kernel counts them.
fn packs(size: usize, half: usize) -> usize {
    half.div_ceil(8) + (size - 2 * half).div_ceil(8)
}

/// Queries to be turned, into y like them: (tokens, heads, size).
#[derive(Debug)]
pub struct Queries<'a> {
    /// Turned.
    pub y: SliceMut<'a>,
    /// As they are.
    pub q: Slice<'a>,
    /// Heads of a token.
    pub heads: usize,
}

/// Puts new keys, turned by `tables` if there are any, and new values in their places in a layer of the caches, and turns
/// queries in the same launch; k, v: (new keys, kv_heads, size), `tables`: cos and sin, (new keys, half) f32.
///
/// Heads smaller than those of the caches fill their beginning.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn append(
    queue: Queue<'_>,
    queries: Option<Queries<'_>>,
    [k, v]: [Slice<'_>; 2],
    tables: Option<[Slice<'_>; 2]>,
    size_of_head: usize,
    (caches, layer): (&Caches, usize),
    of: &Segments,
) -> Result<()> {
    const OP: &str = "appending to caches";
    let (kv_heads, width) = (caches.kv_heads(), caches.size());
    caches.check(OP, layer, of)?;
    let tokens = of.new_keys();
    for (what, x) in [("k", k), ("v", v)] {
        x.expect(OP, what, tokens * kv_heads * size_of_head)?;
        x.expect_dtype(OP, what, caches.dtype())?;
    }
    if size_of_head > width {
        let expected = "at most that of the caches";
        return Err(Error::Size { op: OP, what: "the size of a head", expected, got: size_of_head });
    }
    let half = tables.map_or(0, |[cos, _]| cos.len() / tokens.max(1));
    if 2 * half > size_of_head {
        return Err(Error::Size { op: OP, what: "half", expected: "at most half the size of a head", got: half });
    }
    for (what, table) in ["cos", "sin"].into_iter().zip(tables.into_iter().flatten()) {
        table.expect(OP, what, tokens * half)?;
        table.expect_dtype(OP, what, DType::F32)?;
    }
    let heads = queries.as_ref().map_or(0, |queries| queries.heads);
    let (mut y, mut q) = (NULL, NULL);
    if let Some(queries) = &queries {
        for (what, x) in [("q", queries.q), ("y", *queries.y)] {
            x.expect(OP, what, tokens * heads * size_of_head)?;
            x.expect_dtype(OP, what, caches.dtype())?;
        }
        (y, q) = (queries.y.arg(), queries.q.arg());
    }
    let [cos, sin] = tables.map_or([NULL; 2], |tables| tables.map(|table| table.arg()));
    let (cu, k_len) = of.appended();
    let mut args = vec![y, q, k.arg(), v.arg(), cos, sin, caches.arg(), Arg::U32(layer as u32), cu, k_len];
    for (what, n) in [("heads", heads), ("heads", kv_heads), ("size", size_of_head), ("size", width), ("half", half)] {
        args.push(Arg::U32(size(OP, what, n)?));
    }
    let all = (heads + kv_heads) * packs(size_of_head, half) + kv_heads * packs(size_of_head, 0);
    let threads = size(OP, "what a segment appends", of.max_new_keys() * all)? as usize;
    let shape = Shape::grid([threads.div_ceil(128), of.len(), 1], 128);
    queue.launch(&ROPE, "rope_append", &types([("T", caches.dtype())]), shape, &args)
}
