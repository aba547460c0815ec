//! GGUF, the file format of llama.cpp: read, dequantised, and seen as a Hugging Face model.
//!
//! [`GgufFile`] maps the file. Its tensors come out under the names, and in the row order, that
//! transformers gives them, as f32 bit for bit what ggml makes of the quantised blocks; its metadata
//! comes out as a `config.json`. Nothing a file declares is believed before it was compared with the
//! length of the file.
//!
//! # Source
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. The blocks: ggml's
//! `ggml-quants.c`, through the Python package `gguf`, against which the tests compare.

mod blocks;
mod config;
mod error;
mod file;
mod metadata;
mod names;
mod parse;
mod types;
mod write;

#[cfg(test)]
mod tests;

pub use error::{FormatProblem, GgufError, Result};
pub use file::{GgufFile, GgufTensor};
pub use metadata::{Array, Metadata, Value};
pub use types::GgmlType;
pub use write::{ExportError, Exported, Quant, export, export_after, quantize};

/// Dequantises whole blocks of `kind` into as many f32 as they hold.
///
/// # Panics
/// If `bytes` is not a whole number of blocks, or `out` not exactly their elements.
pub fn dequantize(kind: GgmlType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len() % kind.block_bytes(), 0);
    assert_eq!(bytes.len() / kind.block_bytes() * kind.block_len(), out.len());
    blocks::dequantize(kind, bytes, out);
}
