//! matmul, linear, lora_linear.

use planish_cuda::driver::Arg;
use planish_cuda::kernels::MATMUL;
use planish_cuda::memory::DeviceBuffer;
use planish_cuda::ops::linear;
use planish_cuda::ops::lora_linear::{self, Lora};
use planish_cuda::ops::matmul::{Epilogue, Layout, Term, matmul};
use planish_cuda::{DType, Queue, Shape};

use crate::shapes;
use crate::support::*;

/// A (m, k) times B (k, n), with B stored (n, k) unless transposed, A (m, k) unless transposed.
fn product(a: &[f64], b: &[f64], [m, n, k]: [usize; 3], layout: Layout) -> Vec<f64> {
    let at_a = |i, x| if layout.a_transposed { a[x * m + i] } else { a[i * k + x] };
    let at_b = |x, j| if layout.b_transposed { b[x * n + j] } else { b[j * k + x] };
    (0..m * n).map(|e| (0..k).map(|x| at_a(e / n, x) * at_b(x, e % n)).sum()).collect()
}

/// The relative error of a sum of k products in f32, in norm, then a rounding to `to`.
fn allowed(k: usize, to: DType) -> f64 {
    2.0f64.powi(-24) * (k as f64).sqrt() * 2.0 + tolerance(to)
}

const LAYOUTS: [Layout; 4] = [
    Layout::FORWARD,
    Layout::INPUT_GRADIENT,
    Layout::WEIGHT_GRADIENT,
    Layout { a_transposed: true, b_transposed: false },
];

fn check(queue: Queue<'_>, [m, n, k, k2]: [usize; 4], layout: Layout, t: DType, to: DType, add: bool) {
    let (a, b, a2, b2) = (random(m * k, t, 1), random(n * k, t, 2), random(m * k2, t, 3), random(n * k2, t, 4));
    let (bias, before) = (random(n, t, 5), random(m * n, to, 6));
    let [pa, pb, pa2, pb2, pbias] = [&a, &b, &a2, &b2, &bias].map(|x| put(queue, x, t));
    let mut c = put(queue, &before, to);
    let terms =
        [Term { a: pa.slice(t), b: pb.slice(t), depth: k }, Term { a: pa2.slice(t), b: pb2.slice(t), depth: k2 }];
    let terms = if k2 == 0 { &terms[..1] } else { &terms };
    let epilogue = Epilogue { alpha: 0.5, bias: Some(pbias.slice(t)), add };
    matmul(queue, c.slice_mut(to), [m, n], layout, terms, epilogue).unwrap();
    let (main, extra) = (product(&a, &b, [m, n, k], layout), product(&a2, &b2, [m, n, k2], layout));
    let want: Vec<f64> =
        (0..m * n).map(|e| 0.5 * (main[e] + extra[e]) + bias[e % n] + if add { before[e] } else { 0.0 }).collect();
    close(&format!("{m}x{n}x{k}+{k2} {layout:?} {t} to {to}"), &get(&c, to), &want, allowed(k + k2, to));
}

shapes! {
    on BOTH;
    fn products_on_tensor_cores(queue; m in 1usize..70, n in 1usize..10, k in 1usize..12, k2 in 0usize..3, layout in 0usize..4, half in proptest::bool::ANY, add in proptest::bool::ANY; 14 cases) {
        let layout = LAYOUTS[layout];
        // Whatever lies along a stored row is a multiple of 8.
        let m = if layout.a_transposed { m.next_multiple_of(8) } else { m };
        let t = if half { DType::F16 } else { DType::BF16 };
        check(queue, [m, 8 * n, 8 * k, 8 * k2], layout, t, if add { DType::F32 } else { t }, add);
    }
}

shapes! {
    fn products_of_any_size_and_type(queue; m in 0usize..20, n in 1usize..20, k in 1usize..40, k2 in 0usize..5, layout in 0usize..4, types in 0usize..3; 10 cases) {
        check(queue, [m, n, k, k2], LAYOUTS[layout], TYPES[types], TYPES[types], false);
    }
}

