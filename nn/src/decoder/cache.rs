//! Keys and values of a sequence, kept while it is decoded.

use planish_tensor::ops::attention::KeyValues;
use planish_tensor::{DType, Device};

use crate::config::ModelConfig;

/// Keys and values of one sequence. Grows by doubling, or as far as it is known to go.
///
/// In the activations' dtype, so that decoding computes what training does, bit for bit.
/// A clone shares the memory until one of the two is written to.
#[derive(Debug, Clone)]
pub struct SequenceCache {
    memory: KeyValues,
    /// Rows held, those of virtual tokens included.
    len: usize,
    /// Rows of an adapter's virtual tokens, which come first.
    lead: usize,
}

impl SequenceCache {
    pub(super) fn new(config: &ModelConfig, dtype: DType, device: Device) -> SequenceCache {
        let memory = KeyValues::new(config.num_layers(), config.num_kv_heads, config.head_dim, dtype, device);
        SequenceCache { memory, len: 0, lead: 0 }
    }

    /// Says that so many tokens are to come at most, those held included: room is taken for no more.
    pub(crate) fn expect(&mut self, tokens: usize) {
        self.memory.expect(tokens.saturating_add(self.lead));
    }

    /// Tokens held, without an adapter's virtual ones.
    pub fn len(&self) -> usize {
        self.len - self.lead
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all tokens after the first `len`, keeping the memory.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len.saturating_add(self.lead));
    }

    /// Rows held, virtual tokens included: the position of what comes next.
    pub(super) fn rows(&self) -> usize {
        self.len
    }

    /// Notes that the first `rows` to be counted are virtual tokens'.
    pub(super) fn set_lead(&mut self, rows: usize) {
        self.memory.expect_more(rows);
        self.lead = rows;
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// What recorded work depends on that puts another key here.
    pub(crate) fn recorded_for(&self) -> usize {
        self.memory.recorded_for(self.len + 1)
    }

    pub(super) fn memory(&mut self) -> &mut KeyValues {
        &mut self.memory
    }

    pub(super) fn advance(&mut self, new: usize) {
        self.len += new;
    }
}
