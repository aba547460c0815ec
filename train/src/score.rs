//! Scoring: log-probabilities of the supervised tokens, without a tape.
//!
//! Rows come from an iterator, are packed until a batch is full, and leave in the order they came: memory
//! is that of one batch, however many rows there are. A row's numbers do not depend on its company (law 5
//! of the design), so neither do they on the batch size.

use std::collections::VecDeque;

use planish_autograd::ops::index_select::index_select;
use planish_nn::Ctx;
use planish_nn::decoder::{Model, Packed};
use planish_tensor::ops::lm_head_top::{MOST_ON_DEVICE, most_probable};
use planish_tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::data::Example;

/// Tokens in a batch unless [`Scorer::batch_tokens`] says otherwise.
pub const BATCH_TOKENS: usize = 2048;

/// What can go wrong with scoring.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// A mask of another length than the ids.
    #[error("row {index} has {ids} ids but {mask} mask entries; it must have one for each id")]
    MaskLength {
        /// Number of the row, from 0.
        index: usize,
        /// Its ids.
        ids: usize,
        /// Its mask entries.
        mask: usize,
    },
    /// A row without a supervised token: its sum would be a meaningless zero.
    #[error("row {index} has no supervised token after its first: there is nothing to score")]
    NothingSupervised {
        /// Number of the row, from 0.
        index: usize,
    },
    /// The model gave something that is no log-probability.
    #[error(
        "row {index}: the log-probability of token {position} is {value}: the weights are damaged or have diverged"
    )]
    NotFinite {
        /// Number of the row, from 0.
        index: usize,
        /// Place of the token in the row.
        position: usize,
        /// What it is.
        value: f64,
    },
    /// The model refused a batch.
    #[error("rows {first} to {last}: {source}")]
    Model {
        /// First row of the batch.
        first: usize,
        /// Last row of the batch.
        last: usize,
        /// Why.
        source: Box<planish_nn::Error>,
    },
}

/// Log-probabilities of a batch's tokens, and the most probable ones in their places.
type Found = (Vec<f64>, Vec<(u32, f64)>);

/// A row to score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScoreRow {
    /// The whole sequence.
    pub ids: Vec<u32>,
    /// Which of the ids to score. The first never is: nothing predicts it.
    pub mask: Vec<bool>,
    /// Ids that are prompt.
    pub n_prompt: usize,
}

impl ScoreRow {
    /// Scores every id after the prompt.
    pub fn completion(ids: Vec<u32>, n_prompt: usize) -> ScoreRow {
        let mask = (0..ids.len()).map(|i| i >= n_prompt).collect();
        ScoreRow { ids, mask, n_prompt }
    }
}

impl From<Example> for ScoreRow {
    fn from(example: Example) -> ScoreRow {
        ScoreRow { ids: example.ids, mask: example.mask, n_prompt: example.n_prompt }
    }
}

/// The scores of a row: a line of `planish score`'s output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreLine {
    /// Number of the row, from 0.
    pub index: usize,
    /// The whole sequence.
    pub ids: Vec<u32>,
    /// Ids that are prompt.
    pub n_prompt: usize,
    /// Log-probability of each supervised token given all before it, nats.
    pub logprobs: Vec<f64>,
    /// Their sum.
    pub sum: f64,
    /// Their mean.
    pub mean: f64,
    /// The most probable tokens in each one's place, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<Top>,
}

/// The most probable tokens in the place of each supervised token, the most probable first; of equals the lower id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Top {
    /// What the logits were divided by.
    pub temperature: f64,
    /// k ids a token.
    pub ids: Vec<Vec<u32>>,
    /// Their log-probabilities, nats.
    pub logprobs: Vec<Vec<f64>>,
}

/// Rows of logits that are alive at once where the most probable tokens are looked for.
const LOGIT_ROWS: usize = 16;

/// Scores rows under a model.
#[derive(Clone)]
pub struct Scorer<'a> {
    model: &'a Model,
    ctx: Ctx,
    batch_tokens: usize,
    /// How many tokens are looked for, at what temperature.
    top: Option<(usize, f64)>,
}

impl<'a> Scorer<'a> {
    /// With adapters on and batches of [`BATCH_TOKENS`].
    pub fn new(model: &'a Model) -> Self {
        Scorer { model, ctx: Ctx::inference(), batch_tokens: BATCH_TOKENS, top: None }
    }

    /// Runs the model in this context, e.g. without its adapters. Nothing is recorded.
    pub fn ctx(mut self, ctx: &Ctx) -> Self {
        self.ctx = ctx.on(None);
        self
    }

    /// Packs rows up to this many tokens. A longer row is a batch of its own.
    pub fn batch_tokens(mut self, tokens: usize) -> Self {
        self.batch_tokens = tokens;
        self
    }

    /// Also gives the `k` most probable tokens in each place, at most the vocabulary, of the logits over `temperature`.
    pub fn top(mut self, k: usize, temperature: f64) -> Self {
        self.top = Some((k.min(self.model.config.vocab_size), temperature));
        self
    }

    /// Scores of the rows, in their order. An error of the rows is passed on and ends them, as does one of
    /// scoring.
    pub fn score<I, E>(self, rows: I) -> Scores<'a, I::IntoIter, E>
    where
        I: IntoIterator<Item = Result<ScoreRow, E>>,
        E: From<ScoreError>,
    {
        let (rows, ready) = (rows.into_iter(), VecDeque::new());
        Scores { scorer: self, rows, ahead: None, next: 0, ready, failed: None, ended: false }
    }

