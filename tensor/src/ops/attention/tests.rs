use super::*;
use crate::rng::{Purpose, Stream};
use crate::{DType, Device};

fn random(shape: [usize; 3], salt: u64, dtype: DType) -> Tensor {
    let s = Stream::new(5, Purpose::Data, salt);
    let n = shape.iter().product::<usize>();
    Tensor::from_vec((0..n).map(|i| s.normal(i as u64)).collect::<Vec<f64>>(), shape).unwrap().to_dtype(dtype).unwrap()
}

/// The definition, with the whole row of scores in memory.
fn naive(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    i: usize,
    h: usize,
    sizes: Sizes,
    lk: usize,
    behind: usize,
    o: &Attention,
) -> Vec<f64> {
    let Sizes { heads, kv_heads, group, size } = sizes;
    let at = |x: &[f64], t: usize, all: usize, h: usize| x[(t * all + h) * size..][..size].to_vec();
    let query = at(q, i, heads, h);
    let (lo, hi) = o.visible(i + behind, lk);
    let scores: Vec<f64> = (lo..hi)
        .map(|j| at(k, j, kv_heads, h / group).iter().zip(&query).map(|(a, b)| a * b).sum::<f64>() * o.scale)
        .map(|s| o.softcap.map_or(s, |c| c * (s / c).tanh()))
        .collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut out = vec![0.0; size];
    for (j, w) in (lo..hi).zip(&weights) {
        for (o, x) in out.iter_mut().zip(at(v, j, kv_heads, h / group)) {
            *o += w / total * x;
        }
    }
    out
}

#[test]
fn equals_the_definition() {
    for (window, softcap, causal) in [
        (None, None, true),
        (Some(5), None, true),
        (Some(70), Some(2.0), true),
        (None, None, false),
        (None, Some(0.7), true),
    ] {
        let o = Attention { scale: 0.4, causal, window, softcap };
        let lengths = [1usize, 0, 130, 7, 65];
        let mut cu = vec![0u32];
        lengths.iter().for_each(|l| cu.push(cu[cu.len() - 1] + *l as u32));
        let n = cu[5] as usize;
        let (q, k, v) =
            (random([n, 6, 10], 0, DType::F64), random([n, 2, 10], 1, DType::F64), random([n, 2, 10], 2, DType::F64));
        let (out, _) = forward(&q, &k, &v, &cu, &cu, &o).unwrap();
        let sizes = Sizes::new(6, 2, 10).unwrap();
        for (s, len) in lengths.iter().enumerate() {
            let part = |t: &Tensor| t.narrow(0, cu[s] as usize, *len).unwrap().to_vec::<f64>().unwrap();
            let (qs, ks, vs, os) = (part(&q), part(&k), part(&v), part(&out));
            for i in 0..*len {
                for h in 0..6 {
                    let want = naive(&qs, &ks, &vs, i, h, sizes, *len, 0, &o);
                    for (d, want) in want.iter().enumerate() {
                        let got = os[(i * 6 + h) * 10 + d];
                        // f64 sums of at most 130 terms of order 1.
                        assert!((got - want).abs() < 1e-12, "{o:?} segment {s} query {i} head {h}: {got} {want}");
                    }
                }
            }
        }
    }
}

