//! attention on Hopper against the kernel of other cards, which other tests hold against f64.

use std::sync::Arc;

use planish_cuda::driver::{Arg, Fill, Swizzle, TensorMap};
use planish_cuda::emulator::Emulator;
use planish_cuda::kernels::{ATTENTION_HOPPER, ATTENTION_WIDE_HOPPER, Kernel};
use planish_cuda::memory::DeviceBuffer;
use planish_cuda::ops::attention::{self, Attention, Segments};
use planish_cuda::{DType, Device, Shape};

use crate::support::*;

fn cumulative(lengths: impl Iterator<Item = usize>) -> Vec<u32> {
    let mut cu = vec![0];
    lengths.for_each(|n| cu.push(cu[cu.len() - 1] + n as u32));
    cu
}

/// Result and log-sum-exp of segments of (queries, keys); `last` is what the last segment's keys and values all are, if
/// not numbers like the others.
fn forward(device: &Device, t: DType, a: &Attention, lengths: &[(usize, usize)], last: Option<f64>) -> [Vec<f64>; 2] {
    let queue = device.queue();
    let (cu_q, cu_k) = (cumulative(lengths.iter().map(|l| l.0)), cumulative(lengths.iter().map(|l| l.1)));
    let (queries, keys) = (cu_q[lengths.len()] as usize, cu_k[lengths.len()] as usize);
    let width = a.kv_heads * a.size;
    let (q, mut k, mut v) =
        (random(queries * a.heads * a.size, t, 1), random(keys * width, t, 2), random(keys * width, t, 3));
    if let Some(value) = last {
        let begin = cu_k[lengths.len() - 1] as usize * width;
        k[begin..].fill(value);
        v[begin..].fill(value);
    }
    let [q, k, v] = [&q, &k, &v].map(|x| put(queue, x, t));
    let (mut out, mut lse) = (room(queue, queries * a.heads * a.size, t), room(queue, queries * a.heads, DType::F32));
    let of = Segments::packed(queue, &cu_q, &cu_k).unwrap();
    let (to, sums) = (out.slice_mut(t), lse.slice_mut(DType::F32));
    attention::forward(queue, to, sums, q.slice(t), k.slice(t), v.slice(t), &of, a).unwrap();
    [get(&out, t), get(&lse, DType::F32)]
}

fn causal(heads: usize, kv_heads: usize, size: usize) -> Attention {
    Attention { heads, kv_heads, size, scale: (size as f32).powf(-0.5), causal: true, window: None, softcap: None }
}

/// One takes 128 keys at a time, of heads of 256 64, the other 64 and less.
#[test]
fn hopper_and_ampere_attend_alike() {
    let (Some(hopper), Some(ampere)) = (device_of((9, 0)), device_of((8, 0))) else { return };
    let base = causal(3, 1, 64);
    for (t, a, lengths) in [
        // One block and several, whole tiles and rests, more tiles than stages, segments without queries or keys.
        (DType::BF16, base, &[(64, 64), (5, 128), (0, 3), (70, 200)][..]),
        (DType::F16, base, &[(1, 1), (0, 0), (2, 63), (130, 130)]),
        (DType::BF16, causal(4, 2, 128), &[(33, 100), (3, 64)]),
        (DType::BF16, Attention { window: Some(20), ..base }, &[(75, 190), (3, 3)]),
        (DType::BF16, Attention { causal: false, softcap: Some(2.0), ..base }, &[(40, 66), (5, 0), (5, 2)]),
        (DType::BF16, base, &[(0, 0)]),
        (DType::BF16, causal(3, 1, 256), &[(64, 64), (5, 128), (0, 3), (70, 200)]),
        (DType::F16, Attention { window: Some(20), ..causal(2, 2, 256) }, &[(75, 190), (3, 3), (0, 0)]),
        (
            DType::BF16,
            Attention { causal: false, softcap: Some(2.0), ..causal(2, 1, 256) },
            &[(40, 66), (5, 0), (5, 2)],
        ),
    ] {
        let of = |device| forward(device, t, &a, lengths, None);
        let ([out, lse], [want, want_lse]) = (of(&hopper), of(&ampere));
        let what = format!("{t} {a:?} {lengths:?}");
        close(&what, &out, &want, 2.0 * tolerance(t));
        let alike = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-5 * (1.0 + b.abs()) || a == b;
        assert!(lse.iter().zip(&want_lse).all(alike), "{what}");
    }
}

