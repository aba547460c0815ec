//! sampling.

use planish_cuda::driver::Arg;
use planish_cuda::kernels::SAMPLING;
use planish_cuda::ops::sampling::{self, Draw, NO_TOKEN, Sampling};
use planish_cuda::{DType, Queue, Shape};

use crate::shapes;
use crate::support::*;

/// Philox4x32-10 and the uniform number of 53 bits, as on the CPU.
fn uniform(d: &Draw) -> f64 {
    let i = d.index / 2;
    let mut c = [i as u32, (i >> 32) as u32, d.step as u32, (d.step >> 32) as u32 ^ (4 << 24)];
    let mut k = [d.seed as u32, (d.seed >> 32) as u32];
    for _ in 0..10 {
        let (p0, p1) = (0xD251_1F53u64 * u64::from(c[0]), 0xCD9E_8D57u64 * u64::from(c[2]));
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    let at = (d.index % 2 * 2) as usize;
    ((u64::from(c[at]) << 32 | u64::from(c[at + 1])) >> 11) as f64 / (1u64 << 53) as f64
}

/// The rules in f64, with a sort; `None` if the draw is too near a border to call.
fn reference(z: &[f64], s: &Sampling, u: f64) -> Option<usize> {
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let first = z.iter().position(|&z| z == top).unwrap();
    if s.temperature == 0.0 {
        return Some(first);
    }
    let mut order: Vec<usize> = (0..z.len()).collect();
    // The two zeros are equal.
    order.sort_by(|&a, &b| z[b].partial_cmp(&z[a]).unwrap().then(a.cmp(&b)));
    if 0 < s.top_k && s.top_k < z.len() {
        let least = z[order[s.top_k - 1]];
        order.retain(|&i| z[i] >= least);
    }
    let w = |i: usize| ((z[i] - top) / s.temperature).exp();
    if s.top_p < 1.0 {
        let total: f64 = order.iter().map(|&i| w(i)).sum();
        let (mut before, mut count) = (0.0, 0);
        while count < order.len() && (count == 0 || before < s.top_p * total) {
            if (before - s.top_p * total).abs() < 1e-9 {
                return None;
            }
            before += w(order[count]);
            count += 1;
        }
        if (before - s.top_p * total).abs() < 1e-9 {
            return None;
        }
        order.truncate(count);
    }
    order.retain(|&i| w(i) >= s.min_p);
    order.sort_unstable();
    let total: f64 = order.iter().map(|&i| w(i)).sum();
    let mut left = u * total;
    for &i in &order {
        if (left - w(i)).abs() < 1e-9 {
            return None;
        }
        if left < w(i) {
            return Some(i);
        }
        left -= w(i);
    }
    None
}

fn run(queue: Queue<'_>, z: &[f64], width: usize, draws: &[Draw], s: &Sampling, naive: bool) -> Vec<u32> {
    let rows = draws.len();
    let (zs, ds) = (put(queue, z, DType::F32), queue.upload("a test", &Draw::words(draws)).unwrap());
    let mut tokens = room(queue, rows, DType::U32);
    if !naive {
        sampling::sample(queue, tokens.slice_mut(DType::U32), zs.slice(DType::F32), ds.slice(DType::U32), s, width)
            .unwrap();
        return tokens.download().unwrap();
    }
    let mut bytes = [s.temperature, s.top_p, s.min_p].map(f64::to_le_bytes).concat();
    bytes.extend((s.top_k as u32).to_le_bytes());
    bytes.extend((width as u32).to_le_bytes());
    let args =
        [Arg::Ptr(tokens.ptr()), Arg::Ptr(zs.ptr()), Arg::Ptr(ds.ptr()), Arg::Bytes(&bytes), Arg::U32(rows as u32)];
    queue.launch(&SAMPLING, "sampling_naive", &defines(&[]), Shape::line(rows.div_ceil(32), 32), &args).unwrap();
    tokens.download().unwrap()
}

shapes! {
    fn tokens_follow_the_rules(queue; width in 1usize..90, top_k in 0usize..12, p in 0usize..4, m in 0usize..3, hot in 0usize..3, ties in proptest::bool::ANY; 24 cases) {
        let s = Sampling { temperature: [0.0, 0.7, 1.5][hot], top_k, top_p: [1.0, 0.9, 0.5, 0.0][p], min_p: [0.0, 0.05, 1.0][m] };
        let rows = 6;
        let mut z: Vec<f64> = random(rows * width, DType::F32, 1).iter().map(|z| round(2.0 * z, DType::F32)).collect();
        if ties {
            z.iter_mut().for_each(|z| *z = z.round());
        }
        let draws: Vec<Draw> = (0..rows as u64).map(|r| Draw { seed: 42 + (r << 40), step: r / 2, index: 3 * r }).collect();
        let (got, naive) = (run(queue, &z, width, &draws, &s, false), run(queue, &z, width, &draws, &s, true));
        for (r, row) in z.chunks(width).enumerate() {
            if let Some(want) = reference(row, &s, uniform(&draws[r])) {
                assert_eq!(got[r] as usize, want, "row {r} of {s:?} {width}");
                assert_eq!(naive[r] as usize, want, "naive, row {r} of {s:?} {width}");
            }
        }
    }
}

/// More tokens than a block takes; a distribution that is nearly flat, one that is steep, and one of few values, whose
/// equals lie in several stretches. A row of a width that is no multiple of 4 has no aligned words.
#[test]
fn a_large_vocabulary() {
    let Some(device) = device() else { return };
    let rows = 3;
    let mut called = 0;
    for (width, shape) in [(3001, 0), (20_001, 1), (20_000, 2), (20_000, 0)] {
        let z: Vec<f64> = random(rows * width, DType::F32, 9 + width as u64)
            .iter()
            .map(|z| match shape {
                0 => round(z / 8.0, DType::F32),
                1 => round(6.0 * z, DType::F32),
                _ => z.round(),
            })
            .collect();
        let draws: Vec<Draw> = (0..rows as u64).map(|r| Draw { seed: r, step: 5, index: r }).collect();
        for s in [
            Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 },
            Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 },
            Sampling { temperature: 0.9, top_k: 100, top_p: 0.95, min_p: 0.0 },
            Sampling { temperature: 1.0, top_k: width - 10, top_p: 1.0, min_p: 0.0 },
            Sampling { temperature: 1.0, top_k: 0, top_p: 0.8, min_p: 0.0 },
            Sampling { temperature: 2.0, top_k: 0, top_p: 0.3, min_p: 0.5 },
        ] {
            let got = run(device.queue(), &z, width, &draws, &s, false);
            for (r, row) in z.chunks(width).enumerate() {
                if let Some(want) = reference(row, &s, uniform(&draws[r])) {
                    assert_eq!(got[r] as usize, want, "row {r} of {s:?} {width}");
                    called += 1;
                }
            }
        }
    }
    assert!(called > 60, "{called} of 72 were near no border");
}