/// Law 5: a query's output has the same bits alone over a cache, in chunks, in a packed batch and beside other sequences, turned on
/// the way or before, whether threads are waited for or not, on any number of them.
#[test]
fn decoding_equals_training_bit_for_bit() {
    for (window, softcap) in [(None, None), (Some(40), Some(3.0))] {
        let o = Attention { scale: 0.125, causal: true, window, softcap };
        let n = 150;
        let (q, k, v) =
            (random([n, 9, 16], 3, DType::F32), random([n, 3, 16], 4, DType::F32), random([n, 3, 16], 5, DType::F32));
        let tables = [6, 7].map(|salt| random([1, n, 5], salt, DType::F32).reshape([n, 5]).unwrap());
        let turn = |x: &Tensor| crate::ops::rope::forward(x, &tables[0], &tables[1]).unwrap();
        let cu = [0, n as u32];
        let as_they_are = forward(&q, &k, &v, &cu, &cu, &o).unwrap().0;
        let turned = forward(&turn(&q), &turn(&k), &v, &cu, &cu, &o).unwrap().0;
        // Two sequences, the second with one key less, whose last `len` tokens are new.
        let step = |held: usize, len: usize, tables: Option<&[Tensor; 2]>| {
            let mut caches = [0, 1].map(|_| KeyValues::new(2, 3, 16, DType::F32, Device::Cpu));
            let held = [held, held.saturating_sub(1)];
            for (cache, held) in caches.iter_mut().zip(held) {
                let cu = [0, held as u32];
                let part = |x: &Tensor| x.narrow(0, 0, held).unwrap();
                let mut pass = CachedPass::new(vec![cache], vec![0], &cu, &cu).unwrap();
                let tables = tables.map(|tables| tables.each_ref().map(part));
                pass.append(1, None, [&part(&k), &part(&v)], tables.as_ref().map(|t| t.each_ref())).unwrap();
            }
            let cu = [0, len as u32, 2 * len as u32];
            let both = |x: &Tensor| {
                let parts = held.map(|held| x.narrow(0, held, len).unwrap());
                crate::ops::concat::forward(&parts.each_ref(), 0).unwrap()
            };
            let mut pass = CachedPass::new(caches.iter_mut().collect(), held.to_vec(), &cu, &cu).unwrap();
            let tables = tables.map(|tables| tables.each_ref().map(both));
            let tables = tables.as_ref().map(|t| t.each_ref());
            pass.append_and_attend(1, &both(&q), [&both(&k), &both(&v)], tables, &o).unwrap()
        };
        for threads in 1..=4 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                for (start, len) in [(0, 1), (63, 1), (64, 1), (149, 1), (30, 70), (100, 50), (99, 32)] {
                    for (want, tables) in [(&as_they_are, None), (&turned, Some(&tables))] {
                        let bits = |t: &Tensor| -> Vec<u32> {
                            t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
                        };
                        let part = |start: usize| bits(&want.narrow(0, start, len).unwrap());
                        let want = [part(start), part(start.saturating_sub(1))].concat();
                        let what = format!("queries {start}..{} on {threads} threads, {o:?}", start + len);
                        assert_eq!(bits(&step(start, len, tables)), want, "{what}");
                        assert_eq!(bits(&crate::stream::opened(|| step(start, len, tables))), want, "{what}, left");
                    }
                }
            });
        }
    }
}

#[test]
fn wrong_input_is_refused() {
    let (q, k) = (random([3, 4, 2], 0, DType::F32), random([3, 2, 2], 1, DType::F32));
    let o = Attention::causal(1.0);
    let run = |q: &Tensor, k: &Tensor, cu_q: &[u32], cu_k: &[u32], o: &Attention| forward(q, k, k, cu_q, cu_k, o);
    assert!(run(&q, &k, &[0, 3], &[0, 3], &o).is_ok());
    assert!(run(&q, &k, &[0, 4], &[0, 3], &o).is_err());
    assert!(run(&q, &k, &[0, 2, 1, 3], &[0, 1, 2, 3], &o).is_err());
    assert!(run(&q, &k, &[], &[], &o).is_err());
    assert!(run(&q, &k, &[0, 3, 3], &[0, 2, 3], &o).is_err(), "causal with more queries than keys");
    assert!(run(&q, &random([3, 3, 2], 1, DType::F32), &[0, 3], &[0, 3], &o).is_err());
    assert!(run(&q, &random([3, 2, 5], 1, DType::F32), &[0, 3], &[0, 3], &o).is_err());
    assert!(run(&q, &random([3, 2, 2], 1, DType::F64), &[0, 3], &[0, 3], &o).is_err());
    for bad in [
        Attention { scale: f64::NAN, ..o },
        Attention { window: Some(0), ..o },
        Attention { softcap: Some(-1.0), ..o },
        Attention { causal: false, window: Some(2), ..o },
    ] {
        assert!(matches!(run(&q, &k, &[0, 3], &[0, 3], &bad), Err(Error::InvalidValue { .. })), "{bad:?}");
    }
    // Over caches that hold three keys.
    let mut cache = KeyValues::new(1, 2, 2, DType::F32, Device::Cpu);
    let mut over = |q: &Tensor, new: &Tensor, cu_q: &[u32], together: bool| {
        let cu = [0, new.dims()[0] as u32];
        let mut pass = CachedPass::new(vec![&mut cache], vec![3], cu_q, &cu)?;
        if together {
            return pass.append_and_attend(0, q, [new, new], None, &o);
        }
        pass.append(0, None, [new, new], None)?;
        pass.attend(0, q, &o)
    };
    for together in [false, true] {
        assert!(over(&q, &k, &[0, 3], together).is_ok());
        assert!(over(&q, &k, &[0, 2], together).is_err(), "fewer queries than there are");
        assert!(over(&q, &k, &[0, 1, 3], together).is_err(), "a sequence without a cache");
        assert!(over(&random([3, 4, 3], 1, DType::F32), &k, &[0, 3], together).is_err(), "heads of another size");
        assert!(over(&random([3, 3, 2], 1, DType::F32), &k, &[0, 3], together).is_err(), "3 heads over 2");
        assert!(over(&random([3, 4, 2], 1, DType::F64), &k, &[0, 3], together).is_err(), "of another dtype");
        assert!(over(&q, &random([3, 2, 2], 1, DType::F64), &[0, 3], together).is_err(), "keys of another dtype");
        assert!(over(&q, &random([3, 1, 2], 1, DType::F32), &[0, 3], together).is_err(), "keys of other heads");
        let many = random([7, 4, 2], 1, DType::F32);
        assert!(over(&many, &k, &[0, 7], together).is_err(), "causal with more queries than keys");
    }
}

