//! What can go wrong with a chat template.

use crate::tokenizer::TokenizerError;

/// Result of parsing, rendering or encoding with a chat template.
pub type Result<T, E = TemplateError> = std::result::Result<T, E>;

/// What can go wrong with a chat template or the conversation it is given.
#[non_exhaustive]
#[derive(Debug, Clone, thiserror::Error)]
pub enum TemplateError {
    /// The model has no chat template.
    #[error("the tokenizer has no chat template{}; give one with --chat-template, or use data without messages", named(.names))]
    Missing {
        /// Names of templates it has, none of which is the default.
        names: Vec<String>,
    },
    /// The template is not Jinja that can be read.
    #[error("chat template {name:?}, line {line}: {reason}")]
    Syntax {
        /// The template's name (`default`, `tool_use`, …).
        name: String,
        /// Line of the template, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The template is longer than any honest one.
    #[error("chat template {name:?} has {len} bytes, more than the {limit} allowed")]
    TooLarge {
        /// The template's name.
        name: String,
        /// Its length.
        len: usize,
        /// The longest that is read.
        limit: usize,
    },
    /// The template failed on this conversation.
    #[error("chat template {name:?}, line {line}: {reason}")]
    Render {
        /// The template's name.
        name: String,
        /// Line of the template, from 1; 0 where it is not known.
        line: usize,
        /// What went wrong there.
        reason: String,
    },
    /// The template refused the conversation with `raise_exception`.
    #[error("chat template {name:?}, line {line}, refuses this conversation: {message}")]
    Raised {
        /// The template's name.
        name: String,
        /// Line of the template, from 1.
        line: usize,
        /// What the template says.
        message: String,
    },
    /// The template takes more work than any honest one.
    #[error(
        "chat template {name:?} was stopped after {steps} steps: it loops without end, or makes texts or lists of \
         millions of entries"
    )]
    Endless {
        /// The template's name.
        name: String,
        /// Steps it was allowed.
        steps: u64,
    },
    /// The template makes a value that takes more bytes than it may write in all.
    #[error("chat template {name:?}, line {line}: a value is too large to be spelled out ({bytes} bytes and more)")]
    TooMuch {
        /// The template's name.
        name: String,
        /// Line of the template, from 1; 0 where it is not known.
        line: usize,
        /// Bytes at which it was stopped.
        bytes: usize,
    },
    /// The template takes too long.
    #[error("chat template {name:?} was stopped after {seconds} seconds")]
    TooSlow {
        /// The template's name.
        name: String,
        /// Seconds it was allowed.
        seconds: u64,
    },
    /// The template writes more than any honest one.
    #[error("chat template {name:?} writes more than {limit} bytes for this conversation")]
    TooLong {
        /// The template's name.
        name: String,
        /// Bytes it was allowed.
        limit: usize,
    },
    /// Which part of the rendered text came from which message cannot be told.
    #[error(
        "chat template {name:?} changes message {message} ({role}) so that its text cannot be found in the \
         result; mark the assistant's part with {{% generation %}} in the template, or change the template"
    )]
    Provenance {
        /// The template's name.
        name: String,
        /// Index of the message, from 0.
        message: usize,
        /// Its role.
        role: String,
    },
    /// A message is not an object with a role.
    #[error("message {index}: {problem}")]
    Message {
        /// Index of the message, from 0.
        index: usize,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// There are no messages.
    #[error("the conversation has no messages")]
    Empty,
    /// Options that exclude each other.
    #[error("add_generation_prompt begins a new answer and continue_final_message goes on with the last: use one")]
    Conflict,
    /// The final message is not in the rendered text, so that nothing can go on from it.
    #[error("chat template {name:?} does not end with the final message's text, so it cannot be continued")]
    Continue {
        /// The template's name.
        name: String,
    },
    /// The tokenizer failed.
    #[error("{0}")]
    Tokenizer(std::sync::Arc<TokenizerError>),
}

impl From<TokenizerError> for TemplateError {
    fn from(e: TokenizerError) -> Self {
        TemplateError::Tokenizer(std::sync::Arc::new(e))
    }
}

fn named(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(" named \"default\" (it has {})", names.join(", ")) }
}
