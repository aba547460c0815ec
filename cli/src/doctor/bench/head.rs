//! The LM head: loss and gradient of many tokens, with the head trained and frozen, and sampling from its logits.

use planish_cuda::ops::lm_head::{self, Gradients, LmHead, Output, Rows};
use planish_cuda::ops::sampling::{self, Draw, Sampling};
use planish_cuda::{DType, Result};

use super::Entry;
use super::item::{Need, Work, item, launch};

const T: DType = DType::BF16;
const F32: DType = DType::F32;
const U32: DType = DType::U32;

pub(super) fn entries(emulated: bool) -> Vec<Entry> {
    let sizes = if emulated { [16, 64, 1000] } else { [16384, 4096, 131_072] };
    let (rows, vocabulary) = if emulated { (3, 1000) } else { (64, 131_072) };
    vec![loss(sizes, false), loss(sizes, true), sampled(rows, vocabulary)]
}

/// Log-probabilities of the targets, and the gradients of their sum, in one pass as in training.
fn loss([rows, size, vocabulary]: [usize; 3], frozen: bool) -> Entry {
    let name = if frozen { "lm_head/frozen" } else { "lm_head/loss_and_gradient" };
    let shape =
        format!("{rows} tokens x {size} x {vocabulary}, bf16{}", if frozen { ", no gradient of the head" } else { "" });
    let work = Work::Flops(if frozen { 4.0 } else { 6.0 } * (rows * size) as f64 * vocabulary as f64);
    let dweight = if frozen { 0 } else { vocabulary * size };
    let needs = [
        Need::half(rows * size),
        Need::half(vocabulary * size).times(0.02),
        Need::ids(rows, vocabulary),
        Need::zeros(rows, F32),
        Need::zeros(rows, F32),
        Need::zeros(rows, F32),
        Need::zeros(rows, U32),
        Need::normal(rows, F32),
        Need::zeros(rows * size, F32),
        Need::zeros(dweight, F32),
    ];
    item(name, shape, work, needs, move |_, [hidden, weight, targets, results @ ..]| {
        let [mut logprobs, mut entropy, mut lse, mut best, upstream, mut dhidden, mut dweight] = results;
        launch(move |queue| {
            let of = Rows { hidden: hidden.slice(T), weight: weight.slice(T), targets: targets.slice(U32) };
            let out = Output {
                logprobs: logprobs.slice_mut(F32),
                entropy: Some(entropy.slice_mut(F32)),
                lse: lse.slice_mut(F32),
                best: best.slice_mut(U32),
            };
            let head = LmHead::default();
            let to = Gradients {
                dlogprobs: (!frozen).then(|| upstream.slice(F32)),
                dhidden: dhidden.slice_mut(F32),
                dweight: (!frozen).then(|| dweight.slice_mut(F32)),
            };
            lm_head::forward_with_gradients(queue, out, to, of, &head)
        })
    })
}

/// A token from each row of logits, with everything on.
fn sampled(rows: usize, vocabulary: usize) -> Entry {
    let work = Work::Bytes(4.0 * (rows * vocabulary) as f64);
    let needs = [Need::zeros(rows, U32), Need::normal(rows * vocabulary, F32)];
    let shape = format!("{rows} rows of {vocabulary}, f32");
    item("sampling", shape, work, needs, move |queue, [mut chosen, logits]| -> Result<_> {
        let draws: Vec<Draw> = (0..rows as u64).map(|index| Draw { seed: 1, step: 0, index }).collect();
        let draws = queue.upload("a benchmark's tensor", &Draw::words(&draws))?;
        let how = Sampling { temperature: 0.8, top_k: 50, top_p: 0.95, min_p: 0.0 };
        launch(move |queue| {
            sampling::sample(queue, chosen.slice_mut(U32), logits.slice(F32), draws.slice(U32), &how, vocabulary)
        })
    })
}
