//! Attention on Hopper; see `cuda/kernels/attention_hopper.cu`, `attention_backward_hopper.cu`, `attention_scores_hopper.cu`
//! and, for heads of 256, `attention_wide_hopper.cu` and `attention_backward_wide_hopper.cu`.

use super::stored::Stored;
use super::{Attention, Caches, Segments, TILE, long};
use crate::cache::Defines;
use crate::driver::{Arg, Fill, Swizzle, TENSOR_MAP_BYTES, TensorMap};
use crate::kernels::{
    ATTENTION_BACKWARD_HOPPER, ATTENTION_BACKWARD_WIDE_HOPPER, ATTENTION_HOPPER, ATTENTION_SCORES_HOPPER,
    ATTENTION_WIDE_HOPPER,
};
use crate::memory::{Slice, SliceMut};
use crate::nvrtc::Arch;
use crate::ops::with;
use crate::{DType, Queue, Result, Shape};

/// Tiles in the ring, as in the kernel.
const STAGES: usize = 3;

/// The same of heads of 256, backward.
const WIDE_STAGES: usize = 2;

/// The same of the kernel that makes dQ of a stored dS.
const SCORES_STAGES: usize = 4;

/// Of 64 x 64 halves.
const BOX_BYTES: usize = TILE * TILE * 2;

/// Tiles in the ring of heads of 256, forward.
const WIDE_SLOTS: usize = 6;

/// The largest heads whose queries, scores and sums registers have room for; kernels of their own take those of 256.
const LARGEST: usize = 128;

/// Keys of a step, forward: part of the arithmetic, as in the kernels.
pub(super) fn step(size: usize) -> usize {
    if size > LARGEST { TILE } else { 2 * TILE }
}

/// Whether attention over caches of heads of this size and type goes to these kernels on the queue's device.
pub(super) fn takes(queue: Queue<'_>, dtype: DType, size: usize) -> bool {
    queue.device.arch() == Arch::specific(9, 0) && super::on_tensor_cores(dtype, size)
}

/// Whether attention on tensor cores goes to these kernels on the queue's device. On Hopper all of it does, in training and
/// in decoding: `mma.sync` may add the 16 products of a step otherwise.
pub(super) fn is_for(queue: Queue<'_>, of: &Segments) -> bool {
    // Without a key there is nothing to make a map of, and nothing to add.
    queue.device.arch() == Arch::specific(9, 0) && of.key_rows() > 0
}

/// Boxes of a tile's rows, one of `heads` and 64 of its dimensions.
pub(super) fn map(queue: Queue<'_>, x: Slice<'_>, heads: usize, size: usize) -> Result<[u8; TENSOR_MAP_BYTES]> {
    let bytes = x.dtype().size();
    queue.device.driver().tensor_map(&TensorMap {
        base: x.ptr(),
        dtype: x.dtype(),
        sizes: &[size as u64, heads as u64, (x.len() / (heads * size)) as u64],
        strides: &[(size * bytes) as u64, (heads * size * bytes) as u64],
        tile: &[64, 1, TILE as u32],
        swizzle: Swizzle::Bytes128,
        fill: Fill::Zeros,
    })
}

/// Everything has been checked; the size of a head is 64, 128 or 256.
pub(super) fn forward(
    queue: Queue<'_>,
    out: &SliceMut<'_>,
    lse: &SliceMut<'_>,
    [q, k, v]: [Slice<'_>; 3],
    of: &Segments,
    attention: &Attention,
) -> Result<()> {
    let options = attention.bytes(of.max_pages())?;
    let [cu_q, k_start, k_len, pages] = of.args();
    let map = |x| map(queue, x, attention.kv_heads, attention.size);
    let (map_k, map_v) = (map(k)?, map(v)?);
    let (maps, options) = ([Arg::Bytes(&map_k), Arg::Bytes(&map_v)], Arg::Bytes(&options));
    let mut args = vec![out.arg(), lse.arg(), q.arg(), k.arg(), v.arg()];
    args.extend(maps);
    args.extend([cu_q, k_start, k_len, pages, options]);
    launch(queue, attention.defines(q.dtype()), &args, of, attention)
}

/// The same over a layer of caches.
pub(super) fn forward_cached(
    queue: Queue<'_>,
    out: &SliceMut<'_>,
    lse: &SliceMut<'_>,
    q: Slice<'_>,
    (caches, layer): (&Caches, usize),
    of: &Segments,
    attention: &Attention,
) -> Result<()> {
    if long::takes(queue, caches.longest(), of, attention)
        && long::forward_hopper(queue, out, lse, q, (caches, layer), of, attention)?
    {
        return Ok(());
    }
    let options = attention.bytes(0)?;
    let [cu_q, _, k_len, _] = of.args();
    let (layer, options) = (Arg::U32(layer as u32), Arg::Bytes(&options));
    let args = [out.arg(), lse.arg(), q.arg(), caches.arg(), layer, cu_q, k_len, options];
    launch(queue, with(attention.defines(q.dtype()), "CACHED", 1), &args, of, attention)
}

fn launch(queue: Queue<'_>, defines: Defines, args: &[Arg<'_>], of: &Segments, attention: &Attention) -> Result<()> {
    let rows = of.max_queries() * attention.group();
    let groups = if rows <= 64 { 1 } else { 2 };
    let tile = TILE * attention.size * 2;
    let (kernel, name, room) = if attention.size > LARGEST {
        // Of q half a tile for each group.
        let room = groups * tile / 2 + WIDE_SLOTS * (tile + 16) + 8;
        (&ATTENTION_WIDE_HOPPER, "attention_wide_hopper", room)
    } else {
        // 128 keys and values a stage.
        (&ATTENTION_HOPPER, "attention_hopper", STAGES * (4 * tile + 16) + 8)
    };
    let capped = attention.softcap.is_some() || attention.scale <= 0.0;
    let defines = with(defines, "CAP", usize::from(capped));
    let shape = attention.grid(of, rows.div_ceil(64 * groups), of.max_keys(), 128 * (groups as u32 + 1));
    queue.launch(kernel, name, &with(defines, "GROUPS", groups), shape.shared(room), args)
}

