//! Reverse-mode differentiation over coarse, hand-differentiated ops.
//!
//! [`Tape`] records, [`Var`] is a value on it, [`Param`] a weight that outlives it. [`ops`] wraps
//! each kernel of `planish-tensor` with its backward rule: what is saved, and where gradients go.
//! [`registry`] lists them all. [`gradcheck`] compares any of it with central differences.

pub mod checkpoint;
mod error;
#[path = "gradcheck.rs"]
mod gradcheck_impl;
pub mod ops;
mod param;
pub mod registry;
mod saved;
mod sum;
mod tape;

pub use checkpoint::checkpoint;
pub use error::{Error, Result};
pub use gradcheck_impl::{GradCheck, Mismatch, gradcheck};
pub use param::Param;
pub use saved::Saved;
pub use tape::{Gradients, Grads, Rule, Tape, Var, record, record_without_rule, record1};

#[cfg(test)]
mod tests;
