//! Log-probabilities of chosen tokens of a packed batch, and the way back: the primitive under every loss that
//! learns from fixed data.
//!
//! Forward: a number for each chosen token. A loss is then plain arithmetic on these numbers, and its slope by
//! each of them is what [`TokenScores::backward`] takes: one forward and one backward pass through the model,
//! whatever the loss is.

use std::ops::Range;

use planish_autograd::Var;
use planish_autograd::ops::index_select::index_select;
use planish_autograd::ops::lm_head::{Later, Scores};
use planish_nn::Ctx;
use planish_nn::decoder::{Model, Packed};
use planish_tensor::{DType, Device, Tensor};

use crate::Result;

/// Rows of logits that are alive at once where whole distributions are asked for.
const ROWS: usize = 16;

/// What is wanted besides log-probabilities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Want {
    /// Keep each layer's input only, and compute the rest again in the backward pass.
    pub recompute: bool,
    /// [`TokenScores::log_collision`].
    pub log_collision: bool,
    /// [`TokenScores::mean_logits`].
    pub mean_logits: bool,
    /// The segments are pairs, two and two, whose common first tokens are to be computed once ([`Laid`]).
    pub share: bool,
    /// So are those of any segments ([`Laid::beginnings`]).
    pub beginnings: bool,
}

/// Segments of a run that go on from one beginning. Each run is one task of attention's backward pass for each head of
/// keys, and longer runs save little: of n beginnings n - 1 are not computed.
const RUN: usize = 4;

/// The shortest beginning that a run shares: shorter ones are not worth keys in two places.
const BEGINNING: usize = 8;

/// A batch as it goes through the decoder: as it is, or with the tokens that both segments of a pair, or all of a run
/// of segments, begin with once. A token's numbers have the same bits either way; gradients differ by rounding.
///
/// Tokens that are shared have one dropout mask and one noise: with either, and for a model whose rotations depend
/// on a segment's length, the batch goes through as it is.
pub struct Laid {
    whole: Packed,
    branched: Option<(Packed, Vec<u32>)>,
}

impl Laid {
    /// Lays out a batch whose segments are pairs, if `share`.
    pub fn new(model: &Model, ctx: &Ctx, whole: Packed, share: bool) -> Laid {
        let pairs = (whole.cu_seqlens.len() - 1).is_multiple_of(2);
        Laid::branching(model, ctx, whole, (share && pairs).then_some((2, 1)))
    }

    /// Lays out a batch of any segments, if `share`: a chat template's first lines are the same in each.
    pub fn beginnings(model: &Model, ctx: &Ctx, whole: Packed, share: bool) -> Laid {
        Laid::branching(model, ctx, whole, share.then_some((RUN, BEGINNING)))
    }

    fn branching(model: &Model, ctx: &Ctx, whole: Packed, runs: Option<(usize, usize)>) -> Laid {
        let random = ctx.dropout().is_some() || ctx.embedding_noise().is_some();
        let branched =
            runs.filter(|_| !random && model.can_branch()).and_then(|(run, least)| whole.branched(run, least));
        Laid { whole, branched }
    }

    /// What goes through the decoder.
    pub fn stream(&self) -> &Packed {
        self.branched.as_ref().map_or(&self.whole, |(stream, _)| stream)
    }

    /// The row of the stream that token `i` of the batch has.
    pub fn at(&self, i: u32) -> u32 {
        self.branched.as_ref().map_or(i, |(_, at)| at[i as usize])
    }
}

/// Scores of the chosen tokens, in the order of the batch.
pub struct TokenScores {
    /// log p(token | what comes before it in its segment), nats.
    pub logprobs: Vec<f64>,
    /// Entropy of the distribution that predicted it, nats. No gradient flows through it.
    pub entropy: Vec<f64>,
    /// Whether the token was the most probable.
    pub correct: Vec<bool>,
    /// log Σ_v p(v)², nats, if wanted: what a token sampled by itself would have on average, as a
    /// log-probability. No gradient flows through it.
    pub log_collision: Option<Vec<f64>>,
    /// Mean over the vocabulary of the logits that predicted it, if wanted and logits are not capped. No gradient
    /// flows through it.
    pub mean_logits: Option<Vec<f64>>,
    /// Scores of segment s are `starts[s]..starts[s + 1]`.
    starts: Vec<usize>,
    tracked: Option<Var>,
}