/// Law 5: queries that go on from another segment's keys have the bits that they have behind keys of their own, and
/// gradients are the sums over those who share, wherever the segments part within a tile.
#[test]
fn branches_equal_whole_segments() {
    for (window, softcap) in [(None, None), (Some(40), Some(3.0))] {
        for shared in [0usize, 1, 63, 64, 65, 100] {
            let o = Attention { scale: 0.125, causal: true, window, softcap };
            let (a, b) = (130usize, shared + 45);
            let part = |t: &Tensor, start: usize, len: usize| t.narrow(0, start, len).unwrap();
            let join = |parts: &[Tensor]| {
                let all: Vec<&Tensor> = parts.iter().collect();
                crate::ops::concat::forward(&all, 0).unwrap()
            };
            // The whole segments begin alike.
            let both = |heads: usize, salt: u64| {
                let (first, second) =
                    (random([a, heads, 16], salt, DType::F64), random([45, heads, 16], salt + 9, DType::F64));
                (join(&[first.clone(), part(&first, 0, shared), second.clone()]), join(&[first, second]))
            };
            let ((q, bq), (k, bk), (v, bv)) = (both(6, 0), both(2, 1), both(2, 2));
            let cu = [0, a as u32, (a + b) as u32];
            let (branched, own) = (
                [0, a as u32, (a + 45) as u32],
                [0, 1].map(|s| (s == 1).then_some(Stem { of: 0, len: shared as u32 })),
            );
            let table = Segments { cu_q: &branched, cu_k: &branched, stems: &own };
            for dtype in [DType::F32, DType::F64] {
                let [q, k, v, bq, bk, bv] = [&q, &k, &v, &bq, &bk, &bv].map(|t| t.to_dtype(dtype).unwrap());
                let (out, lse) = forward(&q, &k, &v, &cu, &cu, &o).unwrap();
                let (bout, blse) = forward_branched(&bq, &bk, &bv, &table, &o).unwrap();
                for (whole, found) in [(&out, &bout), (&lse, &blse)] {
                    let want = join(&[part(whole, 0, a), part(whole, a + shared, 45)]);
                    let bits = |t: &Tensor| -> Vec<u64> {
                        t.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap().iter().map(|x| x.to_bits()).collect()
                    };
                    assert_eq!(bits(&want), bits(found), "{shared} shared, {o:?}");
                }
                if dtype == DType::F32 {
                    continue;
                }
                let upstream = random([a + 45, 6, 16], 7, DType::F64);
                // What is shared is asked for once.
                let nothing = Tensor::zeros([shared, 6, 16], DType::F64).unwrap();
                let whole = join(&[part(&upstream, 0, a), nothing, part(&upstream, a, 45)]);
                let (dq, dk, dv) = backward(&whole, &q, &k, &v, &out, &lse, &cu, &cu, &o).unwrap();
                let (bdq, bdk, bdv) = backward_branched(&upstream, &bq, &bk, &bv, &bout, &blse, &table, &o).unwrap();
                for (what, whole, found) in [("dq", dq, bdq), ("dk", dk, bdk), ("dv", dv, bdv)] {
                    let (whole, found) = (whole.to_vec::<f64>().unwrap(), found.to_vec::<f64>().unwrap());
                    let width = found.len() / (a + 45);
                    for (i, found) in found.iter().enumerate() {
                        let mut want = whole[if i < a * width { i } else { i + shared * width }];
                        if i < shared * width {
                            want += whole[i + a * width];
                        }
                        // Two orders of a sum of at most 175 terms of order 1 in f64.
                        assert!((found - want).abs() <= 1e-13, "{what} {i} of {shared} shared: {found}, not {want}");
                    }
                }
            }
        }
    }
}

