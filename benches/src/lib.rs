//! Inputs for the benchmarks: named shapes and random tensors.

mod model;

pub use model::model;

use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Result, Tensor};

/// SmolLM2-135M's sizes.
pub mod smollm2 {
    /// Width of the residual stream.
    pub const HIDDEN: usize = 576;
    /// Width of the MLP.
    pub const MLP: usize = 1536;
    /// Query heads.
    pub const HEADS: usize = 9;
    /// Key/value heads.
    pub const KV_HEADS: usize = 3;
    /// Width of a head.
    pub const HEAD: usize = 64;
    /// Rows of the embedding.
    pub const VOCABULARY: usize = 49_152;
    /// Layers.
    pub const LAYERS: usize = 30;
}

/// Products x Wᵀ that are compared with other libraries, as (rows of x, columns of x, rows of W): a square,
/// the projections up and down of the MLP for 2048 tokens, and the LM head for 512.
pub const GEMM_SHAPES: [(usize, usize, usize); 4] = [
    (1024, 1024, 1024),
    (2048, smollm2::HIDDEN, smollm2::MLP),
    (2048, smollm2::MLP, smollm2::HIDDEN),
    (512, smollm2::HIDDEN, smollm2::VOCABULARY),
];

/// Standard normal values in f32, the same in every run.
///
/// # Errors
/// A shape whose size overflows.
pub fn normal(seed: u64, dims: &[usize]) -> Result<Tensor> {
    let stream = Stream::new(seed, Purpose::Data, 0);
    let count: usize = dims.iter().product();
    Tensor::from_vec((0..count as u64).map(|i| stream.normal(i) as f32).collect(), dims)
}

/// As [`normal`], stored in `dtype`.
///
/// # Errors
/// As [`normal`].
pub fn normal_in(dtype: DType, seed: u64, dims: &[usize]) -> Result<Tensor> {
    normal(seed, dims)?.to_dtype(dtype)
}

/// The segment table of sequences of these lengths.
pub fn cu_seqlens(lengths: &[u32]) -> Vec<u32> {
    let ends = lengths.iter().scan(0, |end, &n| {
        *end += n;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}
