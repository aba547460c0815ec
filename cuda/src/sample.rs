//! A small run of each op, forward and backward, on numbers made here: something to look at in the emulator, or to try
//! a card with.
//!
//! Sizes are those of a small model: 64 tokens, hidden 256, 4 heads over 2 of size 64, vocabulary 1024. Activations
//! are bf16.

use crate::memory::{DeviceBuffer, Slice, SliceMut};
use crate::ops::attention::{self, Attention, CacheSizes, Caches, Segments};
use crate::ops::dropout::{self, Dropout};
use crate::ops::elementwise::{self, Binary};
use crate::ops::glu::{self, Act};
use crate::ops::lm_head::{self, Gradients, LmHead, Output, Rows};
use crate::ops::matmul::{Epilogue, Layout, Term, matmul};
use crate::ops::rms_norm::{self, RmsNorm};
use crate::ops::rope::{self, Heads};
use crate::ops::sampling::{self, Draw, Sampling};
use crate::ops::softmax::{self, Kind};
use crate::ops::unary::{self, Unary};
use crate::ops::{
    Runs, activation, adamw, block_rotate, cast, cayley, choose, combine, copy, dequantise, dora_linear, embedding,
};
use crate::ops::{
    gather, ggml, grad_norm, layer_norm, lm_head_divergence, lm_head_top, lstm, matmul_nf4, matmul_runs, nf4, reduction,
};
use crate::{DType, Queue, Result};

const TOKENS: usize = 64;
const HIDDEN: usize = 256;
const VOCABULARY: usize = 1024;
const T: DType = DType::BF16;
const F32: DType = DType::F32;
const U32: DType = DType::U32;

/// Numbers between -1 and 1, by the golden ratio: no two alike, no pattern along rows.
fn numbers(queue: Queue<'_>, n: usize, dtype: DType) -> Result<DeviceBuffer> {
    let value = |i: usize| ((i as f64 * 0.618_033_988_749_895).fract() * 2.0 - 1.0) as f32;
    if dtype == F32 {
        return queue.upload("a sample", &(0..n).map(value).collect::<Vec<f32>>());
    }
    // The upper half of a single is a bf16.
    queue.upload("a sample", &(0..n).map(|i| (value(i).to_bits() >> 16) as u16).collect::<Vec<u16>>())
}

fn indices(queue: Queue<'_>, n: usize, below: usize) -> Result<DeviceBuffer> {
    queue.upload("a sample", &index(n, below))
}

fn index(n: usize, below: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919) % below) as u32).collect()
}

