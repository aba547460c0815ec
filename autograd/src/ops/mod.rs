//! Differentiable ops: one file each, wrapping the kernel of the same name in `planish_tensor::ops`.

pub mod activation;
pub mod attention;
pub mod block_rotate;
pub mod cast;
pub mod cayley;
pub mod concat;
pub mod dora_linear;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod gather;
pub mod glu;
pub mod index_select;
pub mod layer_norm;
pub mod linear;
pub mod lm_head;
pub mod lm_head_divergence;
pub mod lora_embedding;
pub mod lora_linear;
pub mod reduction;
pub mod rms_norm;
pub mod rope;
pub mod scatter_add;
pub mod softmax;
pub mod unary;
pub mod view;
