//! What is bound by memory: norms, gated units, rotations, embeddings, casts, dequantisation and the optimizer.

use planish_cuda::DType;
use planish_cuda::ops::glu::{self, Act};
use planish_cuda::ops::rms_norm::{self, RmsNorm};
use planish_cuda::ops::rope::{self, Heads};
use planish_cuda::ops::{Runs, adamw, cast, elementwise, embedding, grad_norm, nf4};

use super::Entry;
use super::item::{Need, Work, ids, item, launch};

const T: DType = DType::BF16;
const F32: DType = DType::F32;
const U32: DType = DType::U32;

pub(super) fn entries(emulated: bool) -> Vec<Entry> {
    let pick = |card: usize, tiny: usize| if emulated { tiny } else { card };
    let (tokens, hidden) = (pick(32_768, 6), pick(4096, 64));
    let mut all = Vec::from(swiglu(pick(8192, 6), pick(16_384, 96)));
    all.extend(norm(tokens, hidden));
    all.push(dequantise(pick(1 << 28, 1 << 10)));
    all.push(adam(pick(1 << 27, 1 << 10)));
    all.push(adam8(pick(1 << 27, 1 << 10)));
    all.push(squares(pick(1 << 28, 1 << 10)));
    all.push(rotation(tokens, pick(32, 2), pick(128, 32)));
    all.extend(table(tokens, hidden, pick(131_072, 100)));
    all.extend(casts(pick(1 << 27, 1 << 10)));
    all.push(sum(pick(1 << 27, 1 << 10)));
    all
}

/// y = silu(gate) up: 3 tensors forward, 5 backward.
fn swiglu(rows: usize, width: usize) -> [Entry; 3] {
    let n = rows * width;
    let shape = format!("{rows} x {width}, bf16");
    let bytes = |tensors: usize| Work::Bytes((2 * n * tensors) as f64);
    let needs = [Need::zeros(n, T), Need::half(n), Need::half(n)];
    let forward = item("swiglu/forward", shape.clone(), bytes(3), needs, move |_, [mut y, gate, up]| {
        launch(move |queue| glu::forward(queue, Act::Silu, y.slice_mut(T), gate.slice(T), up.slice(T)))
    });
    let needs = [Need::zeros(n, T), Need::zeros(n, T), Need::half(n), Need::half(n), Need::half(n)];
    let backward = item("swiglu/backward", shape.clone(), bytes(5), needs, |_, [mut dgate, mut dup, dy, gate, up]| {
        launch(move |queue| {
            let (dgate, dup) = (dgate.slice_mut(T), dup.slice_mut(T));
            glu::backward(queue, Act::Silu, dgate, dup, dy.slice(T), gate.slice(T), up.slice(T))
        })
    });
    let needs = [Need::zeros(n, T), Need::zeros(n, T), Need::zeros(n, T), Need::half(n), Need::half(n), Need::half(n)];
    let both = item("swiglu/both", shape, bytes(8), needs, |_, [mut y, mut dgate, mut dup, dy, gate, up]| {
        launch(move |queue| {
            let (gate, up) = (gate.slice(T), up.slice(T));
            glu::forward(queue, Act::Silu, y.slice_mut(T), gate, up)?;
            glu::backward(queue, Act::Silu, dgate.slice_mut(T), dup.slice_mut(T), dy.slice(T), gate, up)
        })
    });
    [forward, backward, both]
}