/// Runs the op of a kernel file once; `false` if there is no such file.
///
/// # Errors
/// Those of the launchers.
pub fn run(queue: Queue<'_>, name: &str) -> Result<bool> {
    let tokens = || numbers(queue, TOKENS * HIDDEN, T);
    let room = |n, dtype| queue.alloc("a sample", n, dtype);
    let zeros = |n| queue.zeros("a sample", n, F32);
    let (x, dy, mut y) = (tokens()?, tokens()?, room(TOKENS * HIDDEN, T)?);
    let (x, dy) = (x.slice(T), dy.slice(T));
    let weight = numbers(queue, HIDDEN, T)?;
    let weight = weight.slice(T);
    match name {
        "rms_norm" => {
            let norm = RmsNorm { eps: 1e-6, offset: 0.0 };
            let (mut r, mut dw) = (room(TOKENS, F32)?, zeros(HIDDEN)?);
            rms_norm::forward(queue, y.slice_mut(T), r.slice_mut(F32), x, weight, None, norm)?;
            let (dx, dw, r) = (y.slice_mut(T), Some(dw.slice_mut(F32)), r.slice(F32));
            rms_norm::backward(queue, dx, dw, dy, x, weight, r, None, norm)?;
        }
        "layer_norm" => {
            let (mut stats, mut dw) = (room(2 * TOKENS, F32)?, zeros(2 * HIDDEN)?);
            layer_norm::forward(queue, y.slice_mut(T), stats.slice_mut(F32), x, weight, None, 1e-5)?;
            let (dx, dw) = (y.slice_mut(T), Some(dw.slice_mut(F32)));
            layer_norm::backward(queue, dx, dw, dy, x, weight, stats.slice(F32))?;
        }
        "glu" => {
            let mut dup = room(TOKENS * HIDDEN, T)?;
            glu::forward(queue, Act::Silu, y.slice_mut(T), x, dy)?;
            glu::backward(queue, Act::Silu, y.slice_mut(T), dup.slice_mut(T), dy, x, dy)?;
        }
        "activation" => {
            activation::forward(queue, Act::Gelu, y.slice_mut(T), x)?;
            activation::backward(queue, Act::Gelu, y.slice_mut(T), dy, x)?;
        }
        "rope" => {
            let of = Heads { heads: HIDDEN / 64, size: 64, half: 32 };
            let (cos, sin) = (numbers(queue, TOKENS * 32, F32)?, numbers(queue, TOKENS * 32, F32)?);
            rope::turn(queue, y.slice_mut(T), x, cos.slice(F32), sin.slice(F32), of, false)?;
        }
        "embedding" => {
            let (table, ids) = (numbers(queue, VOCABULARY * HIDDEN, T)?, indices(queue, TOKENS, VOCABULARY)?);
            embedding::forward(queue, y.slice_mut(T), table.slice(T), ids.slice(U32), HIDDEN)?;
            let (mut dtable, runs) = (zeros(VOCABULARY * HIDDEN)?, Runs::new(queue, &index(TOKENS, VOCABULARY))?);
            embedding::backward(queue, dtable.slice_mut(F32), dy, &runs, HIDDEN)?;
        }
        "combine" => {
            // Two choices of each of half as many tokens.
            let (tokens, weights) = (TOKENS / 2, numbers(queue, TOKENS, F32)?);
            let places = queue.upload("a sample", &(0..TOKENS as u32).rev().collect::<Vec<u32>>())?;
            let of = combine::Choices { weights: weights.slice(F32), places: places.slice(U32), of_token: 2 };
            combine::forward(queue, y.slice_mut(T).part(0, tokens * HIDDEN)?, x, of)?;
            let (mut dparts, mut dw) = (room(TOKENS * HIDDEN, T)?, room(TOKENS, F32)?);
            let (dparts, dw) = (dparts.slice_mut(T), dw.slice_mut(F32));
            combine::backward(queue, Some(dparts), dw, dy.part(0, tokens * HIDDEN)?, x, of)?;
        }
        "choose" => {
            let (scores, mut chosen) = (numbers(queue, TOKENS * 64, F32)?, room(TOKENS * 8, U32)?);
            choose::choose(queue, chosen.slice_mut(U32), scores.slice(F32), None, 64, 8)?;
        }
        "gather" => {
            let (at, mut picked) = (indices(queue, 4 * TOKENS, HIDDEN)?, room(4 * TOKENS, T)?);
            gather::forward(queue, picked.slice_mut(T), x, at.slice(U32), HIDDEN)?;
            let mut dx = zeros(TOKENS * HIDDEN)?;
            gather::backward(queue, dx.slice_mut(F32), picked.slice(T), at.slice(U32), HIDDEN)?;
            let runs = Runs::new(queue, &index(TOKENS, TOKENS / 2))?;
            gather::scatter_add(queue, dx.slice_mut(F32), dy, &runs, HIDDEN)?;
        }
        "softmax" => {
            softmax::forward(queue, Kind::Softmax, y.slice_mut(T), x, HIDDEN)?;
            let mut dx = room(TOKENS * HIDDEN, T)?;
            softmax::backward(queue, Kind::Softmax, dx.slice_mut(T), dy, y.slice(T), HIDDEN)?;
        }
        "elementwise" => {
            elementwise::binary(queue, Binary::Add, y.slice_mut(T), x, dy)?;
            elementwise::axpby(queue, y.slice_mut(T), x, 0.5, 1.0)?;
        }
        "unary" => {
            unary::forward(queue, Unary::Tanh, y.slice_mut(T), x)?;
            unary::backward(queue, Unary::Tanh, y.slice_mut(T), dy, x)?;
        }
        "reduction" => {
            let (mut sums, mut columns) = (room(TOKENS, F32)?, zeros(HIDDEN)?);
            let (mut best, mut at) = (room(TOKENS, F32)?, room(TOKENS, U32)?);
            reduction::sum_rows(queue, sums.slice_mut(F32), x, HIDDEN)?;
            reduction::max_rows(queue, best.slice_mut(F32), at.slice_mut(U32), x, HIDDEN)?;
            reduction::add_columns(queue, columns.slice_mut(F32), x)?;
        }
        "grad_norm" => {
            let mut squares = queue.zeros("a sample", 1, DType::F64)?;
            grad_norm::add_squares(queue, squares.slice_mut(DType::F64), x)?;
        }
        "adamw" => {
            let n = TOKENS * HIDDEN;
            let (mut p, mut m, mut v, g) = (zeros(n)?, zeros(n)?, zeros(n)?, numbers(queue, n, F32)?);
            let settings = adamw::AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
            let update = settings.update(1, 1.0, None);
            let of = adamw::Parameter {
                p: p.slice_mut(F32),
                weight: Some(y.slice_mut(T)),
                m: m.slice_mut(F32),
                v: v.slice_mut(F32),
                g: g.slice(F32),
            };
            adamw::step(queue, &[(of, update)], None)?;
        }
        "copy" => {
            let transposed = |n, m| [(n, 1, m), (m, n, 1)].map(|(size, x, y)| copy::Dim { size, x, y });
            copy::strided(queue, y.slice_mut(T), x, &transposed(HIDDEN, TOKENS))?;
            copy::fill(queue, y.slice_mut(T), 0x3f80)?;
            let mut dx = zeros(TOKENS * HIDDEN)?;
            copy::add(queue, dx.slice_mut(F32), dy, &transposed(HIDDEN, TOKENS))?;
        }
        "cast" => {
            let mut wide = room(TOKENS * HIDDEN, F32)?;
            cast::cast(queue, wide.slice_mut(F32), x)?;
            cast::cast(queue, y.slice_mut(T), wide.slice(F32))?;
        }
        "dora_linear" => {
            // W is (64, 256), the update of rank 8.
            let (a, b) = (numbers(queue, 8 * HIDDEN, F32)?, numbers(queue, TOKENS * 8, F32)?);
            let (mut n, mut g, m) = (room(TOKENS, F32)?, room(TOKENS, F32)?, numbers(queue, TOKENS, F32)?);
            dora_linear::norms(queue, n.slice_mut(F32), x, [a.slice(F32), b.slice(F32)], 0.5)?;
            dora_linear::gains(queue, g.slice_mut(F32), m.slice(F32), n.slice(F32))?;
            dora_linear::columns(queue, y.slice_mut(T), x, g.slice(F32))?;
        }
        "block_rotate" => {
            let sizes = [HIDDEN, 32];
            let (r, mut dr) = (numbers(queue, HIDDEN * 32, F32)?, zeros(HIDDEN * 32)?);
            block_rotate::forward(queue, y.slice_mut(T), x, r.slice(F32), sizes, false)?;
            block_rotate::blocks_add(queue, dr.slice_mut(F32), x, dy, sizes)?;
        }
        "cayley" => {
            let (n, entries) = (16, 4 * (16 * 15 / 2));
            let (q, mut r, mut dq) = (numbers(queue, entries, F32)?, room(4 * n * n, F32)?, room(entries, F32)?);
            cayley::forward(queue, r.slice_mut(F32), q.slice(F32), n, 0)?;
            cayley::backward(queue, dq.slice_mut(F32), r.slice(F32), q.slice(F32), n, 0)?;
        }
        "lstm" => {
            let n = 64;
            let (mut gates, w) = (numbers(queue, 2 * 4 * n, F32)?, numbers(queue, 4 * n * n, F32)?);
            let (mut c, mut h) = (room(2 * n, F32)?, room(2 * n, F32)?);
            let steps = [0, 1].map(|row: usize| lstm::Step { row, before: row.checked_sub(1) });
            for step in steps {
                let rows = [gates.slice_mut(F32), c.slice_mut(F32), h.slice_mut(F32)];
                lstm::step(queue, rows, w.slice(F32), n, step)?;
            }
            let (mut dgates, mut dc, next) = (zeros(2 * 4 * n)?, zeros(n)?, zeros(n)?);
            let from = [gates.slice(F32), c.slice(F32), h.slice(F32), next.slice(F32)];
            lstm::step_backward(queue, [dgates.slice_mut(F32), dc.slice_mut(F32)], from, n, steps[1])?;
        }
        "dropout" => {
            let keys = indices(queue, 2 * TOKENS, 1 << 30)?;
            let mask = Dropout { seed: 1, purpose: 2, step: 0, p: 0.1 };
            dropout::dropout(queue, y.slice_mut(T), x, keys.slice(U32), &mask, HIDDEN)?;
        }
        "nf4" => {
            let packed = queue.upload("a sample", &vec![0x5au8; TOKENS * HIDDEN / 2])?;
            let absmax = numbers(queue, TOKENS * HIDDEN / 64, F32)?;
            let scales = nf4::Scales::Plain(absmax.slice(F32));
            let packed = packed.slice(DType::U8);
            nf4::dequantise(queue, y.slice_mut(T), packed, scales, 64)?;
            nf4::dequantise_each(queue, y.slice_mut(T), &[nf4::Packed { packed, scales }], 64)?;
        }
        "dequantise" => {
            let (blocks, bytes) = (TOKENS * HIDDEN / 64, queue.upload("a sample", &vec![0x5au8; TOKENS * HIDDEN])?);
            let (code, absmax2, mut absmax) =
                (numbers(queue, 256, F32)?, numbers(queue, blocks / 256, F32)?, zeros(blocks)?);
            let all = bytes.slice(DType::U8);
            let (codes, code, absmax2) = (all.part(0, blocks)?, code.slice(F32), absmax2.slice(F32));
            let of = dequantise::Nested { codes, code, absmax: absmax2, block: 256, offset: 0.1 };
            dequantise::scales(queue, absmax.slice_mut(F32), of)?;
            let absmax = absmax.slice(F32);
            dequantise::fp4(queue, y.slice_mut(T), all.part(0, TOKENS * HIDDEN / 2)?, absmax, 64)?;
            dequantise::int8(queue, y.slice_mut(T), all, absmax.part(0, TOKENS)?, HIDDEN)?;
        }
        // The launcher chooses the file by the device.
        "matmul_nf4" | "matmul_nf4_hopper" => {
            let packed = queue.upload("a sample", &vec![0x5au8; HIDDEN * HIDDEN / 2])?;
            let absmax = numbers(queue, HIDDEN * HIDDEN / 64, F32)?;
            let (packed, scales) = (packed.slice(DType::U8), nf4::Scales::Plain(absmax.slice(F32)));
            let weight = matmul_nf4::Weight { packed, scales, block: 64 };
            matmul_nf4::matmul(queue, y.slice_mut(T), [TOKENS, HIDDEN, HIDDEN], x, weight, None)?;
        }
        "ggml" => {
            let kind = ggml::Kind { name: "Q4_K", block: 256, bytes: 144 };
            let blocks = queue.upload("a sample", &vec![0x2au8; TOKENS * HIDDEN / 256 * 144])?;
            ggml::dequantise(queue, y.slice_mut(T), blocks.slice(DType::U8), kind, HIDDEN)?;
            let index = indices(queue, TOKENS, TOKENS)?;
            ggml::take(queue, y.slice_mut(T), blocks.slice(DType::U8), index.slice(U32), kind, HIDDEN)?;
        }
        // The launcher chooses the file by the device.
        "matmul" | "matmul_hopper" | "matmul_rows_hopper" => {
            let square = numbers(queue, HIDDEN * HIDDEN, T)?;
            let mut dw = zeros(HIDDEN * HIDDEN)?;
            let once = |c: SliceMut<'_>, m, layout, a: Slice<'_>, b: Slice<'_>, depth, add| {
                let epilogue = Epilogue { add, ..Epilogue::default() };
                matmul(queue, c, [m, HIDDEN], layout, &[Term { a, b, depth }], epilogue)
            };
            once(y.slice_mut(T), TOKENS, Layout::FORWARD, x, square.slice(T), HIDDEN, false)?;
            once(y.slice_mut(T), TOKENS, Layout::INPUT_GRADIENT, dy, square.slice(T), HIDDEN, false)?;
            once(dw.slice_mut(F32), HIDDEN, Layout::WEIGHT_GRADIENT, dy, x, TOKENS, true)?;
            once(
                y.slice_mut(T).part(0, HIDDEN)?,
                1,
                Layout::FORWARD,
                x.part(0, HIDDEN)?,
                square.slice(T),
                HIDDEN,
                false,
            )?;
        }
        "matmul_runs_hopper" => {
            let square = numbers(queue, HIDDEN * HIDDEN, T)?;
            let rights = [square.slice(T); 3];
            let runs = [0, TOKENS / 8, TOKENS / 2, TOKENS];
            matmul_runs::matmul_runs(queue, y.slice_mut(T), HIDDEN, x, &rights, false, &runs)?;
            matmul_runs::matmul_runs(queue, y.slice_mut(T), HIDDEN, dy, &rights, true, &runs)?;
        }
        "attention" | "attention_hopper" => attention(queue, false)?,
        "attention_wide_hopper" => attention_of(queue, &WIDE, false)?,
        "attention_long" | "attention_long_hopper" => {
            // Room for 1024 keys, of which few are in use: what counts is how many there may be.
            let cache = numbers(queue, 2 * 1024 * HIDDEN / 2, T)?;
            let sizes = CacheSizes { layers: 1, kv_heads: KIND.kv_heads, size: KIND.size };
            let caches = Caches::new(queue, &[cache.slice(T)], sizes)?;
            let of = Segments::cached(queue, &[0, 1], &[0, 1], &[200])?;
            let (q, mut out, mut lse) = (x.part(0, HIDDEN)?, room(HIDDEN, T)?, room(4, F32)?);
            attention::forward_cached(queue, out.slice_mut(T), lse.slice_mut(F32), q, (&caches, 0), &of, &KIND)?;
        }
        "attention_backward" | "attention_backward_hopper" => attention(queue, true)?,
        "attention_scores_hopper" => attention_of(queue, &STORED, true)?,
        "attention_backward_wide_hopper" => attention_of(queue, &WIDE, true)?,
        "lm_head" => head(queue)?,
        "lm_head_divergence" => divergence(queue)?,
        "lm_head_top" => {
            let logits = numbers(queue, 4 * VOCABULARY, F32)?;
            let (mut ids, mut logprobs) = (room(4 * 20, U32)?, room(4 * 20, F32)?);
            let (ids, logprobs) = (ids.slice_mut(U32), logprobs.slice_mut(F32));
            lm_head_top::most_probable(queue, ids, logprobs, logits.slice(F32), VOCABULARY, 20, 0.7)?;
        }
        "sampling" => {
            let (logits, mut chosen) = (numbers(queue, 8 * VOCABULARY, F32)?, room(8, U32)?);
            let draws: Vec<Draw> = (0..8).map(|row| Draw { seed: 1, step: 0, index: row }).collect();
            let draws = queue.upload("a sample", &Draw::words(&draws))?;
            let how = Sampling { temperature: 0.8, top_k: 50, top_p: 0.95, min_p: 0.0 };
            let (chosen, logits) = (chosen.slice_mut(U32), logits.slice(F32));
            sampling::sample(queue, chosen, logits, draws.slice(U32), &how, VOCABULARY)?;
        }
        _ => return Ok(false),
    }
    queue.synchronize()?;
    Ok(true)
}

