//! The examples of each optimizer step: a pure function of the settings and a cursor.
//!
//! Rows are drawn in the order of the epoch, encoded in parallel, and gathered into units: an
//! example, a packed row, or a block of the stream. A step is `micro_batch × accumulation` units; the
//! last step of an epoch has what is left. State is a [`Cursor`] of three numbers. With packing, what
//! is packed together comes from a window of `pack_window` draws, so resuming encodes one window
//! again and nothing else.

use std::ops::Range;
use std::sync::Arc;

use planish_nn::template::on_deep_stack;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::batch::Batch;
use super::dataset::View;
use super::encode::{Dropped, Encoded, Encoder, Example};
use super::error::{DataError, Result};
use super::pack::{Packing, best_fit_decreasing};
use super::permute::Permutation;

/// Documents that are encoded at once for the wrapped stream.
const WRAPPED_AHEAD: u64 = 64;

/// Where a run stands in its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Draws of the epoch that are behind; with packing, the first draw of the window or document
    /// that the run stands in.
    pub index: u64,
    /// Packed rows of the window that are behind (`bfd`), or tokens of the document (`wrapped`).
    pub offset: u64,
}

/// How examples are drawn and grouped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplerOptions {
    /// Seed of the order.
    pub seed: u64,
    /// Draw in random order.
    pub shuffle: bool,
    /// Rows of a micro-batch (`per_device_train_batch_size`).
    pub micro_batch: usize,
    /// Micro-batches of a step (`gradient_accumulation_steps`).
    pub accumulation: usize,
    /// How examples are put together.
    pub packing: Packing,
    /// Draws that are packed together (TRL packs 1,000 at a time).
    pub pack_window: u64,
}

impl Default for SamplerOptions {
    fn default() -> SamplerOptions {
        SamplerOptions {
            seed: 42,
            shuffle: true,
            micro_batch: 8,
            accumulation: 1,
            packing: Packing::None,
            pack_window: 1000,
        }
    }
}

/// What one optimizer step trains on.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The micro-batches, at least one.
    pub micro_batches: Vec<Batch>,
    /// Supervised tokens of all of them: what the summed loss is divided by. Never 0.
    pub supervised: usize,
    /// Input tokens of all of them.
    pub tokens: usize,
    /// Rows that were drawn for this step and dropped.
    pub dropped: u64,
    /// Where the run stands after this step.
    pub cursor: Cursor,
    /// Epochs behind after this step, as a fraction.
    pub epoch: f64,
}

/// Draws examples and groups them into steps.
pub struct Sampler {
    view: View,
    encoder: Encoder,
    options: SamplerOptions,
    /// Length of a packed row.
    row_length: usize,
}

/// Pieces of examples that make up a row of a micro-batch: a part of one, several of them, the two sides of
/// a pair, or the answers of a row that are ranked or in steps.
type Unit = Vec<Piece>;

/// The number of an example, the example or one side of it, which of its tokens are meant, and what its row says
/// besides tokens.
#[derive(Clone)]
struct Piece(usize, Arc<Example>, Range<usize>, Said);

/// A label, a margin, a score, or the labels of steps.
#[derive(Clone, Default)]
struct Said {
    label: Option<bool>,
    margin: Option<f64>,
    score: Option<f64>,
    steps: Option<Arc<[bool]>>,
}

impl Said {
    fn of_steps(labels: Vec<bool>) -> Said {
        Said { steps: Some(labels.into()), ..Said::default() }
    }
}

impl Piece {
    fn whole(index: usize, example: Example, said: Said) -> Piece {
        let tokens = 0..example.ids.len();
        Piece(index, Arc::new(example), tokens, said)
    }

    fn is_trained_on(&self) -> bool {
        self.1.mask[self.2.clone()].iter().skip(1).any(|&m| m)
    }
}

/// A document encoded ahead: its epoch and draw, and, if it was not dropped, its number and tokens.
type Ahead = ((u64, u64), Option<(usize, Arc<Example>)>);

