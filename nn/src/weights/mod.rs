//! Weights on disk: safetensors files, alone or sharded, read without copies and written atomically.
//!
//! [`WeightsReader`] opens what Hugging Face directories hold and hands out tensors that lie over
//! the mapped file. [`save_safetensors`] and [`save_sharded`] write the same. [`atomic`] is how
//! anything in planish replaces a file: whoever looks sees the old content or the new, whole.
//!
//! Files are hostile until parsed: no size in a header is believed before it was compared with the
//! length of the file.

pub mod atomic;
mod bitsandbytes;
mod error;
mod header;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub use atomic::{atomic_dir, atomic_write};
pub use bitsandbytes::{QuantProblem, stored};
pub use error::{Result, TensorProblem, WeightsError};
pub(crate) use reader::check_regular;
pub use reader::{TensorMeta, WeightsReader};
pub use writer::{DEFAULT_MAX_SHARD_BYTES, is_weights_file, save_safetensors, save_sharded};

/// File name of the index of a sharded model.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// File name of a model in one file.
pub const SINGLE_FILE: &str = "model.safetensors";