const KIND: Attention =
    Attention { heads: 4, kv_heads: 2, size: 64, scale: 0.125, causal: true, window: None, softcap: None };

/// Half as many of twice the size.
const STORED: Attention = Attention { heads: 2, kv_heads: 1, size: 128, scale: 0.0884, ..KIND };

/// A quarter as many of four times the size; two share their keys.
const WIDE: Attention = Attention { heads: 2, kv_heads: 1, size: 256, scale: 0.0625, ..KIND };

fn attention(queue: Queue<'_>, backward: bool) -> Result<()> {
    attention_of(queue, &KIND, backward)
}

fn attention_of(queue: Queue<'_>, kind: &Attention, backward: bool) -> Result<()> {
    let (n, kv) = (TOKENS * kind.heads * kind.size, TOKENS * kind.kv_heads * kind.size);
    let of = Segments::packed(queue, &[0, 40, 64], &[0, 40, 64])?;
    let (q, k, v) = (numbers(queue, n, T)?, numbers(queue, kv, T)?, numbers(queue, kv, T)?);
    let [q, k, v] = [&q, &k, &v].map(|buffer| buffer.slice(T));
    let (mut out, mut lse) = (queue.alloc("a sample", n, T)?, queue.alloc("a sample", TOKENS * kind.heads, F32)?);
    attention::forward(queue, out.slice_mut(T), lse.slice_mut(F32), q, k, v, &of, kind)?;
    if !backward {
        return Ok(());
    }
    let mut grads = [n, kv, kv].map(|n| queue.alloc("a sample", n, T));
    let [Ok(dq), Ok(dk), Ok(dv)] = &mut grads else { return grads.into_iter().try_for_each(|g| g.map(drop)) };
    let grads = [dq.slice_mut(T), dk.slice_mut(T), dv.slice_mut(T)];
    attention::backward(queue, grads, q, [q, k, v], out.slice(T), lse.slice(F32), &of, kind)
}

