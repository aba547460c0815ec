//! What the data looks like to the trainer, before step 0.

use serde::{Deserialize, Serialize};

use super::columns::DatasetType;
use super::dataset::FileInfo;
use super::encode::{Dropped, Encoded, Encoder, Example, Rejected, Truncation};
use super::error::{DataError, Result};
use super::fault::InvalidRows;
use super::pack::Packing;
use super::remarks::{of_window, warnings};
use super::sampler::{Sampler, in_runs};

/// Rows encoded at once: bounds memory.
const CHUNK: u64 = 4096;

/// Lengths of the examples of a data set, as far as they were looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Lengths {
    /// Tokens of each row of the data set, by its number; 0 for dropped rows and those of the other
    /// side of a split. Empty if only a sample was looked at.
    pub by_row: Vec<u32>,
    /// Share of the rows that become examples.
    pub kept: f64,
    /// Mean tokens of an example.
    pub mean: f64,
    /// Most tokens of an example.
    pub max: usize,
}

/// A bar of the histogram: examples of `from..=to` tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bar {
    /// Fewest tokens.
    pub from: usize,
    /// Most tokens.
    pub to: usize,
    /// Number of examples.
    pub count: u64,
}

/// Token lengths before truncation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LengthStats {
    /// Shortest.
    pub min: usize,
    /// Median.
    pub p50: usize,
    /// Nine of ten are at most this long.
    pub p90: usize,
    /// 99 of a hundred are at most this long.
    pub p99: usize,
    /// Longest.
    pub max: usize,
    /// Mean.
    pub mean: f64,
    /// All of them.
    pub histogram: Vec<Bar>,
}

/// A run of tokens of the first example that are all trained on, or all not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Their text, special tokens included.
    pub text: String,
    /// How many they are.
    pub tokens: usize,
    /// Whether the loss is taken on them.
    pub trained: bool,
}

/// The first example as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstExample {
    /// Its file.
    pub file: String,
    /// Its line.
    pub line: u64,
    /// Its tokens.
    pub spans: Vec<Span>,
}

/// The report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preflight {
    /// The files and what they were taken for.
    pub files: Vec<FileInfo>,
    /// Rows on this side of the split.
    pub rows: u64,
    /// Rows that this report is about: all, or an even sample.
    pub examined: u64,
    /// Whether it is about a sample only.
    pub sampled: bool,
    /// Examples among the examined rows.
    pub examples: u64,
    /// Draws of an epoch, weights applied.
    pub epoch_len: u64,
    /// Optimizer steps of the first epoch; an estimate if `sampled`.
    pub steps_per_epoch: u64,
    /// How examples are put together.
    pub packing: Packing,
    /// Tokens of the examples, after truncation.
    pub tokens: u64,
    /// Those that the loss is taken on.
    pub supervised_tokens: u64,
    /// Their share.
    pub supervised_share: f64,
    /// Lengths before truncation.
    pub lengths: LengthStats,
    /// The limit.
    pub max_length: Option<usize>,
    /// What happens to longer ones.
    pub truncation_mode: Truncation,
    /// Examples that were cut.
    pub truncated: u64,
    /// Rows dropped for their length.
    pub dropped_too_long: u64,
    /// Rows dropped because truncation left no trained token.
    pub dropped_after_truncation: u64,
    /// Rows dropped because they have no trained token.
    pub dropped_unsupervised: u64,
    /// Rows dropped because they are wrong, by what is wrong with them.
    #[serde(default)]
    pub dropped_invalid: Vec<InvalidRows>,
    /// Positions that the model was made for.
    #[serde(default)]
    pub window: Option<usize>,
    /// Examples that are longer than that all the same.
    #[serde(default)]
    pub beyond_window: u64,
    /// Examples that begin with two beginning-of-sequence tokens.
    pub double_bos: u64,
    /// Examples that never show the model how to end.
    pub missing_eos: u64,
    /// Examples whose prompt, encoded alone, is not the beginning of the whole.
    pub prompt_diverges: u64,
    /// The template that conversations go through, if any do.
    pub template: Option<String>,
    /// The first example.
    pub first: Option<FirstExample>,
    /// What deserves attention, in sentences.
    pub warnings: Vec<String>,
}

