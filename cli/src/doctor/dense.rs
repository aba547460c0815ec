//! Ops bound by arithmetic: products, attention, the LM head; and the embedding, which is its other half.

use std::sync::Arc;

use planish_autograd::ops::attention::{Attention, Stem, attention, branched};
use planish_autograd::ops::grouped_linear::grouped_linear;
use planish_autograd::ops::lm_head::{LmHead, lm_head};
use planish_autograd::ops::lm_head_divergence::{Divergence, Teacher, lm_head_divergence};
use planish_autograd::ops::lora_linear::{Lora, lora_linear};
use planish_autograd::ops::{embedding, linear};
use planish_autograd::{Result, Var};
use planish_tensor::ops::attention::{CachedPass, KeyValues};
use planish_tensor::quant::{FourBit, FourBitKind, Int8, Panels};
use planish_tensor::{DType, Tensor};

use super::case::{Case, Input, Kind, Make, Rounding, Work};
use super::sizes::Sizes;

/// The cases of an op of this file.
pub(super) fn cases(name: &str) -> Option<Make> {
    Some(match name {
        "linear" => linears,
        "grouped_linear" => grouped_linears,
        "lora_linear" => lora_linears,
        "lm_head" => lm_heads,
        "lm_head_divergence" => lm_head_divergences,
        "attention" => attentions,
        "embedding" => embeddings,
        _ => return None,
    })
}

fn activation(tensor: Tensor) -> Input {
    Input { tensor, kind: Kind::Activation }
}

fn weight(tensor: Tensor) -> Input {
    Input { tensor, kind: Kind::Weight }
}

fn frozen(tensor: Tensor) -> Input {
    Input { tensor, kind: Kind::Frozen }
}

/// A chain over the inputs forward, over the outputs for dx and over the tokens for dW.
fn linears(s: &Sizes) -> Result<Vec<Case>> {
    let shapes = [
        ("q", s.hidden, s.hidden, DType::F32),
        ("k", s.kv_heads * s.head, s.hidden, DType::F32),
        ("up", s.mlp, s.hidden, DType::F32),
        ("down", s.hidden, s.mlp, DType::F32),
        ("up, bf16 weight", s.mlp, s.hidden, DType::BF16),
        ("up, f16 weight", s.mlp, s.hidden, DType::F16),
    ];
    let case = |(variant, out, input, dtype): (&'static str, usize, usize, DType)| {
        let flops = 2.0 * (s.tokens * out * input) as f64;
        let inputs = vec![
            activation(s.normal(1, &[s.tokens, input])?),
            weight(s.weight(dtype, 2, &[out, input])?),
            weight(s.normal(3, &[out])?),
        ];
        let terms = Rounding::Terms(out.max(input).max(s.tokens) + 1);
        Ok(Case::new(variant, inputs, terms, Work::Flops(flops, 2.0 * flops), |v| {
            linear::linear(&v[0], &v[1], Some(&v[2]))
        }))
    };
    let all = shapes.into_iter().map(case).chain(few_rows(s));
    all.collect()
}

/// The head of a decoding step, which reads more than caches hold for a few rows.
fn few_rows(s: &Sizes) -> impl Iterator<Item = Result<Case>> {
    enum As {
        Rows,
        Panels,
        Nf4Panels,
        Int8Panels,
    }
    let shapes = [
        ("head, 1 row", 1, DType::F32, As::Rows),
        ("head, 1 row, bf16", 1, DType::BF16, As::Rows),
        ("head, 3 rows, bf16", 3, DType::BF16, As::Rows),
        ("head, 16 rows, bf16", 16, DType::BF16, As::Rows),
        ("head, 1 row, panels", 1, DType::F32, As::Panels),
        ("head, 1 row, bf16 panels", 1, DType::BF16, As::Panels),
        ("head, 1 row, int8 panels", 1, DType::F32, As::Int8Panels),
        ("head, 1 row, nf4 panels", 1, DType::F32, As::Nf4Panels),
        ("head, 16 rows, panels", 16, DType::F32, As::Panels),
        ("head, 16 rows, bf16 panels", 16, DType::BF16, As::Panels),
        ("head, 16 rows, int8 panels", 16, DType::F32, As::Int8Panels),
        ("head, 16 rows, nf4 panels", 16, DType::F32, As::Nf4Panels),
    ];
    shapes.into_iter().map(|(variant, rows, dtype, kept)| {
        // Units of blocks are whole.
        let hidden = if matches!(kept, As::Rows | As::Panels) { s.hidden } else { s.hidden.next_multiple_of(32) };
        let weight = s.weight(dtype, 2, &[s.vocabulary, hidden])?;
        let weight = match kept {
            As::Rows => weight,
            As::Panels => Tensor::packed(Panels::of(&weight)?),
            As::Nf4Panels => {
                let blocks = FourBit::quantize(&weight, FourBitKind::Nf4, 64, false)?;
                Tensor::packed(Panels::of(&Tensor::packed(blocks))?)
            }
            As::Int8Panels => Tensor::packed(Panels::of(&Tensor::packed(Int8::quantize(&weight)?))?),
        };
        let work = Work::Reads(weight.nbytes() as f64);
        let inputs = vec![frozen(s.normal(1, &[rows, hidden])?), frozen(weight)];
        Ok(Case::new(variant, inputs, Rounding::Terms(hidden + 1), work, |v| linear::linear(&v[0], &v[1], None)))
    })
}