impl Sampler {
    /// A sampler over a view.
    ///
    /// # Errors
    /// [`DataError::Setting`] for a zero size, or packing without a `max_length`.
    pub fn new(view: View, encoder: Encoder, options: SamplerOptions) -> Result<Sampler> {
        let zero = |key| DataError::Setting { key, value: "0".into(), expected: "at least 1" };
        if options.micro_batch == 0 {
            return Err(zero("per_device_train_batch_size"));
        }
        if options.accumulation == 0 {
            return Err(zero("gradient_accumulation_steps"));
        }
        if options.pack_window == 0 {
            return Err(zero("pack_window"));
        }
        let max = encoder.options().max_length;
        if options.packing != Packing::None && max.is_none() {
            let expected = "a number of tokens when packing is on";
            return Err(DataError::Setting { key: "max_length", value: "none".into(), expected });
        }
        let encoder = if options.packing == Packing::Wrapped { encoder.unlimited() } else { encoder };
        if options.micro_batch.checked_mul(options.accumulation).is_none_or(|n| n > 1 << 24) {
            let value = format!("{} × {}", options.micro_batch, options.accumulation);
            let expected = "at most 16777216 rows a step";
            return Err(DataError::Setting { key: "per_device_train_batch_size", value, expected });
        }
        Ok(Sampler { view, encoder, options, row_length: max.unwrap_or(usize::MAX) })
    }

    /// The rows that are drawn from.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// What makes examples of rows.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// The settings.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Units of a full step.
    pub(crate) fn units_per_step(&self) -> usize {
        self.options.micro_batch * self.options.accumulation
    }

    /// Tokens of a packed row.
    pub(crate) fn row_length(&self) -> usize {
        self.row_length
    }

    /// All steps from a cursor on, without end; [`Steps::epochs`] sets one.
    ///
    /// # Errors
    /// [`DataError::Cursor`] when the cursor does not fit the data.
    pub fn steps(self: &Arc<Self>, cursor: Cursor) -> Result<Steps> {
        let len = self.view.epoch_len();
        if cursor.index > len {
            return Err(DataError::Cursor { epoch: cursor.epoch, index: cursor.index, len });
        }
        Ok(Steps { sampler: self.clone(), cursor, window: None, ahead: Vec::new(), dropped: 0, end: None })
    }

    /// Row `index` of the data set as an example.
    pub(crate) fn encode(&self, index: u64) -> Result<Encoded> {
        let (row, source) = self.view.data().read(index)?;
        self.encoder.encode(&row, source)
    }

    /// What is wrong with a row, if its error is to be passed over.
    pub(crate) fn tolerated(&self, error: &DataError) -> Option<String> {
        error.fault().filter(|_| self.encoder.options().drop_invalid)
    }

    /// As [`Sampler::encode`], with what is tolerated dropped.
    fn numbered(&self, index: u64) -> Result<(usize, Encoded)> {
        let encoded = match self.encode(index) {
            Err(error) if self.tolerated(&error).is_some() => Encoded::dropped(Dropped::Invalid),
            encoded => encoded?,
        };
        Ok((index as usize, encoded))
    }

    /// Encodes draws `range` of an epoch, in order.
    fn draw(&self, epoch: u64, range: Range<u64>) -> Result<Vec<(usize, Encoded)>> {
        let order = self.view.order(self.options.seed, self.options.shuffle, epoch);
        // The first error in order, whichever thread met one first.
        in_runs(range, |i: u64| self.numbered(order.get(i))).into_iter().collect()
    }

    /// Examples of the rows `range` of the view, by place, as one batch; dropped rows leave no trace.
    ///
    /// # Errors
    /// The first malformed row.
    pub fn rows(&self, range: Range<u64>) -> Result<Batch> {
        let encoded = in_runs(range, |t: u64| self.numbered(self.view.row(t)));
        let encoded = encoded.into_iter().collect::<Result<Vec<_>>>()?;
        let units: Vec<Unit> = encoded.into_iter().filter_map(|(index, e)| unit(index, e)).collect();
        batch(&units, Packing::None)
    }

    /// Order in which the bins of a window are used: packing sorts by length, training must not.
    pub(crate) fn bin_order(&self, epoch: u64, start: u64, bins: usize) -> Vec<usize> {
        if !self.options.shuffle {
            return (0..bins).collect();
        }
        let seed = self.options.seed ^ (start + 1).wrapping_mul(0xD1B5_4A32_D192_ED03);
        let p = Permutation::new(seed, epoch, bins as u64);
        (0..bins as u64).map(|i| p.get(i) as usize).collect()
    }