/// RMSNorm: 2 tensors forward, 3 backward, where the weight is frozen and where it is trained.
fn norm(rows: usize, width: usize) -> [Entry; 3] {
    let n = rows * width;
    let shape = format!("{rows} x {width}, bf16");
    let norm = RmsNorm { eps: 1e-6, offset: 0.0 };
    let bytes = |tensors: usize| Work::Bytes((2 * n * tensors) as f64);
    let needs = [Need::zeros(n, T), Need::zeros(rows, F32), Need::half(n), Need::half(width)];
    let forward = item("rms_norm/forward", shape.clone(), bytes(2), needs, move |_, [mut y, mut r, x, w]| {
        launch(move |queue| {
            rms_norm::forward(queue, y.slice_mut(T), r.slice_mut(F32), x.slice(T), w.slice(T), None, norm)
        })
    });
    let backward = |name: &str, trained: bool, shape: String| {
        let needs = [
            Need::zeros(n, T),
            Need::zeros(width, F32),
            Need::half(n),
            Need::half(n),
            Need::half(width),
            Need::normal(rows, F32),
        ];
        item(name, shape, bytes(3), needs, move |_, [mut dx, mut dw, dy, x, w, r]| {
            launch(move |queue| {
                let dw = trained.then(|| dw.slice_mut(F32));
                let (dy, x, w, r) = (dy.slice(T), x.slice(T), w.slice(T), r.slice(F32));
                rms_norm::backward(queue, dx.slice_mut(T), dw, dy, x, w, r, None, norm)
            })
        })
    };
    let frozen = format!("{shape}, no gradient of the weight");
    [forward, backward("rms_norm/backward", true, shape), backward("rms_norm/backward_frozen", false, frozen)]
}

/// NF4 in blocks of 64 to bf16.
fn dequantise(n: usize) -> Entry {
    let bytes = n as f64 * (0.5 + 2.0 + 4.0 / 64.0);
    let needs = [Need::zeros(n, T), Need::bytes(n / 2), Need::normal(n / 64, F32)];
    item("nf4/dequantise", format!("{n} elements to bf16"), Work::Bytes(bytes), needs, |_, [mut y, packed, absmax]| {
        launch(move |queue| {
            let scales = nf4::Scales::Plain(absmax.slice(F32));
            nf4::dequantise(queue, y.slice_mut(T), packed.slice(DType::U8), scales, 64)
        })
    })
}

