//! Forward pass.

use std::ops::Range;

use super::{Attention, BLOCK, OP, Segments, Sizes, TILE, cap, fewer_queries, gather, over_caches, validate};
use crate::device;
use crate::gemm::{Mat, Store, gemm_serial};
use crate::parallel::Disjoint;
use crate::scratch::{self, fill};
use crate::team;
use crate::{Error, Real, Result, Tensor, dispatch_real};

/// Attention of a packed stream. Returns (out, lse).
///
/// # Errors
/// Shapes, dtypes (f32 or f64, all alike), segment tables or options that do not agree.
pub fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    cu_q: &[u32],
    cu_k: &[u32],
    options: &Attention,
) -> Result<(Tensor, Tensor)> {
    forward_branched(q, k, v, &Segments { cu_q, cu_k, stems: &[] }, options)
}

/// As [`forward`], with stems. A query's result has the bits that it has where its stem is part of its segment.
///
/// # Errors
/// As [`forward`]; a stem that is no earlier segment without one, or is longer than it; stems on a device.
pub fn forward_branched(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    table: &Segments<'_>,
    options: &Attention,
) -> Result<(Tensor, Tensor)> {
    let sizes = validate(q, k, v, table, options)?;
    if let Some(on) = device::of(OP, [q, k, v])? {
        table.refuse_stems(q)?;
        return device::ops::attention::forward(&on, [q, k, v], [table.cu_q, table.cu_k], sizes, options);
    }
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    dispatch_real!(OP, q.dtype(), R => {
        let (kd, vd) = (k.as_slice::<R>()?, v.as_slice::<R>()?);
        let (width, strides) = (sizes.kv_heads * sizes.size, [sizes.kv_heads * sizes.size, sizes.size]);
        let segments: Vec<Segment<'_, R>> = table.cu_q.windows(2).enumerate().map(|(s, q)| {
            let keys = table.keys(s);
            let [k, v] = [kd, vd].map(|x| keys.clone().map(|rows| &x[rows.start * width..rows.end * width]));
            Segment { q0: q[0] as usize, queries: (q[1] - q[0]) as usize, stem: keys[0].len(),
                keys: keys[0].len() + keys[1].len(), k, v, strides }
        }).collect();
        run::<R>(&q, &segments, sizes, options)
    })
}

/// The keys and values of a sequence, each in a tensor without gaps from element `at` on: of both, keys and heads are `strides`
/// apart, and of a head the elements are neighbours.
pub(super) struct Lying<'a> {
    pub(super) data: [&'a Tensor; 2],
    pub(super) at: [usize; 2],
    pub(super) strides: [usize; 2],
    pub(super) keys: usize,
}

