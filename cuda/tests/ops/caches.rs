//! Decoding over caches that lie apart: keys and values put there, and attention over them.

use std::sync::Arc;

use planish_cuda::emulator::Emulator;
use planish_cuda::memory::DeviceBuffer;
use planish_cuda::ops::attention::{self, Attention, CacheSizes, Caches, Segments};
use planish_cuda::ops::rope::{self, Heads, Queries};
use planish_cuda::{DType, Device, Queue, Recorder};

use crate::shapes;
use crate::support::*;

const F32: DType = DType::F32;

/// Two layers of caches with room for so many keys, all of it numbers that are no keys.
fn caches(queue: Queue<'_>, t: DType, sizes: CacheSizes, capacities: &[usize]) -> (Vec<DeviceBuffer>, Caches) {
    let key = 2 * sizes.layers * sizes.kv_heads * sizes.size;
    let all: Vec<DeviceBuffer> = capacities.iter().map(|&c| put(queue, &vec![1e30; c * key], t)).collect();
    let table = Caches::new(queue, &all.iter().map(|c| c.slice(t)).collect::<Vec<_>>(), sizes).unwrap();
    (all, table)
}

/// Law 5: a token decoded over its sequence's cache has the bits that it has in training, whatever else is in the batch
/// and however many tokens come at a time.
#[test]
fn caches_give_the_bits_of_training() {
    let of = |heads, kv_heads, size, window| {
        let scale = (size as f32).powf(-0.5);
        Attention { heads, kv_heads, size, scale, causal: true, window, softcap: None }
    };
    for (capability, t, a) in [
        ((8, 0), DType::BF16, of(3, 1, 64, None)),
        ((9, 0), DType::BF16, of(6, 2, 64, None)),
        ((9, 0), DType::F16, of(2, 1, 128, Some(70))),
        ((9, 0), F32, of(2, 1, 16, None)),
        ((9, 0), DType::BF16, of(2, 1, 256, None)),
        ((9, 0), DType::F16, of(3, 1, 256, Some(70))),
    ] {
        let Some(device) = device_of(capability) else { return };
        let queue = device.queue();
        // Of two sequences, all at once.
        let lengths = [133u32, 70];
        let cu = [0, lengths[0], lengths[0] + lengths[1]];
        let n = cu[2] as usize;
        let (per_q, per_k) = (a.heads * a.size, a.kv_heads * a.size);
        let (q, k, v) = (random(n * per_q, t, 1), random(n * per_k, t, 2), random(n * per_k, t, 3));
        let [qs, ks, vs] = [&q, &k, &v].map(|x| put(queue, x, t));
        let (mut out, mut lse) = (room(queue, q.len(), t), room(queue, n * a.heads, F32));
        let table = Segments::packed(queue, &cu, &cu).unwrap();
        let (to, sums) = (out.slice_mut(t), lse.slice_mut(F32));
        attention::forward(queue, to, sums, qs.slice(t), ks.slice(t), vs.slice(t), &table, &a).unwrap();
        let (whole, whole_lse) = (get(&out, t), get(&lse, F32));

        let sizes = CacheSizes { layers: 2, kv_heads: a.kv_heads, size: a.size };
        let (_held, caches) = caches(queue, t, sizes, &[136, 70]);
        // Tokens of each sequence in each pass: prompts in pieces, then single ones.
        let mut have = [0u32; 2];
        for take in [[60, 0], [3, 64], [1, 1], [1, 1], [67, 1], [0, 1], [1, 2]] {
            let new = [0, take[0], take[0] + take[1]];
            let keys = [have[0] + take[0], have[1] + take[1]];
            let pick = |x: &[f64], width: usize| -> Vec<f64> {
                let of = |s: usize| &x[(cu[s] + have[s]) as usize * width..][..take[s] as usize * width];
                [of(0), of(1)].concat()
            };
            let [qs, ks, vs] = [(&q, per_q), (&k, per_k), (&v, per_k)].map(|(x, width)| put(queue, &pick(x, width), t));
            let table = Segments::cached(queue, &new, &new, &keys).unwrap();
            let tokens = new[2] as usize;
            let (mut out, mut lse) = (room(queue, tokens * per_q, t), room(queue, tokens * a.heads, F32));
            rope::append(queue, None, [ks.slice(t), vs.slice(t)], None, a.size, (&caches, 1), &table).unwrap();
            let (to, sums) = (out.slice_mut(t), lse.slice_mut(F32));
            attention::forward_cached(queue, to, sums, qs.slice(t), (&caches, 1), &table, &a).unwrap();
            assert_eq!(get(&out, t), pick(&whole, per_q), "{capability:?} {t} {take:?}");
            assert_eq!(get(&lse, F32), pick(&whole_lse, a.heads), "{capability:?} {t} {take:?}");
            have = keys;
        }
        assert_eq!(have, [133, 70]);
    }
}

