//! The sizes that ops are checked and timed at.

use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Result, Tensor};

/// Sizes of a model and of a batch.
pub(super) struct Sizes {
    pub(super) tokens: usize,
    pub(super) hidden: usize,
    pub(super) mlp: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head: usize,
    pub(super) vocabulary: usize,
}

impl Sizes {
    /// SmolLM2-135M with 1024 tokens.
    pub(super) const SMOLLM2: Sizes =
        Sizes { tokens: 1024, hidden: 576, mlp: 1536, heads: 9, kv_heads: 3, head: 64, vocabulary: 49_152 };

    /// Small, and multiples of nothing that kernels are tiled by, where the op allows it; the inner sizes
    /// are over a block of the matrix product, and the vocabulary over two tiles of the LM head.
    pub(super) const CHECK: Sizes =
        Sizes { tokens: 67, hidden: 577, mlp: 1031, heads: 9, kv_heads: 3, head: 64, vocabulary: 4999 };

    /// The same for the emulator, which is slow.
    pub(super) const EMULATED: Sizes =
        Sizes { tokens: 19, hidden: 67, mlp: 131, heads: 6, kv_heads: 2, head: 20, vocabulary: 4999 };

    /// As [`Sizes::CHECK`], but multiples of 8, and heads of 64: sizes that tensor cores take.
    pub(super) const HALF: Sizes =
        Sizes { tokens: 67, hidden: 576, mlp: 1032, heads: 9, kv_heads: 3, head: 64, vocabulary: 5000 };

    /// The same for the emulator.
    pub(super) const HALF_EMULATED: Sizes =
        Sizes { tokens: 19, hidden: 72, mlp: 136, heads: 4, kv_heads: 2, head: 64, vocabulary: 1000 };

    /// Standard normal values in f32, the same in every run.
    pub(super) fn normal(&self, seed: u64, dims: &[usize]) -> Result<Tensor> {
        self.map(seed, dims, |x| x)
    }

    /// `f` of standard normal values.
    pub(super) fn map(&self, seed: u64, dims: &[usize], f: impl Fn(f64) -> f64) -> Result<Tensor> {
        let stream = Stream::new(seed, Purpose::Data, 0);
        let count: usize = dims.iter().product();
        Tensor::from_vec((0..count as u64).map(|i| f(stream.normal(i)) as f32).collect(), dims)
    }

    /// Standard normal values divided by √(last dimension), as weights are, stored in `dtype`.
    pub(super) fn weight(&self, dtype: DType, seed: u64, dims: &[usize]) -> Result<Tensor> {
        let scale = (dims.last().copied().unwrap_or(1) as f64).sqrt().recip();
        self.map(seed, dims, |x| x * scale)?.to_dtype(dtype)
    }

    /// One token or row for each of `count`, spread over `below`, with repeats where there are more.
    pub(super) fn ids(&self, count: usize, below: usize) -> Vec<u32> {
        (0..count).map(|i| (i * 7919 % below) as u32).collect()
    }
}
