//! Recipes: from a configuration to a trained model, each in one file, read top to bottom.

pub mod cpo;
pub mod distill;
pub mod dpo;
pub mod kto;
pub mod mix;
pub mod orpo;
pub mod pretrain;
pub mod reward;
pub mod sft;
pub mod simpo;

pub use inputs::datasets;

mod inputs;
mod preference;
mod resumed;
