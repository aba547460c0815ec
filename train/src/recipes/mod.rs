//! Recipes: from a configuration to a trained model, each in one file, read top to bottom.

pub mod pretrain;
pub mod sft;

mod inputs;