/// A box goes on into the next segment; what lies there is nobody's business.
#[test]
fn what_is_in_the_next_segment_changes_nothing() {
    let Some(device) = device_of((9, 0)) else { return };
    for size in [64, 256] {
        let (a, lengths) = (causal(2, 1, size), [(6, 70), (2, 90)]);
        let of = |last| forward(&device, DType::BF16, &a, &lengths, last);
        let ([want, want_lse], own) = (of(None), 6 * 2);
        for value in [f64::NAN, f64::INFINITY, 3e38] {
            let [got, lse] = of(Some(value));
            assert_eq!(got[..own * size], want[..own * size], "{value}, heads of {size}");
            assert_eq!(lse[..own], want_lse[..own], "{value}, heads of {size}");
        }
    }
}

/// What ordinary stores brought is read by the tensor cores: without the fence they may see what was there before.
#[test]
fn a_missing_fence_is_seen() {
    let rest = "fence_asynchronous();\n                __syncwarp();";
    let queries = "fence_asynchronous();\n    group_meet(1 + group);";
    for (kernel, name, size, fence, shared) in [
        (ATTENTION_HOPPER, "attention_hopper", 64, rest, 3 * (4 * 8192 + 16) + 8),
        (ATTENTION_WIDE_HOPPER, "attention_wide_hopper", 256, rest, 16384 + 6 * (32768 + 16) + 8),
        (ATTENTION_WIDE_HOPPER, "attention_wide_hopper", 256, queries, 16384 + 6 * (32768 + 16) + 8),
    ] {
        // One that has failed does nothing more.
        let Some(device) = device_of((9, 0)) else { return };
        let (queue, t) = (device.queue(), DType::BF16);
        assert!(kernel.text.contains(fence));
        let text = kernel.text.replace(fence, fence.strip_prefix("fence_asynchronous();").unwrap()).leak();
        let without = Kernel { text, name: "attention_without_fence", ..kernel };
        let [q, k, v] = [1, 2, 3].map(|salt| put(queue, &random(5 * size, t, salt), t));
        let (out, lse) = (room(queue, 5 * size, t), room(queue, 5, DType::F32));
        let (cu, start, keys) =
            (queue.upload("a test", &[0u32, 5]), queue.upload("a test", &[0u32]), queue.upload("a test", &[5u32]));
        let map = |x: &DeviceBuffer| {
            let row = 2 * size as u64;
            let (sizes, strides, tile) = (&[size as u64, 1, 5], &[row, row], &[64, 1, 64]);
            let (swizzle, fill) = (Swizzle::Bytes128, Fill::Zeros);
            let map = TensorMap { base: x.ptr(), dtype: t, sizes, strides, tile, swizzle, fill };
            device.driver().tensor_map(&map).unwrap()
        };
        let (map_k, map_v) = (map(&k), map(&v));
        let options: Vec<u8> =
            [0.125f32.to_bits(), 0, 1, 0, 1, 1, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut args: Vec<Arg<'_>> = [&out, &lse, &q, &k, &v].map(|x| Arg::Ptr(x.ptr())).to_vec();
        args.extend([&map_k, &map_v].map(|map| Arg::Bytes(map)));
        args.extend([&cu, &start, &keys].map(|x| Arg::Ptr(x.as_ref().unwrap().ptr())));
        args.extend([Arg::U64(0), Arg::Bytes(&options)]);
        let of = defines(&[("T", "bf16"), ("D", &size.to_string()), ("CAP", "0"), ("GROUPS", "1")]);
        let run = |kernel| queue.launch(kernel, name, &of, Shape::line(1, 256).shared(shared), &args);
        run(&kernel).unwrap();
        let seen = run(&without).unwrap_err().to_string();
        assert!(seen.contains("without a fence.proxy.async between") && seen.contains("st.shared"), "{seen}");
    }
}

/// dq, dk, dv, with so many bytes for dS.
fn backward(device: &Device, t: DType, a: &Attention, lengths: &[(usize, usize)], most: u64) -> [Vec<f64>; 3] {
    let queue = device.queue();
    let (cu_q, cu_k) = (cumulative(lengths.iter().map(|l| l.0)), cumulative(lengths.iter().map(|l| l.1)));
    let (queries, keys) = (cu_q[lengths.len()] as usize, cu_k[lengths.len()] as usize);
    let (nq, nk) = (queries * a.heads * a.size, keys * a.kv_heads * a.size);
    let mut of = Segments::packed(queue, &cu_q, &cu_k).unwrap();
    of.store_at_most(most);
    let [q, dout] = [1, 4].map(|seed| put(queue, &random(nq, t, seed), t));
    let [k, v] = [2, 3].map(|seed| put(queue, &random(nk, t, seed), t));
    let (mut out, mut lse) = (room(queue, nq, t), room(queue, queries * a.heads, DType::F32));
    let (to, sums) = (out.slice_mut(t), lse.slice_mut(DType::F32));
    attention::forward(queue, to, sums, q.slice(t), k.slice(t), v.slice(t), &of, a).unwrap();
    let [mut dq, mut dk, mut dv] = [nq, nk, nk].map(|n| room(queue, n, t));
    let grads = [dq.slice_mut(t), dk.slice_mut(t), dv.slice_mut(t)];
    let qkv = [q.slice(t), k.slice(t), v.slice(t)];
    let lse = lse.slice(DType::F32);
    attention::backward(queue, grads, dout.slice(t), qkv, out.slice(t), lse, &of, a).unwrap();
    [&dq, &dk, &dv].map(|grad| get(grad, t))
}

/// The gradient of scores stored, for all heads of keys or one after another, or made again: the same bits.
#[test]
fn stored_scores_give_the_bits_of_those_made_again() {
    let Some(cache) = cache() else { return };
    let emulator = Arc::new(Emulator::new((9, 0)).unwrap().with_reports());
    let device = Device::new(emulator.clone(), cache);
    let base = causal(2, 1, 128);
    for (t, a, lengths) in [
        // One group, two and four; more tiles than stages; rests; segments without queries or keys.
        (DType::BF16, base, &[(64, 64), (5, 128), (0, 3), (1, 1)][..]),
        (DType::BF16, causal(4, 2, 128), &[(70, 200), (0, 0), (128, 128)]),
        (DType::BF16, causal(3, 3, 128), &[(330, 390), (200, 200), (7, 7)]),
        (DType::F16, Attention { window: Some(70), softcap: Some(2.0), ..base }, &[(300, 420), (3, 3)]),
        (DType::BF16, Attention { window: Some(1), ..base }, &[(150, 150)]),
        (DType::F16, Attention { causal: false, ..causal(2, 2, 128) }, &[(40, 66), (5, 0), (270, 130)]),
        (DType::BF16, Attention { scale: 0.02, ..causal(2, 1, 256) }, &[(70, 200), (3, 3), (0, 0)]),
        (
            DType::BF16,
            Attention { scale: 0.02, softcap: Some(2.0), window: Some(100), ..causal(2, 2, 256) },
            &[(300, 300), (64, 64)],
        ),
    ] {
        // And how often dQ was made of what was stored.
        let of = |most| {
            emulator.take_reports();
            let grads = backward(&device, t, &a, lengths, most);
            (grads, emulator.take_reports().iter().filter(|r| r.kernel == "attention_dq_scores_hopper").count())
        };
        let what = format!("{t} {a:?} {lengths:?}");
        let (again, none) = of(0);
        assert!(again.iter().flatten().all(|x| x.is_finite()) && again[0].iter().any(|&x| x != 0.0), "{what}");
        assert_eq!(none, 0, "{what}");
        assert_eq!(of(1 << 24), (again.clone(), 1), "{what}");
        // Too little for two heads of keys: less than twice what one takes.
        let tiles: usize = lengths.iter().map(|&(q, k)| tiles_of(q, k, &a)).sum();
        let of_head = (tiles * 64 * 64 * 2 * a.heads / a.kv_heads) as u64;
        assert_eq!(of(2 * of_head - 1), (again.clone(), a.kv_heads), "{what}, one head of keys at a time");
        assert_eq!(of(of_head - 1), (again, 0), "{what}");
    }
}

/// Tiles of 64 queries and 64 keys of a segment in which a query sees a key.
fn tiles_of(queries: usize, keys: usize, a: &Attention) -> usize {
    let sees = |i: usize, j: usize| {
        let at = i + keys - keys.min(queries);
        !a.causal || (j <= at && a.window.is_none_or(|window| j + window > at))
    };
    let seen = |b: usize, t: usize| {
        (64 * b..queries.min(64 * b + 64)).any(|i| (64 * t..keys.min(64 * t + 64)).any(|j| sees(i, j)))
    };
    (0..queries.div_ceil(64)).map(|b| (0..keys.div_ceil(64)).filter(|&t| seen(b, t)).count()).sum()
}

/// dS behind a segment's last key is made of another segment's.
#[test]
fn keys_behind_the_end_are_no_part_of_stored_scores() {
    let Some(device) = device_of((9, 0)) else { return };
    let a = Attention { causal: false, ..causal(1, 1, 128) };
    let queue = device.queue();
    let (t, n) = (DType::BF16, 40 * 128);
    let of = Segments::packed(queue, &[0, 30, 40], &[0, 30, 40]).unwrap();
    let gradient = |last: f64| {
        let keys = |seed| {
            let mut all = random(n, t, seed);
            all[30 * 128..].fill(last);
            put(queue, &all, t)
        };
        let (q, k, v, dout) = (put(queue, &random(n, t, 1), t), keys(2), keys(3), put(queue, &random(n, t, 4), t));
        let (mut out, mut lse) = (room(queue, n, t), room(queue, 40, DType::F32));
        let (to, sums) = (out.slice_mut(t), lse.slice_mut(DType::F32));
        attention::forward(queue, to, sums, q.slice(t), k.slice(t), v.slice(t), &of, &a).unwrap();
        let [mut dq, mut dk, mut dv] = [n; 3].map(|n| room(queue, n, t));
        let grads = [dq.slice_mut(t), dk.slice_mut(t), dv.slice_mut(t)];
        let (qkv, lse) = ([q.slice(t), k.slice(t), v.slice(t)], lse.slice(DType::F32));
        attention::backward(queue, grads, dout.slice(t), qkv, out.slice(t), lse, &of, &a).unwrap();
        get(&dq, t)[..30 * 128].to_vec()
    };
    let want = gradient(0.5);
    assert!(want.iter().all(|x| x.is_finite()));
    assert_eq!(want, gradient(f64::NAN));
}

/// What is foreseen of dS is what is taken.
#[test]
fn the_memory_of_stored_scores_is_foreseen() {
    let Some(device) = device_of((9, 0)) else { return };
    let (queue, t) = (device.queue(), DType::BF16);
    for (a, lengths) in [
        (causal(4, 2, 128), &[330, 70][..]),
        (Attention { window: Some(100), ..causal(4, 2, 128) }, &[500]),
        (causal(4, 2, 256), &[70]),
        (causal(4, 2, 64), &[70]),
    ] {
        let cu = cumulative(lengths.iter().copied());
        let tokens = cu[lengths.len()] as usize;
        let (nq, nk) = (tokens * a.heads * a.size, tokens * a.kv_heads * a.size);
        let of = Segments::packed(queue, &cu, &cu).unwrap();
        let [q, k, v] = [nq, nk, nk].map(|n| put(queue, &vec![0.0; n], t));
        let lse = put(queue, &vec![0.0; tokens * a.heads], DType::F32);
        let [mut dq, mut dk, mut dv] = [nq, nk, nk].map(|n| room(queue, n, t));
        let grads = [dq.slice_mut(t), dk.slice_mut(t), dv.slice_mut(t)];
        device.pool().reset_peak();
        let before = device.pool().usage().in_use;
        let qkv = [q.slice(t), k.slice(t), v.slice(t)];
        attention::backward(queue, grads, q.slice(t), qkv, q.slice(t), lse.slice(DType::F32), &of, &a).unwrap();
        let taken = device.pool().usage().peak - before;
        let foreseen = attention::stored_bytes(queue, t, lengths, &a);
        // Beside it delta, and the table of places.
        let other = (tokens * a.heads * 4) as u64;
        assert!((foreseen + other..=foreseen + other + 2048).contains(&taken), "{taken} for {foreseen} and {other}");
        assert_eq!(foreseen > 0, a.size >= 128);
    }
}
