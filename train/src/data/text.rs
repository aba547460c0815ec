//! What the data layer needs of a tokenizer and its chat template.

use super::error::TextError;
use super::row::{ChatExtras, ChatMessage};

/// A rendered and encoded conversation, with the provenance of every token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RenderedChat {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Index of the message that each token came from; `None` for text of the template.
    pub message: Vec<Option<u32>>,
    /// Whether the token belongs to an assistant's turn, its end-of-turn token included; empty if it was not asked for.
    pub assistant: Vec<bool>,
}

/// How a conversation is rendered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rendering {
    /// It ends with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// The assistant's turns are wanted.
    pub return_assistant_tokens_mask: bool,
    /// The time that a template may ask for, seconds since 1970 UTC.
    pub now: u64,
}

/// A tokenizer with, perhaps, a chat template.
pub trait TextEncoder: Send + Sync {
    /// Ids of a text, as `tokenizer(text)` of transformers gives them: with the special tokens that
    /// the tokenizer adds by itself, and those written in the text.
    ///
    /// # Errors
    /// What the tokenizer says.
    fn encode(&self, text: &str) -> Result<Vec<u32>, TextError>;

    /// Ids of a part of a text: without special tokens that the tokenizer adds by itself, but with those written in it.
    ///
    /// # Errors
    /// What the tokenizer says.
    fn encode_piece(&self, text: &str) -> Result<Vec<u32>, TextError>;

    /// Renders and encodes a conversation; special tokens written inside of a message stay text.
    ///
    /// # Errors
    /// No template, or what the template or the tokenizer says.
    fn encode_chat(
        &self,
        messages: &[ChatMessage],
        extras: &ChatExtras,
        how: Rendering,
    ) -> Result<RenderedChat, TextError>;

    /// Text of ids, special tokens included.
    ///
    /// # Errors
    /// What the tokenizer says.
    fn decode(&self, ids: &[u32]) -> Result<String, TextError>;

    /// The chat template, if there is one.
    fn template(&self) -> Option<&str>;
    /// Id of the token that begins a sequence.
    fn bos(&self) -> Option<u32>;
    /// Id of the token that ends a sequence, appended to plain texts.
    fn eos(&self) -> Option<u32>;
    /// All ids that end a generation.
    fn eos_ids(&self) -> &[u32];
    /// Largest id + 1.
    fn vocab_size(&self) -> usize;
}
