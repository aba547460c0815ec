//! Forward pass.

use std::ops::Range;

use super::{Attention, BLOCK, OP, Segments, Sizes, TILE, cap, fewer_queries, gather, validate};
use crate::device;
use crate::gemm::{Mat, Store, gemm_serial};
use crate::parallel::Filled;
use crate::scratch::{self, fill};
use crate::{Error, Real, Result, Tensor, dispatch_real};
use crate::{stream, team};

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
        let width = sizes.kv_heads * sizes.size;
        let segments: Vec<Segment<'_, R>> = table.cu_q.windows(2).enumerate().map(|(s, q)| {
            let keys = table.keys(s);
            let [k, v] = [kd, vd].map(|x| keys.clone().map(|rows| &x[rows.start * width..rows.end * width]));
            Segment { q0: q[0] as usize, queries: (q[1] - q[0]) as usize, stem: keys[0].len(), k, v }
        }).collect();
        run::<R>(&q, &segments, sizes, options)
    })
}

/// The keys and values of a sequence, in one tensor without gaps, of either from element `at` on: keys and heads are `strides`
/// apart, and of a head the elements are neighbours.
pub(super) struct Lying<R> {
    pub(super) tensor: Tensor,
    pub(super) elements: Filled<R>,
    pub(super) at: [usize; 2],
    pub(super) strides: [usize; 2],
    pub(super) keys: usize,
}

/// Attention of a packed stream of queries over keys and values that lie apart, one pair a segment:
/// for decoding on the processor, where each sequence has a cache of its own.
///
/// `queries(s, tokens, g, to)` appends the queries of `tokens`, which are of segment s, that share key/value head g, to `to`: (tokens,
/// heads that share it, size). It may write to the same head of the segment's cache before. Nothing else writes to what this
/// reads.
///
/// # Errors
/// As [`forward`].
pub(super) fn forward_lying<R: Real>(
    caches: Vec<Lying<R>>,
    sizes: Sizes,
    cu_q: &[u32],
    options: &Attention,
    queries: impl Fn(usize, Range<usize>, usize, &mut Vec<R>) + Send + Sync + 'static,
) -> Result<Tensor> {
    let mismatch = |what, lhs, rhs| Err(Error::ShapeMismatch { op: OP, what, lhs, rhs });
    if cu_q.len() != caches.len() + 1 {
        return mismatch("cu_q against the number of caches", vec![cu_q.len()], vec![caches.len() + 1]);
    }
    for (cache, queries) in caches.iter().zip(cu_q.windows(2)) {
        fewer_queries((queries[1] - queries[0]) as usize, cache.keys, options)?;
    }
    let total = cu_q[cu_q.len() - 1] as usize;
    let (mut out, mut lse) = outputs::<R>(total, sizes)?;
    let (o, l) = (Filled::<R>::of(&mut out)?, Filled::<R>::of(&mut lse)?);
    let spans: Vec<[usize; 2]> = cu_q.windows(2).map(|q| [q[0] as usize, (q[1] - q[0]) as usize]).collect();
    let tasks = tasks(spans.iter().map(|span| span[1]), sizes);
    let options = *options;
    // Caches too, which `queries` may write to.
    let outs = caches.iter().map(|cache| cache.tensor.clone()).chain([out.clone(), lse]).collect();
    stream::leave(tasks.len(), outs, move |i| {
        let (s, i, g) = tasks[i];
        let (cache, [q0, of_segment]) = (&caches[s], spans[s]);
        let gather = |tokens: Range<usize>, to: &mut Vec<R>| queries(s, q0 + tokens.start..q0 + tokens.end, g, to);
        let head = || {
            // SAFETY: the tensor is held, and nobody writes to this head's keys and values once the queries are there.
            let [k, v] = [0, 1].map(|part| unsafe {
                let head = cache.head(part, g, sizes.size);
                cache.elements.read(head.start, head.len())
            });
            Head { queries: of_segment, stem: 0, keys: cache.keys, k: [&[], k], v: [&[], v], stride: cache.strides[0] }
        };
        scratch::with(|scratch| {
            block(gather, head, i..of_segment.min(i + BLOCK), sizes, &options, scratch);
            // SAFETY: a task owns its queries' heads of group g.
            unsafe { scratch.put(q0 + i, g, sizes, &o, &l) }
        });
    });
    Ok(out)
}

impl<R> Lying<R> {
    /// The elements of a head's keys (`part` 0) or values (1).
    fn head(&self, part: usize, g: usize, size: usize) -> Range<usize> {
        let [key, head] = self.strides;
        let start = self.at[part] + g * head;
        start..start + if self.keys == 0 { 0 } else { (self.keys - 1) * key + size }
    }
}