    /// Bins of a window, in the order they are used.
    pub(crate) fn bins(&self, lengths: &[usize], epoch: u64, start: u64) -> Vec<Vec<usize>> {
        let mut bins = best_fit_decreasing(lengths, self.row_length);
        // Without shuffling, as close to the order of the file as bins can be.
        bins.sort();
        let order = self.bin_order(epoch, start, bins.len());
        order.into_iter().map(|b| std::mem::take(&mut bins[b])).collect()
    }
}

/// Packed rows of a window of draws.
struct Window {
    range: Range<u64>,
    epoch: u64,
    rows: Vec<Unit>,
}

/// Steps from a cursor on.
pub struct Steps {
    sampler: Arc<Sampler>,
    cursor: Cursor,
    window: Option<Window>,
    /// Documents encoded ahead for the wrapped stream, the next one last: (epoch, draw) and example.
    ahead: Vec<Ahead>,
    dropped: u64,
    end: Option<u64>,
}

impl Iterator for Steps {
    type Item = Result<Step>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

impl Steps {
    /// Ends when `epochs` epochs are behind, counted from the start of the run.
    #[must_use]
    pub fn epochs(mut self, epochs: u64) -> Steps {
        self.end = Some(epochs);
        self
    }

    /// Where the next step starts.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    fn step(&mut self) -> Result<Option<Step>> {
        let sampler = self.sampler.clone();
        loop {
            if self.end.is_some_and(|end| self.cursor.epoch >= end) {
                return Ok(None);
            }
            let fresh = (self.cursor.index, self.cursor.offset) == (0, 0);
            let dropped_before = self.dropped;
            let units = match sampler.options.packing {
                Packing::None => self.examples()?,
                Packing::Bfd => self.packed()?,
                Packing::Wrapped => self.wrapped()?,
            };
            let len = sampler.view.epoch_len();
            if self.cursor.index >= len {
                self.cursor = Cursor { epoch: self.cursor.epoch + 1, index: 0, offset: 0 };
            }
            if units.is_empty() {
                if fresh {
                    let why = "all were longer than max_length, had no token that is trained on, or were wrong".into();
                    return Err(DataError::NothingLeft { seen: len, why });
                }
                continue;
            }
            let batch = |units: &[Unit]| batch(units, sampler.options.packing);
            let micro_batches = units.chunks(sampler.options.micro_batch).map(batch).collect::<Result<Vec<_>>>()?;
            let supervised = micro_batches.iter().map(Batch::supervised).sum();
            let tokens = micro_batches.iter().map(Batch::tokens).sum();
            let dropped = self.dropped - dropped_before;
            return Ok(Some(Step {
                micro_batches,
                supervised,
                tokens,
                dropped,
                cursor: self.cursor,
                epoch: self.epoch(),
            }));
        }
    }

    fn epoch(&self) -> f64 {
        let len = self.sampler.view.epoch_len().max(1) as f64;
        let within = match &self.window {
            Some(w) if self.cursor.offset > 0 => {
                (w.range.end - w.range.start) as f64 * self.cursor.offset as f64 / w.rows.len().max(1) as f64
            }
            _ => 0.0,
        };
        self.cursor.epoch as f64 + (self.cursor.index as f64 + within) / len
    }

    /// One example a unit.
    fn examples(&mut self) -> Result<Vec<Unit>> {
        let (want, len) = (self.sampler.units_per_step(), self.sampler.view.epoch_len());
        let mut units = Vec::new();
        while units.len() < want && self.cursor.index < len {
            let until = len.min(self.cursor.index + (want - units.len()) as u64);
            for (index, encoded) in self.sampler.draw(self.cursor.epoch, self.cursor.index..until)? {
                match unit(index, encoded) {
                    Some(unit) => units.push(unit),
                    None => self.dropped += 1,
                }
            }
            self.cursor.index = until;
        }
        Ok(units)
    }

