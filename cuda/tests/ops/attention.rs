//! attention, forward and backward, in training and decoding.

use planish_cuda::ops::attention::{self, Attention, Segments, TILE};
use planish_cuda::{DType, Queue};

use crate::shapes;
use crate::support::*;

struct Reference {
    out: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

/// Everything, by the definition.
fn reference(q: &[f64], k: &[f64], v: &[f64], dout: &[f64], cu_q: &[u32], cu_k: &[u32], a: &Attention) -> Reference {
    let (d, group) = (a.size, a.heads / a.kv_heads);
    let mut r = Reference {
        out: vec![0.0; q.len()],
        lse: vec![f64::NEG_INFINITY; q.len() / d],
        dq: vec![0.0; q.len()],
        dk: vec![0.0; k.len()],
        dv: vec![0.0; k.len()],
    };
    for s in 0..cu_q.len() - 1 {
        let (lq, lk) = ((cu_q[s + 1] - cu_q[s]) as usize, (cu_k[s + 1] - cu_k[s]) as usize);
        for (i, h) in (0..lq).flat_map(|i| (0..a.heads).map(move |h| (i, h))) {
            let position = i + lk - lq.min(lk);
            let last = if a.causal { (position + 1).min(lk) } else { lk };
            let first = a.window.map_or(0, |w| (position + 1).saturating_sub(w)).min(last);
            let row = ((cu_q[s] as usize + i) * a.heads + h) * d;
            let key = |j: usize| ((cu_k[s] as usize + j) * a.kv_heads + h / group) * d;
            let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
            let raw: Vec<f64> =
                (first..last).map(|j| f64::from(a.scale) * dot(&q[row..row + d], &k[key(j)..key(j) + d])).collect();
            let cap = a.softcap.map(f64::from);
            let z: Vec<f64> = raw.iter().map(|&z| cap.map_or(z, |c| c * (z / c).tanh())).collect();
            if z.is_empty() {
                continue;
            }
            let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = top + z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
            r.lse[row / d] = lse;
            let p: Vec<f64> = z.iter().map(|z| (z - lse).exp()).collect();
            for (j, p) in (first..last).zip(&p) {
                (0..d).for_each(|e| r.out[row + e] += p * v[key(j) + e]);
            }
            let delta = dot(&dout[row..row + d], &r.out[row..row + d]);
            for ((j, p), z) in (first..last).zip(&p).zip(&z) {
                let dp = dot(&dout[row..row + d], &v[key(j)..key(j) + d]);
                let slope = f64::from(a.scale) * cap.map_or(1.0, |c| 1.0 - (z / c).powi(2));
                let ds = p * (dp - delta) * slope;
                for e in 0..d {
                    r.dq[row + e] += ds * k[key(j) + e];
                    r.dk[key(j) + e] += ds * q[row + e];
                    r.dv[key(j) + e] += p * dout[row + e];
                }
            }
        }
    }
    r
}

fn cumulative(lengths: &[usize]) -> Vec<u32> {
    let mut cu = vec![0];
    lengths.iter().for_each(|&n| cu.push(cu[cu.len() - 1] + n as u32));
    cu
}

/// Forward and backward of segments of (queries, keys).
fn check(queue: Queue<'_>, t: DType, a: &Attention, lengths: &[(usize, usize)]) {
    let cu_q = cumulative(&lengths.iter().map(|l| l.0).collect::<Vec<_>>());
    let cu_k = cumulative(&lengths.iter().map(|l| l.1).collect::<Vec<_>>());
    let (queries, keys) = (*cu_q.last().unwrap() as usize, *cu_k.last().unwrap() as usize);
    let (nq, nk) = (queries * a.heads * a.size, keys * a.kv_heads * a.size);
    let (q, k, v, dout) = (random(nq, t, 1), random(nk, t, 2), random(nk, t, 3), random(nq, t, 4));
    let want = reference(&q, &k, &v, &dout, &cu_q, &cu_k, a);
    let [qs, ks, vs, ds] = [&q, &k, &v, &dout].map(|x| put(queue, x, t));
    let (mut out, mut lse) = (room(queue, nq, t), room(queue, queries * a.heads, DType::F32));
    let of = Segments::packed(queue, &cu_q, &cu_k).unwrap();
    attention::forward(
        queue,
        out.slice_mut(t),
        lse.slice_mut(DType::F32),
        qs.slice(t),
        ks.slice(t),
        vs.slice(t),
        &of,
        a,
    )
    .unwrap();
    // P is rounded to t as well, and so is dS, of terms that cancel.
    let what = format!("{t} {a:?} {lengths:?}");
    close(&format!("out {what}"), &get(&out, t), &want.out, 2.0 * tolerance(t));
    let got = get(&lse, DType::F32);
    for (got, want) in got.iter().zip(&want.lse) {
        assert!((got - want).abs() <= 1e-5 * (1.0 + want.abs()) || (got == want), "lse {got} for {want}, {what}");
    }
    let (mut dq, mut dk, mut dv) = (room(queue, nq, t), room(queue, nk, t), room(queue, nk, t));
    let grads = [dq.slice_mut(t), dk.slice_mut(t), dv.slice_mut(t)];
    attention::backward(
        queue,
        grads,
        ds.slice(t),
        [qs.slice(t), ks.slice(t), vs.slice(t)],
        out.slice(t),
        lse.slice(DType::F32),
        &of,
        a,
    )
    .unwrap();
    let most = if t == DType::F32 { 2e-5 } else { 4.0 * tolerance(t) };
    // A query that sees one key has no gradient: what is there is rounding.
    if lengths.iter().any(|l| l.1 > 2) {
        close(&format!("dq {what}"), &get(&dq, t), &want.dq, most);
        close(&format!("dk {what}"), &get(&dk, t), &want.dk, most);
    }
    close(&format!("dv {what}"), &get(&dv, t), &want.dv, most);
}

fn causal(heads: usize, kv_heads: usize, size: usize) -> Attention {
    Attention { heads, kv_heads, size, scale: (size as f32).powf(-0.5), causal: true, window: None, softcap: None }
}

shapes! {
    fn plain_attention(queue; a in 0usize..9, b in 0usize..9, more in 0usize..5, kv_heads in 1usize..3, group in 1usize..3, masked in proptest::bool::ANY, types in 0usize..3, size in 0usize..5; 10 cases) {
        let size = [1, 8, 20, 32, 80][size];
        let attention = Attention { causal: masked, softcap: masked.then_some(1.5), ..causal(kv_heads * group, kv_heads, size) };
        check(queue, TYPES[types], &attention, &[(a, a + more), (b, b), (0, more)]);
    }
}

shapes! {
    on BOTH;
    /// Each case is of both sizes of heads and both types, and of four of the kinds.
    fn attention_on_tensor_cores(queue; a in 0usize..70, b in 0usize..30, more in 0usize..140, kv_heads in 1usize..3, group in 1usize..4, window in 1usize..90, kind in 0usize..5; 3 cases) {
        for (i, (size, t)) in [(64, DType::BF16), (128, DType::BF16), (64, DType::F16), (128, DType::F16)].into_iter().enumerate() {
            let base = causal(kv_heads * group, kv_heads, size);
            let of = match (kind + i) % 5 {
                0 => base,
                1 => Attention { causal: false, ..base },
                2 => Attention { window: Some(window), ..base },
                3 => Attention { softcap: Some(1.5), ..base },
                _ => Attention { window: Some(window), softcap: Some(2.5), ..base },
            };
            check(queue, t, &of, &[(a, a + more), (0, b), (b, b)]);
        }
    }
}

#[test]
fn kinds_of_attention_on_tensor_cores() {
    for capability in [(8, 0), (9, 0)] {
        let Some(device) = device_of(capability) else { return };
        let queue = device.queue();
        let base = causal(3, 1, 64);
        check(queue, DType::BF16, &base, &[(1, 1), (130, 130)]);
        check(queue, DType::BF16, &Attention { window: Some(20), ..base }, &[(75, 140), (3, 3)]);
        check(queue, DType::BF16, &Attention { causal: false, ..base }, &[(40, 66), (5, 2)]);
        check(queue, DType::F16, &Attention { softcap: Some(2.0), ..base }, &[(33, 33)]);
        check(queue, DType::BF16, &causal(4, 2, 128), &[(70, 150), (0, 0), (9, 9)]);
        check(queue, DType::F32, &Attention { window: Some(3), ..causal(2, 2, 64) }, &[(7, 9)]);
    }
}

/// The card with the least shared memory: 99 KiB a block.
#[test]
fn the_largest_heads_fit_ada() {
    let Some(device) = device_of((8, 9)) else { return };
    check(device.queue(), DType::BF16, &causal(2, 1, 128), &[(33, 65)]);
    check(device.queue(), DType::BF16, &large(2, 1), &[(33, 65)]);
}

/// The test's numbers of q and k are alike by two thirds: at the usual scale 256 of them would make each query see one key
/// alone, whose gradient is all rounding.
fn large(heads: usize, kv_heads: usize) -> Attention {
    Attention { scale: 0.02, ..causal(heads, kv_heads, 256) }
}

shapes! {
    on [(8, 9)];
    /// Heads of 256, of which shared memory and registers have room for less at a time.
    fn large_heads_on_tensor_cores(queue; a in 0usize..40, b in 0usize..20, more in 0usize..80, kv_heads in 1usize..3, group in 1usize..3, window in 1usize..60, kind in 0usize..4; 3 cases) {
        for (i, t) in [DType::BF16, DType::F16].into_iter().enumerate() {
            let base = large(kv_heads * group, kv_heads);
            let of = match (kind + i) % 4 {
                0 => base,
                1 => Attention { causal: false, ..base },
                2 => Attention { window: Some(window), ..base },
                _ => Attention { softcap: Some(1.5), ..base },
            };
            check(queue, t, &of, &[(a, a + more), (0, b), (b, b)]);
        }
    }
}

/// On Hopper heads of 256 have kernels of their own: one group and two, more tiles than a ring has room for, rests, segments
/// without queries or keys; windows, soft-caps.
#[test]
fn large_heads_on_hopper() {
    let Some(device) = device() else { return };
    let base = large(2, 1);
    for (t, of, lengths) in [
        (DType::BF16, base, &[(17, 40), (3, 3)][..]),
        (DType::BF16, large(2, 2), &[(70, 200), (0, 3), (64, 64), (0, 0)]),
        (DType::F16, Attention { window: Some(30), ..base }, &[(100, 130)]),
        (DType::BF16, Attention { causal: false, softcap: Some(1.5), ..base }, &[(40, 66), (1, 1)]),
        (DType::BF16, large(3, 1), &[(1, 1), (130, 390), (5, 128)]),
        (DType::F16, Attention { window: Some(70), softcap: Some(2.5), ..base }, &[(31, 257), (0, 0), (2, 63)]),
    ] {
        check(device.queue(), t, &of, lengths);
    }
}

/// Law 5: a token decoded over a paged cache has the bits that it has in training, whatever the rest of the batch.
#[test]
fn decoding_gives_the_bits_of_training() {
    for (capability, size) in [((8, 0), 64), ((9, 0), 64), ((9, 0), 256)] {
        let Some(device) = device_of(capability) else { return };
        let (queue, t) = (device.queue(), DType::BF16);
        let a = causal(3, 1, size);
        let (n, width) = (133, a.kv_heads * a.size);
        let (q, k, v) = (random(n * a.heads * a.size, t, 1), random(n * width, t, 2), random(n * width, t, 3));
        let [qs, ks, vs] = [&q, &k, &v].map(|x| put(queue, x, t));
        let (mut out, mut lse) = (room(queue, q.len(), t), room(queue, n * a.heads, DType::F32));
        let of = Segments::packed(queue, &[0, n as u32], &[0, n as u32]).unwrap();
        attention::forward(
            queue,
            out.slice_mut(t),
            lse.slice_mut(DType::F32),
            qs.slice(t),
            ks.slice(t),
            vs.slice(t),
            &of,
            &a,
        )
        .unwrap();
        let (whole, whole_lse) = (get(&out, t), get(&lse, DType::F32));

        // Two sequences, of which the first is this one up to `i`, its pages out of order.
        let per_token = a.heads * a.size;
        for i in [0, 5, 63, 64, 100, 132] {
            let pages = [3u32, 0, 4, 1, 9, 9];
            let mut cache = [vec![0.0; 5 * TILE * width], vec![0.0; 5 * TILE * width]];
            for j in 0..n {
                let row = pages[j / TILE] as usize * TILE + j % TILE;
                for (cache, from) in cache.iter_mut().zip([&k, &v]) {
                    cache[row * width..][..width].copy_from_slice(&from[j * width..][..width]);
                }
            }
            let [kc, vc] = [&cache[0], &cache[1]].map(|x| put(queue, x, t));
            let of = Segments::paged(queue, &[0, 1, 2], &[i as u32 + 1, 7], &pages, 3).unwrap();
            let both: Vec<f64> = q[i * per_token..][..per_token].iter().chain(&q[..per_token]).copied().collect();
            let (qs, mut out, mut lse) =
                (put(queue, &both, t), room(queue, 2 * per_token, t), room(queue, 2 * a.heads, DType::F32));
            attention::forward(
                queue,
                out.slice_mut(t),
                lse.slice_mut(DType::F32),
                qs.slice(t),
                kc.slice(t),
                vc.slice(t),
                &of,
                &a,
            )
            .unwrap();
            let what = format!("token {i}, heads of {size} on {capability:?}");
            assert_eq!(get(&out, t)[..per_token], whole[i * per_token..][..per_token], "{what}");
            assert_eq!(get(&lse, DType::F32)[..a.heads], whole_lse[i * a.heads..][..a.heads], "{what}");
        }
    }
}

#[test]
fn wrong_tables_and_sizes_are_named() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let error = |r: planish_cuda::Result<Segments>| r.unwrap_err().to_string();
    assert!(error(Segments::packed(queue, &[0, 2], &[0, 1, 2])).contains("cu_k"));
    assert!(error(Segments::packed(queue, &[0, 3, 2], &[0, 1, 2])).contains("rising"));
    assert!(error(Segments::packed(queue, &[], &[])).contains("rising"));
    assert!(error(Segments::paged(queue, &[0, 1], &[65], &[0], 1)).contains("pages"));
    let of = Segments::packed(queue, &[0, 2], &[0, 1]).unwrap();
    let t = DType::F32;
    let (mut out, mut lse, q, k) = (room(queue, 64, t), room(queue, 2, t), room(queue, 64, t), room(queue, 32, t));
    let mut run = |a: Attention| {
        attention::forward(queue, out.slice_mut(t), lse.slice_mut(t), q.slice(t), k.slice(t), k.slice(t), &of, &a)
            .unwrap_err()
            .to_string()
    };
    assert!(run(causal(1, 1, 32)).contains("at most its keys"));
    assert!(run(causal(3, 2, 32)).contains("multiple of the key/value heads"));
    assert!(run(causal(1, 1, 0)).contains("from 1 to 512"));
    assert!(run(causal(1, 1, 33)).contains("should have 66 elements"));
    assert!(run(Attention { causal: false, window: Some(2), ..causal(1, 1, 32) }).contains("causal"));
    assert!(run(causal(2, 1, 32)).contains("should have 128 elements"));
}