/// f32 activations and narrower weights, as the engine has them; the plain kernel's tiles have the bits of the naive
/// kernel, however many rows there are.
#[test]
fn the_plain_kernels_tiles_do_not_change_a_bit() {
    let Some(device) = device() else { return };
    let (queue, f32) = (device.queue(), DType::F32);
    for (layout, t) in
        [(Layout::FORWARD, DType::BF16), (Layout::INPUT_GRADIENT, DType::F16), (Layout::WEIGHT_GRADIENT, f32)]
    {
        let (m, n, k, k2) = (70, 67, 37, 5);
        let (a, b, a2, b2) =
            (random(m * k, f32, 1), random(n * k, t, 2), random(m * k2, f32, 3), random(n * k2, f32, 4));
        let [pa, pa2, pb2] = [&a, &a2, &b2].map(|x| put(queue, x, f32));
        let pb = put(queue, &b, t);
        let terms = [
            Term { a: pa.slice(f32), b: pb.slice(t), depth: k },
            Term { a: pa2.slice(f32), b: pb2.slice(f32), depth: k2 },
        ];
        let mut c = room(queue, m * n, f32);
        matmul(queue, c.slice_mut(f32), [m, n], layout, &terms, Epilogue::default()).unwrap();
        let got = get(&c, f32);
        let (main, extra) = (product(&a, &b, [m, n, k], layout), product(&a2, &b2, [m, n, k2], layout));
        let want: Vec<f64> = main.iter().zip(&extra).map(|(a, b)| a + b).collect();
        close(&format!("{layout:?} {t}"), &got, &want, allowed(k + k2, f32));

        let flag = |set: bool| if set { "1" } else { "0" };
        let of = defines(&[
            ("T", "f32"),
            ("O", "f32"),
            ("A_T", flag(layout.a_transposed)),
            ("B_T", flag(layout.b_transposed)),
            ("ADD", "0"),
            ("TB", t.name()),
        ]);
        let lda = |depth: usize| if layout.a_transposed { m } else { depth };
        let ldb = |depth: usize| if layout.b_transposed { n } else { depth };
        let c = room(queue, m * n, f32);
        let mut args: Vec<Arg<'_>> = [&c, &pa, &pb, &pa2, &pb2].map(|x| Arg::Ptr(x.ptr())).to_vec();
        args.extend([Arg::U64(0), Arg::F32(1.0)]);
        args.extend([m, n, k, k2, lda(k), ldb(k), lda(k2), ldb(k2), n].map(|x| Arg::U32(x as u32)));
        queue.launch(&MATMUL, "matmul_naive", &of, Shape::line((m * n).div_ceil(256), 256), &args).unwrap();
        assert_eq!(get(&c, f32), got, "{layout:?} {t}");
    }
    // Law 5 of the plain kernel: 64 rows a block, 16, or one.
    let (rows, n, k) = (70, 66, 33);
    let (x, w) = (put(queue, &random(rows * k, f32, 1), f32), put(queue, &random(n * k, DType::BF16, 2), DType::BF16));
    let of = |start: usize, count: usize| -> Vec<f64> {
        let mut y = room(queue, count * n, f32);
        let x = x.slice(f32).part(start * k, count * k).unwrap();
        linear::forward(queue, y.slice_mut(f32), x, w.slice(DType::BF16), None, k).unwrap();
        get(&y, f32)
    };
    let whole = of(0, rows);
    for (start, count) in [(0, 1), (69, 1), (3, 16), (20, 50)] {
        assert_eq!(of(start, count), whole[start * n..(start + count) * n], "{count} rows from {start}");
    }
}

/// More than a tile in each direction, more steps than stages, more tiles of rows than a band.
#[test]
fn products_of_several_tiles() {
    for capability in [(8, 0), (9, 0)] {
        let Some(device) = device_of(capability) else { return };
        let queue = device.queue();
        for layout in [Layout::FORWARD, Layout::INPUT_GRADIENT, Layout::WEIGHT_GRADIENT] {
            check(queue, [264, 136, 200, 16], layout, DType::BF16, DType::F32, true);
        }
        check(queue, [1100, 72, 16, 0], Layout::FORWARD, DType::BF16, DType::BF16, false);
        check(queue, [17, 136, 520, 8], Layout::FORWARD, DType::BF16, DType::BF16, false);
    }
}