    /// Packed rows, from one window after the other.
    fn packed(&mut self) -> Result<Vec<Unit>> {
        let (want, len) = (self.sampler.units_per_step(), self.sampler.view.epoch_len());
        let mut units = Vec::new();
        while units.len() < want && self.cursor.index < len {
            let Cursor { epoch, index, offset } = self.cursor;
            let window = match self.window.take() {
                Some(w) if (w.epoch, w.range.start) == (epoch, index) => w,
                _ => self.load(epoch, index..len.min(index + self.sampler.options.pack_window))?,
            };
            if offset > window.rows.len() as u64 {
                return Err(DataError::Cursor { epoch, index, len });
            }
            let take = (window.rows.len() - offset as usize).min(want - units.len());
            units.extend_from_slice(&window.rows[offset as usize..offset as usize + take]);
            self.cursor.offset += take as u64;
            if self.cursor.offset == window.rows.len() as u64 {
                (self.cursor.index, self.cursor.offset) = (window.range.end, 0);
            } else {
                self.window = Some(window);
            }
        }
        Ok(units)
    }

    fn load(&mut self, epoch: u64, range: Range<u64>) -> Result<Window> {
        let mut examples = Vec::new();
        for (index, encoded) in self.sampler.draw(epoch, range.clone())? {
            match encoded.example {
                Ok(example) => examples.push((index, Arc::new(example))),
                Err(_) => self.dropped += 1,
            }
        }
        let lengths: Vec<usize> = examples.iter().map(|(_, e)| e.ids.len()).collect();
        let bins = self.sampler.bins(&lengths, epoch, range.start);
        let piece = |i: usize| Piece(examples[i].0, examples[i].1.clone(), 0..lengths[i], Said::default());
        let rows = bins.into_iter().map(|bin| bin.into_iter().map(piece).collect()).collect();
        Ok(Window { range, epoch, rows })
    }

    /// Blocks of the stream of all documents. A block with nothing to train on is passed over.
    fn wrapped(&mut self) -> Result<Vec<Unit>> {
        let (want, len) = (self.sampler.units_per_step(), self.sampler.view.epoch_len());
        let (mut units, mut block, mut room) = (Vec::new(), Unit::new(), self.sampler.row_length);
        while units.len() < want && self.cursor.index < len {
            let Some((index, example)) = self.document()? else {
                (self.cursor.index, self.cursor.offset) = (self.cursor.index + 1, 0);
                continue;
            };
            let start = self.cursor.offset as usize;
            if start > example.ids.len() {
                let Cursor { epoch, index, .. } = self.cursor;
                return Err(DataError::Cursor { epoch, index, len });
            }
            let end = example.ids.len().min(start + room);
            room -= end - start;
            if end == example.ids.len() {
                (self.cursor.index, self.cursor.offset) = (self.cursor.index + 1, 0);
            } else {
                self.cursor.offset = end as u64;
            }
            block.push(Piece(index, example, start..end, Said::default()));
            if room == 0 || self.cursor.index == len {
                let block = std::mem::take(&mut block);
                room = self.sampler.row_length;
                if block.iter().any(Piece::is_trained_on) {
                    units.push(block);
                }
            }
        }
        // The last document of the epoch may have been dropped with a block still open.
        if block.iter().any(Piece::is_trained_on) {
            units.push(block);
        }
        Ok(units)
    }

    /// The document that the cursor stands in; `None` if it was dropped.
    fn document(&mut self) -> Result<Option<(usize, Arc<Example>)>> {
        let Cursor { epoch, index, .. } = self.cursor;
        while self.ahead.last().is_some_and(|&(at, _)| at != (epoch, index)) {
            self.ahead.pop();
        }
        if self.ahead.is_empty() {
            let until = self.sampler.view.epoch_len().min(index + WRAPPED_AHEAD);
            let drawn = self.sampler.draw(epoch, index..until)?;
            for (k, (at, encoded)) in drawn.into_iter().enumerate().rev() {
                let draw = index + k as u64;
                let kept = encoded.example.map(|e| (at, Arc::new(e)));
                self.dropped += u64::from(kept.is_err());
                self.ahead.push(((epoch, draw), kept.ok()));
            }
        }
        Ok(self.ahead.last().and_then(|(_, kept)| kept.clone()))
    }
}