/// Attention of the last tokens of sequences over caches with so much room: results, log-sum-exps, and the kernels.
fn over_caches(
    queue: Queue<'_>,
    t: DType,
    a: &Attention,
    [q, k, v]: [&[f64]; 3],
    lengths: &[(u32, u32)],
    capacity: usize,
    full: bool,
) -> (Vec<f64>, Vec<f64>, Vec<&'static str>) {
    let sizes = CacheSizes { layers: 1, kv_heads: a.kv_heads, size: a.size };
    let (row, mut first) = (a.kv_heads * a.size, 0);
    let caches: Vec<DeviceBuffer> = lengths
        .iter()
        .map(|&(_, keys)| {
            // Behind the keys anything.
            let mut cache = vec![-7.5; 2 * capacity * row];
            for (part, from) in [k, v].into_iter().enumerate() {
                let own = &from[first * row..][..keys as usize * row];
                cache[part * capacity * row..][..own.len()].copy_from_slice(own);
            }
            first += keys as usize;
            put(queue, &cache, t)
        })
        .collect();
    let table = Caches::new(queue, &caches.iter().map(|c| c.slice(t)).collect::<Vec<_>>(), sizes).unwrap();
    let new = lengths.iter().fold(vec![0], |mut cu, l| {
        cu.push(cu[cu.len() - 1] + l.0);
        cu
    });
    let keys: Vec<u32> = lengths.iter().map(|l| l.1).collect();
    let of = Segments::cached(queue, &new, &new, &keys).unwrap();
    let tokens = new[lengths.len()] as usize;
    let (mut out, mut lse) = (room(queue, tokens * a.heads * a.size, t), room(queue, tokens * a.heads, F32));
    let qs = put(queue, q, t);
    // All but a few blocks of the device's memory are somebody else's.
    let mut taken = Vec::new();
    while let (true, Ok(block)) = (full, queue.alloc("a test", 4096, t)) {
        taken.push(block);
    }
    let (done, times) = queue
        .device
        .profile(|| {
            let (to, sums) = (out.slice_mut(t), lse.slice_mut(F32));
            attention::forward_cached(queue, to, sums, qs.slice(t), (&table, 0), &of, a)
        })
        .unwrap();
    done.unwrap();
    (get(&out, t), get(&lse, F32), times.iter().map(|time| time.name).collect())
}

/// Whether they are those of long caches.
fn are_long(kernels: &[&str]) -> bool {
    kernels.len() == 2
        && ["attention_scores", "attention_values"].iter().all(|name| kernels.iter().any(|k| k.starts_with(name)))
}