fn divergence(queue: Queue<'_>) -> Result<()> {
    const ROWS: usize = 8;
    let [a, b] = [numbers(queue, ROWS * HIDDEN, T)?, numbers(queue, ROWS * HIDDEN / 2, T)?];
    let weight = numbers(queue, VOCABULARY * HIDDEN, T)?;
    let [half, all] = [weight.slice(T).part(0, VOCABULARY * HIDDEN / 2)?, weight.slice(T)];
    let targets = indices(queue, ROWS, VOCABULARY)?;
    let lse = queue.upload("a sample", &[7.0f32; ROWS])?;
    let head = LmHead::default();
    let of = |hidden, weight| lm_head_divergence::Side {
        of: Rows { hidden, weight, targets: targets.slice(U32) },
        head,
        lse: lse.slice(F32),
    };
    let sides = [of(a.slice(T), all), of(b.slice(T), half)];
    let [mut d, mut g] = [queue.alloc("a sample", ROWS, F32)?, queue.alloc("a sample", ROWS, F32)?];
    lm_head_divergence::forward(queue, [d.slice_mut(F32), g.slice_mut(F32)], sides.each_ref(), 0.5)?;
    let mut dhidden = queue.alloc("a sample", ROWS * HIDDEN, F32)?;
    let to = Gradients { dlogprobs: Some(d.slice(F32)), dhidden: dhidden.slice_mut(F32), dweight: None };
    lm_head_divergence::backward(queue, to, sides.each_ref(), g.slice(F32), 0.5)
}

