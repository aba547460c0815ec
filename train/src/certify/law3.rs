//! Law 3: one step, cut in many ways.

use planish_nn::decoder::Model;
use planish_tensor::DType;
use planish_tensor::rng::{Purpose, Stream};

use super::gradient::{Allowed, Gradient, Way, compare, gradient, norm, trained};
use super::{Check, Found, on_threads};
use crate::Result;
use crate::config::Granularity;
use crate::data::{Example, best_fit_decreasing};

/// Adds the checks of this law.
pub(super) fn checks(
    model: &Model,
    training: &'static str,
    examples: &[Example],
    threads: usize,
    progress: &mut dyn FnMut(&str),
    checks: &mut Vec<Check>,
) -> Result<()> {
    let all: Vec<usize> = (0..examples.len()).collect();
    let whole = Way::of(vec![all.clone()]);
    progress(&format!("law 3, {training}: the gradient in one micro-batch"));
    let want = gradient(model, examples, &whole)?;
    let sizes = example_sizes(model, examples)?;
    let mut loss = Found::default();
    for (what, way) in ways(examples) {
        progress(&format!("law 3, {training}: {what}"));
        let got = gradient(model, examples, &way)?;
        let allowed = allowed(model, examples, &way, &sizes);
        checks.push(Check::new(3, training, what, compare(&got, &want, &allowed)?));
        note_loss(&mut loss, &got, &want, examples);
    }
    checks.push(Check::new(3, training, "the loss in all of these", loss));
    let exact = Allowed { by_param: vec![0.0; sizes.len()] };
    for granularity in [Granularity::Full, Granularity::Selective] {
        let what = format!("activations recomputed, {granularity}");
        progress(&format!("law 3, {training}: {what}"));
        let got = gradient(model, examples, &Way { recompute: Some(granularity), ..whole.clone() })?;
        checks.push(Check::new(3, training, what, compare(&got, &want, &exact)?));
    }
    for threads in 1..=threads {
        progress(&format!("law 3, {training}: {threads} threads"));
        let got = on_threads(threads, || gradient(model, examples, &whole))?;
        let what = if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
        checks.push(Check::new(3, training, what, compare(&got, &want, &exact)?));
    }
    Ok(())
}

/// The same step in other pieces, named.
fn ways(examples: &[Example]) -> Vec<(String, Way)> {
    let n = examples.len();
    let all: Vec<usize> = (0..n).collect();
    let by = |size: usize| Way::of(all.chunks(size).map(<[usize]>::to_vec).collect());
    let mut ways = Vec::new();
    for size in [1, 2, 3, 5, 8].into_iter().filter(|size| *size < n) {
        ways.push((format!("micro-batches of {size}, {} of them", n.div_ceil(size)), by(size)));
    }
    ways.push(("one example, then the rest".into(), Way::of(vec![vec![0], all[1..].to_vec()])));
    ways.push(("in reverse".into(), Way::of(vec![all.iter().rev().copied().collect()])));
    ways.push(("shuffled".into(), Way::of(vec![shuffled(n)])));
    ways.push(("shuffled, in micro-batches of 3".into(), Way::of(shuffled(n).chunks(3).map(<[_]>::to_vec).collect())));
    let lengths: Vec<usize> = examples.iter().map(|e| e.ids.len()).collect();
    let capacity = 2 * lengths.iter().max().copied().unwrap_or(1);
    let bins = best_fit_decreasing(&lengths, capacity);
    ways.push((format!("packed into {} rows of {capacity} tokens", bins.len()), Way::of(bins)));
    for rows in [1, 7, 64] {
        let way = Way { head_rows: Some(rows), ..Way::of(vec![all.clone()]) };
        ways.push((format!("LM head in pieces of {rows} rows"), way));
    }
    ways.push(("beginnings that neighbours share computed once".into(), Way { share: true, ..Way::of(vec![all]) }));
    ways
}

fn shuffled(n: usize) -> Vec<usize> {
    let stream = Stream::new(0, Purpose::Data, 0);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|&i| stream.u64(i as u64));
    order
}

/// Σₑ‖gₑ‖ of each parameter.
fn example_sizes(model: &Model, examples: &[Example]) -> Result<Vec<f64>> {
    let mut sizes = vec![0.0; trained(model).len()];
    for i in 0..examples.len() {
        let alone = gradient(model, examples, &Way::of(vec![vec![i]]))?;
        for (sum, (_, tensor)) in sizes.iter_mut().zip(&alone.tensors) {
            *sum += norm(tensor.as_ref())?;
        }
    }
    Ok(sizes)
}

/// 2 u √n Σₑ‖gₑ‖ of each parameter; see [the bound](super).
fn allowed(model: &Model, examples: &[Example], way: &Way, sizes: &[f64]) -> Allowed {
    let unit = if model.dtype() == DType::F64 { f64::EPSILON / 2.0 } else { f64::from(f32::EPSILON) / 2.0 };
    let tokens: usize = examples.iter().map(|e| e.ids.len()).sum();
    let supervised: usize = examples.iter().map(Example::supervised).sum();
    // Pieces of the LM head add to the head's gradient as micro-batches do to all.
    let pieces = way.head_rows.map_or(0, |rows| supervised.div_ceil(rows));
    let n = (tokens + supervised + way.micro_batches.len() + pieces) as f64;
    Allowed { by_param: sizes.iter().map(|size| 2.0 * unit * n.sqrt() * size).collect() }
}

/// The loss is a sum in f64 of log-probabilities that are the same bits: n additions, each of which
/// rounds by 2⁻⁵³ at most, twice.
fn note_loss(found: &mut Found, got: &Gradient, want: &Gradient, examples: &[Example]) {
    let supervised: usize = examples.iter().map(Example::supervised).sum();
    let deviation = (got.loss - want.loss).abs() / want.loss.abs();
    found.compared += 1;
    found.differing += u64::from(got.loss.to_bits() != want.loss.to_bits());
    found.bound = supervised as f64 * f64::EPSILON;
    if !(deviation <= found.deviation) {
        found.deviation = deviation;
    }
}
