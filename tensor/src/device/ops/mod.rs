//! What ops do with tensors on a device: arguments have been checked, results are made, a kernel is launched.
//!
//! A file for each op that has a kernel, under the stem it has on the processor. Formulas and orders of sums are in
//! the heads of `cuda/kernels`.

pub(crate) mod attention;
pub(crate) mod choose;
pub(crate) mod dora_linear;
pub(crate) mod dropout;
pub(crate) mod elementwise;
pub(crate) mod functions;
pub(crate) mod gather;
pub(crate) mod linear;
pub(crate) mod lm_head;
pub(crate) mod lm_head_divergence;
pub(crate) mod lstm;
pub(crate) mod norms;
pub(crate) mod quantised;
pub(crate) mod reduction;
pub(crate) mod rope;
pub(crate) mod rotations;
pub(crate) mod rows;
pub(crate) mod sampling;
pub(crate) mod softmax;

use std::sync::Arc;

/// An open device.
pub(crate) type On = Arc<super::Context>;
