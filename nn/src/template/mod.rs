//! Chat templates: conversations to token ids, and for each token where it came from.
//!
//! A model's chat template is a Jinja program that somebody uploaded. [`ChatTemplate`] runs it as transformers
//! does, with the functions, filters and Python methods that templates call, but within limits of steps, time
//! and output. [`encode_chat`] renders and tokenises a conversation; the ids are those of transformers'
//! `apply_chat_template`, except that text inside a message that looks like a special token is not turned
//! into one.
//!
//! # What differs from Jinja
//!
//! - Strings cannot be iterated over; `~` spells booleans and none as `true` and `none`.
//! - `%` formats strings only behind a string literal.
//! - Adding lists makes a list at once and is paid for, as a text is.
//! - `strftime_now` is in UTC, and [`ChatOptions::now`] can fix it.

mod clock;
mod conversation;
mod engine;
mod error;
mod format;
mod marks;
mod message;
mod methods;
mod python;
mod rewrite;
mod shapes;
#[cfg(test)]
mod tests;
mod turns;
mod watch;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::tokenizer::Tokenizer;
use conversation::{Conversation, Rendered};
use engine::Engine;
pub use engine::on_deep_stack;
pub use error::{Result, TemplateError};
pub use message::Message;
pub use watch::when_one_does_not_end;

/// A parsed chat template. Cheap to clone.
#[derive(Clone)]
pub struct ChatTemplate {
    engine: Arc<Engine>,
    source: Arc<str>,
}

impl ChatTemplate {
    /// Parses a template.
    ///
    /// # Errors
    ///
    /// [`TemplateError::Syntax`] with the line.
    pub fn parse(source: &str) -> Result<Self> {
        Self::parse_named("default", source)
    }

    /// Parses a template that errors call `name`.
    ///
    /// # Errors
    ///
    /// As [`ChatTemplate::parse`].
    pub fn parse_named(name: &str, source: &str) -> Result<Self> {
        Ok(ChatTemplate { engine: Arc::new(Engine::parse(name, source)?), source: source.into() })
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template itself marks what the assistant says, with `{% generation %}`.
    pub fn marks_generation(&self) -> bool {
        self.engine.has_generation
    }

    /// The text of a conversation, as transformers' `apply_chat_template(tokenize=False)`. `special` are the
    /// named special tokens that the template may write ([`Tokenizer::special_tokens`]).
    ///
    /// # Errors
    ///
    /// What the template raises, and its mistakes with their line; going beyond the limits.
    pub fn render(
        &self,
        messages: &[Message],
        special: &BTreeMap<String, String>,
        options: &ChatOptions,
    ) -> Result<String> {
        let conversation = Conversation::new(&self.engine, &self.source, messages, special, options)?;
        engine::with_stack(&self.engine.name, || conversation.text())
    }

    /// Renders and tokenises a conversation; see [`encode_chat`].
    ///
    /// # Errors
    ///
    /// As [`encode_chat`].
    pub fn encode(&self, tokenizer: &Tokenizer, messages: &[Message], options: &ChatOptions) -> Result<EncodedChat> {
        engine::with_stack(&self.engine.name, || self.encode_here(tokenizer, messages, options))
    }

    fn encode_here(&self, tokenizer: &Tokenizer, messages: &[Message], options: &ChatOptions) -> Result<EncodedChat> {
        let conversation =
            Conversation::new(&self.engine, &self.source, messages, tokenizer.special_tokens(), options)?;
        let rendered = conversation.traced(tokenizer)?;
        let mut outside: Vec<Range<usize>> = Vec::new();
        for (range, _) in &rendered.parts {
            match outside.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => outside.push(range.clone()),
            }
        }
        let turns = if !options.return_assistant_tokens_mask {
            Vec::new()
        } else if self.engine.has_generation {
            rendered.generation.clone()
        } else {
            let specials = tokenizer.free_specials(&rendered.text, &outside)?;
            turns::assistant_turns(&conversation, messages, options, &rendered, &specials, tokenizer)
        };
        let pieces = tokenizer.encode_pieces(&rendered.text, &outside)?;
        let owner = |bytes: &Range<usize>| owner(&rendered, bytes);
        let said = |bytes: &Range<usize>| turns.iter().any(|t| touches(t, bytes));
        let asked = options.return_assistant_tokens_mask;
        Ok(EncodedChat {
            ids: pieces.iter().map(|p| p.id).collect(),
            message: pieces.iter().map(|p| owner(&p.bytes)).collect(),
            assistant: pieces.iter().filter(|_| asked).map(|p| said(&p.bytes)).collect(),
            text: rendered.text,
        })
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("name", &self.engine.name).field("source", &self.source).finish()
    }
}

