//! Every kernel on the emulator, against a reference in f64 written here.
//!
//! Inputs are random numbers as their type holds them, so that only the kernel's own roundings differ. Errors are
//! measured in norm. Shapes are proptest's: nothing, one, odd, not a multiple of a tile.

#[path = "../support/mod.rs"]
mod support;

mod adapters;
mod attention;
mod attention_hopper;
mod caches;
mod copy;
mod elementwise;
mod lm_head;
mod lm_head_divergence;
mod lm_head_top;
mod matmul;
mod matmul_hopper;
mod norms;
mod optim;
mod quantised;
mod rows;
mod samples;
mod sampling;
mod softmax;