shapes! {
    on BOTH;
    /// Over long caches keys are shared out among blocks, and the bits are those of one block: of sequences of any
    /// length, with windows and soft-caps, of one row and of 16.
    fn long_caches_give_the_bits_of_short_ones(queue; keys in 1u32..330, more in 1u32..130, new in 1u32..5, group in 1usize..5, kv_heads in 1usize..3, kind in 0usize..4, types in 0usize..2, size in 0usize..3; 8 cases) {
        let (t, size) = ([DType::BF16, DType::F16][types], [64, 128, 256][size]);
        let (window, softcap) = [(None, None), (Some(1100), Some(1.5)), (Some(1200), None), (None, Some(2.5))][kind];
        let a = Attention { heads: group * kv_heads, kv_heads, size, scale: 0.11, causal: true, window, softcap };
        let lengths = [(new.min(keys), keys), (0, 0), (1, more)];
        let (tokens, all) = ((new.min(keys) + 1) as usize, (keys + more) as usize);
        let q = random(tokens * a.heads * size, t, 1);
        let [k, v] = [2, 3].map(|salt| random(all * kv_heads * size, t, salt));
        let short = over_caches(queue, t, &a, [&q, &k, &v], &lengths, 400, false);
        let long = over_caches(queue, t, &a, [&q, &k, &v], &lengths, 1024, false);
        let one = ["attention_forward", "attention_hopper", "attention_wide_hopper"];
        assert!(short.2.len() == 1 && one.contains(&short.2[0]), "{:?}", short.2);
        assert!(are_long(&long.2), "{:?}", long.2);
        assert_eq!((short.0, short.1), (long.0, long.1), "{t} {a:?} {lengths:?}");
    }
}

/// The same of keys that need many rounds of tiles, against training's last row; and with a window that leaves most of them
/// out, whose first tile is not the segment's.
#[test]
fn a_token_behind_many_keys_has_the_bits_of_training() {
    for (capability, t, heads, size, window, n) in [
        ((8, 0), DType::BF16, 12, 64, None, 1400u32),
        ((8, 0), DType::BF16, 2, 128, Some(1030), 1301),
        ((9, 0), DType::BF16, 2, 256, None, 1027),
        ((9, 0), DType::BF16, 9, 64, None, 1601),
        ((9, 0), DType::F16, 2, 128, Some(1030), 1301),
        ((9, 0), DType::F16, 3, 256, Some(1030), 1301),
        ((8, 9), DType::F16, 1, 256, None, 1100),
    ] {
        let Some(device) = device_of(capability) else { return };
        let queue = device.queue();
        let a = Attention { heads, kv_heads: 1, size, scale: 0.2, causal: true, window, softcap: None };
        let q = random(a.heads * size, t, 1);
        let [k, v] = [2, 3].map(|salt| random(n as usize * size, t, salt));
        let [qs, ks, vs] = [&q, &k, &v].map(|x| put(queue, x, t));
        let (mut out, mut lse) = (room(queue, q.len(), t), room(queue, heads, F32));
        let table = Segments::packed(queue, &[0, 1], &[0, n]).unwrap();
        let (to, sums) = (out.slice_mut(t), lse.slice_mut(F32));
        attention::forward(queue, to, sums, qs.slice(t), ks.slice(t), vs.slice(t), &table, &a).unwrap();
        let long = over_caches(queue, t, &a, [&q, &k, &v], &[(1, n)], 2048, false);
        assert!(are_long(&long.2), "{:?}", long.2);
        assert_eq!((get(&out, t), get(&lse, F32)), (long.0, long.1), "{capability:?} {t} {a:?}");
    }
}

/// Where there is no room for the scores, one kernel does what two would have done, with the same bits.
#[test]
fn without_room_for_scores_one_kernel_does_it() {
    for (capability, size, kernel) in
        [((8, 0), 64, "attention_forward"), ((9, 0), 64, "attention_hopper"), ((9, 0), 256, "attention_wide_hopper")]
    {
        let Some(cache) = cache() else { return };
        let emulator = Emulator::new(capability).unwrap().with_memory(4 << 20);
        let device = Device::new(Arc::new(emulator), cache);
        let (queue, t) = (device.queue(), DType::BF16);
        let a = Attention { heads: 2, kv_heads: 1, size, scale: 0.1, causal: true, window: None, softcap: None };
        let [q, k, v] = [(2, 1), (1100, 2), (1100, 3)].map(|(rows, salt)| random(rows * size, t, salt));
        let [free, full] = [false, true].map(|full| over_caches(queue, t, &a, [&q, &k, &v], &[(1, 1100)], 2048, full));
        assert!(are_long(&free.2), "{:?}", free.2);
        assert_eq!(full.2, [kernel]);
        assert_eq!((free.0, free.1), (full.0, full.1), "{capability:?}");
    }
}

