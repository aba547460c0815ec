//! Adapters in PEFT's format.

mod config;
mod lora;

pub use config::{LoraConfig, Targets};
pub use lora::{attach_lora, load_adapter, merge_adapter, save_adapter};

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
    /// A kind of adapter or an option of LoRA that this program does not have.
    #[error("this adapter needs {what}, which is not supported")]
    Unsupported {
        /// The option and its value.
        what: String,
    },
    /// No module of the model matches.
    #[error("no module of the model matches {key} {wanted}; its linear modules are {}", .available.join(", "))]
    NoMatch {
        /// The setting.
        key: &'static str,
        /// What was asked for.
        wanted: String,
        /// Last parts of the names there are.
        available: Vec<String>,
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
}
