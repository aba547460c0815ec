//! What can go wrong with weights on disk.

use std::path::PathBuf;

use super::atomic::shown;

/// Result of reading or writing weights.
pub type Result<T, E = WeightsError> = std::result::Result<T, E>;

/// What can go wrong with weights on disk.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", shown(path).display())]
    Io {
        /// What was being done, e.g. `"open"`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it was refused.
        source: std::io::Error,
    },
    /// The disk, or the user's quota, is full.
    #[error("cannot write {}: the disk is full; nothing was replaced. Free some space or choose another directory", shown(path).display())]
    DiskFull {
        /// The file or directory that was being written.
        path: PathBuf,
    },
    /// The file would be larger than the process, or the file system, lets a file be.
    #[error(
        "cannot write {}: it would be larger than a file may be here (`ulimit -f`, or the limit of the file system); \
         nothing was replaced. Raise the limit or choose another directory",
        shown(path).display()
    )]
    FileTooLarge {
        /// The file that was being written.
        path: PathBuf,
    },
    /// A quantised weight whose parts do not make one.
    #[error("{}: `{name}` {problem}", path.display())]
    Quantised {
        /// What was opened.
        path: PathBuf,
        /// The weight.
        name: String,
        /// What is wrong.
        problem: Box<super::QuantProblem>,
    },
    /// A directory that was to be created already holds something.
    #[error("{} already exists and is not empty; choose another directory or remove it", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// No weights where they were looked for.
    #[error("no weights in {}: expected model.safetensors or model.safetensors.index.json{}", path.display(), hint(found))]
    NotFound {
        /// The directory.
        path: PathBuf,
        /// Files there that look like weights in another form.
        found: Vec<String>,
    },
    /// The file is shorter than a safetensors file can be, or than its header says the header is.
    #[error("{}: truncated or not safetensors: {what} needs {needed} bytes, but the file has {len}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What reaches past the end.
        what: &'static str,
        /// Bytes it needs.
        needed: u64,
        /// Bytes there are.
        len: u64,
    },
    /// The header says it is larger than any honest one.
    #[error("{}: the header claims {size} bytes, more than the {limit} allowed; not a safetensors file?", path.display())]
    HeaderTooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes it claims.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The header (or index) is not the JSON it must be.
    #[error("{}: the {part} is malformed: {message}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// `"header"` or `"index"`.
        part: &'static str,
        /// What the parser said, with its position.
        message: String,
    },
    /// A tensor has a dtype that planish does not hold.
    #[error("{}: tensor {name:?} has dtype {dtype}, which is not supported (supported: {SUPPORTED})", path.display())]
    UnsupportedDType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its dtype as the file writes it.
        dtype: String,
    },
    /// What the header says about a tensor contradicts itself or the file.
    #[error("{}: tensor {name:?} {problem}", path.display())]
    BadTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong with it.
        problem: TensorProblem,
    },
    /// Bytes that belong to no tensor.
    #[error("{}: bytes {start}..{end} of the data belong to no tensor; the file is damaged or was appended to", path.display())]
    Gap {
        /// The file.
        path: PathBuf,
        /// First byte, counted from the end of the header.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// The index names a file that is not a plain name beside it.
    #[error("{}: shard {file:?} of tensor {name:?} is not the name of a file in the same directory", path.display())]
    ShardPath {
        /// The index.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The file it names.
        file: String,
    },
    /// A shard that the index names is not there.
    #[error("{}: shard {file:?}, which the index names, is missing; download the model again", path.display())]
    MissingShard {
        /// The directory.
        path: PathBuf,
        /// The shard.
        file: String,
    },
    /// The index places a tensor in a shard that does not hold it.
    #[error("{}: the index places tensor {name:?} here, but the file does not hold it", path.display())]
    NotInShard {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// Two shards hold tensors of the same name.
    #[error("tensor {name:?} is both in {} and in {}", first.display(), second.display())]
    InTwoShards {
        /// The tensor.
        name: String,
        /// A shard that holds it.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// The tensor asked for is not there.
    #[error("{}: no tensor is named {name:?}{}", path.display(), nearest.as_ref().map(|n| format!("; the nearest is {n:?}")).unwrap_or_default())]
    NoSuchTensor {
        /// The file or directory.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// The name most like it.
        nearest: Option<String>,
    },
    /// Two tensors to be written have the same name, or one that the format reserves.
    #[error("cannot write {}: the tensor name {name:?} is used twice or reserved", path.display())]
    BadName {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// The tensor layer refused.
    #[error(transparent)]
    Tensor(#[from] planish_tensor::Error),
}

const SUPPORTED: &str = "F64, F32, BF16, F16, I64, I32, U32, U8, BOOL";

/// What is wrong with an entry of a header.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorProblem {
    /// Two entries have the name.
    #[error("is declared twice")]
    Duplicate,
    /// More dimensions than anything uses.
    #[error("has {0} dimensions, more than the {1} allowed")]
    Rank(usize, usize),
    /// The number of bytes overflows.
    #[error("has shape {0:?}, whose size cannot be addressed")]
    Overflow(Vec<u64>),
    /// Offsets run backwards.
    #[error("ends at byte {1} of the data, before it starts at {0}")]
    Backwards(u64, u64),
    /// Offsets and shape disagree.
    #[error("has shape {shape:?} of dtype {dtype}, which takes {needed} bytes, but its offsets give it {given}")]
    Size {
        /// Its shape.
        shape: Vec<u64>,
        /// Its dtype.
        dtype: planish_tensor::DType,
        /// Bytes that takes.
        needed: u64,
        /// Bytes between its offsets.
        given: u64,
    },
    /// Reaches past the end of the file.
    #[error("ends at byte {end} of the data, of which the file has {len}; the file is truncated")]
    PastEnd {
        /// Its end.
        end: u64,
        /// Bytes of data in the file.
        len: u64,
    },
    /// Shares bytes with another tensor.
    #[error("overlaps tensor {0:?}")]
    Overlaps(String),
}

fn hint(found: &[String]) -> String {
    if found.is_empty() {
        return String::new();
    }
    format!("; found {}, a form that is not read: convert it to safetensors", found.join(", "))
}

impl WeightsError {
    /// Wraps an I/O error, telling apart a full disk and a file that grew too large.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let path = path.into();
        match source.kind() {
            StorageFull | QuotaExceeded => WeightsError::DiskFull { path },
            FileTooLarge => WeightsError::FileTooLarge { path },
            _ => WeightsError::Io { action, path, source },
        }
    }
}
