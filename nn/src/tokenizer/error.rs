//! What can go wrong with a tokenizer.

use std::path::PathBuf;

/// Result of loading or using a tokenizer.
pub type Result<T, E = TokenizerError> = std::result::Result<T, E>;

/// What can go wrong with a tokenizer, its files or its use.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A directory has no tokenizer.
    #[error("{} has no tokenizer.json{}", .dir.display(), hint(.found))]
    Missing {
        /// The directory.
        dir: PathBuf,
        /// Vocabulary files of other formats that lie there.
        found: Vec<String>,
    },
    /// A file is larger than any honest one.
    #[error("{} has {len} bytes, more than the {limit} allowed for it", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
        /// The largest length that is read.
        limit: u64,
    },
    /// A file is not the JSON it should be.
    #[error("{file} is not valid JSON: {source}")]
    Json {
        /// The file.
        file: String,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// A file is JSON, but not a tokenizer that can be used.
    #[error("{file} is not a usable tokenizer: {reason}")]
    Invalid {
        /// The file.
        file: String,
        /// What the tokenizer library said.
        reason: String,
    },
    /// A key of a configuration file holds something else than it should.
    #[error("{file}: `{key}` must be {expected}")]
    Field {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// An added token is declared under an id that it cannot have.
    #[error("{file} declares the added token {token:?} with id {declared}, but in tokenizer.json it has id {actual}")]
    AddedTokenId {
        /// The file.
        file: String,
        /// The token's text.
        token: String,
        /// The id declared.
        declared: u32,
        /// The id it would have.
        actual: u32,
    },
    /// GGUF metadata that a tokenizer needs is missing or of another type.
    #[error("the GGUF metadata has no usable `{key}` (expected {expected})")]
    GgufKey {
        /// The key.
        key: &'static str,
        /// What it should hold.
        expected: &'static str,
    },
    /// GGUF metadata arrays that describe the same tokens differ in length.
    #[error("the GGUF metadata has {tokens} tokens but {len} entries in `{key}`")]
    GgufLength {
        /// The key.
        key: &'static str,
        /// Its length.
        len: usize,
        /// The number of tokens.
        tokens: usize,
    },
    /// A special token's id is outside of the vocabulary.
    #[error("the GGUF metadata sets `{key}` to {id}, but there are only {tokens} tokens")]
    GgufId {
        /// The key.
        key: &'static str,
        /// The id.
        id: u64,
        /// The number of tokens.
        tokens: usize,
    },
    /// The kind of tokenizer in a GGUF file is not supported.
    #[error(
        "the GGUF file has a tokenizer of model {model:?}; supported are \"gpt2\" (byte-level BPE) and \"llama\" (SentencePiece BPE)"
    )]
    GgufModel {
        /// `tokenizer.ggml.model`.
        model: String,
    },
    /// How a GGUF file's text is to be split before BPE is not known.
    #[error(
        "the GGUF file's pre-tokenizer {pre:?} is not known; take the tokenizer from the model's Hugging Face directory instead. Known: {known}"
    )]
    GgufPre {
        /// `tokenizer.ggml.pre`.
        pre: String,
        /// Those that are.
        known: String,
    },
    /// A vocabulary entry of a GGUF file cannot be right.
    #[error("the GGUF metadata's token {id} is {problem}")]
    GgufToken {
        /// Index of the token.
        id: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The tokenizer library failed on a text.
    #[error("the tokenizer cannot {action}: {reason}")]
    Backend {
        /// What was being done.
        action: &'static str,
        /// What the tokenizer library said.
        reason: String,
    },
    /// Ordinary text came out as a special token although special tokens were not looked for.
    #[error(
        "the text {token:?} cannot be written without its special token: this vocabulary makes it from ordinary text"
    )]
    LookAlike {
        /// The special token.
        token: String,
    },
    /// A token that was named is not in the vocabulary.
    #[error("the vocabulary has no token {token:?}")]
    NoSuchToken {
        /// Its text.
        token: String,
    },
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] crate::weights::WeightsError),
}

fn hint(found: &[String]) -> String {
    if found.is_empty() {
        return "; a tokenizer is needed next to the weights".to_owned();
    }
    format!("; {} is in another format: save it with transformers to get tokenizer.json", found.join(", "))
}