/// Enough blocks as it is, or rows for more than a warp's: one kernel.
#[test]
fn many_sequences_and_many_rows_take_one_kernel() {
    let Some(device) = device_of((8, 0)) else { return };
    let (queue, t) = (device.queue(), DType::BF16);
    let of = |kv_heads, window| Attention {
        heads: kv_heads,
        kv_heads,
        size: 64,
        scale: 0.1,
        causal: true,
        window,
        softcap: None,
    };
    for (a, lengths) in [
        (of(55, None), vec![(1, 2)]),
        (of(1, None), vec![(1, 1); 55]),
        (of(1, None), vec![(17, 17)]),
        (of(1, Some(500)), vec![(1, 3)]),
    ] {
        let (tokens, keys) = lengths.iter().fold((0, 0), |sum, l: &(u32, u32)| (sum.0 + l.0, sum.1 + l.1));
        let q = random(tokens as usize * a.heads * a.size, t, 1);
        let k = random(keys as usize * a.heads * a.size, t, 2);
        let got = over_caches(queue, t, &a, [&q, &k, &k], &lengths, 1024, false);
        assert_eq!(got.2, ["attention_forward"], "{a:?} {}", lengths.len());
    }
}

/// Recorded work that goes on with a longer cache than it was recorded for stops, and does not write elsewhere.
#[test]
fn work_recorded_over_a_shorter_cache_traps() {
    for capability in BOTH {
        let Some(device) = device_of(capability) else { return };
        let (queue, t) = (device.queue(), DType::BF16);
        let sizes = CacheSizes { layers: 1, kv_heads: 1, size: 64 };
        let a = Attention { heads: 1, kv_heads: 1, size: 64, scale: 0.1, causal: true, window: None, softcap: None };
        let (short, long) = (put(queue, &vec![0.5; 1024 * 128], t), put(queue, &vec![0.5; 2048 * 128], t));
        let mut table = Caches::new(queue, &[short.slice(t)], sizes).unwrap();
        let mut of = Segments::cached(queue, &[0, 1], &[0, 1], &[1024]).unwrap();
        let (mut out, mut lse, q) = (room(queue, 64, t), room(queue, 1, F32), put(queue, &[1.0; 64], t));
        let mut recorder = Recorder::new(&device).unwrap();
        let recorded = recorder
            .record(queue, |queue| {
                let (to, sums) = (out.slice_mut(t), lse.slice_mut(F32));
                attention::forward_cached(queue, to, sums, q.slice(t), (&table, 0), &of, &a)
            })
            .unwrap()
            .unwrap();
        table.exchange(queue, &[long.slice(t)]).unwrap();
        of.set_keys(&[1024]).unwrap();
        recorder.replay(recorded, queue).unwrap();
        of.set_keys(&[1100]).unwrap();
        let error = recorder.replay(recorded, queue).unwrap_err().to_string();
        assert!(error.contains("trap"), "{error}");
    }
}