#[test]
fn wrong_stems_are_refused() {
    let (q, k) = (random([4, 2, 2], 0, DType::F32), random([4, 2, 2], 1, DType::F32));
    let stem = |of, len| Some(Stem { of, len });
    let run = |cu: &[u32], stems: &[Option<Stem>]| {
        forward_branched(&q, &k, &k, &Segments { cu_q: cu, cu_k: cu, stems }, &Attention::causal(1.0))
    };
    assert!(run(&[0, 2, 4], &[None, stem(0, 2)]).is_ok());
    assert!(run(&[0, 2, 4], &[None, stem(0, 3)]).is_err(), "longer than its segment");
    assert!(run(&[0, 2, 4], &[stem(1, 1), None]).is_err(), "a later segment");
    assert!(run(&[0, 2, 4], &[None, stem(1, 1)]).is_err(), "itself");
    assert!(run(&[0, 1, 2, 4], &[None, stem(0, 1), stem(1, 1)]).is_err(), "a segment with a stem");
    assert!(run(&[0, 2, 4], &[None]).is_err(), "one entry for two segments");
}

/// Caches take room for what is expected and no more, grow beyond it, and hold the same however keys come: many at once, which go
/// to their places on all threads, or one by one.
#[test]
fn caches_hold_what_comes_in_the_room_that_is_expected() {
    let (heads, size, n) = (3, 8, 150);
    let [k, v] = [1, 2].map(|salt| random([n, heads, size], salt, DType::F32));
    let fill = |steps: &[usize], expected: Option<usize>| {
        let mut cache = KeyValues::new(1, heads, size, DType::F32, Device::Cpu);
        expected.into_iter().for_each(|keys| cache.expect(keys));
        let (mut held, mut rooms) = (0, vec![]);
        for &new in steps {
            let cu = [0, new as u32];
            let mut pass = CachedPass::new(vec![&mut cache], vec![held], &cu, &cu).unwrap();
            let [k, v] = [&k, &v].map(|x| x.narrow(0, held, new).unwrap());
            pass.append(0, None, [&k, &v], None).unwrap();
            held += new;
            rooms.push(cache.capacity());
        }
        let q = random([1, heads, size], 3, DType::F32);
        let pass = CachedPass::new(vec![&mut cache], vec![held], &[0, 1], &[0, 0]).unwrap();
        (pass.attend(0, &q, &Attention::causal(1.0)).unwrap().to_vec::<f32>().unwrap(), rooms)
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| {
        let (want, rooms) = fill(&[149, 1], None);
        assert_eq!(rooms, [256, 256]);
        let (got, rooms) = fill(&[149, 1], Some(150));
        assert_eq!((&got, rooms), (&want, vec![192, 192]));
        let (got, rooms) = fill(&[1; 150], Some(150));
        assert_eq!((&got, rooms.first(), rooms.last()), (&want, Some(&192), Some(&192)));
        // More than was said.
        let (got, rooms) = fill(&[40, 40, 70], Some(70));
        assert_eq!((&got, rooms), (&want, vec![128, 128, 256]));
        assert!(want.iter().all(|x| x.is_finite()) && want.iter().any(|&x| x != 0.0));
    });
    // Of many expected keys not all at once.
    let mut cache = KeyValues::new(1, 1, 8, DType::F32, Device::Cpu);
    cache.expect(5000);
    drop(CachedPass::new(vec![&mut cache], vec![0], &[0, 1], &[0, 1]).unwrap());
    assert_eq!(cache.capacity(), 320);
}
