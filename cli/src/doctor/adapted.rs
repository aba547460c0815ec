//! What adapters other than plain LoRA compute.

use planish_autograd::ops::block_rotate::block_rotate;
use planish_autograd::ops::cayley::{Cayley, cayley};
use planish_autograd::ops::dora_linear::{Lora, dora_linear, row_norms};
use planish_autograd::ops::lora_embedding::lora_embedding;
use planish_autograd::ops::lstm::lstm;
use planish_autograd::{Result, Var};
use planish_tensor::DType;

use super::case::{Case, Input, Kind, Make, Rounding, Work};
use super::sizes::Sizes;

const RANK: usize = 16;
/// PEFT's block of OFT.
const BLOCK: usize = 32;

/// The cases of an op of this file.
pub(super) fn cases(name: &str) -> Option<Make> {
    Some(match name {
        "dora_linear" => dora_linears,
        "lora_embedding" => lora_embeddings,
        "cayley" => cayleys,
        "block_rotate" => block_rotates,
        "lstm" => lstms,
        _ => return None,
    })
}

/// As a LoRA linear, with the norms' sums of squares over a row.
fn dora_linears(s: &Sizes) -> Result<Vec<Case>> {
    let (out, input, scale) = (s.mlp, s.hidden, 2.0);
    let base = 2.0 * (s.tokens * out * input) as f64;
    let update = 2.0 * (s.tokens * RANK * (out + input)) as f64;
    let norms = 2.0 * (RANK * out * input) as f64;
    let inputs = vec![
        Input { tensor: s.normal(1, &[s.tokens, input])?, kind: Kind::Activation },
        Input { tensor: s.weight(DType::F32, 2, &[out, input])?, kind: Kind::Frozen },
        Input { tensor: s.weight(DType::F32, 3, &[RANK, input])?, kind: Kind::Weight },
        Input { tensor: s.weight(DType::F32, 4, &[out, RANK])?, kind: Kind::Weight },
        Input { tensor: s.map(5, &[out], |x| 1.0 + 0.1 * x)?, kind: Kind::Weight },
    ];
    let terms = Rounding::Terms(out.max(s.tokens) + 2 * input + RANK);
    let work = Work::Flops(base + update + norms, base + 2.0 * update);
    let run = move |v: &[Var]| {
        let norms = row_norms(v[1].value(), v[2].value(), v[3].value(), scale)?;
        let lora = Lora { scale, dropout: None };
        dora_linear(&v[0], &v[1], None, (&v[2], &v[3]), (&v[4], &norms), &lora)
    };
    Ok(vec![Case::new("up, r 16", inputs, terms, work, run)])
}

/// A chain over the rank forward and over the width for dA; repeats of an id add up.
fn lora_embeddings(s: &Sizes) -> Result<Vec<Case>> {
    let ids = s.ids(s.tokens, s.vocabulary);
    let flops = 2.0 * (s.tokens * RANK * s.hidden) as f64;
    let inputs = vec![
        Input { tensor: s.weight(DType::F32, 1, &[s.vocabulary, s.hidden])?, kind: Kind::Frozen },
        Input { tensor: s.normal(2, &[RANK, s.vocabulary])?, kind: Kind::Weight },
        Input { tensor: s.weight(DType::F32, 3, &[s.hidden, RANK])?, kind: Kind::Weight },
    ];
    let terms = Rounding::Terms(s.hidden.max(s.tokens) + RANK);
    let run = move |v: &[Var]| lora_embedding(&v[0], &v[1], &v[2], &ids, 2.0);
    Ok(vec![Case::new("r 16", inputs, terms, Work::Flops(flops, 2.0 * flops), run)])
}

/// Small skew-symmetric matrices, as training leaves them: products of n terms, several deep.
fn cayleys(s: &Sizes) -> Result<Vec<Case>> {
    let case = |(variant, kind, deep): (&'static str, Cayley, usize)| {
        let blocks = s.hidden / BLOCK;
        let free = s.map(1, &[blocks, BLOCK * (BLOCK - 1) / 2], |x| 0.02 * x)?;
        let inputs = vec![Input { tensor: free, kind: Kind::Weight }];
        let terms = Rounding::Terms(deep * BLOCK);
        Ok(Case::new(variant, inputs, terms, Work::None, move |v| cayley(&v[0], BLOCK, kind)))
    };
    [("exact, n 32", Cayley::Exact, 4), ("5 terms, n 32", Cayley::Series(5), 5)].into_iter().map(case).collect()
}

/// An encoder of virtual tokens: a chain over the hidden size, and one over the steps.
fn lstms(s: &Sizes) -> Result<Vec<Case>> {
    let (steps, hidden) = (s.tokens.min(20), s.hidden.min(64));
    let flops = 8.0 * (steps * hidden * hidden) as f64;
    let inputs = vec![
        Input { tensor: s.normal(1, &[steps, 4 * hidden])?, kind: Kind::Activation },
        Input { tensor: s.weight(DType::F32, 2, &[4 * hidden, hidden])?, kind: Kind::Weight },
    ];
    let terms = Rounding::Terms(hidden + steps);
    Ok(vec![Case::new("h 64", inputs, terms, Work::Flops(flops, 2.0 * flops), |v| lstm(&v[0], &v[1], false))])
}

/// A chain over the block forward and for dx, over the tokens for dR.
fn block_rotates(s: &Sizes) -> Result<Vec<Case>> {
    let width = s.hidden / BLOCK * BLOCK;
    let flops = 2.0 * (s.tokens * width * BLOCK) as f64;
    let inputs = vec![
        Input { tensor: s.normal(1, &[s.tokens, width])?, kind: Kind::Activation },
        Input { tensor: s.weight(DType::F32, 2, &[width / BLOCK, BLOCK, BLOCK])?, kind: Kind::Weight },
    ];
    let terms = Rounding::Terms(BLOCK.max(s.tokens));
    Ok(vec![Case::new("n 32", inputs, terms, Work::Flops(flops, 2.0 * flops), |v| block_rotate(&v[0], &v[1]))])
}