/// As a linear, run by run.
fn grouped_linears(s: &Sizes) -> Result<Vec<Case>> {
    let (out, input) = (s.mlp, s.hidden);
    let case = |(variant, dtype): (&'static str, DType)| {
        let flops = 2.0 * (s.tokens * out * input) as f64;
        let mut inputs = vec![activation(s.normal(1, &[s.tokens, input])?)];
        for run in 0..4 {
            inputs.push(weight(s.weight(dtype, 2 + run, &[out, input])?));
        }
        // One of the runs has no rows.
        let starts = [0, s.tokens / 8, s.tokens / 8, s.tokens / 2, s.tokens];
        let terms = Rounding::Terms(out.max(input).max(s.tokens) + 1);
        Ok(Case::new(variant, inputs, terms, Work::Flops(flops, 2.0 * flops), move |v| {
            grouped_linear(&v[0], &v[1..], &starts)
        }))
    };
    [("up, 4 runs", DType::F32), ("up, 4 runs, bf16 weights", DType::BF16)].into_iter().map(case).collect()
}

/// As a linear, with the update's chains on top.
fn lora_linears(s: &Sizes) -> Result<Vec<Case>> {
    const RANK: usize = 16;
    let case = |(variant, dtype): (&'static str, DType)| {
        let (out, input) = (s.mlp, s.hidden);
        let base_weight = match variant {
            "up, r 16, nf4 base" => {
                let weight = s.weight(DType::F32, 2, &[out, input])?;
                Tensor::packed(FourBit::quantize(&weight, FourBitKind::Nf4, 64, true)?)
            }
            "up, r 16, int8 base" => Tensor::packed(Int8::quantize(&s.weight(DType::F32, 2, &[out, input])?)?),
            _ => s.weight(dtype, 2, &[out, input])?,
        };
        let base = 2.0 * (s.tokens * out * input) as f64;
        let update = 2.0 * (s.tokens * RANK * (out + input)) as f64;
        let inputs = vec![
            activation(s.normal(1, &[s.tokens, input])?),
            frozen(base_weight),
            weight(s.weight(DType::F32, 3, &[RANK, input])?),
            weight(s.weight(DType::F32, 4, &[out, RANK])?),
        ];
        let terms = Rounding::Terms(out.max(s.tokens) + input + RANK);
        // dx of the base; dx, dA and dB of the update.
        let work = Work::Flops(base + update, base + 2.0 * update);
        let lora = Lora { scale: 2.0, dropout: None };
        Ok(Case::new(variant, inputs, terms, work, move |v| lora_linear(&v[0], &v[1], None, &v[2], &v[3], &lora)))
    };
    let cases = [
        ("up, r 16", DType::F32),
        ("up, r 16, bf16 base", DType::BF16),
        ("up, r 16, nf4 base", DType::Packed),
        ("up, r 16, int8 base", DType::Packed),
    ];
    cases.into_iter().map(case).collect()
}

