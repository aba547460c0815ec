//! Attention.

use planish_cuda::ops::attention as kernel;

use super::On;
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

/// (out, lse).
pub(crate) fn forward(
    on: &On,
    [q, k, v]: [&Tensor; 3],
    [cu_q, cu_k]: [&[u32]; 2],
    sizes: Sizes,
    of: &Attention,
) -> Result<(Tensor, Tensor)> {
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let mut out = on.scratch(OP, q.shape(), q.dtype())?;
    let mut lse = on.scratch(OP, [q.dims()[0], sizes.heads], DType::F32)?;
    if out.numel() > 0 {
        let segments = on.segments(cu_q, cu_k)?;
        let (to, to_lse) = (out.cells_mut()?, lse.cells_mut()?);
        kernel::forward(on.queue(), to, to_lse, q.cells()?, k.cells()?, v.cells()?, &segments, &kind(sizes, of))?;
    }
    Ok((out, lse))
}

/// (out, lse) of queries over caches of their own: a launch for each sequence, so that no cache is copied.
pub(crate) fn forward_segments(
    on: &On,
    q: &Tensor,
    caches: &[(&Tensor, &Tensor, usize)],
    cu_q: &[u32],
    sizes: Sizes,
    of: &Attention,
) -> Result<(Tensor, Tensor)> {
    let q = q.contiguous()?;
    let mut out = on.scratch(OP, q.shape(), q.dtype())?;
    let mut lse = on.scratch(OP, [q.dims()[0], sizes.heads], DType::F32)?;
    let (width, kv_width) = (sizes.heads * sizes.size, sizes.kv_heads * sizes.size);
    for (&(k, v, keys), cu) in caches.iter().zip(cu_q.windows(2)) {
        let (start, queries) = (cu[0] as usize, (cu[1] - cu[0]) as usize);
        if queries * width == 0 {
            continue;
        }
        let (k, v) = (k.contiguous()?, v.contiguous()?);
        let segments = on.segments(&[0, queries as u32], &[0, keys as u32])?;
        let to = out.cells_mut()?.part(start * width, queries * width)?;
        let to_lse = lse.cells_mut()?.part(start * sizes.heads, queries * sizes.heads)?;
        let q = q.cells()?.part(start * width, queries * width)?;
        let (k, v) = (k.cells()?.part(0, keys * kv_width)?, v.cells()?.part(0, keys * kv_width)?);
        kernel::forward(on.queue(), to, to_lse, q, k, v, &segments, &kind(sizes, of))?;
    }
    Ok((out, lse))
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
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let (dout, out, lse) = (dout.contiguous()?, out.contiguous()?, lse.contiguous()?);
    let mut dq = on.scratch(OP, q.shape(), q.dtype())?;
    let mut dk = on.zeros(OP, k.shape(), q.dtype())?;
    let mut dv = on.zeros(OP, v.shape(), q.dtype())?;
    if q.numel() > 0 {
        let segments = on.segments(cu_q, cu_k)?;
        let grads = [dq.cells_mut()?, dk.cells_mut()?, dv.cells_mut()?];
        let qkv = [q.cells()?, k.cells()?, v.cells()?];
        let kind = kind(sizes, of);
        kernel::backward(on.queue(), grads, dout.cells()?, qkv, out.cells()?, lse.cells()?, &segments, &kind)?;
    }
    Ok((dq, dk, dv))
}
