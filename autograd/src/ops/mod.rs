//! Differentiable ops: one file each, wrapping the kernel of the same name in `planish_tensor::ops`.

pub mod attention;
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