/// A chain over the hidden size for a logit, and one over the vocabulary for its sum and for dhidden.
fn lm_heads(s: &Sizes) -> Result<Vec<Case>> {
    let case = |(variant, dtype, kind): (&'static str, DType, Kind)| {
        let flops = 2.0 * (s.tokens * s.vocabulary * s.hidden) as f64;
        let backward = if kind == Kind::Weight { 3.0 } else { 2.0 };
        let inputs = vec![
            activation(s.normal(1, &[s.tokens, s.hidden])?),
            Input { tensor: s.weight(dtype, 2, &[s.vocabulary, s.hidden])?, kind },
        ];
        let targets = s.ids(s.tokens, s.vocabulary);
        let terms = Rounding::Terms(s.hidden + s.vocabulary);
        Ok(Case::new(variant, inputs, terms, Work::Flops(flops, backward * flops), move |v| {
            Ok(lm_head(&v[0], &v[1], &targets, &LmHead::default())?.logprobs)
        }))
    };
    [("trained", DType::F32, Kind::Weight), ("frozen", DType::F32, Kind::Frozen), ("bf16", DType::BF16, Kind::Frozen)]
        .into_iter()
        .map(case)
        .collect()
}

/// As the LM head, of two models, twice.
fn lm_head_divergences(s: &Sizes) -> Result<Vec<Case>> {
    let case = |(variant, beta, kind): (&'static str, f64, Kind)| {
        let flops = 2.0 * (s.tokens * s.vocabulary * s.hidden) as f64;
        let backward = if kind == Kind::Weight { 4.0 } else { 3.0 };
        let inputs = vec![
            activation(s.normal(1, &[s.tokens, s.hidden])?),
            Input { tensor: s.weight(DType::F32, 2, &[s.vocabulary, s.hidden])?, kind },
            frozen(s.normal(3, &[s.tokens, s.hidden])?),
            frozen(s.weight(DType::F32, 4, &[s.vocabulary, s.hidden])?),
        ];
        let terms = Rounding::Terms(s.hidden + s.vocabulary);
        let what = Divergence { beta, temperature: 1.0 };
        Ok(Case::new(variant, inputs, terms, Work::Flops(4.0 * flops, backward * flops), move |v| {
            let (hidden, weight) = (v[2].value().clone(), v[3].value().clone());
            let teacher = Teacher::Head { hidden, weight, options: LmHead::default() };
            Ok(lm_head_divergence(&v[0], &v[1], &LmHead::default(), &teacher, &what)?.divergence)
        }))
    };
    [
        ("forward KL", 0.0, Kind::Frozen),
        ("reverse KL", 1.0, Kind::Frozen),
        ("Jensen-Shannon, trained", 0.5, Kind::Weight),
    ]
    .into_iter()
    .map(case)
    .collect()
}

/// A score is a chain over the head's size and enters an exponential, which turns its absolute error,
/// some 4 times u a term, into a relative one; then a chain over the keys.
fn attentions(s: &Sizes) -> Result<Vec<Case>> {
    let plain = Attention::causal((s.head as f64).powf(-0.5));
    let case = |(variant, options, shared): (&'static str, Attention, bool)| {
        // Two segments, the first a third of the tokens; or the second goes on from half of the first.
        let first = s.tokens / 3;
        let cu: Arc<[u32]> = [0, first as u32, s.tokens as u32].into();
        let seen = |n: usize| (1..=n).map(|at| at.min(options.window.unwrap_or(n))).sum::<usize>();
        let stem = if shared { first / 2 } else { 0 };
        let stems: Arc<[Option<Stem>]> = [None, shared.then_some(Stem { of: 0, len: stem as u32 })].into();
        let pairs = seen(first) + seen(s.tokens - first + stem) - seen(stem);
        let flops = 4.0 * (pairs * s.heads * s.head) as f64;
        let inputs = vec![
            activation(s.normal(1, &[s.tokens, s.heads, s.head])?),
            activation(s.normal(2, &[s.tokens, s.kv_heads, s.head])?),
            activation(s.normal(3, &[s.tokens, s.kv_heads, s.head])?),
        ];
        let terms = Rounding::Terms(4 * s.head + s.tokens);
        let case = Case::new(variant, inputs, terms, Work::Flops(flops, 2.5 * flops), move |v| {
            branched(&v[0], &v[1], &v[2], &cu, &cu, &stems, &options)
        });
        Ok(if shared { case.only_on_cpu("no kernel goes on from another segment's keys yet") } else { case })
    };
    let other = Attention { window: Some(17), softcap: Some(5.0), ..plain };
    [("causal", plain, false), ("window, soft-cap", other, false), ("shared beginning", plain, true)]
        .into_iter()
        .map(case)
        .chain([over_caches(s), over_a_long_cache(s), large_heads(s)])
        .collect()
}