/// Attention of a packed stream of queries over keys and values that lie apart, one pair a segment:
/// for decoding on the processor, where each sequence has a cache of its own.
///
/// # Errors
/// As [`forward`], and keys that reach past their tensor.
pub(super) fn forward_lying(
    q: &Tensor,
    caches: &[Lying<'_>],
    [kv_heads, size]: [usize; 2],
    cu_q: &[u32],
    options: &Attention,
) -> Result<(Tensor, Tensor)> {
    let sizes = over_caches(q, [kv_heads, size], q.dtype(), cu_q, options)?;
    let mismatch = |what, lhs, rhs| Err(Error::ShapeMismatch { op: OP, what, lhs, rhs });
    if cu_q.len() != caches.len() + 1 {
        return mismatch("cu_q against the number of caches", vec![cu_q.len()], vec![caches.len() + 1]);
    }
    device::cpu_only(OP, [q].into_iter().chain(caches.iter().flat_map(|cache| cache.data)))?;
    for (cache, queries) in caches.iter().zip(cu_q.windows(2)) {
        fewer_queries((queries[1] - queries[0]) as usize, cache.keys, options)?;
        for (data, at) in cache.data.iter().zip(cache.at) {
            let [key, head] = cache.strides;
            let end = at + cache.keys.saturating_sub(1) * key + (kv_heads - 1) * head + size;
            if cache.keys > 0 && end > data.numel() {
                return mismatch("a cache against its keys", vec![data.numel()], vec![end]);
            }
        }
    }
    let q = q.contiguous()?;
    dispatch_real!(OP, q.dtype(), R => {
        let mut segments = Vec::with_capacity(caches.len());
        for (cache, queries) in caches.iter().zip(cu_q.windows(2)) {
            let [k, v] = [0, 1].map(|i| Ok::<_, Error>(&cache.data[i].as_slice::<R>()?[cache.at[i]..]));
            segments.push(Segment {
                q0: queries[0] as usize,
                queries: (queries[1] - queries[0]) as usize,
                stem: 0,
                keys: cache.keys,
                k: [&[], k?],
                v: [&[], v?],
                strides: cache.strides,
            });
        }
        run::<R>(&q, &segments, sizes, options)
    })
}

/// One sequence: where its queries lie, and its keys and values, (keys, kv_heads, size), the first `stem` of them in
/// one place and the others in another. Of both, keys and heads are `strides` apart.
struct Segment<'a, R> {
    q0: usize,
    queries: usize,
    stem: usize,
    keys: usize,
    k: [&'a [R]; 2],
    v: [&'a [R]; 2],
    strides: [usize; 2],
}

/// Keys or values `tokens` of head `g` of a segment: where they lie, or copied together if that is two places.
fn tile<'t, R: Real>(
    parts: [&'t [R]; 2],
    seg: &Segment<'_, R>,
    tokens: Range<usize>,
    g: usize,
    size: usize,
    buffer: &'t mut Vec<R>,
) -> Mat<'t, R> {
    let (n, stem, [key, head]) = (tokens.len(), seg.stem, seg.strides);
    let lying = |part: &'t [R], first: usize| Mat::strided(&part[first * key + g * head..], n, size, key, 1);
    if tokens.start >= stem {
        return lying(parts[1], tokens.start - stem);
    }
    if tokens.end <= stem {
        return lying(parts[0], tokens.start);
    }
    buffer.clear();
    let mut copy = |part: &[R], tokens: Range<usize>| {
        tokens.for_each(|t| buffer.extend_from_slice(&part[t * key + g * head..][..size]));
    };
    copy(parts[0], tokens.start..stem);
    copy(parts[1], 0..tokens.end - stem);
    Mat::new(&*buffer, n, size)
}

fn run<R: Real>(
    q: &Tensor,
    segments: &[Segment<'_, R>],
    sizes: Sizes,
    options: &Attention,
) -> Result<(Tensor, Tensor)> {
    let mut out = Tensor::scratch(q.shape(), R::DTYPE)?;
    let mut lse = Tensor::scratch([q.dims()[0], sizes.heads], R::DTYPE)?;
    let data = q.as_slice::<R>()?;
    let tasks: Vec<(usize, usize, usize)> = segments
        .iter()
        .enumerate()
        .flat_map(|(s, seg)| {
            (0..seg.queries).step_by(BLOCK).flat_map(move |i| (0..sizes.kv_heads).map(move |g| (s, i, g)))
        })
        .collect();
    let (o, l) = (Disjoint::new(out.as_slice_mut::<R>()?), Disjoint::new(lse.as_slice_mut::<R>()?));
    let (group, size) = (sizes.group, sizes.size);
    let task = |scratch: &mut Scratch<R>, &(s, i, g): &(usize, usize, usize)| {
        let seg = &segments[s];
        block(data, seg, i, g, sizes, options, scratch);
        for (n, (row, row_lse)) in scratch.out.chunks(group * size).zip(scratch.lse.chunks(group)).enumerate() {
            let at = (seg.q0 + i + n) * sizes.heads + g * group;
            // SAFETY: a task owns its queries' heads of group g.
            unsafe {
                o.part(at * size, group * size).copy_from_slice(row);
                l.part(at, group).copy_from_slice(row_lse);
            }
        }
    };
    team::for_each(tasks.len(), |i| scratch::with(|scratch| task(scratch, &tasks[i])));
    Ok((out, lse))
}

/// Buffers that a thread reuses from task to task, and a task's output: rows (query, head of the group).
#[derive(Default)]
struct Scratch<R> {
    out: Vec<R>,
    lse: Vec<R>,
    q: Vec<R>,
    scores: Vec<R>,
    maximum: Vec<R>,
    denominator: Vec<R>,
    k: Vec<R>,
    v: Vec<R>,
    gemm: Vec<R>,
}

/// Rows of a block for which keys and values are asked for ahead.
const FEW: usize = 16;

/// Queries `i0..` of one block, of the heads that share key/value head `g`.
fn block<R: Real>(
    data: &[R],
    seg: &Segment<'_, R>,
    i0: usize,
    g: usize,
    sizes: Sizes,
    options: &Attention,
    scratch: &mut Scratch<R>,
) {
    let Sizes { heads, group, size, .. } = sizes;
    let i1 = seg.queries.min(i0 + BLOCK);
    let rows = (i1 - i0) * group;
    let Scratch { out, lse, q, scores, maximum, denominator, k: k_tile, v: v_tile, gemm } = scratch;
    q.clear();
    gather(q, data, seg.q0 + i0..seg.q0 + i1, heads, g * group, group, size);
    fill(scores, rows * TILE, R::ZERO);
    fill(maximum, rows, R::NEG_INFINITY);
    fill(denominator, rows, R::ZERO);
    fill(out, rows * size, R::ZERO);
    fill(lse, rows, R::NEG_INFINITY);
    let behind = seg.keys - seg.queries.min(seg.keys);
    // Without causal masking there may be more queries than keys; positions are then not used.
    let position = |row: usize| i0 + row / group + behind;
    let (first, _) = options.visible(position(0), seg.keys);
    let (_, last) = options.visible(position(rows - 1), seg.keys);
    let scale = R::from_f64(options.scale);
    let softcap = options.softcap.map(R::from_f64);
    for j0 in (first / TILE * TILE..last).step_by(TILE) {
        // Keys that no query of the block sees are left out: they add 0 to sums whose order goes by place.
        let n = TILE.min(last - j0);
        let k = tile(seg.k, seg, j0..j0 + n, g, size, k_tile);
        let v = tile(seg.v, seg, j0..j0 + n, g, size, v_tile);
        let scores = &mut scores[..rows * n];
        // Few rows wait for memory more than they compute: a cache's keys and values are streams that begin anew for each head,
        // and the processor itself reads ahead late.
        let few = rows <= FEW;
        if few {
            k.ask();
        }
        gemm_serial(Mat::new(q, rows, size), k.t(), scores, Store::Set, gemm);
        if few {
            v.ask();
        }
        for r in 0..rows {
            let (lo, hi) = options.visible(position(r), seg.keys);
            let (lo, hi) = (lo.clamp(j0, j0 + n) - j0, hi.clamp(j0, j0 + n) - j0);
            let row = &mut scores[r * n..(r + 1) * n];
            if lo == hi {
                row.fill(R::ZERO);
                continue;
            }
            let correction = softmax_tile(row, lo, hi, scale, softcap, &mut maximum[r], &mut denominator[r]);
            if correction != R::ONE {
                for x in &mut out[r * size..(r + 1) * size] {
                    *x *= correction;
                }
            }
        }
        // The tile's sum is a chain of its own that is then added: the same bits whether or not later
        // keys exist, since a hidden key contributes 0·v to a chain that starts at +0.
        gemm_serial(Mat::new(scores, rows, n), v, out, Store::Add, gemm);
    }
    for r in 0..rows {
        if denominator[r] > R::ZERO {
            let inverse = R::ONE / denominator[r];
            for x in &mut out[r * size..(r + 1) * size] {
                *x *= inverse;
            }
            lse[r] = maximum[r] + denominator[r].ln();
        }
    }
}

crate::simd::simd_fn! {
    /// Scores to unnormalised probabilities, in place, of the keys `lo..hi` (0 elsewhere), with the
    /// running maximum and denominator brought up to date. Returns the factor on what was summed so far.
    fn softmax_tile<R: Real>(row: &mut [R], lo: usize, hi: usize, scale: R, softcap: Option<R>, maximum: &mut R, denominator: &mut R) -> R {
        row[..lo].fill(R::ZERO);
        row[hi..].fill(R::ZERO);
        let visible = &mut row[lo..hi];
        let mut top = *maximum;
        for s in visible.iter_mut() {
            *s = cap(*s, scale, softcap);
            top = top.max(*s);
        }
        for s in visible.iter_mut() {
            *s = (*s - top).exp();
        }
        // By position in the tile, so that the order is the same whatever lo and hi are.
        let sum = crate::reduce::sum(row);
        let correction = (*maximum - top).exp();
        *denominator = denominator.mul_add(correction, sum);
        *maximum = top;
        correction
    }
}
