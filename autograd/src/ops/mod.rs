//! Differentiable ops: one file each, wrapping the kernel of the same name in `planish_tensor::ops`.

pub mod attention;
pub mod linear;
pub mod lm_head;