/// What is put in a cache is what turning gives, and nothing else is written.
#[test]
fn keys_are_turned_on_their_way() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    for (t, size, width, half) in [(DType::BF16, 64, 64, 32), (DType::F16, 24, 64, 9), (F32, 20, 20, 3)] {
        let (heads, kv_heads, sizes) = (3, 2, CacheSizes { layers: 2, kv_heads: 2, size: width });
        let (held, table) = caches(queue, t, sizes, &[8, 16]);
        let (new, have) = ([0u32, 3, 5], [2u32, 9]);
        let of = Segments::cached(queue, &new, &new, &[have[0] + 3, have[1] + 2]).unwrap();
        let [q, k, v] = [(heads, 1), (kv_heads, 2), (kv_heads, 3)].map(|(h, salt)| random(5 * h * size, t, salt));
        let [qs, ks, vs] = [&q, &k, &v].map(|x| put(queue, x, t));
        let [cos, sin] = [4, 5].map(|salt| put(queue, &random(5 * half, F32, salt), F32));
        let turned = |x: &DeviceBuffer, heads: usize| {
            let mut y = room(queue, 5 * heads * size, t);
            let (to, of) = (y.slice_mut(t), Heads { heads, size, half });
            rope::turn(queue, to, x.slice(t), cos.slice(F32), sin.slice(F32), of, false).unwrap();
            get(&y, t)
        };
        let mut y = room(queue, q.len(), t);
        let queries = Queries { y: y.slice_mut(t), q: qs.slice(t), heads };
        let tables = Some([cos.slice(F32), sin.slice(F32)]);
        rope::append(queue, Some(queries), [ks.slice(t), vs.slice(t)], tables, size, (&table, 1), &of).unwrap();
        assert_eq!(get(&y, t), turned(&qs, heads));
        let k = turned(&ks, kv_heads);
        for (s, (cache, capacity)) in held.iter().zip([8usize, 16]).enumerate() {
            let mut want = vec![round(1e30, t); 4 * capacity * kv_heads * width];
            for (i, token) in (new[s]..new[s + 1]).enumerate() {
                for (x, first) in [(&k, 2 * capacity), (&v, 3 * capacity)] {
                    for h in 0..kv_heads {
                        let row = first + have[s] as usize + i;
                        want[(row * kv_heads + h) * width..][..size]
                            .copy_from_slice(&x[(token as usize * kv_heads + h) * size..][..size]);
                    }
                }
            }
            assert_eq!(get(cache, t), want, "{t} cache {s}");
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let Some(device) = device() else { return };
    let (queue, t) = (device.queue(), DType::BF16);
    let sizes = CacheSizes { layers: 2, kv_heads: 1, size: 64 };
    let (held, table) = caches(queue, t, sizes, &[4]);
    let a = Attention { heads: 1, kv_heads: 1, size: 64, scale: 1.0, causal: true, window: None, softcap: None };
    let (mut out, mut lse) = (room(queue, 64, t), room(queue, 1, F32));
    let mut attend = |layer, of: &Segments, a: &Attention| {
        let (to, sums) = (out.slice_mut(t), lse.slice_mut(F32));
        attention::forward_cached(queue, to, sums, held[0].slice(t).part(0, 64).unwrap(), (&table, layer), of, a)
            .unwrap_err()
            .to_string()
    };
    let one = |keys| Segments::cached(queue, &[0, 1], &[0, 1], &[keys]);
    assert!(attend(0, &one(5).unwrap(), &a).contains("room"));
    assert!(attend(2, &one(4).unwrap(), &a).contains("layer"));
    assert!(attend(0, &Segments::packed(queue, &[0, 1], &[0, 1]).unwrap(), &a).contains("in caches"));
    assert!(attend(0, &one(4).unwrap(), &Attention { causal: false, window: Some(1), ..a }).contains("causal"));
    assert!(one(0).unwrap_err().to_string().contains("at least those that are new"));
    let mut of = one(1).unwrap();
    assert!(of.set_keys(&[0]).is_err() && of.set_keys(&[1, 1]).is_err());
    of.set_keys(&[4]).unwrap();
    let k = held[0].slice(t).part(0, 64).unwrap();
    let append = |k, size| rope::append(queue, None, [k, k], None, size, (&table, 0), &of).unwrap_err().to_string();
    assert!(append(k, 128).contains("should have 128 elements"));
    assert!(append(held[0].slice(t).part(0, 128).unwrap(), 128).contains("at most that of the caches"));
    let (mut y, q) = (room(queue, 64, t), held[0].slice(t).part(0, 64).unwrap());
    let short = Caches::new(queue, &[held[0].slice(t).part(0, 255).unwrap()], sizes).unwrap_err().to_string();
    assert!(short.contains("the length of a cache"), "{short}");
    let stream = attention::forward(queue, y.slice_mut(t), lse.slice_mut(F32), q, q, q, &of, &a).unwrap_err();
    assert!(stream.to_string().contains("not in caches"), "{stream}");
}
