//! adamw, grad_norm.

use planish_cuda::driver::Arg;
use planish_cuda::kernels::{ADAMW, GRAD_NORM};
use planish_cuda::ops::adamw::{self, AdamW};
use planish_cuda::ops::grad_norm;
use planish_cuda::{DType, Shape};

use crate::shapes;
use crate::support::*;

const SETTINGS: AdamW = AdamW { learning_rate: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };

shapes! {
    fn adamw_equals_its_definition(queue; n in 0usize..700, step in 1u64..20, types in 0usize..3, clip in proptest::bool::ANY; 10 cases) {
        let (t, f32, s) = (TYPES[types], DType::F32, SETTINGS);
        let (p, g, m) = (random(n, f32, 1), random(n, f32, 2), random(n, f32, 3));
        let v: Vec<f64> = random(n, f32, 4).iter().map(|x| x * x).map(|x| round(x, f32)).collect();
        let squares = g.iter().map(|g| g * g).sum::<f64>();
        let (scale, most) = (0.25, 0.5);
        let norm = scale * squares.sqrt();
        let factor = if clip && norm > 0.0 { scale * (most / (norm + 1e-6)).min(1.0) } else { scale };
        let (mut want_p, mut want_m, mut want_v) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..n {
            let g = g[i] * factor;
            want_m.push(s.beta1 * m[i] + (1.0 - s.beta1) * g);
            want_v.push(s.beta2 * v[i] + (1.0 - s.beta2) * g * g);
            let (c1, c2) = (1.0 - s.beta1.powf(step as f64), 1.0 - s.beta2.powf(step as f64));
            let change = s.learning_rate / c1 * want_m[i] / ((want_v[i] / c2).sqrt() + s.eps);
            want_p.push(p[i] * (1.0 - s.learning_rate * s.weight_decay) - change);
        }
        let update = s.update(step, scale, clip.then_some(most));
        let gs = put(queue, &g, f32);
        let mut sum = queue.zeros("a test", 1, DType::F64).unwrap();
        grad_norm::add_squares(queue, sum.slice_mut(DType::F64), gs.slice(f32)).unwrap();
        close("|g|²", &get(&sum, DType::F64), &[squares], 1e-12);
        for naive in [false, true] {
            let (mut ps, mut ms, mut vs, mut w) = (put(queue, &p, f32), put(queue, &m, f32), put(queue, &v, f32), room(queue, n, t));
            if naive {
                let bytes = update.bytes();
                let args = [Arg::Ptr(ps.ptr()), Arg::Ptr(w.ptr()), Arg::Ptr(ms.ptr()), Arg::Ptr(vs.ptr()), Arg::Ptr(gs.ptr()), Arg::Ptr(sum.ptr()), Arg::Bytes(&bytes), Arg::U64(n as u64)];
                queue.launch(&ADAMW, "adamw_naive", &defines(&[("T", t.name())]), Shape::line(n.div_ceil(256), 256), &args).unwrap();
            } else {
                let of = adamw::Parameter { p: ps.slice_mut(f32), weight: Some(w.slice_mut(t)), m: ms.slice_mut(f32), v: vs.slice_mut(f32), g: gs.slice(f32) };
                adamw::step(queue, &[(of, update)], Some(sum.slice(DType::F64))).unwrap();
            }
            close("p", &get(&ps, f32), &want_p, 1e-6);
            close("m", &get(&ms, f32), &want_m, 1e-6);
            close("v", &get(&vs, f32), &want_v, 1e-6);
            let rounded: Vec<f64> = get(&ps, f32).iter().map(|&p| round(p, t)).collect();
            assert_eq!(get(&w, t), rounded);
        }
    }
}