/// The card with the least shared memory: 99 KiB a block.
#[test]
fn both_tiles_fit_ada() {
    let Some(device) = device_of((8, 9)) else { return };
    for m in [8, 130] {
        check(device.queue(), [m, 72, 72, 0], Layout::FORWARD, DType::BF16, DType::BF16, false);
    }
}

/// Law 5: the small tile, the large one and any company give a row the same bits, with mma.sync and with wgmma.
#[test]
fn a_rows_bits_do_not_depend_on_the_batch() {
    for capability in [(8, 0), (9, 0)] {
        let Some(device) = device_of(capability) else { return };
        let (queue, t) = (device.queue(), DType::BF16);
        let (rows, n, k) = (150, 72, 168);
        let (x, w) = (put(queue, &random(rows * k, t, 1), t), put(queue, &random(n * k, t, 2), t));
        let of = |start: usize, count: usize| -> Vec<f64> {
            let mut y = room(queue, count * n, DType::F32);
            let x = x.slice(t).part(start * k, count * k).unwrap();
            linear::forward(queue, y.slice_mut(DType::F32), x, w.slice(t), None, k).unwrap();
            get(&y, DType::F32)
        };
        let whole = of(0, rows);
        for (start, count) in [(0, 1), (149, 1), (3, 17), (20, 32), (7, 130)] {
            assert_eq!(of(start, count), whole[start * n..(start + count) * n], "{count} rows from {start}");
        }
    }
}

fn zeros(queue: Queue<'_>, n: usize) -> DeviceBuffer {
    queue.zeros("a test", n, DType::F32).unwrap()
}

shapes! {
    on BOTH;
    fn linear_and_its_gradients(queue; rows in 1usize..20, output in 1usize..4, input in 1usize..4; 6 cases) {
        let (t, f32, output, input) = (DType::BF16, DType::F32, 8 * output, 8 * input);
        let (x, w, b, dy) = (random(rows * input, t, 1), random(output * input, t, 2), random(output, t, 3), random(rows * output, t, 4));
        let [xs, ws, bs, dys] = [&x, &w, &b, &dy].map(|v| put(queue, v, t));
        let mut y = room(queue, rows * output, t);
        linear::forward(queue, y.slice_mut(t), xs.slice(t), ws.slice(t), Some(bs.slice(t)), input).unwrap();
        let want: Vec<f64> = product(&x, &w, [rows, output, input], Layout::FORWARD).iter().enumerate().map(|(e, y)| y + b[e % output]).collect();
        close("y", &get(&y, t), &want, tolerance(t));
        let (mut dx, mut dw, mut db) = (room(queue, rows * input, t), zeros(queue, output * input), zeros(queue, output));
        linear::backward(queue, Some(dx.slice_mut(t)), Some(dw.slice_mut(f32)), Some(db.slice_mut(f32)), dys.slice(t), xs.slice(t), ws.slice(t), input).unwrap();
        close("dx", &get(&dx, t), &product(&dy, &w, [rows, input, output], Layout::INPUT_GRADIENT), tolerance(t));
        close("dw", &get(&dw, f32), &product(&dy, &x, [output, input, rows], Layout::WEIGHT_GRADIENT), tolerance(f32));
        let want: Vec<f64> = (0..output).map(|c| (0..rows).map(|r| dy[r * output + c]).sum()).collect();
        close("db", &get(&db, f32), &want, tolerance(f32));
    }
}