fn head(queue: Queue<'_>) -> Result<()> {
    const ROWS: usize = 16;
    let (hidden, weight) = (numbers(queue, ROWS * HIDDEN, T)?, numbers(queue, VOCABULARY * HIDDEN, T)?);
    let targets = indices(queue, ROWS, VOCABULARY)?;
    let of = Rows { hidden: hidden.slice(T), weight: weight.slice(T), targets: targets.slice(U32) };
    let mut columns = Vec::new();
    for dtype in [F32, F32, F32, U32] {
        columns.push(queue.alloc("a sample", ROWS, dtype)?);
    }
    let [logprobs, entropy, lse, best] = &mut columns[..] else { unreachable!("four were pushed") };
    let out = Output {
        logprobs: logprobs.slice_mut(F32),
        entropy: Some(entropy.slice_mut(F32)),
        lse: lse.slice_mut(F32),
        best: best.slice_mut(U32),
    };
    lm_head::forward(queue, out, of, &LmHead::default())?;
    let mut dhidden = queue.alloc("a sample", ROWS * HIDDEN, F32)?;
    let to = Gradients { dlogprobs: Some(logprobs.slice(F32)), dhidden: dhidden.slice_mut(F32), dweight: None };
    lm_head::backward(queue, to, lse.slice(F32), of, &LmHead::default())
}