/// AdamW with f32 masters of bf16 weights: 4 f32 read, 3 written, and the weight.
fn adam(n: usize) -> Entry {
    let needs = [
        Need::normal(n, F32).times(0.02),
        Need::zeros(n, T),
        Need::zeros(n, F32),
        Need::zeros(n, F32),
        Need::normal(n, F32).times(1e-3),
    ];
    let shape = format!("{n} elements, f32 masters of bf16");
    item("adamw", shape, Work::Bytes(30.0 * n as f64), needs, |_, [mut p, mut weight, mut m, mut v, g]| {
        let settings = adamw::AdamW { learning_rate: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        launch(move |queue| {
            let of = adamw::Parameter {
                p: p.slice_mut(F32),
                weight: Some(weight.slice_mut(T)),
                m: m.slice_mut(F32),
                v: v.slice_mut(F32),
                g: g.slice(F32),
            };
            adamw::step(queue, &[(of, settings.update(10, 1.0, None))], None)
        })
    })
}

/// AdamW with state in 8 bits and f32 masters of bf16 weights: 2 f32 read, 1 written, 2 bytes read and written, the weight.
fn adam8(n: usize) -> Entry {
    let blocks = n.div_ceil(adamw::BLOCK);
    let needs = [
        Need::normal(n, F32).times(0.02),
        Need::zeros(n, T),
        Need::bytes(n),
        Need::zeros(blocks, F32),
        Need::bytes(n),
        Need::zeros(blocks, F32),
        Need::normal(n, F32).times(1e-3),
        // Codes that are all alike cost what others do.
        Need::zeros(2 * adamw::BLOCK, F32),
    ];
    let shape = format!("{n} elements, f32 masters of bf16");
    let work = Work::Bytes(18.0 * n as f64);
    item(
        "adamw8",
        shape,
        work,
        needs,
        |_, [mut p, mut weight, mut m, mut m_largest, mut v, mut v_largest, g, codes]| {
            let settings =
                adamw::AdamW { learning_rate: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
            launch(move |queue| {
                let of = adamw::Parameter8 {
                    p: p.slice_mut(F32),
                    weight: Some(weight.slice_mut(T)),
                    m: [m.slice_mut(DType::U8), m_largest.slice_mut(F32)],
                    v: [v.slice_mut(DType::U8), v_largest.slice_mut(F32)],
                    g: g.slice(F32),
                    codes: codes.slice(F32),
                };
                adamw::step8(queue, of, &settings.update8(10, 1.0))
            })
        },
    )
}

/// Σ g² of f32 gradients.
fn squares(n: usize) -> Entry {
    let needs = [Need::zeros(1, DType::F64), Need::normal(n, F32)];
    item("grad_norm", format!("{n} elements, f32"), Work::Bytes(4.0 * n as f64), needs, |_, [mut sum, g]| {
        launch(move |queue| grad_norm::add_squares(queue, sum.slice_mut(DType::F64), g.slice(F32)))
    })
}

/// Rotary embedding in place.
fn rotation(tokens: usize, heads: usize, size: usize) -> Entry {
    let (n, half) = (tokens * heads * size, size / 2);
    let bytes = (4 * n + 8 * tokens * half) as f64;
    let needs = [Need::half(n), Need::normal(tokens * half, F32), Need::normal(tokens * half, F32)];
    let shape = format!("{tokens} x {heads} x {size}, bf16");
    // Turned by any numbers the heads would grow without end.
    let needs = needs.map(|need| need.times(0.5));
    item("rope", shape, Work::Bytes(bytes), needs, move |_, [mut x, cos, sin]| {
        let of = Heads { heads, size, half };
        launch(move |queue| rope::turn_in_place(queue, x.slice_mut(T), cos.slice(F32), sin.slice(F32), of, false))
    })
}

/// Rows of a table by token id, and their gradient: a row of the table's is read and written once for each token that
/// there is.
fn table(tokens: usize, width: usize, vocabulary: usize) -> [Entry; 2] {
    let n = tokens * width;
    let shape = format!("{tokens} tokens of {vocabulary} x {width}, bf16");
    let needs = [Need::zeros(n, T), Need::half(vocabulary * width), Need::ids(tokens, vocabulary)];
    let bytes = Work::Bytes(4.0 * n as f64);
    let forward = item("embedding/forward", shape.clone(), bytes, needs, move |_, [mut out, table, at]| {
        launch(move |queue| embedding::forward(queue, out.slice_mut(T), table.slice(T), at.slice(U32), width))
    });
    let needs = [Need::zeros(vocabulary * width, F32), Need::half(n)];
    let distinct = {
        let mut all = ids(tokens, vocabulary);
        all.sort_unstable();
        all.dedup();
        all.len()
    };
    let bytes = Work::Bytes((2 * n + 8 * distinct * width) as f64);
    let backward = item("embedding/backward", shape, bytes, needs, move |queue, [mut dtable, dout]| {
        let runs = Runs::new(queue, &ids(tokens, vocabulary))?;
        launch(move |queue| embedding::backward(queue, dtable.slice_mut(F32), dout.slice(T), &runs, width))
    });
    [forward, backward]
}

fn casts(n: usize) -> [Entry; 2] {
    [("cast/f32_to_bf16", F32, T), ("cast/bf16_to_f32", T, F32)].map(|(name, from, to)| {
        let needs = [Need::zeros(n, to), Need::normal(n, from)];
        item(name, format!("{n} elements"), Work::Bytes(6.0 * n as f64), needs, move |_, [mut y, x]| {
            launch(move |queue| cast::cast(queue, y.slice_mut(to), x.slice(from)))
        })
    })
}

/// x + y: a residual.
fn sum(n: usize) -> Entry {
    let needs = [Need::zeros(n, T), Need::half(n), Need::half(n)];
    item("add", format!("{n} elements, bf16"), Work::Bytes(6.0 * n as f64), needs, |_, [mut z, x, y]| {
        launch(move |queue| {
            elementwise::binary(queue, elementwise::Binary::Add, z.slice_mut(T), x.slice(T), y.slice(T))
        })
    })
}
