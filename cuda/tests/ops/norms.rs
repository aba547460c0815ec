//! rms_norm, layer_norm.

use planish_cuda::driver::Arg;
use planish_cuda::kernels::{LAYER_NORM, RMS_NORM};
use planish_cuda::ops::rms_norm::RmsNorm;
use planish_cuda::ops::{layer_norm, rms_norm};
use planish_cuda::{DType, Shape};

use crate::shapes;
use crate::support::*;

const WEIGHTS: [(DType, DType); 4] =
    [(DType::F32, DType::F32), (DType::F32, DType::BF16), (DType::BF16, DType::BF16), (DType::F16, DType::F16)];

/// y, r.
fn rms(x: &[f64], w: &[f64], eps: f64, offset: f64) -> (Vec<f64>, Vec<f64>) {
    let mut out = (Vec::new(), Vec::new());
    for row in x.chunks(w.len()) {
        let r = 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64 + eps).sqrt();
        out.0.extend(row.iter().zip(w).map(|(x, w)| x * r * (w + offset)));
        out.1.push(r);
    }
    out
}

/// dx, dw.
fn rms_gradient(dy: &[f64], x: &[f64], w: &[f64], r: &[f64], offset: f64) -> (Vec<f64>, Vec<f64>) {
    let size = w.len();
    let (mut dx, mut dw) = (Vec::new(), vec![0.0; size]);
    for ((dy, x), r) in dy.chunks(size).zip(x.chunks(size)).zip(r) {
        let g: Vec<f64> = dy.iter().zip(w).map(|(d, w)| d * (w + offset)).collect();
        let mean = g.iter().zip(x).map(|(g, x)| g * x * r).sum::<f64>() / size as f64;
        dx.extend(g.iter().zip(x).map(|(g, x)| r * (g - x * r * mean)));
        dw.iter_mut().zip(dy).zip(x).for_each(|((dw, d), x)| *dw += d * x * r);
    }
    (dx, dw)
}

shapes! {
    fn rms_norm_equals_its_definition(queue; rows in 0usize..6, size in 1usize..300, types in 0usize..4, gemma in proptest::bool::ANY; 12 cases) {
        let (t, w_type) = WEIGHTS[types];
        let norm = RmsNorm { eps: 1e-5, offset: if gemma { 1.0 } else { 0.0 } };
        let (eps, offset) = (f64::from(norm.eps), f64::from(norm.offset));
        let (x, w, dy) = (random(rows * size, t, 1), random(size, w_type, 2), random(rows * size, t, 3));
        let (xs, ws, dys) = (put(queue, &x, t), put(queue, &w, w_type), put(queue, &dy, t));
        let (mut y, mut r) = (room(queue, rows * size, t), room(queue, rows, DType::F32));
        rms_norm::forward(queue, y.slice_mut(t), r.slice_mut(DType::F32), xs.slice(t), ws.slice(w_type), None, norm).unwrap();
        let (want_y, want_r) = rms(&x, &w, eps, offset);
        close("y", &get(&y, t), &want_y, tolerance(t));
        close("r", &get(&r, DType::F32), &want_r, tolerance(DType::F32));

        let naive = room(queue, rows * size, t);
        let d = defines(&[("T", t.name()), ("W", w_type.name()), ("LANES", "32"), ("PACKS", "2")]);
        let arg = |b: &planish_cuda::memory::DeviceBuffer| Arg::Ptr(b.ptr());
        let args = [arg(&naive), arg(&r), arg(&xs), arg(&ws), Arg::F32(norm.eps), Arg::F32(norm.offset), Arg::U32(rows as u32), Arg::U32(size as u32)];
        queue.launch(&RMS_NORM, "rms_norm_forward_naive", &d, Shape::line(rows.div_ceil(128), 128), &args).unwrap();
        close("naive y", &get(&naive, t), &want_y, tolerance(t));

        // The weight's gradient is added to what is there.
        let before = random(size, DType::F32, 4);
        let (mut dx, mut dw) = (room(queue, rows * size, t), put(queue, &before, DType::F32));
        rms_norm::backward(queue, dx.slice_mut(t), Some(dw.slice_mut(DType::F32)), dys.slice(t), xs.slice(t), ws.slice(w_type), r.slice(DType::F32), None, norm).unwrap();
        let (want_dx, want_dw) = rms_gradient(&dy, &x, &w, &want_r, offset);
        // Two nearly equal terms may cancel: of a row of one element nothing is left.
        if size > 2 {
            close("dx", &get(&dx, t), &want_dx, 2.0 * tolerance(t));
        }
        let want: Vec<f64> = want_dw.iter().zip(&before).map(|(a, b)| a + b).collect();
        close("dw", &get(&dw, DType::F32), &want, tolerance(DType::F32));
    }
}