/// How a conversation is rendered.
#[derive(Debug, Clone, Default)]
pub struct ChatOptions {
    /// The text ends with the beginning of an answer, if the template knows one.
    pub add_generation_prompt: bool,
    /// The text ends with the final message's, without its end of turn, so that sampling goes on with it.
    pub continue_final_message: bool,
    /// Tools the assistant may call: a list of JSON schemas.
    pub tools: Option<Value>,
    /// Further variables of the template (`documents`, `enable_thinking`, `date_string`, …).
    pub extra: Map<String, Value>,
    /// What `strftime_now` takes for now, in seconds since 1970 UTC. Without it the same data gives other
    /// ids tomorrow.
    pub now: Option<i64>,
    /// Find the assistant's turns, which can take further renderings.
    pub return_assistant_tokens_mask: bool,
}

/// A conversation as token ids, with where each came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedChat {
    /// The ids.
    pub ids: Vec<u32>,
    /// The message each token came from; `None` for the template's own text. A token that holds text of both
    /// counts as the message's.
    pub message: Vec<Option<u32>>,
    /// Whether a token belongs to an assistant turn, its end included: what assistant-only loss trains on. Empty if it was not
    /// asked for ([`ChatOptions::return_assistant_tokens_mask`]).
    pub assistant: Vec<bool>,
    /// The text.
    pub text: String,
}

/// Renders a conversation with the tokenizer's chat template and tokenises it.
///
/// **Ids** are those of transformers' `apply_chat_template`: the rendered text is tokenised as a whole, so
/// that merges across the border of a message happen as they do there. Special tokens are parsed in what the
/// template wrote; one spelled inside a message, a tool or a variable stays ordinary text.
///
/// **Assistant turns.** In a template with `{% generation %}` blocks, a turn is such a block. In others, it
/// begins at the first text of the message or, if the template writes more than white space between there and
/// the end of the generation prompt for the messages before (a tool call's beginning, an empty thought), where
/// that prompt ends, as sampling would. It
/// ends with its end-of-turn: the first special token of the template behind the message's last text that is
/// an EOS of the tokenizer or is also written when no message follows. What comes behind that token (usually
/// a newline) does not count, and without such a token the turn ends with the message's text. Tokens that
/// lie partly in a turn count. Turns are those of messages with role `assistant`.
///
/// The template is the one named `tool_use` if there is one and tools are given, else the default.
///
/// # Errors
///
/// No template; what the template raises, and its mistakes with their line; going beyond the limits; and
/// [`TemplateError::Provenance`] if a template changes messages beyond recognition.
pub fn encode_chat(tokenizer: &Tokenizer, messages: &[Message], options: &ChatOptions) -> Result<EncodedChat> {
    tokenizer.template_for(options.tools.is_some())?.encode(tokenizer, messages, options)
}

/// The message that the first byte from a message in `bytes` is from.
fn owner(rendered: &Rendered, bytes: &Range<usize>) -> Option<u32> {
    let first = rendered.parts.partition_point(|(r, _)| r.end <= bytes.start);
    let parts = rendered.parts[first..].iter().take_while(|(r, _)| r.start < bytes.end);
    parts.filter_map(|(_, m)| *m).next().and_then(|m| u32::try_from(m).ok())
}

fn touches(turn: &Range<usize>, bytes: &Range<usize>) -> bool {
    if bytes.is_empty() { turn.contains(&bytes.start) } else { bytes.start < turn.end && turn.start < bytes.end }
}
