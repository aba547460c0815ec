//! Ops on rows and elements that compute something: norms, softmax, rotations, gates, functions.

use planish_autograd::ops::{activation, glu, layer_norm, rms_norm, rope, softmax, unary};
use planish_autograd::{Result, Var};
use planish_tensor::{DType, Tensor};

use super::case::{Case, Input, Kind, Make, Rounding, Work};
use super::sizes::Sizes;

/// The cases of an op of this file.
pub(super) fn cases(name: &str) -> Option<Make> {
    Some(match name {
        "rms_norm" => rms_norms,
        "layer_norm" => layer_norms,
        "softmax" => |s| softmaxes(s, &[("", softmax::softmax)]),
        "log_softmax" => |s| softmaxes(s, &[("", softmax::log_softmax)]),
        "logsumexp" => |s| softmaxes(s, &[("", softmax::logsumexp)]),
        "rope" => ropes,
        "swiglu" => |s| gates(s, &[("", glu::swiglu)]),
        "geglu" => |s| gates(s, &[("erf", glu::geglu), ("tanh", glu::geglu_tanh)]),
        "silu" => |s| functions(s, &[("", activation::silu)], |x| x),
        "gelu" => |s| functions(s, &[("erf", activation::gelu), ("tanh", activation::gelu_tanh)], |x| x),
        "relu" => relus,
        "exp" => |s| functions(s, &[("", unary::exp)], |x| x),
        "ln" => |s| functions(s, &[("", unary::ln)], |x| x.abs() + 0.1),
        "sqrt" => |s| functions(s, &[("", unary::sqrt)], |x| x.abs() + 0.1),
        "tanh" => |s| functions(s, &[("", unary::tanh)], |x| x),
        "sigmoid" => |s| functions(s, &[("", unary::sigmoid)], |x| x),
        "softcap" => |s| functions(s, &[("", |x: &Var| unary::softcap(x, 2.0))], |x| x),
        _ => return None,
    })
}