/// Everything has been checked, and `delta` is there; the size of a head is 64, 128 or 256.
pub(super) fn backward(
    queue: Queue<'_>,
    [dq, dk, dv]: [&SliceMut<'_>; 3],
    dout: Slice<'_>,
    [q, k, v]: [Slice<'_>; 3],
    [lse, delta]: [Slice<'_>; 2],
    of: &Segments,
    attention: &Attention,
) -> Result<()> {
    let options = attention.bytes(0)?;
    let [cu_q, k_start, k_len, _] = of.args();
    let table = [cu_q, k_start, k_len, Arg::Bytes(&options)];
    let map = |x, heads| map(queue, x, heads, attention.size);
    let [map_q, map_dout] = [map(q, attention.heads)?, map(dout, attention.heads)?];
    let [map_k, map_v] = [map(k, attention.kv_heads)?, map(v, attention.kv_heads)?];
    let [map_q, map_dout, map_k, map_v] = [&map_q, &map_dout, &map_k, &map_v].map(|map| Arg::Bytes(map));
    let defines = with(attention.defines(q.dtype()), "CAP", usize::from(attention.softcap.is_some()));
    let tile = TILE * attention.size * 2;
    let rows = of.max_queries() * attention.group();
    let of_dq = [&[**dq, dout, q, lse, delta].map(|x| x.arg())[..], &[map_k, map_v], &table].concat();
    let of_dkv = [&[dk.arg(), dv.arg(), lse.arg(), delta.arg()][..], &[map_q, map_dout, map_k, map_v], &table].concat();
    let wide = attention.size > LARGEST;
    let threads = |groups: usize| 128 * (groups as u32 + 1);
    let launch =
        |kernel, name, defines, shape: Shape, args: &[Arg<'_>]| queue.launch(kernel, name, &defines, shape, args);
    // Of so many heads of keys.
    let dkv = |heads, defines, args: &[Arg<'_>]| {
        let part = Attention { heads: heads * attention.group(), kv_heads: heads, ..*attention };
        // Groups, tiles of keys and those in the ring.
        let [groups, tiles, stages] = match (wide, of.max_keys() <= TILE) {
            (true, _) => [2, 1, WIDE_STAGES],
            (false, true) => [1, 1, STAGES],
            (false, false) => [2, 2, STAGES],
        };
        let room = 2 * (tiles + stages) * tile + stages * (512 + 16) + 16;
        let shape = part.grid(of, of.max_keys().div_ceil(TILE * tiles), of.max_queries(), threads(groups)).shared(room);
        match wide {
            true => launch(&ATTENTION_BACKWARD_WIDE_HOPPER, "attention_dkv_wide_hopper", defines, shape, args),
            false => {
                let defines = with(defines, "GROUPS", groups);
                launch(&ATTENTION_BACKWARD_HOPPER, "attention_dkv_hopper", defines, shape, args)
            }
        }
    };

    if let Some(stored) = Stored::new(queue, q.dtype(), of, attention)? {
        let map_scores = stored.map(queue, q.dtype())?;
        for first in (0..attention.kv_heads).step_by(stored.heads) {
            let heads = stored.heads.min(attention.kv_heads - first);
            let of_part = stored.bytes(first, heads);
            let [of_part, options] = [Arg::Bytes(&of_part), Arg::Bytes(&options)];
            let mut args = of_dkv.clone();
            args.splice(args.len() - 1.., [stored.scores.slice(q.dtype()).arg(), of_part, options]);
            dkv(heads, with(defines.clone(), "STORED", 1), &args)?;

            // As many as there are registers for.
            let groups = match of.max_queries().div_ceil(TILE) {
                few @ 0..=2 => few,
                _ if wide => 2,
                _ => 4,
            };
            let room = SCORES_STAGES * (tile + groups * BOX_BYTES + 16) + 8;
            let args = [dq.arg(), Arg::Bytes(&map_scores), map_k, cu_q, k_start, k_len, of_part, options];
            let grid = [heads * attention.group(), of.max_queries().div_ceil(TILE * groups), of.len()];
            let (shape, defines) =
                (Shape::grid(grid, threads(groups)).shared(room), with(defines.clone(), "GROUPS", groups));
            launch(&ATTENTION_SCORES_HOPPER, "attention_dq_scores_hopper", defines, shape, &args)?;
        }
        return Ok(());
    }
    if wide {
        let shape = attention.grid(of, rows.div_ceil(64), of.max_keys(), 256);
        let shape = shape.shared(2 * (1 + WIDE_STAGES) * tile + 16 * WIDE_STAGES + 8);
        launch(&ATTENTION_BACKWARD_WIDE_HOPPER, "attention_dq_wide_hopper", defines.clone(), shape, &of_dq)?;
    } else {
        let groups = if rows <= 64 { 1 } else { 2 };
        let shape = attention.grid(of, rows.div_ceil(64 * groups), of.max_keys(), threads(groups));
        let (shape, defines) =
            (shape.shared(2 * STAGES * tile + 16 * STAGES + 8), with(defines.clone(), "GROUPS", groups));
        launch(&ATTENTION_BACKWARD_HOPPER, "attention_dq_hopper", defines, shape, &of_dq)?;
    }
    dkv(attention.kv_heads, defines, &of_dkv)
}
