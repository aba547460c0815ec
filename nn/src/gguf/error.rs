//! What can go wrong with a GGUF file.

use std::path::PathBuf;

use super::types::type_name;

/// Result of reading a GGUF file.
pub type Result<T, E = GgufError> = std::result::Result<T, E>;

/// What can go wrong with a GGUF file.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The operating system refused.
    #[error("cannot open {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why it was refused.
        source: std::io::Error,
    },
    /// The file is not a GGUF file that can be read.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: FormatProblem,
    },
    /// The model's architecture has no mapping to Hugging Face names.
    #[error("{}: architecture {architecture:?} is not supported (supported: {supported})", path.display())]
    UnsupportedArchitecture {
        /// The file.
        path: PathBuf,
        /// `general.architecture`.
        architecture: String,
        /// Those that are.
        supported: String,
    },
    /// The architecture is known, but not this tensor of it.
    #[error("{}: tensor {name:?} is not known in architecture {architecture:?}: this variant of it is not supported", path.display())]
    UnknownTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// `general.architecture`.
        architecture: String,
    },
    /// The tensor asked for is not there.
    #[error("{}: no tensor stands for {name:?}", path.display())]
    NoSuchTensor {
        /// The file.
        path: PathBuf,
        /// The Hugging Face name asked for.
        name: String,
    },
    /// A key that the model needs is absent, or is not of the type it must be.
    #[error("{}: metadata key {key:?} {problem}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// E.g. `"is missing"`.
        problem: &'static str,
    },
    /// Settings that no model can have.
    #[error("{}: {problem}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong, by the metadata's keys.
        problem: String,
    },
    /// A tensor has not the shape that the metadata call for.
    #[error("{}: tensor {name:?} has shape {shape:?}, but {expected}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape, outermost first.
        shape: Vec<usize>,
        /// What it should be.
        expected: String,
    },
    /// The tensor layer refused.
    #[error(transparent)]
    Tensor(#[from] planish_tensor::Error),
}

/// What is wrong with the bytes of a GGUF file.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FormatProblem {
    /// The magic number is another.
    #[error("not a GGUF file: it does not begin with \"GGUF\"")]
    Magic,
    /// The file was written for big-endian machines.
    #[error("big-endian GGUF is not supported; convert the file for a little-endian machine")]
    BigEndian,
    /// A version that is not read.
    #[error("GGUF version {0} is not supported (supported: 2, 3)")]
    Version(u32),
    /// The file is one of several.
    #[error("the model is split over {0} files; merge them first (llama-gguf-split --merge)")]
    Split(u64),
    /// The file ends inside something.
    #[error("truncated: {what} at byte {at} needs {needed} bytes, but {left} are left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        at: usize,
        /// Bytes it needs at the least.
        needed: u64,
        /// Bytes from there to the end.
        left: usize,
    },
    /// A string is not UTF-8.
    #[error("{what} at byte {at} is not UTF-8")]
    Utf8 {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        at: usize,
    },
    /// A value type that the format does not define.
    #[error("metadata key {key:?} has value type {kind}, which the format does not define")]
    ValueType {
        /// The key.
        key: String,
        /// The type's number.
        kind: u32,
    },
    /// A truth value that is neither 0 nor 1.
    #[error("metadata key {key:?} holds the truth value {value}")]
    BadBool {
        /// The key.
        key: String,
        /// The byte.
        value: u8,
    },
    /// Arrays in arrays, too deep.
    #[error("metadata key {key:?} nests arrays deeper than {limit}")]
    Depth {
        /// The key.
        key: String,
        /// Depth allowed.
        limit: usize,
    },
    /// A key comes twice.
    #[error("metadata key {key:?} is given twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// The alignment is no power of two.
    #[error("general.alignment must be a power of two")]
    Alignment,
    /// Two tensors have the same name.
    #[error("tensor {name:?} is declared twice")]
    DuplicateTensor {
        /// The name.
        name: String,
    },
    /// More dimensions than ggml has.
    #[error("tensor {name:?} has {dims} dimensions, more than the 4 allowed")]
    Rank {
        /// The tensor.
        name: String,
        /// Its dimensions.
        dims: u32,
    },
    /// A type that is not read.
    #[error("tensor {name:?} has type {}, which is not supported (supported: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K)", type_name(*kind))]
    TensorType {
        /// The tensor.
        name: String,
        /// The type's number.
        kind: u32,
    },
    /// The number of bytes overflows.
    #[error("tensor {name:?} has shape {shape:?}, whose size cannot be addressed")]
    Overflow {
        /// The tensor.
        name: String,
        /// Its shape, outermost first.
        shape: Vec<u64>,
    },
    /// A row is not a whole number of blocks.
    #[error("tensor {name:?} has rows of {row} elements, not a multiple of the {block} in a block of its type")]
    Row {
        /// The tensor.
        name: String,
        /// Elements in a row.
        row: u64,
        /// Elements in a block.
        block: usize,
    },
    /// The data does not start where the alignment says it may.
    #[error("tensor {name:?} starts at byte {offset} of the data, not a multiple of the alignment {alignment}")]
    Misaligned {
        /// The tensor.
        name: String,
        /// Its start.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// Reaches past the end of the file.
    #[error(
        "tensor {name:?} needs {bytes} bytes from byte {offset} of the data, of which the file has {len}; the file is truncated"
    )]
    PastEnd {
        /// The tensor.
        name: String,
        /// Its start.
        offset: u64,
        /// Its size.
        bytes: u64,
        /// Bytes of data in the file.
        len: u64,
    },
    /// Shares bytes with another tensor.
    #[error("tensor {name:?} overlaps tensor {other:?}")]
    Overlap {
        /// The tensor.
        name: String,
        /// The one before it.
        other: String,
    },
}