shapes! {
    fn rms_norm_takes_a_residual_along(queue; rows in 1usize..4, size in 3usize..200, types in 0usize..4; 6 cases) {
        let (t, w_type) = WEIGHTS[types];
        let norm = RmsNorm { eps: 1e-6, offset: 0.0 };
        let (x, res, w, dy, dres) =
            (random(rows * size, t, 1), random(rows * size, t, 2), random(size, w_type, 3), random(rows * size, t, 4), random(rows * size, t, 5));
        let (xs, rs, ws, dys, drs) = (put(queue, &x, t), put(queue, &res, t), put(queue, &w, w_type), put(queue, &dy, t), put(queue, &dres, t));
        let (mut y, mut r, mut sum) = (room(queue, rows * size, t), room(queue, rows, DType::F32), room(queue, rows * size, t));
        let residual = Some((rs.slice(t), sum.slice_mut(t)));
        rms_norm::forward(queue, y.slice_mut(t), r.slice_mut(DType::F32), xs.slice(t), ws.slice(w_type), residual, norm).unwrap();
        let want_sum: Vec<f64> = x.iter().zip(&res).map(|(a, b)| round(a + b, t)).collect();
        assert_eq!(get(&sum, t), want_sum);
        let (want_y, want_r) = rms(&want_sum, &w, f64::from(norm.eps), 0.0);
        close("y", &get(&y, t), &want_y, tolerance(t));
        let mut dx = room(queue, rows * size, t);
        rms_norm::backward(queue, dx.slice_mut(t), None, dys.slice(t), sum.slice(t), ws.slice(w_type), r.slice(DType::F32), Some(drs.slice(t)), norm).unwrap();
        let (want, _) = rms_gradient(&dy, &want_sum, &w, &want_r, 0.0);
        let want: Vec<f64> = want.iter().zip(&dres).map(|(a, b)| a + b).collect();
        close("dx", &get(&dx, t), &want, 2.0 * tolerance(t));
    }
}

/// What a row's bits must not depend on: whether the weight is trained, and where in memory it lies. Sizes of one lane,
/// of a few, of a warp, of a block, and too large for its registers.
#[test]
fn a_row_has_the_same_bits_wherever_it_is() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let norm = RmsNorm { eps: 1e-6, offset: 1.0 };
    let f = DType::F32;
    for (size, rows, t) in [
        (8, 9, DType::BF16),
        (64, 70, DType::BF16),
        (1024, 5, DType::BF16),
        (1544, 5, DType::F16),
        (4096, 9, DType::BF16),
        (17_000, 5, DType::BF16),
        (9000, 5, f),
    ] {
        let (x, dy, w) = (random(rows * size + 1, t, 1), random(rows * size + 1, t, 2), random(size, f, 3));
        let ws = put(queue, &w, f);
        let both = [0, 1].map(|shift: usize| {
            // The same rows, one element further on.
            let moved = |all: &[f64]| put(queue, &[&all[..shift], &all[1..], &all[..1 - shift]].concat(), t);
            let (xs, dys) = (moved(&x), moved(&dy));
            let (xs, dys) =
                (xs.slice(t).part(shift, rows * size).unwrap(), dys.slice(t).part(shift, rows * size).unwrap());
            let (mut y, mut r) = (room(queue, rows * size, t), room(queue, rows, f));
            rms_norm::forward(queue, y.slice_mut(t), r.slice_mut(f), xs, ws.slice(f), None, norm).unwrap();
            let (mut dx, mut frozen) = (room(queue, rows * size, t), room(queue, rows * size, t));
            let mut dw = queue.zeros("a test", size, f).unwrap();
            let (r, w) = (r.slice(f), ws.slice(f));
            let to = Some(dw.slice_mut(f));
            rms_norm::backward(queue, dx.slice_mut(t), to, dys, xs, w, r, None, norm).unwrap();
            rms_norm::backward(queue, frozen.slice_mut(t), None, dys, xs, w, r, None, norm).unwrap();
            assert_eq!(get(&dx, t), get(&frozen, t), "{size}");
            [get(&y, t), get(&dx, t), get(&dw, f)]
        });
        assert_eq!(both[0], both[1], "{size}");
        let (want_y, want_r) = rms(&x[1..], &w, 1e-6, 1.0);
        let (want_dx, want_dw) = rms_gradient(&dy[1..], &x[1..], &w, &want_r, 1.0);
        close("y", &both[0][0], &want_y, tolerance(t));
        close("dx", &both[0][1], &want_dx, 2.0 * tolerance(t));
        close("dw", &both[0][2], &want_dw, tolerance(f));
    }
}

