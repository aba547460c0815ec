//! Backward pass.
//!
//! With P the probabilities (recomputed from the saved log-denominators), dP = dO Vᵀ and
//! δ_i = dO_i·O_i: dS = P ∘ (dP - δ), times cap'(s); dV = Pᵀ dO, dQ = scale · dS K,
//! dK = scale · dSᵀ Q. A task owns one key/value head of one segment, so every sum is made by one
//! task in one order: gradients are deterministic on any number of threads.

use super::{Attention, OP, Sizes, TILE, cap, gather, validate};
use crate::device;
use crate::gemm::{Mat, Store, gemm_serial};
use crate::parallel::Disjoint;
use crate::reduce::dot;
use crate::scratch::{self, fill};
use crate::team;
use crate::{Error, Real, Result, Tensor, dispatch_real};

/// Queries per block (times the heads that share keys: rows).
const BLOCK: usize = 64;

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
    let sizes = validate(q, k, v, cu_q, cu_k, options)?;
    for t in [dout, out] {
        if t.dims() != q.dims() {
            let (lhs, rhs) = (t.dims().to_vec(), q.dims().to_vec());
            return Err(Error::ShapeMismatch { op: OP, what: "output and its gradient against q", lhs, rhs });
        }
    }
    if let Some(on) = device::of(OP, [dout, q, k, v, out, lse])? {
        let tables = [cu_q, cu_k];
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
        let tasks: Vec<(usize, usize)> =
            (0..cu_q.len() - 1).flat_map(|s| (0..sizes.kv_heads).map(move |g| (s, g))).collect();
        let Sizes { heads, kv_heads, group, size } = sizes;
        let outs = [
            Disjoint::new(dq.as_slice_mut::<R>()?),
            Disjoint::new(dk.as_slice_mut::<R>()?),
            Disjoint::new(dv.as_slice_mut::<R>()?),
        ];
        team::for_each(tasks.len(), |i| scratch::with(|scratch: &mut Scratch<R>| {
            let (s, g) = tasks[i];
            let range = |cu: &[u32]| cu[s] as usize..cu[s + 1] as usize;
            head(&inputs, range(cu_q), range(cu_k), g, sizes, options, scratch);
            let Scratch { dq, dk, dv, .. } = scratch;
            for (out, (grad, cu, all, each)) in
                outs.iter().zip([(dq, cu_q, heads, group), (dk, cu_k, kv_heads, 1), (dv, cu_k, kv_heads, 1)])
            {
                for (n, row) in grad.chunks(each * size).enumerate() {
                    let at = ((cu[s] as usize + n) * all + g * each) * size;
                    // SAFETY: a task owns its segment's heads of group g.
                    unsafe { out.part(at, row.len()).copy_from_slice(row) }
                }
            }
        }));
    });
    Ok((dq, dk, dv))
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
    keys: std::ops::Range<usize>,
    g: usize,
    sizes: Sizes,
    options: &Attention,
    scratch: &mut Scratch<R>,
) {
    let Sizes { heads, kv_heads, group, size } = sizes;
    let (lq, lk) = (queries.len(), keys.len());
    let Scratch { q, k, v, out, dout, lse, delta, p, dp, dq, dk, dv, gemm } = scratch;
    for (block, src) in [(&mut *q, x.q), (&mut *out, x.out), (&mut *dout, x.dout)] {
        gather(block, src, queries.clone(), heads, g * group, group, size);
    }
    for (block, src) in [(&mut *k, x.k), (&mut *v, x.v)] {
        gather(block, src, keys.clone(), kv_heads, g, 1, size);
    }
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
        let n = TILE.min(lk - j0);
        let (kt, vt) = (Mat::new(&k[j0 * size..], n, size), Mat::new(&v[j0 * size..], n, size));
        for i0 in (0..lq).step_by(BLOCK) {
            let i1 = lq.min(i0 + BLOCK);
            let (first, _) = options.visible(i0 + behind, lk);
            let (_, last) = options.visible(i1 - 1 + behind, lk);
            if last <= j0 || first >= j0 + n {
                continue;
            }
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
