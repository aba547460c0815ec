//! The gradient of a step, computed in one of many ways.

use planish_autograd::{Param, Tape, Var};
use planish_nn::Ctx;
use planish_nn::decoder::{Model, Packed};
use planish_tensor::{DType, Element, Tensor};

use super::Found;
use crate::Result;
use crate::config::Granularity;
use crate::data::{Batch, Example};
use crate::losses::{Want, cross_entropy_unread};
use crate::trainer::packed;

/// A way to compute it.
#[derive(Debug, Clone)]
pub(super) struct Way {
    /// The examples of each micro-batch, in order.
    pub(super) micro_batches: Vec<Vec<usize>>,
    /// What is made again in the backward pass.
    pub(super) recompute: Option<Granularity>,
    /// Supervised rows that the LM head takes at a time; all of a micro-batch if `None`.
    pub(super) head_rows: Option<usize>,
    /// Whether what neighbours begin with is computed once.
    pub(super) share: bool,
}

impl Way {
    pub(super) fn of(micro_batches: Vec<Vec<usize>>) -> Way {
        Way { micro_batches, recompute: None, head_rows: None, share: false }
    }
}

/// Gradients by parameter, and the loss of the step, nats.
pub(super) struct Gradient {
    pub(super) tensors: Vec<(String, Option<Tensor>)>,
    pub(super) loss: f64,
}

/// Parameters that are trained.
pub(super) fn trained(model: &Model) -> Vec<Param> {
    model.params().into_iter().filter(Param::is_trainable).collect()
}

/// The gradient of the summed loss of `examples`, in this way.
pub(super) fn gradient(model: &Model, examples: &[Example], way: &Way) -> Result<Gradient> {
    let params = trained(model);
    params.iter().for_each(Param::clear_grad);
    let mut loss = 0.0;
    for members in &way.micro_batches {
        let batch = Batch::from_examples(members.iter().map(|&i| (i, &examples[i])));
        let ctx = Ctx::training(&Tape::new(), None).lean(way.recompute == Some(Granularity::Selective));
        let stream = packed(&batch);
        loss += match way.head_rows {
            None => {
                let recompute = way.recompute == Some(Granularity::Full);
                let want = Want { recompute, beginnings: way.share, ..Want::default() };
                cross_entropy_unread(model, &ctx, &stream, &batch.mask, want)?.read()?.loss
            }
            Some(rows) => in_pieces(model, &ctx, &stream, &batch.mask, rows)?,
        };
    }
    Ok(Gradient { tensors: params.iter().map(|p| (p.name().to_owned(), p.take_grad())).collect(), loss })
}

/// As [`cross_entropy`](crate::losses::cross_entropy), with a call of the LM head for each `rows` supervised rows.
fn in_pieces(model: &Model, ctx: &Ctx, batch: &Packed, mask: &[bool], rows: usize) -> Result<f64> {
    let hidden = model.forward(ctx, batch, false)?;
    // Nothing predicts the first token of a segment, whose mask is false.
    let at: Vec<u32> = (1..mask.len() as u32).filter(|&i| mask[i as usize]).map(|i| i - 1).collect();
    let targets: Vec<u32> = at.iter().map(|&i| batch.ids[i as usize + 1]).collect();
    let (mut loss, mut seeds) = (0.0, Vec::<(Var, Tensor)>::new());
    for (at, targets) in at.chunks(rows).zip(targets.chunks(rows)) {
        let logprobs = model.scores(ctx, &hidden, at, targets)?.logprobs;
        loss -= logprobs.value().to_dtype(DType::F64)?.to_vec::<f64>()?.iter().sum::<f64>();
        let upstream = Tensor::full(-1.0f64, logprobs.dims())?.to_dtype(logprobs.value().dtype())?;
        seeds.push((logprobs, upstream));
    }
    if let Some(tape) = ctx.tape() {
        tape.backward_from(seeds)?;
    }
    Ok(loss)
}

/// The Frobenius norm. A gradient that is not there is zero.
pub(super) fn norm(tensor: Option<&Tensor>) -> planish_tensor::Result<f64> {
    let Some(tensor) = tensor else { return Ok(0.0) };
    let tensor = tensor.contiguous()?;
    let squared: f64 = planish_tensor::dispatch_real!("certify", tensor.dtype(), R => {
        tensor.as_slice::<R>()?.iter().map(|x| x.to_f64() * x.to_f64()).sum()
    });
    Ok(squared.sqrt())
}

/// What each tensor of a gradient may deviate by, absolutely.
pub(super) struct Allowed {
    /// 2 u √n Σ‖gₑ‖ by parameter; all 0 where bits must agree.
    pub(super) by_param: Vec<f64>,
}

/// How far `got` is from `want`. The deviation and the bound are those of the tensor nearest to its own
/// bound, relative to its norm.
pub(super) fn compare(got: &Gradient, want: &Gradient, allowed: &Allowed) -> Result<Found> {
    let mut found = Found::default();
    let mut worst = -1.0;
    for (((name, got), (_, want)), &allowed) in got.tensors.iter().zip(&want.tensors).zip(&allowed.by_param) {
        let (squared, differing, compared) = distance(got.as_ref(), want.as_ref())?;
        found.differing += differing;
        found.compared += compared;
        let size = norm(want.as_ref())?;
        let (distance, unit) = (squared.sqrt(), if size > 0.0 { size } else { 1.0 });
        let used = if allowed > 0.0 { distance / allowed } else { distance / unit };
        // A NaN is the worst there is.
        if !(used <= worst) {
            worst = if used.is_nan() { f64::INFINITY } else { used };
            (found.deviation, found.bound, found.tensor) = (distance / unit, allowed / unit, Some(name.clone()));
        }
    }
    Ok(found)
}

/// Σ (a − b)², elements of other bits, and elements. A gradient that is not there is zero.
fn distance(a: Option<&Tensor>, b: Option<&Tensor>) -> planish_tensor::Result<(f64, u64, u64)> {
    let (Some(a), Some(b)) = (a, b) else {
        let there = a.or(b);
        let size = norm(there)?;
        let count = there.map_or(0, |t| t.numel() as u64);
        return Ok((size * size, if size == 0.0 { 0 } else { count }, count));
    };
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    Ok(planish_tensor::dispatch_real!("certify", a.dtype(), R => {
        let (mut squared, mut differing) = (0.0, 0);
        let (a, b) = (a.as_slice::<R>()?, b.as_slice::<R>()?);
        for (x, y) in a.iter().zip(b).map(|(x, y)| (x.to_f64(), y.to_f64())) {
            squared += (x - y) * (x - y);
            differing += u64::from(x.to_bits() != y.to_bits());
        }
        (squared, differing, a.len().max(b.len()) as u64)
    }))
}
