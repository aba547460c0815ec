//! Attention.
//!
//! Halves go to tensor cores, whose kernels take heads of 64, of 128 and of 256: smaller heads are filled up with zeros,
//! which change neither a score nor a sum, and of the results only the elements that there are are kept. Larger ones, and
//! f32, go to the plain kernel.

use std::sync::Arc;

pub(crate) use planish_cuda::ops::attention::LONG;
use planish_cuda::ops::{attention as kernel, rope};

use super::super::context;
use super::super::memory::type_of;
use super::On;
use super::linear::filled;
use crate::ops::attention::{Attention, Sizes};
use crate::{DType, Device, Error, Result, Tensor};

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
        129..=256 if dtype != DType::F32 => 256,
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

/// Bytes that the backward pass takes on a device beside its arguments and results, of segments of these lengths, where there is
/// room for them.
///
/// # Errors
/// A number of heads that is no multiple of that of keys; a device that cannot be opened.
pub fn scratch_bytes(
    device: Device,
    dtype: DType,
    lengths: &[usize],
    [heads, kv_heads, size]: [usize; 3],
    of: &Attention,
) -> Result<u64> {
    if device.is_cpu() {
        return Ok(0);
    }
    let on = context::get(device)?;
    let taken = as_taken(Sizes::new(heads, kv_heads, size)?, dtype);
    let bytes = kernel::stored_bytes(on.queue(), type_of(OP, dtype)?, lengths, &kind(taken, of));
    Ok(device.taken(bytes))
}

/// What a head takes in a cache: what the kernels take, so that nothing is to be filled up at each step.
pub(crate) fn width(size: usize, dtype: DType) -> usize {
    as_taken(Sizes { heads: 1, kv_heads: 1, group: 1, size }, dtype).size
}

/// New tokens of several sequences with caches, as the device knows them: told once for all layers.
#[derive(Debug)]
pub(crate) struct Step {
    on: On,
    caches: Arc<kernel::Caches>,
    segments: kernel::Segments,
}

impl Step {
    /// `sizes`: layers, key and value heads, what a head takes. `caches` must stay where they are, and nobody else's, as
    /// long as this lives.
    pub(crate) fn new(
        on: On,
        caches: &[&Tensor],
        [layers, kv_heads, size]: [usize; 3],
        [cu_q, cu_k]: [&[u32]; 2],
        keys: &[usize],
    ) -> Result<Step> {
        let keys: Vec<u32> = keys.iter().map(|&n| u32::try_from(n).unwrap_or(u32::MAX)).collect();
        let table = on.caches(caches, kernel::CacheSizes { layers, kv_heads, size })?;
        on.uploaded(size_of_val(&*keys) + size_of_val(cu_q) + size_of_val(cu_k));
        let segments = kernel::Segments::cached(on.queue(), cu_q, cu_k, &keys)?;
        Ok(Step { on, caches: table, segments })
    }

    /// One whose caches and numbers of keys may be told anew: each segment has a query and a new key.
    pub(crate) fn standing(on: On, caches: &[&Tensor], sizes: [usize; 3]) -> Result<Step> {
        on.not_recorded("a table of caches")?;
        let [layers, kv_heads, size] = sizes;
        let slices = caches.iter().map(|cache| cache.cells()).collect::<Result<Vec<_>>>()?;
        let table = kernel::Caches::new(on.queue(), &slices, kernel::CacheSizes { layers, kv_heads, size })?;
        let count = u32::try_from(caches.len()).unwrap_or(u32::MAX);
        let (cu, keys): (Vec<u32>, Vec<u32>) = ((0..=count).collect(), vec![1; caches.len()]);
        let segments = kernel::Segments::cached(on.queue(), &cu, &cu, &keys)?;
        on.uploaded(table.bytes());
        on.uploaded(size_of_val(&*keys) + 2 * size_of_val(&*cu));
        Ok(Step { on, caches: Arc::new(table), segments })
    }

    /// These caches, with so many keys each, the new one included. Of a standing step.
    pub(crate) fn tell(&mut self, caches: &[&Tensor], keys: &[u32]) -> Result<()> {
        self.on.not_recorded("a table of caches")?;
        let slices = caches.iter().map(|cache| cache.cells()).collect::<Result<Vec<_>>>()?;
        let table = Arc::get_mut(&mut self.caches).expect("a standing step shares its table with nobody");
        if table.exchange(self.on.queue(), &slices)? {
            self.on.uploaded(table.bytes());
        }
        self.segments.set_keys(keys)?;
        self.on.uploaded(size_of_val(keys));
        Ok(())
    }

    /// q turned, if there is one; k turned and v to their places.
    pub(crate) fn append(
        &self,
        layer: usize,
        q: Option<&Tensor>,
        [k, v]: [&Tensor; 2],
        tables: Option<[&Tensor; 2]>,
    ) -> Result<Option<Tensor>> {
        let q = q.map(Tensor::contiguous).transpose()?;
        let tables = tables.map(|[cos, sin]| Ok::<_, Error>([cos.contiguous()?, sin.contiguous()?])).transpose()?;
        let (k, v) = (k.contiguous()?, v.contiguous()?);
        let size = k.dims()[2];
        // Without tables queries stay as they are.
        let mut y = match (&q, &tables) {
            (Some(q), Some(_)) => Some(self.on.scratch("rope", q.shape(), q.dtype())?),
            _ => None,
        };
        if k.numel() > 0 {
            let queries = match (&mut y, &q) {
                (Some(y), Some(q)) => Some(rope::Queries { heads: q.dims()[1], y: y.cells_mut()?, q: q.cells()? }),
                _ => None,
            };
            let tables = match &tables {
                Some([cos, sin]) => Some([cos.cells()?, sin.cells()?]),
                None => None,
            };
            let to = (&*self.caches, layer);
            rope::append(self.on.queue(), queries, [k.cells()?, v.cells()?], tables, size, to, &self.segments)?;
        }
        Ok(y.or(q))
    }

    /// Attention over the layer's keys, those just appended included.
    pub(crate) fn attend(&self, layer: usize, q: &Tensor, sizes: Sizes, of: &Attention) -> Result<Tensor> {
        let (on, taken) = (&self.on, as_taken(sizes, q.dtype()));
        let mut out = room(on, q, taken)?;
        if out.numel() > 0 {
            let mut lse = on.scratch(OP, [q.dims()[0], sizes.heads], DType::F32)?;
            let q = fill(on, q, taken)?;
            let (to, to_lse, caches) = (out.cells_mut()?, lse.cells_mut()?, (&*self.caches, layer));
            kernel::forward_cached(on.queue(), to, to_lse, q.cells()?, caches, &self.segments, &kind(taken, of))?;
        }
        cut(out, sizes)
    }
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