impl Preflight {
    /// Rows dropped because they are wrong.
    pub fn invalid(&self) -> u64 {
        self.dropped_invalid.iter().map(|rows| rows.rows).sum()
    }
}

/// Looks at all rows of a sampler's view, or, where it has more than `limit`, at `limit` of them
/// spread evenly. Rows are encoded in parallel and in bounded memory.
///
/// # Errors
/// The first malformed row among those looked at; [`DataError::NothingLeft`] if no row becomes an
/// example.
pub fn preflight(sampler: &Sampler, limit: u64) -> Result<(Preflight, Lengths)> {
    let view = sampler.view();
    let rows = view.rows();
    let examined = rows.min(limit.max(1));
    let sampled = examined < rows;
    let mut by_row = if sampled { Vec::new() } else { vec![0; view.data().len() as usize] };
    let mut tally = Tally::default();
    // Of a stream that is cut in blocks, a segment is a block at most.
    let block = if sampler.options().packing == Packing::Wrapped { sampler.row_length() } else { usize::MAX };
    let positions = (block, sampler.encoder().options().window.unwrap_or(usize::MAX));
    for start in (0..examined).step_by(CHUNK as usize) {
        let one = |k: u64| {
            let t = (k as u128 * rows as u128 / examined as u128) as u64;
            let index = view.row(t);
            (index, sampler.encode(index))
        };
        for (index, encoded) in in_runs(start..examined.min(start + CHUNK), one) {
            let encoded = match encoded {
                Ok(encoded) => encoded,
                Err(error) => match sampler.tolerated(&error) {
                    Some(reason) => {
                        InvalidRows::count(&mut tally.invalid, reason, &error);
                        continue;
                    }
                    None => return Err(error),
                },
            };
            if let (Some(slot), Ok(e)) = (by_row.get_mut(index as usize), &encoded.example) {
                // Both sides of a pair go through the model together, and so do all answers of a row.
                let other = encoded.rejected.as_ref().map_or(0, |r| r.example.ids.len());
                let more: usize = encoded.more.iter().map(|(e, _)| e.ids.len()).sum();
                *slot = (e.ids.len() + other + more) as u32;
            }
            tally.add(encoded, positions);
        }
    }
    if tally.examples == 0 {
        let wrong: u64 = tally.invalid.iter().map(|rows| rows.rows).sum();
        let mut why = format!(
            "{} were longer than max_length, {} had no trained token left after truncation, {} had none at all",
            tally.too_long, tally.after_truncation, tally.unsupervised
        );
        if let Some(first) = tally.invalid.first().and_then(|rows| rows.first.first()) {
            why += &format!(", {wrong} were wrong ({first})");
        }
        return Err(DataError::NothingLeft { seen: examined, why });
    }
    let lengths = Lengths {
        by_row,
        kept: tally.examples as f64 / examined as f64,
        mean: tally.tokens as f64 / tally.examples as f64,
        max: tally.longest,
    };
    Ok((report(sampler, examined, tally, &lengths), lengths))
}

/// Counts while rows go by.
#[derive(Default)]
struct Tally {
    examples: u64,
    tokens: u64,
    supervised: u64,
    longest: usize,
    full: Vec<usize>,
    truncated: u64,
    too_long: u64,
    after_truncation: u64,
    unsupervised: u64,
    invalid: Vec<InvalidRows>,
    /// Examples beyond the window, and where the first of them are.
    beyond: u64,
    beyond_first: Vec<String>,
    double_bos: u64,
    missing_eos: u64,
    diverges: u64,
    first: Option<Example>,
    /// Pairs, and trained tokens of their two sides.
    pairs: u64,
    sides: [u64; 2],
    /// Unwanted and wanted completions.
    labels: [u64; 2],
    /// Wrong and right steps.
    steps: [u64; 2],
}

