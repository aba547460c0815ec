//! Matrix products: squares in all layouts, a linear map of few rows, as decoding has them, and one with a low-rank update.

use planish_cuda::DType;
use planish_cuda::memory::DeviceBuffer;
use planish_cuda::ops::lora_linear::{self, Lora};
use planish_cuda::ops::matmul::{Epilogue, Layout, Term, matmul};

use super::Entry;
use super::item::{Need, Work, item, launch};

const T: DType = DType::BF16;
const F32: DType = DType::F32;

pub(super) fn entries(emulated: bool) -> Vec<Entry> {
    let sizes: &[usize] = if emulated { &[64] } else { &[4096, 8192] };
    let layouts = [
        ("nt", Layout::FORWARD),
        ("nn", Layout::INPUT_GRADIENT),
        ("tn", Layout::WEIGHT_GRADIENT),
        ("tt", Layout { a_transposed: true, b_transposed: false }),
    ];
    let mut all = Vec::new();
    for &n in sizes {
        all.extend(layouts.map(|(name, layout)| square(&format!("gemm/{name}/{n}"), n, layout)));
    }
    let (rows, input, output) = if emulated { (24, 64, 96) } else { (8192, 4096, 14336) };
    for few in if emulated { [1, 4] } else { [1, 64] } {
        all.push(few_rows(few, input, 2 * output));
    }
    all.extend(lora(rows, input, output, if emulated { 8 } else { 16 }));
    all
}

/// C = A B of squares; C is bf16, but for the gradient of a weight f32, which is added to.
pub(super) fn square(name: &str, n: usize, layout: Layout) -> Entry {
    let gradient = layout == Layout::WEIGHT_GRADIENT;
    let of = if gradient { F32 } else { T };
    let shape = format!("{n} x {n} x {n}, bf16{}", if gradient { ", added to f32" } else { "" });
    let needs = [Need::zeros(n * n, of), Need::half(n * n), Need::half(n * n)];
    item(name, shape, Work::Flops(2.0 * (n as f64).powi(3)), needs, move |_, [mut c, a, b]| {
        launch(move |queue| {
            let term = Term { a: a.slice(T), b: b.slice(T), depth: n };
            matmul(queue, c.slice_mut(of), [n, n], layout, &[term], Epilogue { add: gradient, ..Epilogue::default() })
        })
    })
}

/// y = x Wᵀ of a few rows: bound by reading W.
fn few_rows(rows: usize, input: usize, output: usize) -> Entry {
    let shape = format!("{rows} x {input} x {output}, bf16");
    let needs = [Need::zeros(rows * output, T), Need::half(rows * input), Need::half(output * input)];
    let bytes = 2.0 * (rows * (input + output) + input * output) as f64;
    item(format!("gemm/rows/{rows}"), shape, Work::Bytes(bytes), needs, move |_, [mut y, x, w]| {
        launch(move |queue| {
            let term = Term { a: x.slice(T), b: w.slice(T), depth: input };
            matmul(queue, y.slice_mut(T), [rows, output], Layout::FORWARD, &[term], Epilogue::default())
        })
    })
}

/// y = x Wᵀ + s (x Aᵀ) Bᵀ, and its gradients of x, A and B.
fn lora(rows: usize, input: usize, output: usize, rank: usize) -> [Entry; 2] {
    let shape = format!("{rows} x {input} x {output}, rank {rank}, bf16");
    let (base, update) = (2.0 * (rows * input * output) as f64, 2.0 * (rows * rank * (input + output)) as f64);
    let needs = [
        Need::zeros(rows * output, T),
        Need::zeros(rows * rank, T),
        Need::half(rows * input),
        Need::half(output * input).times(0.02),
        Need::half(rank * input).times(0.02),
        Need::half(output * rank).times(0.02),
    ];
    let name = "lora_linear/forward";
    let forward = item(name, shape.clone(), Work::Flops(base + update), needs, move |_, [mut y, mut h, x, w, a, b]| {
        launch(move |queue| {
            let (y, h, x) = (y.slice_mut(T), h.slice_mut(T), x.slice(T));
            lora_linear::forward(queue, y, h, x, x, w.slice(T), None, of(&a, &b, rank), input)
        })
    });
    let needs = [
        Need::zeros(rows * input, T),
        Need::zeros(rank * input, F32),
        Need::zeros(output * rank, F32),
        Need::zeros(rows * rank, T),
        Need::half(rows * output),
        Need::half(rows * input),
        Need::half(rows * rank),
        Need::half(output * input).times(0.02),
        Need::half(rank * input).times(0.02),
        Need::half(output * rank).times(0.02),
    ];
    // Twice the update: its gradients, and what of dx comes through it.
    let work = Work::Flops(base + 2.0 * update);
    let backward =
        item("lora_linear/backward", shape, work, needs, move |_, [mut dx, mut da, mut db, mut u, rest @ ..]| {
            let [dy, x, h, w, a, b] = rest;
            launch(move |queue| {
                let (to_a, to_b) = (Some(da.slice_mut(F32)), Some(db.slice_mut(F32)));
                let (dx, u) = (Some(dx.slice_mut(T)), u.slice_mut(T));
                let (dy, x, h) = (dy.slice(T), x.slice(T), h.slice(T));
                lora_linear::backward(queue, dx, to_a, to_b, u, dy, x, h, w.slice(T), of(&a, &b, rank), input)
            })
        });
    [forward, backward]
}

fn of<'a>(a: &'a DeviceBuffer, b: &'a DeviceBuffer, rank: usize) -> Lora<'a> {
    Lora { a: a.slice(T), b: b.slice(T), scale: 2.0, rank }
}