/// One sequence: where its queries lie, and its keys and values, (keys, kv_heads, size), the first `stem` of them in
/// one place and the others in another.
struct Segment<'a, R> {
    q0: usize,
    queries: usize,
    stem: usize,
    k: [&'a [R]; 2],
    v: [&'a [R]; 2],
}

impl<'a, R> Segment<'a, R> {
    /// Key/value head `g`.
    fn head(&self, g: usize, sizes: Sizes) -> Head<'a, R> {
        let stride = sizes.kv_heads * sizes.size;
        let of = |parts: [&'a [R]; 2]| parts.map(|part| part.get(g * sizes.size..).unwrap_or_default());
        let keys = self.stem + self.k[1].len() / stride;
        Head { queries: self.queries, stem: self.stem, keys, k: of(self.k), v: of(self.v), stride }
    }
}

/// A key/value head of one sequence, of which so many queries see so many keys. Keys, and values, are `stride` apart.
struct Head<'a, R> {
    queries: usize,
    stem: usize,
    keys: usize,
    k: [&'a [R]; 2],
    v: [&'a [R]; 2],
    stride: usize,
}

/// Keys or values `tokens` of a head: where they lie, or copied together if that is two places.
fn tile<'t, R: Real>(
    parts: [&'t [R]; 2],
    &Head { stem, stride, .. }: &Head<'_, R>,
    tokens: Range<usize>,
    size: usize,
    buffer: &'t mut Vec<R>,
) -> Mat<'t, R> {
    let lying = |part: &'t [R], first: usize| Mat::strided(&part[first * stride..], tokens.len(), size, stride, 1);
    if tokens.start >= stem {
        return lying(parts[1], tokens.start - stem);
    }
    if tokens.end <= stem {
        return lying(parts[0], tokens.start);
    }
    buffer.clear();
    let mut copy = |part: &[R], tokens: Range<usize>| {
        tokens.for_each(|t| buffer.extend_from_slice(&part[t * stride..][..size]));
    };
    copy(parts[0], tokens.start..stem);
    copy(parts[1], 0..tokens.end - stem);
    Mat::new(&*buffer, tokens.len(), size)
}

/// What is computed: (queries, heads, size) and (queries, heads).
fn outputs<R: Real>(queries: usize, Sizes { heads, size, .. }: Sizes) -> Result<(Tensor, Tensor)> {
    Ok((Tensor::scratch([queries, heads, size], R::DTYPE)?, Tensor::scratch([queries, heads], R::DTYPE)?))
}

/// Segment, first query and key/value head of each task, of segments of so many queries.
fn tasks(queries: impl Iterator<Item = usize>, sizes: Sizes) -> Vec<(usize, usize, usize)> {
    let blocks =
        |(s, queries)| (0..queries).step_by(BLOCK).flat_map(move |i| (0..sizes.kv_heads).map(move |g| (s, i, g)));
    queries.enumerate().flat_map(blocks).collect()
}

fn run<R: Real>(
    q: &Tensor,
    segments: &[Segment<'_, R>],
    sizes: Sizes,
    options: &Attention,
) -> Result<(Tensor, Tensor)> {
    let (mut out, mut lse) = outputs::<R>(q.dims()[0], sizes)?;
    let data = q.as_slice::<R>()?;
    let tasks = tasks(segments.iter().map(|seg| seg.queries), sizes);
    let (o, l) = (Filled::<R>::of(&mut out)?, Filled::<R>::of(&mut lse)?);
    team::for_each(tasks.len(), |i| {
        let (s, i, g) = tasks[i];
        let (seg, Sizes { heads, group, size, .. }) = (&segments[s], sizes);
        let queries = |tokens: Range<usize>, to: &mut Vec<R>| {
            gather(to, data, seg.q0 + tokens.start..seg.q0 + tokens.end, heads, g * group, group, size);
        };
        scratch::with(|scratch| {
            block(queries, || seg.head(g, sizes), i..seg.queries.min(i + BLOCK), sizes, options, scratch);
            // SAFETY: a task owns its queries' heads of group g.
            unsafe { scratch.put(seg.q0 + i, g, sizes, &o, &l) }
        });
    });
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

impl<R: Real> Scratch<R> {
    /// Puts a block's results, of queries from `first` on and the heads that share key/value head `g`, where they belong.
    ///
    /// # Safety
    /// The tensors must live, and nobody else be at these queries' heads.
    unsafe fn put(
        &self,
        first: usize,
        g: usize,
        Sizes { heads, group, size, .. }: Sizes,
        out: &Filled<R>,
        lse: &Filled<R>,
    ) {
        for (n, (row, row_lse)) in self.out.chunks(group * size).zip(self.lse.chunks(group)).enumerate() {
            let at = (first + n) * heads + g * group;
            // SAFETY: the caller's promise.
            unsafe {
                out.part(at * size, group * size).copy_from_slice(row);
                lse.part(at, group).copy_from_slice(row_lse);
            }
        }
    }
}

/// Queries `block` of a segment, of the heads that share one key/value head. Its keys are looked at after the queries, of which
/// `queries` appends (tokens, heads that share it, size).
fn block<'h, R: Real>(
    queries: impl FnOnce(Range<usize>, &mut Vec<R>),
    head: impl FnOnce() -> Head<'h, R>,
    block: Range<usize>,
    sizes: Sizes,
    options: &Attention,
    scratch: &mut Scratch<R>,
) {
    let Sizes { group, size, .. } = sizes;
    let (i0, rows) = (block.start, block.len() * group);
    let Scratch { out, lse, q, scores, maximum, denominator, k: k_tile, v: v_tile, gemm } = scratch;
    q.clear();
    queries(block, q);
    let seg = &head();
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
        let k = tile(seg.k, seg, j0..j0 + n, size, k_tile);
        let v = tile(seg.v, seg, j0..j0 + n, size, v_tile);
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
