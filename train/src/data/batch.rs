//! The batch of the engine: one flat stream of tokens with a segment table. There is no padding.

use super::encode::{Example, supervised};

/// Segments laid end to end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

    pub(crate) fn new() -> Batch {
        Batch { cu_seqlens: vec![0], ..Batch::default() }
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

    /// The same segments in order, in batches of about equal size that hold up to `limit` tokens, or one segment
    /// that is longer; whole if `limit` is 0.
    pub fn split(&self, limit: usize) -> Vec<Batch> {
        if limit == 0 || self.tokens() <= limit {
            return vec![self.clone()];
        }
        let even = self.tokens().div_ceil(self.tokens().div_ceil(limit));
        let mut parts = vec![Batch::new()];
        for (&index, segment) in self.example_indices.iter().zip(self.cu_seqlens.windows(2)) {
            let range = segment[0] as usize..segment[1] as usize;
            let last = parts.last().expect("never empty").tokens();
            if last > 0 && (last >= even || last + range.len() > limit) {
                parts.push(Batch::new());
            }
            let part = parts.last_mut().expect("never empty");
            part.push(index, &self.ids[range.clone()], &self.mask[range]);
        }
        parts
    }

    /// Length of the longest segment.
    pub fn max_seqlen(&self) -> usize {
        self.cu_seqlens.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0)
    }
}