shapes! {
    fn adamw_in_8_bits_equals_its_definition(queue; n in 1usize..900, step in 1u64..20, types in 0usize..3; 6 cases) {
        let (t, f32, s) = (TYPES[types], DType::F32, SETTINGS);
        let blocks = n.div_ceil(256);
        let (p, g) = (random(n, f32, 1), random(n, f32, 2));
        // Of m from -1 to 1, of v from 0 to 1.
        let codes: Vec<f64> = (0..256).map(|i| 2.0 * i as f64 / 255.0 - 1.0).chain((0..256).map(|i| i as f64 / 255.0)).map(|x| round(x, f32)).collect();
        let byte = |salt: usize| move |i: usize| (i * 97 + salt * 31 + i / 7) as u8;
        let bytes = [byte(1), byte(2)].map(|of| (0..n).map(of).collect::<Vec<u8>>());
        let largest = [3, 4].map(|salt| random(blocks, f32, salt).iter().map(|x| x.abs()).collect::<Vec<f64>>());
        let wide = |k: usize, i: usize| codes[256 * k + bytes[k][i] as usize] * largest[k][i / 256];
        let (mut want_p, mut want) = (Vec::new(), [Vec::new(), Vec::new()]);
        for i in 0..n {
            let g = 0.25 * g[i];
            want[0].push(s.beta1 * wide(0, i) + (1.0 - s.beta1) * g);
            want[1].push(s.beta2 * wide(1, i) + (1.0 - s.beta2) * g * g);
            let (c1, c2) = (1.0 - s.beta1.powf(step as f64), 1.0 - s.beta2.powf(step as f64));
            let change = s.learning_rate / c1 * want[0][i] / ((want[1][i] / c2).sqrt() + s.eps);
            want_p.push(p[i] * (1.0 - s.learning_rate * s.weight_decay) - change);
        }
        let update = s.update8(step, 0.25);
        let (gs, table) = (put(queue, &g, f32), put(queue, &codes, f32));
        let mut found = Vec::new();
        for naive in [false, true] {
            let (mut ps, mut w) = (put(queue, &p, f32), room(queue, n, t));
            let [mut m, mut v] = [0, 1].map(|k| queue.upload("a test", &bytes[k]).unwrap());
            let [mut m_largest, mut v_largest] = [0, 1].map(|k| put(queue, &largest[k], f32));
            if naive {
                let args = [&ps, &w, &m, &m_largest, &v, &v_largest, &gs, &table].map(|buffer| Arg::Ptr(buffer.ptr()));
                let args = [&args[..], &[Arg::Bytes(&update), Arg::U64(n as u64)]].concat();
                queue.launch(&ADAMW, "adamw8_naive", &defines(&[("T", t.name())]), Shape::line(blocks.div_ceil(32), 32), &args).unwrap();
            } else {
                let of = adamw::Parameter8 {
                    p: ps.slice_mut(f32),
                    weight: Some(w.slice_mut(t)),
                    m: [m.slice_mut(DType::U8), m_largest.slice_mut(f32)],
                    v: [v.slice_mut(DType::U8), v_largest.slice_mut(f32)],
                    g: gs.slice(f32),
                    codes: table.slice(f32),
                };
                adamw::step8(queue, of, &update).unwrap();
            }
            close("p", &get(&ps, f32), &want_p, 1e-6);
            let rounded: Vec<f64> = get(&ps, f32).iter().map(|&p| round(p, t)).collect();
            assert_eq!(get(&w, t), rounded);
            for (k, (bytes, largest)) in [(&m, &m_largest), (&v, &v_largest)].into_iter().enumerate() {
                let (bytes, largest) = (bytes.download::<u8>().unwrap(), get(largest, f32));
                for i in 0..n {
                    // The nearest of codes that are 2/255 or 1/255 apart.
                    let (got, most) = (codes[256 * k + bytes[i] as usize] * largest[i / 256], largest[i / 256]);
                    let room = most * (1.0 / 255.0 / (1 + k) as f64 + 1e-5);
                    assert!((got - want[k][i]).abs() <= room, "moment {k} of {i}: {got} for {}", want[k][i]);
                }
                let block_of = |b: usize| want[k][256 * b..n.min(256 * b + 256)].iter().fold(0.0f64, |m, x| m.max(x.abs()));
                close("largest", &largest, &(0..blocks).map(block_of).collect::<Vec<_>>(), 1e-6);
                found.push(bytes);
            }
        }
        assert!(found[..2] == found[2..], "the naive version rounds otherwise");
    }
}

#[test]
fn squares_add_up_over_stretches_and_tensors() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let (a, b) = (random(40_000, DType::BF16, 1), random(3, DType::BF16, 2));
    let want = a.iter().chain(&b).map(|g| g * g).sum::<f64>();
    let mut sum = queue.zeros("a test", 1, DType::F64).unwrap();
    for g in [&a, &b, &vec![]] {
        let gs = put(queue, g, DType::BF16);
        grad_norm::add_squares(queue, sum.slice_mut(DType::F64), gs.slice(DType::BF16)).unwrap();
    }
    close("|g|²", &get(&sum, DType::F64), &[want], 1e-13);
    let naive = queue.zeros("a test", 1, DType::F64).unwrap();
    let gs = put(queue, &a[..3000], DType::BF16);
    let args = [Arg::Ptr(naive.ptr()), Arg::Ptr(gs.ptr()), Arg::U64(3000)];
    queue.launch(&GRAD_NORM, "grad_norm_naive", &defines(&[("T", "bf16")]), Shape::line(1, 1), &args).unwrap();
    close("naive", &get(&naive, DType::F64), &[a[..3000].iter().map(|g| g * g).sum()], 1e-13);
}

