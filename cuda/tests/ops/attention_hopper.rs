//! attention on Hopper against the kernel of other cards, which other tests hold against f64.

use planish_cuda::driver::{Arg, Fill, Swizzle, TensorMap};
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