/// More rows than are sampled at once, some of which are no distribution, have the tokens that each has alone.
#[test]
fn rows_do_not_depend_on_their_company() {
    let Some(device) = device() else { return };
    let (rows, width) = (259, 40);
    let mut z: Vec<f64> = random(rows * width, DType::F32, 3).iter().map(|z| round(3.0 * z, DType::F32)).collect();
    z[7 * width + 3] = f64::NAN;
    z[257 * width] = f64::INFINITY;
    let draws: Vec<Draw> = (0..rows as u64).map(|r| Draw { seed: 5, step: r, index: 0 }).collect();
    let s = Sampling { temperature: 0.8, top_k: 20, top_p: 0.9, min_p: 0.01 };
    let all = run(device.queue(), &z, width, &draws, &s, false);
    for r in [0, 6, 7, 8, 255, 256, 257, 258] {
        let one = run(device.queue(), &z[r * width..(r + 1) * width], width, &draws[r..=r], &s, false);
        assert_eq!(one[0], all[r], "row {r}");
        assert_eq!(one[0] == NO_TOKEN, r == 7 || r == 257);
    }
}

#[test]
fn rows_that_are_no_distribution_give_no_token() {
    let Some(device) = device() else { return };
    let inf = f64::INFINITY;
    let z = [1.0, f64::NAN, 0.0, inf, 1.0, 2.0, -inf, -inf, -inf, -inf, 0.5, -inf];
    let draws = [Draw { seed: 1, step: 0, index: 0 }; 4];
    for temperature in [0.0, 1.0] {
        let s = Sampling { temperature, top_k: 0, top_p: 1.0, min_p: 0.0 };
        for naive in [false, true] {
            assert_eq!(run(device.queue(), &z, 3, &draws, &s, naive), [NO_TOKEN, NO_TOKEN, NO_TOKEN, 1]);
        }
    }
}

#[test]
fn settings_out_of_range_are_named() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let (z, d, mut t) = (room(queue, 4, DType::F32), room(queue, 6, DType::U32), room(queue, 1, DType::U32));
    let good = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
    for (s, word) in [
        (Sampling { temperature: f64::NAN, ..good }, "temperature"),
        (Sampling { top_p: 1.5, ..good }, "top_p"),
        (Sampling { min_p: -0.1, ..good }, "min_p"),
    ] {
        let error = sampling::sample(queue, t.slice_mut(DType::U32), z.slice(DType::F32), d.slice(DType::U32), &s, 4)
            .unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}
