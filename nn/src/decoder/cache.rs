//! Keys and values of a sequence, kept while it is decoded.

use planish_tensor::{DType, Device, Result, Tensor};

use crate::config::ModelConfig;

/// Keys and values of one sequence, (capacity, kv_heads, head_dim) a layer. Grows by doubling.
///
/// In the activations' dtype, so that decoding computes what training does, bit for bit.
/// A clone shares the memory until one of the two grows.
#[derive(Debug, Clone)]
pub struct SequenceCache {
    layers: Vec<(Tensor, Tensor)>,
    /// Rows held, those of virtual tokens included.
    len: usize,
    /// Rows of an adapter's virtual tokens, which come first.
    lead: usize,
    /// Tokens appended to each layer but not yet counted by [`SequenceCache::advance`].
    pending: Vec<usize>,
    heads: usize,
    size: usize,
    dtype: DType,
    device: Device,
}

impl SequenceCache {
    pub(super) fn new(config: &ModelConfig, dtype: DType, device: Device) -> SequenceCache {
        let (heads, size, n) = (config.num_kv_heads, config.head_dim, config.num_layers());
        let (layers, pending) = (Vec::with_capacity(n), vec![0; n]);
        SequenceCache { layers, len: 0, lead: 0, pending, heads, size, dtype, device }
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
        self.lead = rows;
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|(k, v)| (k.numel() + v.numel()) * self.dtype.size()).sum()
    }

    /// Forgets what a pass that failed had begun to append.
    pub(super) fn begin(&mut self) {
        self.pending.fill(0);
    }

    pub(super) fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        let new = k.dims()[0];
        let at = self.len + self.pending[layer];
        let need = at + new;
        let room = |rows: usize| Tensor::zeros_on(self.device, [rows, self.heads, self.size], self.dtype);
        if layer == self.layers.len() {
            let capacity = need.next_power_of_two().max(64);
            self.layers.push((room(capacity)?, room(capacity)?));
        }
        let (ck, cv) = &mut self.layers[layer];
        for (cache, new) in [(ck, k), (cv, v)] {
            if cache.dims()[0] < need {
                let mut larger = room(need.next_power_of_two())?;
                larger.write(0, 0, &cache.narrow(0, 0, at)?)?;
                *cache = larger;
            }
            cache.write(0, at, new)?;
        }
        self.pending[layer] += new;
        Ok(())
    }

    /// (k, v, tokens) of a layer, tokens just appended included.
    pub(super) fn layer(&self, layer: usize) -> (&Tensor, &Tensor, usize) {
        let (k, v) = &self.layers[layer];
        (k, v, self.len + self.pending[layer])
    }

    pub(super) fn advance(&mut self, new: usize) {
        self.len += new;
        self.pending.fill(0);
    }
}
