//! The kernels, a file an op, forward and backward side by side.
//!
//! Conventions: activations are f32 or f64; weights may also be bf16 or f16. A backward function
//! returns fresh gradients (`=`) unless its name ends in `_add`, which adds into a buffer (`+=`).
//! `x: (tokens, hidden)` means that all dimensions but the last are flattened.

pub mod activation;
pub mod attention;
pub mod block_rotate;
pub mod cayley;
pub(crate) mod check;
pub mod choose;
pub mod combine;
pub mod concat;
pub mod dora_linear;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod gather;
pub mod glu;
pub mod grouped_linear;
pub mod index_select;
pub mod layer_norm;
mod left;
pub mod linear;
pub mod lm_head;
pub mod lm_head_divergence;
pub mod lm_head_top;
pub mod lora_embedding;
pub mod lora_linear;
pub mod lstm;
pub mod reduction;
pub mod rms_norm;
pub mod rope;
mod rows;
pub mod sampling;
pub mod scatter_add;
pub mod softmax;
#[cfg(test)]
pub(crate) mod testing;
pub mod unary;
pub mod view;