type OneInput = (&'static str, fn(&Var) -> Result<Var>);
type TwoInputs = (&'static str, fn(&Var, &Var) -> Result<Var>);

/// Elementary functions are polynomials of a few roundings, after a reduction of their argument; slopes
/// combine two of them.
const FUNCTION: Rounding = Rounding::Terms(16);

fn activation(tensor: Tensor) -> Input {
    Input { tensor, kind: Kind::Activation }
}

/// Bytes of f32 tensors of this many elements.
fn bytes(elements: usize) -> f64 {
    4.0 * elements as f64
}

/// A row is summed twice (the square of the norm, and backward its product with dy); dW is summed over
/// the tokens.
fn norms(s: &Sizes) -> (Vec<usize>, Rounding, Work) {
    let elements = s.tokens * s.hidden;
    let work = Work::Bytes(2.0 * bytes(elements), 3.0 * bytes(elements));
    (vec![s.tokens, s.hidden], Rounding::Terms(s.hidden + s.tokens), work)
}

fn rms_norms(s: &Sizes) -> Result<Vec<Case>> {
    let case = |(variant, dtype, offset): (&'static str, DType, f64)| {
        let (dims, terms, work) = norms(s);
        let weight = s.normal(2, &dims[1..])?.to_dtype(dtype)?;
        let inputs = vec![activation(s.normal(1, &dims)?), Input { tensor: weight, kind: Kind::Weight }];
        Ok(Case::new(variant, inputs, terms, work, move |v| rms_norm::rms_norm(&v[0], &v[1], 1e-5, offset)))
    };
    let apart = [("f32", DType::F32, 0.0), ("bf16, offset 1", DType::BF16, 1.0)].into_iter().map(case);
    apart.chain([added_norm(s)]).collect()
}

/// With an addition before it; the sum's own consumers give a gradient too.
fn added_norm(s: &Sizes) -> Result<Case> {
    let (dims, terms, _) = norms(s);
    // Backward is timed for the norm alone, whose sum nothing else reads.
    let work = Work::Bytes(4.0 * bytes(s.tokens * s.hidden), 3.0 * bytes(s.tokens * s.hidden));
    let weight = Input { tensor: s.normal(2, &dims[1..])?, kind: Kind::Weight };
    let inputs = vec![activation(s.normal(1, &dims)?), activation(s.normal(3, &dims)?), weight];
    Ok(Case::of_several("after an addition", inputs, terms, work, |v| {
        let (sum, y) = rms_norm::rms_norm_added(&v[0], &v[1], &v[2], 1e-5, 0.0)?;
        Ok(vec![y, sum])
    }))
}

fn layer_norms(s: &Sizes) -> Result<Vec<Case>> {
    let (dims, terms, work) = norms(s);
    let parameter =
        |seed| Ok::<_, planish_tensor::Error>(Input { tensor: s.normal(seed, &dims[1..])?, kind: Kind::Weight });
    let inputs = vec![activation(s.normal(1, &dims)?), parameter(2)?, parameter(3)?];
    Ok(vec![Case::new("", inputs, terms, work, |v| layer_norm::layer_norm(&v[0], &v[1], Some(&v[2]), 1e-5))])
}

/// A sum over the row.
fn softmaxes(s: &Sizes, ops: &[OneInput]) -> Result<Vec<Case>> {
    let case = |&(variant, op): &OneInput| {
        let inputs = vec![activation(s.normal(1, &[s.tokens, s.mlp])?)];
        let moved = bytes(s.tokens * s.mlp);
        let work = Work::Bytes(2.0 * moved, 3.0 * moved);
        Ok(Case::new(variant, inputs, Rounding::Terms(s.mlp), work, move |v| op(&v[0])))
    };
    ops.iter().map(case).collect()
}

/// Two products and their sum, and the tables' own roundings, which both sides share.
fn ropes(s: &Sizes) -> Result<Vec<Case>> {
    let (heads, size) = (s.heads + s.kv_heads, s.head);
    let table = |f: fn(f64) -> f64| {
        let angle = |i: usize| (i / (size / 2)) as f64 * 1e5_f64.powf(-((i % (size / 2)) as f64) / (size / 2) as f64);
        let values: Vec<f32> = (0..s.tokens * size / 2).map(|i| f(angle(i)) as f32).collect();
        Tensor::from_vec(values, [s.tokens, size / 2])
    };
    let tensor = |f| Ok::<_, planish_tensor::Error>(Input { tensor: table(f)?, kind: Kind::Frozen });
    let inputs = vec![activation(s.normal(1, &[s.tokens, heads, size])?), tensor(f64::cos)?, tensor(f64::sin)?];
    let moved = 2.0 * bytes(s.tokens * heads * size);
    let run = |v: &[Var]| rope::rope(&v[0], v[1].value(), v[2].value());
    Ok(vec![Case::new("", inputs, Rounding::Terms(4), Work::Bytes(moved, moved), run)])
}

fn gates(s: &Sizes, ops: &[TwoInputs]) -> Result<Vec<Case>> {
    let case = |&(variant, op): &TwoInputs| {
        let dims = [s.tokens, s.mlp];
        let inputs = vec![activation(s.normal(1, &dims)?), activation(s.normal(2, &dims)?)];
        let moved = bytes(s.tokens * s.mlp);
        let work = Work::Bytes(3.0 * moved, 5.0 * moved);
        Ok(Case::new(variant, inputs, FUNCTION, work, move |v| op(&v[0], &v[1])))
    };
    ops.iter().map(case).collect()
}

fn functions(s: &Sizes, ops: &[OneInput], domain: fn(f64) -> f64) -> Result<Vec<Case>> {
    let case = |&(variant, op): &OneInput| {
        let inputs = vec![activation(s.map(1, &[s.tokens, s.mlp], domain)?)];
        let moved = bytes(s.tokens * s.mlp);
        let work = Work::Bytes(2.0 * moved, 3.0 * moved);
        Ok(Case::new(variant, inputs, FUNCTION, work, move |v| op(&v[0])))
    };
    ops.iter().map(case).collect()
}

/// It moves numbers or drops them.
fn relus(s: &Sizes) -> Result<Vec<Case>> {
    let exact = |case| Case { rounding: Rounding::Exact, ..case };
    Ok(functions(s, &[("", activation::relu)], |x| x)?.into_iter().map(exact).collect())
}
