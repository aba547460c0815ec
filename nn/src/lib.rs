//! Models, adapters, weights, tokenizers, chat templates and sampling of planish.
//!
//! [`config`] says what a decoder is made of, [`families`] maps each family's config.json to it,
//! [`decoder`] is the one transformer they share, [`adapters`] changes it; [`pretrained`] opens and
//! writes whole models over [`weights`] and [`gguf`], and [`hub`] finds them by id.

pub mod adapters;
pub mod config;
mod context;
pub mod decoder;
pub mod drift;
mod error;
pub mod families;
mod fused;
pub mod generate;
pub mod gguf;
pub mod hub;
pub mod modules;
pub mod pretrained;
pub mod quantize;
pub mod reward;
pub mod template;
pub mod tokenizer;
pub mod weights;

pub use context::Ctx;
pub use error::{Error, Result};