shapes! {
    fn lora_and_its_gradients(queue; rows in 1usize..40, output in 1usize..6, input in 1usize..6, rank in 1usize..3; 6 cases) {
        let (t, f32, output, input, rank) = (DType::BF16, DType::F32, 8 * output, 8 * input, 8 * rank);
        let scale = 2.0;
        let (x, w, dy) = (random(rows * input, t, 1), random(output * input, t, 2), random(rows * output, t, 3));
        let (a, b) = (random(rank * input, t, 4), random(output * rank, t, 5));
        let [xs, ws, dys, pa, pb, none] = [&x, &w, &dy, &a, &b, &vec![0.0; output * rank]].map(|v| put(queue, v, t));
        let lora = Lora { a: pa.slice(t), b: pb.slice(t), scale, rank };
        let run = |lora| {
            let (mut y, mut h) = (room(queue, rows * output, t), room(queue, rows * rank, t));
            lora_linear::forward(queue, y.slice_mut(t), h.slice_mut(t), xs.slice(t), xs.slice(t), ws.slice(t), None, lora, input).unwrap();
            (get(&y, t), h)
        };
        let (y, h) = run(lora);
        let want_h: Vec<f64> = product(&x, &a, [rows, rank, input], Layout::FORWARD).iter().map(|h| h * f64::from(scale)).collect();
        close("h", &get(&h, t), &want_h, tolerance(t));
        // From h as it was rounded.
        let kept = get(&h, t);
        let (base, update) = (product(&x, &w, [rows, output, input], Layout::FORWARD), product(&kept, &b, [rows, output, rank], Layout::FORWARD));
        close("y", &y, &base.iter().zip(&update).map(|(a, b)| a + b).collect::<Vec<_>>(), tolerance(t));
        // B = 0 is the base, to the bit.
        let mut plain = room(queue, rows * output, t);
        linear::forward(queue, plain.slice_mut(t), xs.slice(t), ws.slice(t), None, input).unwrap();
        assert_eq!(run(Lora { b: none.slice(t), ..lora }).0, get(&plain, t));

        let (mut dx, mut u) = (room(queue, rows * input, t), room(queue, rows * rank, t));
        let (mut da, mut db) = (zeros(queue, rank * input), zeros(queue, output * rank));
        lora_linear::backward(queue, Some(dx.slice_mut(t)), Some(da.slice_mut(f32)), Some(db.slice_mut(f32)), u.slice_mut(t), dys.slice(t), xs.slice(t), h.slice(t), ws.slice(t), lora, input).unwrap();
        let u = get(&u, t);
        let want: Vec<f64> = product(&dy, &b, [rows, rank, output], Layout::INPUT_GRADIENT).iter().map(|u| u * f64::from(scale)).collect();
        close("u", &u, &want, tolerance(t));
        close("da", &get(&da, f32), &product(&u, &x, [rank, input, rows], Layout::WEIGHT_GRADIENT), tolerance(f32));
        close("db", &get(&db, f32), &product(&dy, &kept, [output, rank, rows], Layout::WEIGHT_GRADIENT), tolerance(f32));
        let (base, update) = (product(&dy, &w, [rows, input, output], Layout::INPUT_GRADIENT), product(&u, &a, [rows, input, rank], Layout::INPUT_GRADIENT));
        close("dx", &get(&dx, t), &base.iter().zip(&update).map(|(a, b)| a + b).collect::<Vec<_>>(), tolerance(t));
    }
}

#[test]
fn sizes_that_do_not_agree_are_named() {
    let Some(device) = device() else { return };
    let (queue, t) = (device.queue(), DType::BF16);
    let (a, b, mut c) = (room(queue, 16, t), room(queue, 24, t), room(queue, 6, t));
    let run = |c: &mut DeviceBuffer, depth, to| {
        let term = Term { a: a.slice(t), b: b.slice(t), depth };
        matmul(queue, c.slice_mut(to), [2, 3], Layout::FORWARD, &[term], Epilogue::default()).map_err(|e| e.to_string())
    };
    assert_eq!(run(&mut c, 7, t).unwrap_err(), "matmul: A should have 14 elements, not 16");
    assert!(run(&mut c, 8, DType::U8).unwrap_err().contains("u8"));
    let none = matmul(queue, c.slice_mut(t), [2, 3], Layout::FORWARD, &[], Epilogue::default());
    assert!(none.unwrap_err().to_string().contains("1 or 2"));
}