/// As decoding goes on behind many keys: a query over a cache so long that a device shares its keys out among blocks.
fn over_a_long_cache(s: &Sizes) -> Result<Case> {
    const KEYS: usize = 1100;
    let inputs = vec![
        activation(s.normal(1, &[1, s.heads, s.head])?),
        activation(s.normal(2, &[KEYS, s.kv_heads, s.head])?),
        activation(s.normal(3, &[KEYS, s.kv_heads, s.head])?),
    ];
    let options = Attention::causal((s.head as f64).powf(-0.5));
    let terms = Rounding::Terms(4 * s.head + KEYS);
    Ok(Case::new("over a long cache", inputs, terms, Work::None, move |v| {
        let [q, k, v] = [&v[0], &v[1], &v[2]].map(|var| var.value());
        let &[_, kv_heads, size] = k.dims() else { unreachable!("made above") };
        let mut cache = KeyValues::new(1, kv_heads, size, k.dtype(), k.device());
        let mut pass = CachedPass::new(vec![&mut cache], vec![0], &[0, 1], &[0, KEYS as u32])?;
        pass.append(0, None, [k, v], None)?;
        Ok(Var::constant(pass.attend(0, q, &options)?))
    }))
}

/// Heads of 256, which tensor cores take in smaller pieces.
fn large_heads(s: &Sizes) -> Result<Case> {
    const HEAD: usize = 256;
    let cu: Arc<[u32]> = [0, s.tokens as u32].into();
    let inputs = vec![
        activation(s.normal(1, &[s.tokens, 2, HEAD])?),
        activation(s.normal(2, &[s.tokens, 1, HEAD])?),
        activation(s.normal(3, &[s.tokens, 1, HEAD])?),
    ];
    let options = Attention::causal((HEAD as f64).powf(-0.5));
    let terms = Rounding::Terms(4 * HEAD + s.tokens);
    Ok(Case::new("heads of 256", inputs, terms, Work::None, move |v| {
        attention(&v[0], &v[1], &v[2], &cu, &cu, &options)
    }))
}

/// As decoding: a query, and two, at the ends of what was read before.
fn over_caches(s: &Sizes) -> Result<Case> {
    let (cu_q, cu_k) = ([0, 1, 3].into(), [0, s.tokens as u32 / 3, s.tokens as u32].into());
    let inputs = vec![
        frozen(s.normal(1, &[3, s.heads, s.head])?),
        frozen(s.normal(2, &[s.tokens, s.kv_heads, s.head])?),
        frozen(s.normal(3, &[s.tokens, s.kv_heads, s.head])?),
    ];
    let options = Attention::causal((s.head as f64).powf(-0.5));
    let work = Work::Reads((2 * 4 * s.tokens * s.kv_heads * s.head) as f64);
    let terms = Rounding::Terms(4 * s.head + s.tokens);
    Ok(Case::new("over caches", inputs, terms, work, move |v| attention(&v[0], &v[1], &v[2], &cu_q, &cu_k, &options)))
}

/// Rows are moved forward; backward adds those of one token in order.
fn embeddings(s: &Sizes) -> Result<Vec<Case>> {
    let case = |(variant, dtype): (&'static str, DType)| {
        let ids = s.ids(s.tokens, s.tokens.div_ceil(4));
        let repeats = s.tokens.div_ceil(s.tokens.div_ceil(4));
        let moved = (s.tokens * s.hidden) as f64;
        let read = dtype.size() as f64;
        let inputs = vec![weight(s.weight(dtype, 1, &[s.vocabulary, s.hidden])?)];
        let work = Work::Bytes(moved * (read + 4.0), moved * 12.0);
        Ok(Case::new(variant, inputs, Rounding::Terms(repeats + 1), work, move |v| embedding::embedding(&v[0], &ids)))
    };
    [("f32", DType::F32), ("bf16", DType::BF16)].into_iter().map(case).collect()
}
