//! Backward pass.
//!
//! With P the probabilities (recomputed from the saved log-denominators), dP = dO Vᵀ and
//! δ_i = dO_i·O_i: dS = P ∘ (dP - δ), times cap'(s); dV = Pᵀ dO, dQ = scale · dS K,
//! dK = scale · dSᵀ Q. A task owns one key/value head of one segment and of those that have it for a stem, so every
//! sum is made by one task in one order: gradients are deterministic on any number of threads. To the gradient of
//! shared keys the segments add theirs one after the other.

use super::{Attention, OP, Segments, Sizes, TILE, cap, gather, validate};
use crate::device;
use crate::gemm::{Mat, Store, gemm_serial};
use crate::parallel::Disjoint;
use crate::reduce::dot;
use crate::scratch::{self, fill};
use crate::team;
use crate::{Error, Real, Result, Tensor, dispatch_real};

/// Queries per block (times the heads that share keys: rows). Half a tile: causal blocks on the diagonal then
/// compute a quarter of a tile in vain, not half of one.
const BLOCK: usize = 32;

/// (dq, dk, dv) from the upstream gradient `dout` and what [`forward`](super::forward) returned.
///
/// # Errors
/// As the forward pass.
pub fn backward(
    dout: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    cu_q: &[u32],
    cu_k: &[u32],
    options: &Attention,
) -> Result<(Tensor, Tensor, Tensor)> {
    backward_branched(dout, q, k, v, out, lse, &Segments { cu_q, cu_k, stems: &[] }, options)
}

/// As [`backward`], with stems.
///
/// # Errors
/// As the forward pass.
pub fn backward_branched(
    dout: &Tensor,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    table: &Segments<'_>,
    options: &Attention,
) -> Result<(Tensor, Tensor, Tensor)> {
    let sizes = validate(q, k, v, table, options)?;
    for t in [dout, out] {
        if t.dims() != q.dims() {
            let (lhs, rhs) = (t.dims().to_vec(), q.dims().to_vec());
            return Err(Error::ShapeMismatch { op: OP, what: "output and its gradient against q", lhs, rhs });
        }
    }
    if let Some(on) = device::of(OP, [dout, q, k, v, out, lse])? {
        table.refuse_stems(q)?;
        let tables = [table.cu_q, table.cu_k];
        return device::ops::attention::backward(&on, dout, [q, k, v], out, lse, tables, sizes, options);
    }
    let tensors = [q, k, v, out, dout, lse].map(|t| t.contiguous());
    let [q, k, v, out, dout, lse] = tensors;
    let (q, k, v, out, dout, lse) = (q?, k?, v?, out?, dout?, lse?);
    let (mut dq, mut dk, mut dv) = (
        Tensor::scratch(q.shape(), q.dtype())?,
        Tensor::scratch(k.shape(), q.dtype())?,
        Tensor::scratch(v.shape(), q.dtype())?,
    );
    dispatch_real!(OP, q.dtype(), R => {
        let inputs = Inputs {
            q: q.as_slice::<R>()?, k: k.as_slice::<R>()?, v: v.as_slice::<R>()?,
            out: out.as_slice::<R>()?, dout: dout.as_slice::<R>()?, lse: lse.as_slice::<R>()?,
        };
        let families = families(table);
        let tasks: Vec<(&[usize], usize)> =
            families.iter().flat_map(|family| (0..sizes.kv_heads).map(move |g| (&family[..], g))).collect();
        let Sizes { heads, kv_heads, group, size } = sizes;
        let all_dq = Disjoint::new(dq.as_slice_mut::<R>()?);
        let all = [Disjoint::new(dk.as_slice_mut::<R>()?), Disjoint::new(dv.as_slice_mut::<R>()?)];
        team::for_each(tasks.len(), |i| scratch::with(|scratch: &mut Scratch<R>| {
            let (family, g) = tasks[i];
            for &s in family {
                let queries = table.cu_q[s] as usize..table.cu_q[s + 1] as usize;
                let keys = table.keys(s);
                head(&inputs, queries.clone(), keys.clone(), g, sizes, options, scratch);
                let Scratch { dq, dk, dv, .. } = scratch;
                for (row, t) in dq.chunks(group * size).zip(queries) {
                    // SAFETY: a task owns its segments' heads of group g.
                    unsafe { all_dq.part((t * heads + g * group) * size, row.len()).copy_from_slice(row) }
                }
                for (all, grad) in all.iter().zip([dk, dv]) {
                    let shared = keys[0].len();
                    for (n, (row, t)) in grad.chunks(size).zip(keys.clone().into_iter().flatten()).enumerate() {
                        // SAFETY: a task owns its segments' heads of group g, the stem's among them.
                        let place = unsafe { all.part((t * kv_heads + g) * size, row.len()) };
                        if n < shared {
                            place.iter_mut().zip(row).for_each(|(sum, x)| *sum += *x);
                        } else {
                            place.copy_from_slice(row);
                        }
                    }
                }
            }
        }));
    });
    Ok((dq, dk, dv))
}

/// Each segment without a stem, with those that it is the stem of behind it.
fn families(table: &Segments<'_>) -> Vec<Vec<usize>> {
    let segments = table.cu_q.len() - 1;
    let (mut families, mut of) = (Vec::new(), vec![0; segments]);
    for s in 0..segments {
        match table.stems.get(s).copied().flatten() {
            None => {
                of[s] = families.len();
                families.push(vec![s]);
            }
            Some(stem) => families[of[stem.of as usize]].push(s),
        }
    }
    families
}