impl Tally {
    /// `positions` are the most that a segment has, and those that the model was made for.
    fn add(&mut self, encoded: Encoded, (block, window): (usize, usize)) {
        self.full.push(encoded.full_len);
        self.double_bos += u64::from(encoded.double_bos);
        self.missing_eos += u64::from(encoded.missing_eos);
        self.diverges += u64::from(encoded.prompt_diverges);
        match encoded.example {
            Ok(e) => {
                let (mut tokens, mut supervised) = (e.ids.len(), e.supervised());
                let mut cut = e.ids.len() < encoded.full_len;
                let rejected = encoded.rejected.iter().map(|r| &r.example);
                let longest = rejected.chain(encoded.more.iter().map(|(e, _)| e)).map(|e| e.ids.len()).max();
                if longest.unwrap_or(0).max(e.ids.len()).min(block) > window {
                    self.beyond += 1;
                    if self.beyond_first.len() < 3 {
                        self.beyond_first.push(e.source.at().to_string());
                    }
                }
                if let Some(Rejected { example: r, full_len }) = &encoded.rejected {
                    self.full.push(*full_len);
                    self.pairs += 1;
                    self.sides[0] += e.supervised() as u64;
                    self.sides[1] += r.supervised() as u64;
                    (tokens, supervised) = (tokens + r.ids.len(), supervised + r.supervised());
                    cut |= r.ids.len() < *full_len;
                }
                for (e, _) in &encoded.more {
                    (tokens, supervised) = (tokens + e.ids.len(), supervised + e.supervised());
                }
                for &right in encoded.more.iter().flat_map(|(_, steps)| steps).chain(&encoded.steps) {
                    self.steps[usize::from(right)] += 1;
                }
                if let Some(label) = encoded.label {
                    self.labels[usize::from(label)] += 1;
                }
                self.examples += 1;
                self.tokens += tokens as u64;
                self.supervised += supervised as u64;
                self.longest = self.longest.max(tokens);
                self.truncated += u64::from(cut);
                self.first.get_or_insert(e);
            }
            Err(Dropped::TooLong) => self.too_long += 1,
            Err(Dropped::UnsupervisedAfterTruncation) => self.after_truncation += 1,
            Err(Dropped::Unsupervised) => self.unsupervised += 1,
            // Counted by reason instead.
            Err(Dropped::Invalid) => {}
        }
    }
}

fn report(sampler: &Sampler, examined: u64, mut tally: Tally, lengths: &Lengths) -> Preflight {
    let (view, encoder) = (sampler.view(), sampler.encoder());
    tally.full.sort_unstable();
    let files = view.data().files();
    let renders = |kind: DatasetType| {
        use DatasetType::*;
        !matches!(kind, Text | Tokenized | Stepwise | Prm800k)
    };
    let template = encoder.text().template().filter(|_| files.iter().any(|f| renders(f.kind)));
    let mut report = Preflight {
        rows: view.rows(),
        examined,
        sampled: examined < view.rows(),
        examples: tally.examples,
        epoch_len: view.epoch_len(),
        steps_per_epoch: sampler.steps_in_epoch(lengths, 0),
        packing: sampler.options().packing,
        tokens: tally.tokens,
        supervised_tokens: tally.supervised,
        supervised_share: tally.supervised as f64 / tally.tokens.max(1) as f64,
        lengths: stats(&tally.full),
        max_length: encoder.options().max_length,
        truncation_mode: encoder.options().truncation_mode,
        truncated: tally.truncated,
        dropped_too_long: tally.too_long,
        dropped_after_truncation: tally.after_truncation,
        dropped_unsupervised: tally.unsupervised,
        dropped_invalid: std::mem::take(&mut tally.invalid),
        window: encoder.options().window,
        beyond_window: tally.beyond,
        double_bos: tally.double_bos,
        missing_eos: tally.missing_eos,
        prompt_diverges: tally.diverges,
        template: template.map(str::to_string),
        first: tally.first.as_ref().map(|e| first(encoder, e)),
        warnings: Vec::new(),
        files,
    };
    report.warnings = warnings(&report, encoder);
    report.warnings.extend(of_window(&report, &tally.beyond_first, sampler.row_length()));
    report.warnings.extend(of_preferences(&tally));
    report
}