#[test]
fn clipping_needs_the_norm() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let f32 = DType::F32;
    let [mut p, mut m, mut v, g] = [1, 2, 3, 4].map(|salt| put(queue, &random(8, f32, salt), f32));
    let update = SETTINGS.update(1, 1.0, Some(1.0));
    let of = adamw::Parameter {
        p: p.slice_mut(f32),
        weight: None,
        m: m.slice_mut(f32),
        v: v.slice_mut(f32),
        g: g.slice(f32),
    };
    let done = adamw::step(queue, &[(of, update)], None);
    assert!(done.unwrap_err().to_string().contains("squared norm"));
}

/// Parameters of every size, of weights of every type and of none, each with its own rates, by a launch for each type: the bits
/// of a launch for each parameter.
#[test]
fn parameters_are_updated_at_once_as_one_by_one() {
    let Some(device) = device() else { return };
    let (queue, f32) = (device.queue(), DType::F32);
    let kinds = [None, Some(DType::BF16), Some(f32), Some(DType::F16)];
    let sizes = [5, 0, 4096, 1, 4097, 9000, 12_289, 64];
    struct Held {
        n: usize,
        kind: Option<DType>,
        arrays: [planish_cuda::memory::DeviceBuffer; 5],
        update: adamw::Update,
    }
    let make = || -> Vec<Held> {
        let of = |(k, &n): (usize, &usize)| {
            let (salt, kind) = (10 * k as u64, kinds[k % kinds.len()]);
            let squared: Vec<f64> = random(n, f32, salt + 3).iter().map(|x| x * x).collect();
            let arrays = [
                put(queue, &random(n, f32, salt), f32),
                put(queue, &random(n, f32, salt + 1), f32),
                put(queue, &squared, f32),
                put(queue, &random(n, f32, salt + 2), f32),
                put(queue, &vec![0.0; n], kind.unwrap_or(f32)),
            ];
            let with = AdamW { learning_rate: 1e-2 / (k + 1) as f64, weight_decay: 0.1 * (k % 2) as f64, ..SETTINGS };
            Held { n, kind, arrays, update: with.update(3, 0.5, (k != 2).then_some(0.7)) }
        };
        sizes.iter().enumerate().map(of).collect()
    };
    fn parameter(of: &mut Held) -> (adamw::Parameter<'_>, adamw::Update) {
        let f32 = DType::F32;
        let [p, m, v, g, weight] = &mut of.arrays;
        let (m, v, g) = (m.slice_mut(f32), v.slice_mut(f32), g.slice(f32));
        (adamw::Parameter { p: p.slice_mut(f32), weight: of.kind.map(|t| weight.slice_mut(t)), m, v, g }, of.update)
    }
    let norm = put(queue, &[3.0], DType::F64);
    let (mut at_once, mut singly) = (make(), make());
    let all: Vec<_> = at_once.iter_mut().map(parameter).collect();
    adamw::step(queue, &all, Some(norm.slice(DType::F64))).unwrap();
    adamw::step(queue, &[], None).unwrap();
    for of in &mut singly {
        let (parameter, update) = parameter(of);
        let mut numbers = room(queue, update.bytes().len() / 4, f32);
        numbers.upload(&update.bytes()).unwrap();
        adamw::step_recorded(queue, parameter, norm.slice(DType::F64), numbers.slice(f32)).unwrap();
    }
    for (a, b) in at_once.iter().zip(&singly) {
        for (i, (x, y)) in a.arrays.iter().zip(&b.arrays).enumerate() {
            let same = x.download::<u8>().unwrap() == y.download::<u8>().unwrap();
            assert!(same, "array {i} of {} numbers, weight {:?}", a.n, a.kind);
        }
    }
}

/// Tensors of every size in one launch: empty ones, whole stretches and more.
#[test]
fn squares_of_many_tensors_are_added_at_once() {
    let Some(device) = device() else { return };
    let (queue, f32) = (device.queue(), DType::F32);
    let gs: Vec<Vec<f64>> =
        [5, 0, 16384, 1, 16385, 40000].iter().zip(1..).map(|(&n, salt)| random(n, f32, salt)).collect();
    let on: Vec<_> = gs.iter().map(|g| put(queue, g, f32)).collect();
    let slices: Vec<_> = on.iter().map(|g| g.slice(f32)).collect();
    let mut sum = queue.zeros("a test", 1, DType::F64).unwrap();
    grad_norm::add_squares_of_all(queue, sum.slice_mut(DType::F64), &slices).unwrap();
    let got = sum.download::<f64>().unwrap()[0];
    let want: f64 = gs.iter().flatten().map(|g| g * g).sum();
    assert!((got - want).abs() <= 1e-12 * want, "{got} for {want}");
    grad_norm::add_squares_of_all(queue, sum.slice_mut(DType::F64), &[]).unwrap();
    assert_eq!(sum.download::<f64>().unwrap()[0], got);
}