#[test]
fn so_it_has_in_layer_norm() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let f = DType::F32;
    for (size, rows, t) in
        [(8, 9, DType::BF16), (64, 70, f), (1544, 5, DType::F16), (4096, 9, DType::BF16), (9000, 5, DType::BF16)]
    {
        let (x, dy, w) = (random(rows * size + 1, t, 1), random(rows * size + 1, t, 2), random(size, f, 3));
        let (ws, bs) = (put(queue, &w, f), put(queue, &random(size, f, 4), f));
        let both = [0, 1].map(|shift: usize| {
            let moved = |all: &[f64]| put(queue, &[&all[..shift], &all[1..], &all[..1 - shift]].concat(), t);
            let (xs, dys) = (moved(&x), moved(&dy));
            let (xs, dys) =
                (xs.slice(t).part(shift, rows * size).unwrap(), dys.slice(t).part(shift, rows * size).unwrap());
            let (mut y, mut stats) = (room(queue, rows * size, t), room(queue, 2 * rows, f));
            let (w, b) = (ws.slice(f), Some(bs.slice(f)));
            layer_norm::forward(queue, y.slice_mut(t), stats.slice_mut(f), xs, w, b, 1e-5).unwrap();
            let (mut dx, mut frozen) = (room(queue, rows * size, t), room(queue, rows * size, t));
            let mut dw = queue.zeros("a test", 2 * size, f).unwrap();
            let to = Some(dw.slice_mut(f));
            layer_norm::backward(queue, dx.slice_mut(t), to, dys, xs, w, stats.slice(f)).unwrap();
            layer_norm::backward(queue, frozen.slice_mut(t), None, dys, xs, w, stats.slice(f)).unwrap();
            assert_eq!(get(&dx, t), get(&frozen, t), "{size}");
            [get(&y, t), get(&stats, f), get(&dx, t), get(&dw, f)]
        });
        assert_eq!(both[0], both[1], "{size}");
        let want: Vec<f64> = (0..size).map(|c| dy[1..].chunks(size).take(rows).map(|row| row[c]).sum()).collect();
        close("db", &both[0][3][size..], &want, tolerance(f));
    }
}

/// More than one block of rows for the weight's gradient; and law 5: a row's bits do not depend on its company.
#[test]
fn many_rows_and_one_row_agree() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let (rows, size, t) = (515, 24, DType::BF16);
    let (x, w, dy) = (random(rows * size, t, 1), random(size, t, 2), random(rows * size, t, 3));
    let (xs, ws, dys) = (put(queue, &x, t), put(queue, &w, t), put(queue, &dy, t));
    let norm = RmsNorm { eps: 1e-6, offset: 0.0 };
    let (mut y, mut r) = (room(queue, rows * size, t), room(queue, rows, DType::F32));
    rms_norm::forward(queue, y.slice_mut(t), r.slice_mut(DType::F32), xs.slice(t), ws.slice(t), None, norm).unwrap();
    let (mut one, mut one_r) = (room(queue, size, t), room(queue, 1, DType::F32));
    let row = xs.slice(t).part(300 * size, size).unwrap();
    rms_norm::forward(queue, one.slice_mut(t), one_r.slice_mut(DType::F32), row, ws.slice(t), None, norm).unwrap();
    assert_eq!(get(&one, t), get(&y, t)[300 * size..301 * size]);
    assert_eq!(get(&one_r, DType::F32)[0], get(&r, DType::F32)[300]);
    let (mut dx, mut dw) = (room(queue, rows * size, t), queue.zeros("a test", size, DType::F32).unwrap());
    rms_norm::backward(
        queue,
        dx.slice_mut(t),
        Some(dw.slice_mut(DType::F32)),
        dys.slice(t),
        xs.slice(t),
        ws.slice(t),
        r.slice(DType::F32),
        None,
        norm,
    )
    .unwrap();
    let (_, want) = rms_gradient(&dy, &x, &w, &rms(&x, &w, 1e-6, 0.0).1, 0.0);
    close("dw", &get(&dw, DType::F32), &want, 5e-6);
}

