//! The kernels, a file an op, forward and backward side by side.
//!
//! Conventions: activations are f32 or f64; weights may also be bf16 or f16. A backward function
//! returns fresh gradients (`=`) unless its name ends in `_add`, which adds into a buffer (`+=`).
//! `x: (tokens, hidden)` means that all dimensions but the last are flattened.

pub mod attention;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod glu;
pub mod index_select;
pub mod linear;
pub mod lm_head;
pub mod lora_linear;
pub mod rms_norm;
pub mod rope;
pub mod view;
