//! Attention.
//!
//! Halves go to tensor cores, whose kernels take heads of 64 and of 128: smaller heads are filled up with zeros, which
//! change neither a score nor a sum, and of the results only the elements that there are are kept. Larger ones, and f32,
//! go to the plain kernel.

use planish_cuda::ops::attention as kernel;

use super::On;
use super::linear::filled;
use crate::ops::attention::{Attention, Sizes};
use crate::{DType, Result, Tensor};

const OP: &str = "attention";

fn kind(sizes: Sizes, of: &Attention) -> kernel::Attention {
    kernel::Attention {
        heads: sizes.heads,
        kv_heads: sizes.kv_heads,
        size: sizes.size,
        scale: of.scale as f32,
        causal: of.causal,
        window: of.window,
        softcap: of.softcap.map(|c| c as f32),
    }
}

/// The sizes that the kernel is to take.
fn as_taken(sizes: Sizes, dtype: DType) -> Sizes {
    let size = match sizes.size {
        1..=64 if dtype != DType::F32 => 64,
        65..=128 if dtype != DType::F32 => 128,
        other => other,
    };
    Sizes { size, ..sizes }
}

/// A tensor (rows, heads, size) with heads of the size that the kernel takes, without gaps.
fn fill(on: &On, t: &Tensor, taken: Sizes) -> Result<Tensor> {
    if t.dims()[2] == taken.size { t.contiguous() } else { filled(on, t.clone(), 2, taken.size) }
}

/// The heads of `sizes` again.
fn cut(t: Tensor, sizes: Sizes) -> Result<Tensor> {
    t.narrow(2, 0, sizes.size)?.contiguous()
}

/// Room for the result of the queries of `q`.
fn room(on: &On, q: &Tensor, taken: Sizes) -> Result<Tensor> {
    on.scratch(OP, [q.dims()[0], taken.heads, taken.size], q.dtype())
}

/// (out, lse).
pub(crate) fn forward(
    on: &On,
    [q, k, v]: [&Tensor; 3],
    [cu_q, cu_k]: [&[u32]; 2],
    sizes: Sizes,
    of: &Attention,
) -> Result<(Tensor, Tensor)> {
    let taken = as_taken(sizes, q.dtype());
    let mut out = room(on, q, taken)?;
    let mut lse = on.scratch(OP, [q.dims()[0], sizes.heads], DType::F32)?;
    if out.numel() > 0 {
        let (q, k, v) = (fill(on, q, taken)?, fill(on, k, taken)?, fill(on, v, taken)?);
        let segments = on.segments(cu_q, cu_k)?;
        let (to, to_lse) = (out.cells_mut()?, lse.cells_mut()?);
        kernel::forward(on.queue(), to, to_lse, q.cells()?, k.cells()?, v.cells()?, &segments, &kind(taken, of))?;
    }
    Ok((cut(out, sizes)?, lse))
}

/// (out, lse) of queries over caches of their own: a launch for each sequence, so that no cache is copied, unless its
/// heads are to be filled up.
pub(crate) fn forward_segments(
    on: &On,
    q: &Tensor,
    caches: &[(&Tensor, &Tensor, usize)],
    cu_q: &[u32],
    sizes: Sizes,
    of: &Attention,
) -> Result<(Tensor, Tensor)> {
    let taken = as_taken(sizes, q.dtype());
    let mut out = room(on, q, taken)?;
    let mut lse = on.scratch(OP, [q.dims()[0], sizes.heads], DType::F32)?;
    let (width, kv_width) = (taken.heads * taken.size, taken.kv_heads * taken.size);
    let q = fill(on, q, taken)?;
    for (&(k, v, keys), cu) in caches.iter().zip(cu_q.windows(2)) {
        let (start, queries) = (cu[0] as usize, (cu[1] - cu[0]) as usize);
        if queries * width == 0 {
            continue;
        }
        let (k, v) = (fill(on, &k.narrow(0, 0, keys)?, taken)?, fill(on, &v.narrow(0, 0, keys)?, taken)?);
        let segments = on.segments(&[0, queries as u32], &[0, keys as u32])?;
        let to = out.cells_mut()?.part(start * width, queries * width)?;
        let to_lse = lse.cells_mut()?.part(start * sizes.heads, queries * sizes.heads)?;
        let q = q.cells()?.part(start * width, queries * width)?;
        let (k, v) = (k.cells()?.part(0, keys * kv_width)?, v.cells()?.part(0, keys * kv_width)?);
        kernel::forward(on.queue(), to, to_lse, q, k, v, &segments, &kind(taken, of))?;
    }
    Ok((cut(out, sizes)?, lse))
}

/// (dq, dk, dv).
pub(crate) fn backward(
    on: &On,
    dout: &Tensor,
    [q, k, v]: [&Tensor; 3],
    out: &Tensor,
    lse: &Tensor,
    [cu_q, cu_k]: [&[u32]; 2],
    sizes: Sizes,
    of: &Attention,
) -> Result<(Tensor, Tensor, Tensor)> {
    let taken = as_taken(sizes, q.dtype());
    let mut dq = room(on, q, taken)?;
    let keys = [k.dims()[0], taken.kv_heads, taken.size];
    let mut dk = on.zeros(OP, keys, q.dtype())?;
    let mut dv = on.zeros(OP, keys, q.dtype())?;
    if dq.numel() > 0 {
        let (q, k, v) = (fill(on, q, taken)?, fill(on, k, taken)?, fill(on, v, taken)?);
        let (dout, out, lse) = (fill(on, dout, taken)?, fill(on, out, taken)?, lse.contiguous()?);
        let segments = on.segments(cu_q, cu_k)?;
        let grads = [dq.cells_mut()?, dk.cells_mut()?, dv.cells_mut()?];
        let qkv = [q.cells()?, k.cells()?, v.cells()?];
        kernel::backward(
            on.queue(),
            grads,
            dout.cells()?,
            qkv,
            out.cells()?,
            lse.cells()?,
            &segments,
            &kind(taken, of),
        )?;
    }
    Ok((cut(dq, sizes)?, cut(dk, sizes)?, cut(dv, sizes)?))
}