shapes! {
    fn layer_norm_equals_its_definition(queue; rows in 0usize..5, size in 2usize..300, types in 0usize..4, with_bias in proptest::bool::ANY; 10 cases) {
        let (t, w_type) = WEIGHTS[types];
        let (x, w, b, dy) = (random(rows * size, t, 1), random(size, w_type, 2), random(size, w_type, 3), random(rows * size, t, 4));
        // A mean far from 0: one pass over x² would lose it.
        let x: Vec<f64> = x.iter().map(|x| round(x + 8.0, t)).collect();
        let (xs, ws, bs, dys) = (put(queue, &x, t), put(queue, &w, w_type), put(queue, &b, w_type), put(queue, &dy, t));
        let eps = 1e-5f32;
        let (mut want_y, mut want_stats, mut want_dx) = (Vec::new(), Vec::new(), Vec::new());
        let mut want_dw = vec![0.0; 2 * size];
        for (x, dy) in x.chunks(size).zip(dy.chunks(size)) {
            let n = size as f64;
            let mean = x.iter().sum::<f64>() / n;
            let r = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + f64::from(eps)).sqrt();
            let hat: Vec<f64> = x.iter().map(|x| (x - mean) * r).collect();
            want_y.extend(hat.iter().zip(&w).zip(&b).map(|((h, w), b)| h * w + if with_bias { *b } else { 0.0 }));
            want_stats.extend([mean, r]);
            let g: Vec<f64> = dy.iter().zip(&w).map(|(d, w)| d * w).collect();
            let level = g.iter().sum::<f64>() / n;
            let along = g.iter().zip(&hat).map(|(g, h)| g * h).sum::<f64>() / n;
            want_dx.extend(g.iter().zip(&hat).map(|(g, h)| r * (g - level - h * along)));
            for c in 0..size {
                want_dw[c] += dy[c] * hat[c];
                want_dw[size + c] += dy[c];
            }
        }
        let (mut y, mut stats) = (room(queue, rows * size, t), room(queue, 2 * rows, DType::F32));
        let bias = with_bias.then(|| bs.slice(w_type));
        layer_norm::forward(queue, y.slice_mut(t), stats.slice_mut(DType::F32), xs.slice(t), ws.slice(w_type), bias, eps).unwrap();
        // In f32 the mean of 8 is known to 8 · 2^-24 only.
        let slack = 4.0 * tolerance(t);
        close("y", &get(&y, t), &want_y, slack);
        close("stats", &get(&stats, DType::F32), &want_stats, 4.0 * tolerance(DType::F32));

        let naive = room(queue, rows * size, t);
        let d = defines(&[("T", t.name()), ("W", w_type.name()), ("LANES", "32"), ("PACKS", "2")]);
        let args = [Arg::Ptr(naive.ptr()), Arg::Ptr(stats.ptr()), Arg::Ptr(xs.ptr()), Arg::Ptr(ws.ptr()), bias.map_or(Arg::U64(0), |b| b.arg()), Arg::F32(eps), Arg::U32(rows as u32), Arg::U32(size as u32)];
        queue.launch(&LAYER_NORM, "layer_norm_forward_naive", &d, Shape::line(rows.div_ceil(128), 128), &args).unwrap();
        close("naive y", &get(&naive, t), &want_y, slack);

        let (mut dx, mut dw) = (room(queue, rows * size, t), queue.zeros("a test", 2 * size, DType::F32).unwrap());
        layer_norm::backward(queue, dx.slice_mut(t), Some(dw.slice_mut(DType::F32)), dys.slice(t), xs.slice(t), ws.slice(w_type), stats.slice(DType::F32)).unwrap();
        if size > 8 {
            close("dx", &get(&dx, t), &want_dx, 2.0 * slack);
        }
        close("dw", &get(&dw, DType::F32), &want_dw, 1e-5);
    }
}
