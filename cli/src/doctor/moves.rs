//! Ops that move numbers, combine two, or add them up.

use planish_autograd::ops::{
    cast, combine, concat, dropout, elementwise, gather, index_select, reduction, scatter_add, view,
};
use planish_autograd::{Result, Var};
use planish_tensor::rng::{Purpose, Rows, Stream};
use planish_tensor::{DType, Tensor};

use super::case::{Case, Input, Kind, Make, Rounding, Work};
use super::sizes::Sizes;

/// The cases of an op of this file.
pub(super) fn cases(name: &str) -> Option<Make> {
    Some(match name {
        "add" => |s| handed_on(pairs(s, elementwise::add)),
        "sub" => |s| pairs(s, elementwise::sub),
        "mul" => |s| pairs(s, elementwise::mul),
        "div" => |s| pairs(s, elementwise::div),
        // The number itself is rounded too.
        "scale" => |s| one(s, "", Rounding::Terms(2), |x| elementwise::scale(x, 0.3)),
        "add_scalar" => |s| handed_on(one(s, "", Rounding::Terms(2), |x| elementwise::add_scalar(x, 0.3))),
        "dropout" => |s| one(s, "", Rounding::Terms(2), dropped),
        // What f32 holds rounds to the same bf16 from either side.
        "cast" => |s| handed_on(one(s, "to bf16", Rounding::Exact, |x| cast::cast(x, DType::BF16))),
        "sum" => sums,
        "mean" => means,
        "max" => |s| handed_on(one(s, "last axis", Rounding::Exact, |x| reduction::max_axis(x, 1))),
        "argmax" => argmaxes,
        "gather" => gathers,
        "index_select" => selects,
        "scatter_add" => scatters,
        "combine" => combines,
        "concat" => concats,
        "narrow" => |s| seen(s, Rounding::Exact, |x| view::narrow(x, 0, 3, x.dims()[0] / 2)),
        "reshape" => |s| seen(s, Rounding::Exact, |x| view::reshape(x, &[x.dims()[1], x.dims()[0]])),
        "transpose" => |s| seen(s, Rounding::Exact, |x| view::transpose(x, 0, 1)),
        "broadcast_to" => broadcasts,
        _ => return None,
    })
}

fn activation(tensor: Tensor) -> Input {
    Input { tensor, kind: Kind::Activation }
}

/// Bytes of f32 tensors of this many elements.
fn bytes(elements: usize) -> f64 {
    4.0 * elements as f64
}

/// Each result takes four roundings at most: the second slope of a quotient.
fn pairs(s: &Sizes, op: fn(&Var, &Var) -> Result<Var>) -> Result<Vec<Case>> {
    let dims = [s.tokens, s.hidden];
    // Kept off zero for the quotient.
    let away = |x: f64| x + 0.5_f64.copysign(x);
    let inputs = vec![activation(s.normal(1, &dims)?), activation(s.map(2, &dims, away)?)];
    let moved = bytes(s.tokens * s.hidden);
    let work = Work::Bytes(3.0 * moved, 3.0 * moved);
    Ok(vec![Case::new("", inputs, Rounding::Terms(4), work, move |v| op(&v[0], &v[1]))])
}

fn one(s: &Sizes, variant: &'static str, rounding: Rounding, op: fn(&Var) -> Result<Var>) -> Result<Vec<Case>> {
    let inputs = vec![activation(s.normal(1, &[s.tokens, s.hidden])?)];
    let moved = bytes(s.tokens * s.hidden);
    Ok(vec![Case::new(variant, inputs, rounding, Work::Bytes(2.0 * moved, 2.0 * moved), move |v| op(&v[0]))])
}

/// Backward hands the gradient on, or a few of its numbers: there is nothing to time.
fn handed_on(cases: Result<Vec<Case>>) -> Result<Vec<Case>> {
    let forward = |case: Case| match case.work {
        Work::Bytes(forward, _) => Case { work: Work::Bytes(forward, 0.0), ..case },
        _ => case,
    };
    Ok(cases?.into_iter().map(forward).collect())
}

/// A view: no number moves, so there is nothing to time.
fn seen(s: &Sizes, rounding: Rounding, op: fn(&Var) -> Result<Var>) -> Result<Vec<Case>> {
    let cases = one(s, "", rounding, op)?;
    Ok(cases.into_iter().map(|case| Case { work: Work::None, ..case }).collect())
}

