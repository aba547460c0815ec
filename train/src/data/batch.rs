//! The batch of the engine: one flat stream of tokens with a segment table. There is no padding.

use super::encode::{Example, supervised};

/// Segments laid end to end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Tokens of all segments: `(tokens,)`.
    pub ids: Vec<u32>,
    /// Segment `s` is `cu_seqlens[s]..cu_seqlens[s + 1]`: `(segments + 1,)`, from 0.
    pub cu_seqlens: Vec<u32>,
    /// Position of each token within its segment, from 0: `(tokens,)`.
    pub positions: Vec<u32>,
    /// The loss is taken on predicting `ids[i]` where `mask[i]`; never at the first token of a
    /// segment, which is false here: `(tokens,)`.
    pub mask: Vec<bool>,
    /// The example that each segment came from, by its number in the data set: `(segments,)`.
    pub example_indices: Vec<usize>,
    /// Segments of an example, which follow each other and are never parted: 2 for pairs (chosen, then
    /// rejected), 0 or 1 for everything else but what `sizes` says.
    pub per_example: usize,
    /// Segments of each example where some have more than others, or empty: `(examples,)`.
    pub sizes: Vec<usize>,
    /// Whether each segment is a wanted answer, where the data says so: `(segments,)` or empty.
    pub labels: Vec<bool>,
    /// How good each segment is as an answer to its prompt, where the data says so; of pairs beside such rows 1 and 0:
    /// `(segments,)` or empty.
    pub scores: Vec<f64>,
    /// By how much the chosen side of each pair is better, 0 where the data does not say: `(pairs,)`, or empty if
    /// there are no pairs.
    pub margins: Vec<f64>,
    /// Whether the step that ends at each token of the mask is right: one for each of them, or empty if the data is not
    /// in steps.
    pub steps: Vec<bool>,
}

impl Batch {
    /// Examples one after the other, numbered as they are in the data set.
    pub fn from_examples<'a>(examples: impl IntoIterator<Item = (usize, &'a Example)>) -> Batch {
        let mut batch = Batch::new();
        for (index, example) in examples {
            batch.push(index, &example.ids, &example.mask);
        }
        batch
    }

    /// Pairs one after the other, each as two segments: chosen, then rejected.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (usize, &'a Example, &'a Example)>) -> Batch {
        let mut batch = Batch { per_example: 2, ..Batch::new() };
        for (index, chosen, rejected) in pairs {
            batch.push(index, &chosen.ids, &chosen.mask);
            batch.push(index, &rejected.ids, &rejected.mask);
            batch.margins.push(0.0);
        }
        batch
    }

    /// Examples with their labels.
    pub fn from_labelled<'a>(examples: impl IntoIterator<Item = (usize, &'a Example, bool)>) -> Batch {
        let mut batch = Batch::new();
        for (index, example, label) in examples {
            batch.push(index, &example.ids, &example.mask);
            batch.labels.push(label);
        }
        batch
    }

    /// Answers in steps, each with the labels of its steps.
    pub fn from_steps<'a>(answers: impl IntoIterator<Item = (usize, &'a Example, &'a [bool])>) -> Batch {
        let mut batch = Batch::new();
        for (index, example, labels) in answers {
            batch.push(index, &example.ids, &example.mask);
            batch.steps.extend(labels);
        }
        batch
    }

    pub(crate) fn new() -> Batch {
        Batch { cu_seqlens: vec![0], ..Batch::default() }
    }

    /// Tokens of segment `s`.
    pub fn segment(&self, s: usize) -> std::ops::Range<usize> {
        self.cu_seqlens[s] as usize..self.cu_seqlens[s + 1] as usize
    }

    /// Appends a segment; an empty one leaves no trace.
    pub(crate) fn push(&mut self, index: usize, ids: &[u32], mask: &[bool]) {
        if ids.is_empty() {
            return;
        }
        self.ids.extend_from_slice(ids);
        self.mask.push(false);
        self.mask.extend_from_slice(&mask[1..]);
        self.positions.extend(0..ids.len() as u32);
        self.cu_seqlens.push(self.ids.len() as u32);
        self.example_indices.push(index);
    }

    /// Segments of each example, in order.
    pub fn examples(&self) -> Vec<std::ops::Range<usize>> {
        let (mut start, mut out) = (0, Vec::new());
        while start < self.segments() {
            let size = self.sizes.get(out.len()).copied().unwrap_or(self.per_example).max(1);
            let end = self.segments().min(start + size);
            out.push(start..end);
            start = end;
        }
        out
    }

    /// A batch of examples of these segments each, with their labels and scores, without margins and steps.
    pub fn select(&self, examples: impl IntoIterator<Item = std::ops::Range<usize>>) -> Batch {
        let mut out = Batch::new();
        for segments in examples {
            out.sizes.push(segments.len());
            for s in segments {
                out.push(self.example_indices[s], &self.ids[self.segment(s)], &self.mask[self.segment(s)]);
                out.labels.extend(self.labels.get(s));
                out.scores.extend(self.scores.get(s));
            }
        }
        let first = out.sizes.first().copied().unwrap_or(1);
        if out.sizes.iter().all(|&size| size == first) {
            (out.per_example, out.sizes) = (first, Vec::new());
        }
        out
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.example_indices.len()
    }

    /// Number of tokens that the loss is taken on.
    pub fn supervised(&self) -> usize {
        // `mask` is false at the first token of each segment, so the first of all is too.
        supervised(&self.mask)
    }

    /// The same segments in order, in as few batches as hold up to `limit` tokens each, or one example that is longer;
    /// the longest of these batches is as short as it can be. Whole if `limit` is 0. The segments of an example stay
    /// together.
    pub fn split(&self, limit: usize) -> Vec<Batch> {
        if limit == 0 || self.tokens() <= limit {
            return vec![self.clone()];
        }
        let examples = self.examples();
        let tokens = |e: &std::ops::Range<usize>| (self.cu_seqlens[e.end] - self.cu_seqlens[e.start]) as usize;
        // How many batches that hold `most` it takes, filled one after the other.
        let count = |most: usize| {
            let (mut parts, mut filled) = (0, usize::MAX);
            for n in examples.iter().map(tokens) {
                filled = filled.saturating_add(n);
                if filled > most {
                    (parts, filled) = (parts + 1, n);
                }
            }
            parts
        };
        let (fewest, mut low, mut most) = (count(limit), 0, limit);
        while low < most {
            let middle = low.midpoint(most);
            if count(middle) > fewest { low = middle + 1 } else { most = middle }
        }
        let mut parts: Vec<Batch> = Vec::with_capacity(fewest);
        let mut step = 0;
        for (number, segments) in examples.iter().enumerate() {
            if parts.last().is_none_or(|last| last.tokens() + tokens(segments) > most) {
                parts.push(Batch { per_example: self.per_example, ..Batch::new() });
            }
            let part = parts.last_mut().expect("one was pushed");
            part.margins.extend(self.margins.get(number));
            if !self.sizes.is_empty() {
                part.sizes.push(segments.len());
            }
            for s in segments.clone() {
                let range = self.segment(s);
                part.push(self.example_indices[s], &self.ids[range.clone()], &self.mask[range.clone()]);
                if !self.steps.is_empty() {
                    let steps = step..step + supervised(&self.mask[range]);
                    step = steps.end;
                    part.steps.extend(&self.steps[steps]);
                }
                part.labels.extend(self.labels.get(s));
                part.scores.extend(self.scores.get(s));
            }
        }
        parts
    }

    /// Length of the longest segment.
    pub fn max_seqlen(&self) -> usize {
        self.cu_seqlens.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0)
    }
}