/// A row as a unit; `None` if it was dropped.
fn unit(index: usize, encoded: Encoded) -> Option<Unit> {
    if !encoded.steps.is_empty() {
        let piece = |(example, labels)| Piece::whole(index, example, Said::of_steps(labels));
        let unit: Unit = encoded.answers().into_iter().map(piece).collect();
        return (!unit.is_empty()).then_some(unit);
    }
    if !encoded.scores.is_empty() {
        let scores = encoded.scores.clone();
        let piece =
            |(score, (example, _))| Piece::whole(index, example, Said { score: Some(score), ..Said::default() });
        let unit: Unit = scores.into_iter().zip(encoded.answers()).map(piece).collect();
        return (!unit.is_empty()).then_some(unit);
    }
    let said = Said { label: encoded.label, margin: encoded.margin, ..Said::default() };
    let mut unit = vec![Piece::whole(index, encoded.example.ok()?, said)];
    unit.extend(encoded.rejected.map(|r| Piece::whole(index, r.example, Said::default())));
    Some(unit)
}

/// Units laid end to end.
fn batch(units: &[Unit], packing: Packing) -> Result<Batch> {
    let pieces = || units.iter().flatten();
    let tokens: usize = pieces().map(|Piece(_, _, r, _)| r.len()).sum();
    if tokens > u32::MAX as usize {
        let expected = "so small that a micro-batch has fewer than 4294967296 tokens";
        return Err(DataError::Setting {
            key: "per_device_train_batch_size",
            value: units.len().to_string(),
            expected,
        });
    }
    // Unpacked, a unit is an example: a pair, several answers, or a single sequence; a data set may have several kinds.
    let in_steps = units.iter().flatten().any(|piece| piece.3.steps.is_some());
    let unpacked = packing == Packing::None && !in_steps;
    let pairs = unpacked && units.iter().all(|u| u.len() == 2);
    let mut batch = Batch { per_example: if pairs { 2 } else { 1 }, ..Batch::new() };
    if unpacked && !pairs && units.iter().any(|u| u.len() > 1) {
        batch.sizes = units.iter().map(Vec::len).collect();
    }
    let labelled = pieces().any(|piece| piece.3.label.is_some());
    let ranked = pieces().any(|piece| piece.3.score.is_some());
    for unit in units {
        for (side, Piece(index, example, range, said)) in unit.iter().enumerate() {
            batch.push(*index, &example.ids[range.clone()], &example.mask[range.clone()]);
            if labelled {
                // The first side of a pair is the chosen one.
                batch.labels.push(said.label.unwrap_or(side == 0));
            }
            if ranked {
                batch.scores.push(said.score.unwrap_or(if side == 0 { 1.0 } else { 0.0 }));
            }
            batch.steps.extend(said.steps.iter().flat_map(|steps| steps.iter()));
        }
    }
    if pairs {
        batch.margins = units.iter().map(|u| u[0].3.margin.unwrap_or(0.0)).collect();
    }
    Ok(batch)
}

/// Encodes rows: `one` of each number, in order. A task takes a run of them, for which a thread with the stack that
/// templates need is started once.
///
/// Outside of the pool (the loader works ahead while the pool trains, whose threads may be waiting for it) all is
/// done by one thread.
pub(crate) fn in_runs<T: Send>(range: Range<u64>, one: impl Fn(u64) -> T + Sync) -> Vec<T> {
    if rayon::current_thread_index().is_none() {
        return on_deep_stack(|| range.clone().map(&one).collect());
    }
    // Long runs where there is much: a tokenizer keeps what it has seen by thread.
    const MOST: u64 = 512;
    let rows = range.end - range.start;
    let each = rows.div_ceil(rayon::current_num_threads() as u64).clamp(1, MOST);
    let runs = rows.div_ceil(each) as usize;
    let run = |i: usize| {
        let start = range.start + i as u64 * each;
        on_deep_stack(|| (start..range.end.min(start + each)).map(&one).collect::<Vec<T>>())
    };
    let all: Vec<Vec<T>> = (0..runs).into_par_iter().with_max_len(1).map(run).collect();
    all.into_iter().flatten().collect()
}
