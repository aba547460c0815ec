//! Errors of the model layer.

use std::path::PathBuf;

/// Result of a model operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a model, its files or its use.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A kernel refused.
    #[error(transparent)]
    Tensor(#[from] planish_tensor::Error),
    /// Recording or differentiating failed.
    #[error(transparent)]
    Autograd(#[from] planish_autograd::Error),
    /// A weight could not be put on a device.
    #[error("{name}: {source}")]
    Placing {
        /// The parameter.
        name: String,
        /// Why.
        source: planish_tensor::Error,
    },
    /// A dtype that activations have not there.
    #[error("activations in {dtype} are not supported on {device}: they are float32, or on a GPU bfloat16")]
    Activations {
        /// The dtype asked for.
        dtype: planish_tensor::DType,
        /// Where the weights are.
        device: planish_tensor::Device,
    },
    /// config.json is wrong.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The weights are wrong.
    #[error(transparent)]
    Weights(#[from] crate::weights::WeightsError),
    /// The GGUF file is wrong.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
    /// The model cannot be written as GGUF.
    #[error(transparent)]
    Export(#[from] crate::gguf::ExportError),
    /// The tokenizer is missing or wrong.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// The chat template, or a conversation it refuses.
    #[error(transparent)]
    Template(#[from] crate::template::TemplateError),
    /// The hub.
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
    /// The tokenizer knows more tokens than the model.
    #[error(
        "the tokenizer has {tokenizer} tokens, but the model's embedding only {model} rows: they do not belong together"
    )]
    TokenizerTooLarge {
        /// Largest id + 1.
        tokenizer: usize,
        /// Rows of the embedding.
        model: usize,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not the JSON it should be.
    #[error("{}: {source}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The weights lack a tensor that the config calls for.
    #[error("the weights have no tensor `{name}`, which config.json calls for")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor of the weights is of another shape than the config says.
    #[error("tensor `{name}` has shape {found:?}, but config.json calls for {expected:?}")]
    TensorShape {
        /// Its name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by config.json.
        expected: Vec<usize>,
    },
    /// A head that judges something else than is wanted.
    #[error(
        "{class} with `score.weight` of shape {found:?} is not {kind}, which has {expected:?}; start from a language model, or from one that was trained for the same"
    )]
    RewardHead {
        /// What is wanted.
        kind: crate::reward::RewardKind,
        /// The class in config.json.
        class: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// The shape it would have.
        expected: Vec<usize>,
    },
    /// A tensor of the weights is of a dtype that no weight can have.
    #[error("tensor `{name}` has dtype {found}; weights must be floating point")]
    TensorDtype {
        /// Its name.
        name: String,
        /// Its dtype.
        found: planish_tensor::DType,
    },
    /// A quantised weight that was to be trained.
    #[error(
        "`{name}` is quantised ({format}) and can't be trained itself: train an adapter on it (use_peft), or leave out \
         load_in_4bit and load_in_8bit, or for a GGUF file set dtype to float32"
    )]
    FrozenWeight {
        /// Its name.
        name: String,
        /// Its format.
        format: &'static str,
    },
    /// A quantised weight that was to be quantised.
    #[error("`{name}` is quantised already ({format}); quantising it once more would only lose more of it")]
    AlreadyQuantized {
        /// Its name.
        name: String,
        /// Its format.
        format: &'static str,
    },
    /// A weight that was to be quantised holds what is no number.
    #[error(
        "`{name}` holds {value} in row {row}, column {column}: quantising would make numbers of it; the file is damaged, or its training went wrong"
    )]
    NotFinite {
        /// Its name.
        name: String,
        /// NaN or an infinity.
        value: f64,
        /// Where the first one is.
        row: usize,
        /// Likewise.
        column: usize,
    },
    /// The weights hold tensors that the config does not call for.
    #[error(
        "the weights hold `{name}` (and {others} more) which config.json does not call for: they belong to another model"
    )]
    UnexpectedTensor {
        /// One of them.
        name: String,
        /// How many more there are.
        others: usize,
    },
    /// What is wrong with a model, and which model that is.
    #[error("{}: {source}", .path.display())]
    InModel {
        /// Its directory or file.
        path: PathBuf,
        /// What is wrong.
        source: Box<Error>,
    },
    /// Something about an adapter.
    #[error(transparent)]
    Adapter(#[from] crate::adapters::AdapterError),
    /// A token id outside the vocabulary.
    #[error("token id {id} at position {position} is outside the vocabulary of {vocab_size}")]
    TokenId {
        /// The id.
        id: u32,
        /// Where.
        position: usize,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A path that is no model.
    #[error("{}: {problem}", .path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
        /// What is missing.
        problem: &'static str,
    },
    /// A wrong setting of generation.
    #[error("{key} is {value}, but it must be {expected}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A prompt of no tokens: there is nothing to continue.
    #[error("prompt {prompt} has no tokens; give it at least a beginning-of-text token")]
    EmptyPrompt {
        /// Which of the prompts.
        prompt: usize,
    },
    /// The model computed NaN or infinity where a token should be chosen.
    #[error("prompt {prompt}: the logits of token {position} are not finite: the weights are damaged or have diverged")]
    LogitsNotFinite {
        /// Which of the prompts.
        prompt: usize,
        /// Place of the token in the sequence, the prompt included.
        position: usize,
    },
}

impl Error {
    /// Whether a device failed or has no room, of which neither the files nor the settings are to blame.
    pub fn is_of_device(&self) -> bool {
        matches!(self.of_tensor(), Some(planish_tensor::Error::Device(_)))
    }

    /// The error of a kernel or of a device, if it is one.
    pub fn of_tensor(&self) -> Option<&planish_tensor::Error> {
        match self {
            Error::Tensor(e) | Error::Placing { source: e, .. } => Some(e),
            Error::Autograd(planish_autograd::Error::Tensor(e)) => Some(e),
            _ => None,
        }
    }

    /// Adds which model is meant, where the message does not name a file yet.
    pub fn of_model(self, path: &std::path::Path) -> Error {
        match self {
            Error::Config(_)
            | Error::MissingTensor { .. }
            | Error::TensorShape { .. }
            | Error::RewardHead { .. }
            | Error::TensorDtype { .. }
            | Error::FrozenWeight { .. }
            | Error::AlreadyQuantized { .. }
            | Error::NotFinite { .. }
            | Error::TokenizerTooLarge { .. }
            | Error::UnexpectedTensor { .. } => Error::InModel { path: path.to_path_buf(), source: Box::new(self) },
            other => other,
        }
    }

    /// Adds which adapter is meant, where the message does not name a file yet.
    pub(crate) fn of_adapter(self, dir: &std::path::Path) -> Error {
        use crate::adapters::AdapterError;
        match self {
            Error::Adapter(AdapterError::Config { .. } | AdapterError::UnknownType { .. })
            | Error::Weights(_)
            | Error::Io { .. }
            | Error::Json { .. } => self,
            other if other.is_of_device() => other,
            other => Error::InModel { path: dir.to_path_buf(), source: Box::new(other) },
        }
    }

    /// Adds which file a mistake in a tokenizer is in, which is in a GGUF file's metadata.
    pub fn of_gguf(self, path: &std::path::Path) -> Error {
        match self {
            Error::Tokenizer(_) => Error::InModel { path: path.to_path_buf(), source: Box::new(self) },
            other => other,
        }
    }
}