/// Buffers that a thread reuses from task to task; `dq`, `dk` and `dv` are a task's output, dense.
#[derive(Default)]
struct Scratch<R> {
    q: Vec<R>,
    k: Vec<R>,
    v: Vec<R>,
    out: Vec<R>,
    dout: Vec<R>,
    lse: Vec<R>,
    delta: Vec<R>,
    p: Vec<R>,
    dp: Vec<R>,
    dq: Vec<R>,
    dk: Vec<R>,
    dv: Vec<R>,
    gemm: Vec<R>,
}

struct Inputs<'a, R> {
    q: &'a [R],
    k: &'a [R],
    v: &'a [R],
    out: &'a [R],
    dout: &'a [R],
    lse: &'a [R],
}

/// Gradients of one key/value head of one segment and of the query heads that share it, into `scratch`.
fn head<R: Real>(
    x: &Inputs<'_, R>,
    queries: std::ops::Range<usize>,
    keys: [std::ops::Range<usize>; 2],
    g: usize,
    sizes: Sizes,
    options: &Attention,
    scratch: &mut Scratch<R>,
) {
    let Sizes { heads, kv_heads, group, size } = sizes;
    let (lq, lk) = (queries.len(), keys[0].len() + keys[1].len());
    let Scratch { q, k, v, out, dout, lse, delta, p, dp, dq, dk, dv, gemm } = scratch;
    for (block, src) in [(&mut *q, x.q), (&mut *out, x.out), (&mut *dout, x.dout)] {
        block.clear();
        gather(block, src, queries.clone(), heads, g * group, group, size);
    }
    for (block, src) in [(&mut *k, x.k), (&mut *v, x.v)] {
        block.clear();
        keys.iter().for_each(|keys| gather(block, src, keys.clone(), kv_heads, g, 1, size));
    }
    lse.clear();
    gather(lse, x.lse, queries, heads, g * group, group, 1);
    delta.clear();
    delta.extend(dout.chunks(size.max(1)).zip(out.chunks(size.max(1))).map(|(d, o)| dot(d, o)));
    for (buffer, n) in [(&mut *dq, q.len()), (&mut *dk, k.len()), (&mut *dv, v.len())] {
        fill(buffer, n, R::ZERO);
    }
    for buffer in [&mut *p, &mut *dp] {
        fill(buffer, BLOCK * group * TILE, R::ZERO);
    }
    let behind = lk - lq.min(lk);
    let (scale, softcap) = (R::from_f64(options.scale), options.softcap.map(R::from_f64));
    for j0 in (0..lk).step_by(TILE) {
        for i0 in (0..lq).step_by(BLOCK) {
            let i1 = lq.min(i0 + BLOCK);
            let (first, _) = options.visible(i0 + behind, lk);
            let (_, last) = options.visible(i1 - 1 + behind, lk);
            if last <= j0 || first >= j0 + TILE {
                continue;
            }
            // Up to the last key that a query of the block sees.
            let n = TILE.min(last - j0);
            let (kt, vt) = (Mat::new(&k[j0 * size..], n, size), Mat::new(&v[j0 * size..], n, size));
            let rows = (i1 - i0) * group;
            let range = i0 * group * size..i1 * group * size;
            let (qb, ob) = (Mat::new(&q[range.clone()], rows, size), Mat::new(&dout[range.clone()], rows, size));
            let (p, dp) = (&mut p[..rows * n], &mut dp[..rows * n]);
            gemm_serial(qb, kt.t(), p, Store::Set, gemm);
            gemm_serial(ob, vt.t(), dp, Store::Set, gemm);
            for r in 0..rows {
                let (lo, hi) = options.visible(i0 + r / group + behind, lk);
                let (lo, hi) = (lo.clamp(j0, j0 + n) - j0, hi.clamp(j0, j0 + n) - j0);
                let row = i0 * group + r;
                let span = r * n..(r + 1) * n;
                score_gradient(&mut p[span.clone()], &mut dp[span], lo, hi, scale, softcap, lse[row], delta[row]);
            }
            let (pm, sm) = (Mat::new(&*p, rows, n), Mat::new(&*dp, rows, n));
            gemm_serial(pm.t(), ob, &mut dv[j0 * size..(j0 + n) * size], Store::Add, gemm);
            gemm_serial(sm.t(), qb, &mut dk[j0 * size..(j0 + n) * size], Store::Add, gemm);
            gemm_serial(sm, kt, &mut dq[range], Store::Add, gemm);
        }
    }
}

crate::simd::simd_fn! {
    /// From raw scores and dP to P and scale · dS, in place; 0 outside `lo..hi`.
    fn score_gradient<R: Real>(p: &mut [R], dp: &mut [R], lo: usize, hi: usize, scale: R, softcap: Option<R>, lse: R, delta: R) {
        for x in [&mut *p, &mut *dp] {
            x[..lo].fill(R::ZERO);
            x[hi..].fill(R::ZERO);
        }
        for (p, dp) in p[lo..hi].iter_mut().zip(&mut dp[lo..hi]) {
            let s = cap(*p, scale, softcap);
            let slope = match softcap {
                None => scale,
                // d/ds c tanh(scale s / c) = scale (1 - tanh²)
                Some(c) => scale * (R::ONE - (s / c) * (s / c)),
            };
            *p = (s - lse).exp();
            *dp = *p * (*dp - delta) * slope;
        }
    }
}