    /// Scores of one batch of rows, the first of which has number `first`.
    fn batch(&self, first: usize, rows: Vec<ScoreRow>) -> Result<Vec<ScoreLine>, ScoreError> {
        let ids: Vec<&[u32]> = rows.iter().map(|row| &row.ids[..]).collect();
        let batch = Packed::new(&ids);
        // The hidden state that predicts a token stands one before it.
        let (mut at, mut targets) = (vec![], vec![]);
        for (start, row) in batch.cu_seqlens.iter().zip(&rows) {
            for i in supervised(row) {
                at.push(start + i as u32 - 1);
                targets.push(row.ids[i]);
            }
        }
        let last = first + rows.len() - 1;
        let run = || -> planish_nn::Result<Found> {
            let hidden = self.model.forward(&self.ctx, &batch, false)?;
            let scores = self.model.scores(&self.ctx, &hidden, &at, &targets)?;
            let here = |t: &Tensor| t.to_device(Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>();
            let logprobs = here(scores.logprobs.value())?;
            let mut top = Vec::new();
            if let Some((k, temperature)) = self.top {
                for rows in at.chunks(LOGIT_ROWS) {
                    let rows = index_select(&hidden, rows)?;
                    let mut logits = self.model.logits(&self.ctx, rows.value())?;
                    if k > MOST_ON_DEVICE {
                        logits = logits.to_device(Device::Cpu)?;
                    }
                    top.extend(most_probable(&logits, k, temperature)?);
                }
            }
            Ok((logprobs, top))
        };
        let (all, top) = run().map_err(|source| ScoreError::Model { first, last, source: Box::new(source) })?;
        let (mut all, mut top) = (all.into_iter(), top.chunks_exact(self.top.map_or(1, |(k, _)| k)));
        let lines = rows.into_iter().enumerate().map(|(i, row)| {
            let positions: Vec<usize> = supervised(&row).collect();
            let logprobs: Vec<f64> = all.by_ref().take(positions.len()).collect();
            let index = first + i;
            if let Some(k) = logprobs.iter().position(|x| !x.is_finite()) {
                return Err(ScoreError::NotFinite { index, position: positions[k], value: logprobs[k] });
            }
            let sum: f64 = logprobs.iter().sum();
            let mean = sum / logprobs.len() as f64;
            let top = self.top.map(|(_, temperature)| {
                let of = top.by_ref().take(positions.len());
                let (ids, logprobs) = of.map(|k| k.iter().copied().unzip()).unzip();
                Top { temperature, ids, logprobs }
            });
            Ok(ScoreLine { index, ids: row.ids, n_prompt: row.n_prompt, logprobs, sum, mean, top })
        });
        lines.collect()
    }
}

/// Places of the supervised tokens.
fn supervised(row: &ScoreRow) -> impl Iterator<Item = usize> {
    row.mask.iter().enumerate().skip(1).filter(|(_, m)| **m).map(|(i, _)| i)
}

/// The iterator of [`Scorer::score`].
pub struct Scores<'a, I, E> {
    scorer: Scorer<'a>,
    rows: I,
    /// A row that did not fit the last batch.
    ahead: Option<ScoreRow>,
    /// Number of the next batch's first row.
    next: usize,
    ready: VecDeque<ScoreLine>,
    /// What is wrong with the row after those that are ready.
    failed: Option<E>,
    ended: bool,
}

impl<I, E> Scores<'_, I, E>
where
    I: Iterator<Item = Result<ScoreRow, E>>,
    E: From<ScoreError>,
{
    /// Scores the next batch.
    fn refill(&mut self) -> Result<(), E> {
        let mut rows: Vec<ScoreRow> = self.ahead.take().into_iter().collect();
        let mut tokens = rows.iter().map(|row| row.ids.len()).sum::<usize>();
        while let Some(row) = self.rows.next() {
            match row.and_then(|row| Ok(checked(self.next + rows.len(), row)?)) {
                Ok(row) if rows.is_empty() || tokens + row.ids.len() <= self.scorer.batch_tokens => {
                    tokens += row.ids.len();
                    rows.push(row);
                    continue;
                }
                Ok(row) => self.ahead = Some(row),
                Err(error) => self.failed = Some(error),
            }
            break;
        }
        // Only the end of the rows leaves nothing ahead.
        self.ended = self.ahead.is_none();
        if !rows.is_empty() {
            let first = self.next;
            self.next += rows.len();
            self.ready.extend(self.scorer.batch(first, rows)?);
        }
        Ok(())
    }
}

fn checked(index: usize, row: ScoreRow) -> Result<ScoreRow, ScoreError> {
    let (ids, mask) = (row.ids.len(), row.mask.len());
    if ids != mask {
        return Err(ScoreError::MaskLength { index, ids, mask });
    }
    if supervised(&row).next().is_none() {
        return Err(ScoreError::NothingSupervised { index });
    }
    Ok(row)
}

impl<I, E> Iterator for Scores<'_, I, E>
where
    I: Iterator<Item = Result<ScoreRow, E>>,
    E: From<ScoreError>,
{
    type Item = Result<ScoreLine, E>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty()
            && !self.ended
            && let Err(error) = self.refill()
        {
            // Nothing comes after an error.
            (self.ended, self.failed) = (true, None);
            return Some(Err(error));
        }
        match self.ready.pop_front() {
            Some(line) => Some(Ok(line)),
            None => self.failed.take().map(Err),
        }
    }
}
