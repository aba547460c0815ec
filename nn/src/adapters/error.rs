//! What can be wrong with an adapter.

use std::path::PathBuf;

/// What can be wrong with an adapter.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// adapter_config.json lacks an entry, or it has the wrong type.
    #[error("{}: {problem}", .path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Which entry, and what is wrong with it.
        problem: String,
    },
    /// A kind of adapter that this program does not have.
    #[error("{}: peft_type {found:?} is not supported; supported are {}", .path.display(), .known.join(", "))]
    UnknownType {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// An option of an adapter that this program does not have.
    #[error("this adapter needs {what}, which is not supported")]
    Unsupported {
        /// The option and its value.
        what: String,
    },
    /// Two settings that exclude each other.
    #[error("{key} {problem}")]
    Conflict {
        /// The setting.
        key: &'static str,
        /// What it cannot go with, and what to do.
        problem: String,
    },
    /// No module of the model matches.
    #[error("no module of the model matches {key} {wanted}; its {kind} modules are {}", .available.join(", "))]
    NoMatch {
        /// The setting.
        key: &'static str,
        /// What was asked for.
        wanted: String,
        /// What kind of module was looked for.
        kind: &'static str,
        /// Last parts of the names there are.
        available: Vec<String>,
    },
    /// A rank that is more than the matrix has.
    #[error(
        "rank {rank} is more than {module} has: its weight is {out} by {input}; lower {key}, or give this module its own rank with rank_pattern"
    )]
    Rank {
        /// The setting.
        key: &'static str,
        /// The rank.
        rank: usize,
        /// The module.
        module: String,
        /// Rows of its weight.
        out: usize,
        /// Columns of its weight.
        input: usize,
    },
    /// A setting that cannot be.
    #[error("{key} is {value}, but it must be {expected}")]
    Value {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
    /// An adapter that does not fit into memory.
    #[error(
        "the adapter's `{name}` would have shape {shape:?}: with it the adapter takes {}, and {} are free; lower its rank, width, or number of virtual tokens",
        gib(*.needed), .available.map_or_else(|| "fewer".to_owned(), |n| gib(n as f64))
    )]
    TooLarge {
        /// The parameter that is too much.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes of the adapter with it, while it is made and trained.
        needed: f64,
        /// Bytes there are, where that is known.
        available: Option<u64>,
    },
    /// A regular expression that is none.
    #[error("{key} {pattern:?} is not a regular expression: {problem}")]
    Pattern {
        /// The setting.
        key: &'static str,
        /// The expression.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The adapter's weights lack a tensor.
    #[error("the adapter has no tensor `{name}`, which its config calls for")]
    Missing {
        /// Its name in the file.
        name: String,
    },
    /// The adapter's weights hold a tensor that nothing takes.
    #[error("the adapter holds `{name}`, which fits no module of this model: it was made for another one")]
    Unexpected {
        /// Its name in the file.
        name: String,
    },
    /// A tensor of the adapter does not fit the model.
    #[error(
        "the adapter's `{name}` has shape {found:?}, but this model calls for {expected:?}: it was made for another one"
    )]
    Shape {
        /// Its name in the file.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by the model.
        expected: Vec<usize>,
    },
    /// Adapters that cannot be combined.
    #[error("{}: {problem}", .path.display())]
    Combine {
        /// The adapter that is in the way.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// Virtual tokens have no place in the weights.
    #[error(
        "a {peft_type} adapter is virtual tokens before every sequence, which no weight can hold: it cannot be merged"
    )]
    NotMergeable {
        /// Its kind.
        peft_type: &'static str,
    },
}

/// Bytes for people.
fn gib(bytes: f64) -> String {
    format!("{:.1} GiB", bytes / (1u64 << 30) as f64)
}
