//! What can go wrong with an export.

use std::path::PathBuf;

/// Why a model cannot be written as GGUF.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// llama.cpp has no such architecture.
    #[error(
        "llama.cpp has no architecture for models of type {model_type:?} that is written here (written: {supported})"
    )]
    Architecture {
        /// `model_type` of config.json.
        model_type: String,
        /// Those that can be written.
        supported: String,
    },
    /// The architecture cannot say what the model is.
    #[error("a GGUF file of architecture {architecture:?} cannot express this model's {what}")]
    Inexpressible {
        /// `general.architecture`.
        architecture: &'static str,
        /// What is lost.
        what: String,
    },
    /// The tokenizer is of a kind that llama.cpp has not got.
    #[error("the tokenizer cannot be written as GGUF: {problem}")]
    Tokenizer {
        /// Why not.
        problem: String,
    },
    /// A weight is too large for the type.
    #[error("tensor `{tensor}` holds {value}, which F16 cannot; export with --quant bf16")]
    Overflow {
        /// The tensor.
        tensor: String,
        /// The number.
        value: f32,
    },
    /// A weight holds what is no number.
    #[error(
        "tensor `{tensor}` holds {value}, which is no number; the model's file is damaged, or its training went wrong"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// NaN or an infinity.
        value: f32,
    },
    /// There is something already.
    #[error("{} exists; choose another name, or replace it with --overwrite", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// What was written is not what was read back.
    #[error("{} was written, but {what} reads back otherwise: the disk or this program is at fault", path.display())]
    ReadBack {
        /// The file, as it was called then.
        path: PathBuf,
        /// The tensor or the key.
        what: String,
    },
}
