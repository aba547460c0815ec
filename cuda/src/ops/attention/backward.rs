//! Backward pass.

use super::{Attention, OP, Segments, TILE, hopper};
use crate::driver::Arg;
use crate::kernels::ATTENTION_BACKWARD;
use crate::memory::{Slice, SliceMut};
use crate::ops::with;
use crate::{DType, Error, Queue, Result, Shape};

/// Rows that dK and dV take at a time: what the registers allow.
fn rows_at_a_time(size: usize) -> usize {
    match size {
        ..=64 => 64,
        65..=128 => 32,
        _ => 16,
    }
}

/// Keys that dQ takes at a time: what the least of shared memory, 99 KiB, has room for.
fn keys_at_a_time(size: usize) -> usize {
    if size <= 128 { TILE } else { 16 }
}

/// dq, dk, dv from the upstream gradient `dout` and what [`forward`](super::forward) returned. Keys in a stream only.
///
/// On Hopper the gradient of the scores of large heads is stored between two kernels, for as many heads at a time as there is room
/// for, and made again where there is none for one: the bits are the same.
///
/// # Errors
/// Sizes or types that do not agree; a paged table; no room for δ.
pub fn backward(
    queue: Queue<'_>,
    [dq, dk, dv]: [SliceMut<'_>; 3],
    dout: Slice<'_>,
    [q, k, v]: [Slice<'_>; 3],
    out: Slice<'_>,
    lse: Slice<'_>,
    of: &Segments,
    attention: &Attention,
) -> Result<()> {
    if of.is_paged() {
        return Err(Error::Size { op: OP, what: "the page table", expected: "absent", got: of.max_pages() });
    }
    let queries = [("q", q), ("the result", out), ("its gradient", dout), ("dq", *dq)];
    attention.expect(&queries, &[("k", k), ("v", v), ("dk", *dk), ("dv", *dv)], of)?;
    let rows = of.queries() * attention.heads;
    lse.expect(OP, "lse", rows)?;
    lse.expect_dtype(OP, "lse", DType::F32)?;
    of.check(attention)?;
    let tensor_cores = attention.tensor_cores(q.dtype());
    let mut defines = attention.defines(q.dtype());
    if tensor_cores {
        defines = with(defines, "QB", rows_at_a_time(attention.size));
    }
    let launch = |name, shape, args: &[Arg<'_>]| queue.launch(&ATTENTION_BACKWARD, name, &defines, shape, args);

    let delta = queue.alloc("attention's backward pass", rows, DType::F32)?;
    let delta = delta.slice(DType::F32);
    let args = [delta.arg(), dout.arg(), out.arg(), Arg::U64(rows as u64)];
    launch("attention_delta", Shape::line(rows.div_ceil(8), 256), &args)?;

    if tensor_cores && hopper::is_for(queue, of) {
        return hopper::backward(queue, [&dq, &dk, &dv], dout, [q, k, v], [lse, delta], of, attention);
    }
    let options = attention.bytes(0)?;
    let [cu_q, k_start, k_len, _] = of.args();
    let shared = [dout, q, k, v, lse, delta].map(|slice| slice.arg());
    let table = [cu_q, k_start, k_len, Arg::Bytes(&options)];
    let dq_args = [&[dq.arg()], &shared[..], &table[..]].concat();
    let dkv_args = [&[dk.arg(), dv.arg()], &shared[..], &table[..]].concat();
    let (kv_heads, segments) = (attention.kv_heads, of.len());
    if !tensor_cores {
        let shape = Shape::grid([of.max_queries().div_ceil(4), attention.heads, segments], 128);
        launch("attention_dq_naive", shape, &dq_args)?;
        let shape = Shape::grid([of.max_keys().div_ceil(4), kv_heads, segments], 128);
        return launch("attention_dkv_naive", shape, &dkv_args);
    }
    let tile = TILE * attention.size * 2;
    let blocks = (of.max_queries() * attention.group()).div_ceil(64);
    let bytes = 2 * tile + 4 * keys_at_a_time(attention.size) * attention.size * 2;
    launch("attention_dq", attention.grid(of, blocks, of.max_keys(), 128).shared(bytes), &dq_args)?;
    let bytes = 2 * tile + 4 * rows_at_a_time(attention.size) * attention.size * 2;
    let threads = 128 * attention.size.div_ceil(128) as u32;
    let shape = attention.grid(of, of.max_keys().div_ceil(TILE), of.max_queries(), threads);
    launch("attention_dkv", shape.shared(bytes), &dkv_args)
}