/// What is lopsided in pairs and labels.
fn of_preferences(tally: &Tally) -> Option<String> {
    let [unwanted, wanted] = tally.labels;
    if unwanted + wanted > 0 && (unwanted == 0 || wanted == 0) {
        let (all, none) = if unwanted == 0 { ("true", "false") } else { ("false", "true") };
        return Some(format!(
            "every label is {all}: with no completion labelled {none} to tell them from, the loss only pushes all answers one way"
        ));
    }
    let [wrong, right] = tally.steps;
    if wrong + right > 0 && (wrong == 0 || right == 0) {
        let all = if wrong == 0 { "right" } else { "wrong" };
        return Some(format!("every step is labelled {all}: there is nothing to tell steps apart by"));
    }
    // DPO exploits length where the pairs prefer it (arXiv 2403.19159); half as long again is plainly that.
    let [chosen, rejected] = tally.sides.map(|n| n as f64 / tally.pairs.max(1) as f64);
    (tally.pairs > 0 && chosen > 1.5 * rejected).then(|| {
        format!(
            "chosen completions have {chosen:.0} tokens on average and rejected ones {rejected:.0}: the model will learn to write more; a loss that goes by the token (sigmoid_norm, simpo) or ld_alpha counters that"
        )
    })
}

/// Quantiles and bars of sorted lengths.
fn stats(sorted: &[usize]) -> LengthStats {
    let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else { return LengthStats::default() };
    // The nearest-rank quantile: the smallest length that at least this share does not exceed.
    let at = |q: f64| sorted[((q * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1];
    // The smallest of 1, 2, 5, 10, … that makes at most twelve bars.
    let mut width = 1;
    for step in [2, 5, 10].into_iter().cycle() {
        if max / width < 12 {
            break;
        }
        let decade = 10usize.pow(width.ilog10());
        width = decade * step;
    }
    let mut histogram: Vec<Bar> =
        (0..=max / width).map(|k| Bar { from: k * width, to: (k + 1) * width - 1, count: 0 }).collect();
    sorted.iter().for_each(|&n| histogram[n / width].count += 1);
    let mean = sorted.iter().map(|&n| n as f64).sum::<f64>() / sorted.len() as f64;
    LengthStats { min, p50: at(0.5), p90: at(0.9), p99: at(0.99), max, mean, histogram }
}

/// The tokens of an example in runs of equal mask.
fn first(encoder: &Encoder, e: &Example) -> FirstExample {
    let mut spans = Vec::new();
    let mut start = 0;
    for i in 1..=e.ids.len() {
        let trained = |i: usize| i > 0 && e.mask[i];
        if i == e.ids.len() || trained(i) != trained(start) {
            let ids = &e.ids[start..i];
            let text = encoder.text().decode(ids).unwrap_or_else(|_| format!("{ids:?}"));
            spans.push(Span { text, tokens: ids.len(), trained: trained(start) });
            start = i;
        }
    }
    FirstExample { file: e.source.file.display().to_string(), line: e.source.line, spans }
}

impl Sampler {
    /// Optimizer steps of an epoch: exact when all lengths are known, else an estimate from the
    /// sample (packed rows then counted as 98% full).
    pub fn steps_in_epoch(&self, lengths: &Lengths, epoch: u64) -> u64 {
        let per_step = self.units_per_step() as u64;
        let len = self.view().epoch_len();
        let units = if lengths.by_row.is_empty() {
            let kept = len as f64 * lengths.kept;
            match self.options().packing {
                Packing::None => kept.round() as u64,
                _ => (kept * lengths.mean / (0.98 * self.row_length() as f64)).ceil() as u64,
            }
        } else {
            let order = self.view().order(self.options().seed, self.options().shuffle, epoch);
            let length = |i: u64| lengths.by_row[order.get(i) as usize] as usize;
            match self.options().packing {
                Packing::None => (0..len).filter(|&i| length(i) > 0).count() as u64,
                Packing::Wrapped => {
                    let total: usize = (0..len).map(length).sum();
                    // A last block of one token trains nothing and is left out.
                    (total / self.row_length() + usize::from(total % self.row_length() > 1)) as u64
                }
                Packing::Bfd => {
                    let window = self.options().pack_window;
                    let starts = (0..len).step_by(usize::try_from(window).unwrap_or(usize::MAX));
                    let bins = |start: u64| {
                        let lengths: Vec<usize> = (start..len.min(start.saturating_add(window))).map(length).collect();
                        self.bins(&lengths, epoch, start).len() as u64
                    };
                    starts.map(bins).sum()
                }
            }
        };
        units.div_ceil(per_step).max(1)
    }
}
