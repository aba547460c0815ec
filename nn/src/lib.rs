//! Models, adapters, weights, tokenizers, chat templates and sampling of planish.

pub mod gguf;
pub mod hub;
pub mod weights;