/// Which axis, roundings, the op.
type Reduction = (&'static str, usize, fn(&Var) -> Result<Var>);

/// Sums of positive numbers, so that nothing cancels. Over everything they are taken in stretches of 4096
/// over 16 lanes, and these are added.
fn reductions(s: &Sizes, ops: [Reduction; 3]) -> Result<Vec<Case>> {
    let case = |(variant, terms, op): Reduction| {
        let inputs = vec![activation(s.map(1, &[s.tokens, s.hidden], f64::abs)?)];
        let moved = bytes(s.tokens * s.hidden);
        Ok(Case::new(variant, inputs, Rounding::Terms(terms), Work::Bytes(moved, moved), move |v| op(&v[0])))
    };
    ops.into_iter().map(case).collect()
}

fn sums(s: &Sizes) -> Result<Vec<Case>> {
    let all = 4096 / 16 + 4 + (s.tokens * s.hidden).div_ceil(4096);
    reductions(
        s,
        [
            ("all", all, reduction::sum),
            ("first axis", s.tokens, |x| reduction::sum_axis(x, 0)),
            ("last axis", s.hidden, |x| reduction::sum_axis(x, 1)),
        ],
    )
}

fn means(s: &Sizes) -> Result<Vec<Case>> {
    let all = 4096 / 16 + 6 + (s.tokens * s.hidden).div_ceil(4096);
    reductions(
        s,
        [
            ("all", all, reduction::mean),
            ("first axis", s.tokens + 2, |x| reduction::mean_axis(x, 0)),
            ("last axis", s.hidden + 2, |x| reduction::mean_axis(x, 1)),
        ],
    )
}

/// It has no gradient, so none is asked for.
fn argmaxes(s: &Sizes) -> Result<Vec<Case>> {
    let inputs = vec![Input { tensor: s.normal(1, &[s.tokens, s.mlp])?, kind: Kind::Frozen }];
    let work = Work::Bytes(bytes(s.tokens * s.mlp), 0.0);
    Ok(vec![Case::new("last axis", inputs, Rounding::Exact, work, |v| reduction::argmax_axis(&v[0], 1))])
}

/// One pick a row.
fn gathers(s: &Sizes) -> Result<Vec<Case>> {
    let inputs = vec![activation(s.normal(1, &[s.tokens, s.mlp])?)];
    let index = Tensor::from_vec(s.ids(s.tokens, s.mlp), [s.tokens, 1])?;
    Ok(vec![Case::new("", inputs, Rounding::Exact, Work::None, move |v| gather::gather(&v[0], &index))])
}

/// Every row once, in another order: 7919 is a prime.
fn selects(s: &Sizes) -> Result<Vec<Case>> {
    let inputs = vec![activation(s.normal(1, &[s.tokens, s.hidden])?)];
    let index = s.ids(s.tokens, s.tokens);
    let moved = bytes(s.tokens * s.hidden);
    let work = Work::Bytes(2.0 * moved, 2.0 * moved);
    Ok(vec![Case::new("", inputs, Rounding::Exact, work, move |v| index_select::index_select(&v[0], &index))])
}

/// Four rows into each of a quarter of the rows.
fn scatters(s: &Sizes) -> Result<Vec<Case>> {
    let dims = [s.tokens, s.hidden];
    let inputs = vec![activation(s.normal(1, &dims)?), activation(s.normal(2, &dims)?)];
    let index = s.ids(s.tokens, s.tokens.div_ceil(4));
    let moved = bytes(s.tokens * s.hidden);
    let work = Work::Bytes(5.0 * moved, 2.0 * moved);
    Ok(vec![Case::new("", inputs, Rounding::Terms(8), work, move |v| scatter_add::scatter_add(&v[0], &index, &v[1]))])
}

/// Two choices a token, whose rows lie in reverse.
fn combines(s: &Sizes) -> Result<Vec<Case>> {
    let (tokens, k) = (s.tokens, 2);
    let inputs = vec![activation(s.normal(1, &[tokens * k, s.hidden])?), activation(s.normal(2, &[tokens, k])?)];
    let places: Vec<u32> = (0..(tokens * k) as u32).rev().collect();
    let moved = bytes(tokens * s.hidden);
    let work = Work::Bytes(3.0 * moved, 6.0 * moved);
    let terms = Rounding::Terms(s.hidden);
    Ok(vec![Case::new("2 of a token", inputs, terms, work, move |v| combine::combine(&v[0], &v[1], &places))])
}

fn concats(s: &Sizes) -> Result<Vec<Case>> {
    let inputs = vec![activation(s.normal(1, &[s.tokens, s.hidden])?), activation(s.normal(2, &[s.tokens, s.mlp])?)];
    let moved = 2.0 * bytes(s.tokens * (s.hidden + s.mlp));
    let run = |v: &[Var]| concat::concat(&[&v[0], &v[1]], 1);
    Ok(vec![Case::new("last axis", inputs, Rounding::Exact, Work::Bytes(moved, moved), run)])
}

/// The gradient is summed over the rows that were stretched.
fn broadcasts(s: &Sizes) -> Result<Vec<Case>> {
    let (tokens, hidden) = (s.tokens, s.hidden);
    let inputs = vec![activation(s.normal(1, &[1, hidden])?)];
    let run = move |v: &[Var]| view::broadcast_to(&v[0], &[tokens, hidden]);
    Ok(vec![Case::new("", inputs, Rounding::Terms(tokens), Work::None, run)])
}

fn dropped(x: &Var) -> Result<Var> {
    let keys: Vec<u64> = (0..x.dims()[0] as u64).collect();
    dropout::dropout(x, 0.1, &Rows::new(Stream::new(3, Purpose::Dropout, 0), keys.into()))
}