/// Scores the tokens i with `mask[i]`; the first of a segment, which nothing predicts, never counts. Only the
/// rows of these are computed in the head.
///
/// # Errors
/// A token id outside the vocabulary; those of the kernels.
pub fn token_scores(model: &Model, ctx: &Ctx, batch: &Packed, mask: &[bool], want: Want) -> Result<TokenScores> {
    match unread_scores(model, ctx, batch, mask, want, false)? {
        Ok(unread) => unread.read(),
        Err(starts) => {
            let (log_collision, mean_logits) = (want.log_collision.then(Vec::new), None);
            let (logprobs, entropy, correct) = (Vec::new(), Vec::new(), Vec::new());
            Ok(TokenScores { logprobs, entropy, correct, log_collision, mean_logits, starts, tracked: None })
        }
    }
}

/// Scores that may still be on a device, so that nothing has to wait for them.
pub(super) struct Unread {
    scores: Head,
    log_collision: Option<Vec<f64>>,
    mean_logits: Option<Vec<f64>>,
    starts: Vec<usize>,
}

/// What the head has given, or will in the backward pass.
enum Head {
    Made(Scores),
    Later(Later),
}

impl Head {
    fn logprobs(&mut self) -> &mut Var {
        match self {
            Head::Made(scores) => &mut scores.logprobs,
            Head::Later(later) => &mut later.logprobs,
        }
    }

    fn made(self) -> Result<Scores> {
        match self {
            Head::Made(scores) => Ok(scores),
            Head::Later(later) => Ok(later.scores()?),
        }
    }
}

/// As [`token_scores`], not yet read; where no token is chosen, the starts of the segments alone. With `later` the numbers
/// may not be there before [`Unread::backward`].
pub(super) fn unread_scores(
    model: &Model,
    ctx: &Ctx,
    batch: &Packed,
    mask: &[bool],
    want: Want,
    later: bool,
) -> Result<std::result::Result<Unread, Vec<usize>>> {
    let (mut rows, targets, starts) = predicted(batch, mask);
    if rows.is_empty() {
        return Ok(Err(starts));
    }
    let laid = match want.beginnings {
        true => Laid::beginnings(model, ctx, batch.clone(), true),
        false => Laid::new(model, ctx, batch.clone(), want.share),
    };
    rows.iter_mut().for_each(|row| *row = laid.at(*row));
    let hidden = model.forward(ctx, laid.stream(), want.recompute)?;
    let log_collision = match want.log_collision {
        true => Some(log_collision(model, ctx, &hidden, &rows)?),
        false => None,
    };
    let mean_logits = if want.mean_logits { model.mean_logits(ctx, &hidden, &rows)? } else { None };
    let later = if later { model.scores_later(ctx, &hidden, &rows, &targets)? } else { None };
    let scores = match later {
        Some(later) => Head::Later(later),
        None => Head::Made(model.scores(ctx, &hidden, &rows, &targets)?),
    };
    drop(hidden);
    Ok(Ok(Unread { scores, log_collision, mean_logits, starts }))
}

impl Unread {
    /// Adds `slope` times the gradient of the sum of log-probabilities to the parameters, and that of a number
    /// `beside` them times its own; the scores stay, and nothing else.
    pub(super) fn backward(mut self, slope: f64, beside: Option<(Var, f64)>) -> Result<Unread> {
        let logprobs = self.scores.logprobs();
        let untracked = logprobs.detach();
        let logprobs = std::mem::replace(logprobs, untracked);
        if logprobs.is_tracked() {
            let slopes = vec![slope; logprobs.dims()[0]];
            go_back(logprobs, &slopes, beside)?;
        }
        let scores = Head::Made(self.scores.made()?);
        Ok(Unread { scores, ..self })
    }

