//! Losses. Each returns a sum and a count; the division happens once, over the whole optimizer step
//! (law 3 of the design).

mod cross_entropy;

pub use cross_entropy::{LossSum, cross_entropy};