    /// The numbers, copied from the device if they are there.
    pub(super) fn read(self) -> Result<TokenScores> {
        let Unread { scores, log_collision, mean_logits, starts } = self;
        let scores = scores.made()?;
        Ok(TokenScores {
            logprobs: numbers(scores.logprobs.value())?,
            entropy: numbers(&scores.entropy)?,
            correct: scores.correct.read()?,
            log_collision,
            mean_logits,
            starts,
            tracked: scores.logprobs.is_tracked().then_some(scores.logprobs),
        })
    }
}

fn go_back(logprobs: Var, slopes: &[f64], beside: Option<(Var, f64)>) -> Result<()> {
    let upstream = |var: &Var, slopes: &[f64]| -> Result<Tensor> {
        let (value, dims) = (var.value(), var.dims().to_vec());
        Ok(Tensor::from_vec(slopes.to_vec(), dims)?.to_dtype(value.dtype())?.to_device(value.device())?)
    };
    let tape = logprobs.tape().expect("it is tracked").clone();
    let slopes = upstream(&logprobs, slopes)?;
    let mut outputs = vec![(logprobs, slopes)];
    if let Some((var, slope)) = beside.filter(|(var, _)| var.is_tracked()) {
        let slope = upstream(&var, &[slope])?;
        outputs.push((var, slope));
    }
    tape.backward_from(outputs)?;
    Ok(())
}

impl TokenScores {
    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.starts.len() - 1
    }

    /// Places of a segment's scores.
    pub fn of(&self, segment: usize) -> Range<usize> {
        self.starts[segment]..self.starts[segment + 1]
    }

    /// Adds Σ_i slopes\[i\] · ∂logprobs\[i\]/∂θ to the gradients of the parameters. Does nothing if nothing was
    /// recorded.
    ///
    /// # Errors
    /// Those of the backward rules.
    ///
    /// # Panics
    /// If there is not a slope for each score.
    pub fn backward(self, slopes: &[f64]) -> Result<()> {
        self.backward_beside(slopes, None)
    }

    /// As [`TokenScores::backward`], with the gradient of a number that came of the same pass, times its slope.
    ///
    /// # Errors
    /// Those of the backward rules.
    ///
    /// # Panics
    /// If there is not a slope for each score.
    pub fn backward_beside(self, slopes: &[f64], beside: Option<(Var, f64)>) -> Result<()> {
        assert_eq!(slopes.len(), self.logprobs.len(), "a slope for each score");
        match self.tracked {
            Some(logprobs) => go_back(logprobs, slopes, beside),
            None => Ok(()),
        }
    }
}

/// The elements of a tensor, wherever it is.
pub(crate) fn numbers(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.to_device(Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>()?)
}

/// log Σ_v p(v)² = lse(2 z) - 2 lse(z), from the logits z of a few rows at a time.
fn log_collision(model: &Model, ctx: &Ctx, hidden: &Var, rows: &[u32]) -> Result<Vec<f64>> {
    let hidden = hidden.detach();
    let mut out = Vec::with_capacity(rows.len());
    for rows in rows.chunks(ROWS) {
        let logits = numbers(&model.logits(ctx, index_select(&hidden, rows)?.value())?)?;
        for z in logits.chunks_exact(logits.len() / rows.len()) {
            let most = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum = |times: f64| z.iter().map(|z| (times * (z - most)).exp()).sum::<f64>().ln();
            out.push(sum(2.0) - 2.0 * sum(1.0));
        }
    }
    Ok(out)
}

/// (row that predicts, target) of each chosen token, and where each segment's begin.
pub(crate) fn predicted(batch: &Packed, mask: &[bool]) -> (Vec<u32>, Vec<u32>, Vec<usize>) {
    let (mut rows, mut targets, mut starts) = (Vec::new(), Vec::new(), vec![0]);
    for segment in batch.cu_seqlens.windows(2) {
        for i in segment[0] + 1..segment[1] {
            if mask[i as usize] {
                rows.push(i - 1);
                targets.push(batch.ids[i as usize]);
            }
        }
        starts.push(rows.len());
    }
    (rows, targets, starts)
}
