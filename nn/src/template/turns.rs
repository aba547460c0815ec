//! Which part of a rendered conversation the assistant said.

use std::ops::Range;

use super::conversation::{Conversation, Rendered};
use super::{ChatOptions, Message};
use crate::tokenizer::Tokenizer;

/// Where special tokens of the template stand.
pub(super) type Specials = [(Range<usize>, u32)];

/// The assistant's turns in a template without generation blocks, ascending. See [`super::encode_chat`].
pub(super) fn assistant_turns(
    conversation: &Conversation<'_>,
    messages: &[Message],
    options: &ChatOptions,
    rendered: &Rendered,
    specials: &Specials,
    tokenizer: &Tokenizer,
) -> Vec<Range<usize>> {
    let text = &rendered.text;
    let mut turns: Vec<Range<usize>> = Vec::new();
    for (i, _) in messages.iter().enumerate().filter(|(_, m)| m.role == "assistant") {
        let own = rendered.parts.iter().filter(|(_, m)| *m == Some(i)).map(|(r, _)| r);
        let (first, last) = (own.clone().map(|r| r.start).min(), own.map(|r| r.end).max());
        // With a generation prompt the turn begins where sampling would: behind the header.
        let prompt = || -> Option<usize> {
            if i == 0 {
                return None;
            }
            let header = conversation.prefix(i, true).ok()?;
            let without = conversation.prefix(i, false).ok()?;
            let fits = header != without && text.starts_with(&header) && first.is_none_or(|f| header.len() <= f);
            fits.then_some(header.len())
        };
        // White space between the two is not worth a token that begins in the header.
        let written = |p: &usize| first.is_none_or(|f| !text[*p..f].trim().is_empty());
        let Some(start) = prompt().filter(written).or(first) else { continue };
        let said = last.unwrap_or(start).max(start);
        let next = rendered.parts.iter().filter(|(r, m)| *m != Some(i) && r.start >= said).map(|(r, _)| r.start).min();
        let limit = next.unwrap_or(text.len());
        let special = specials.iter().find(|(r, _)| r.start >= said && r.end <= limit);
        let continued = options.continue_final_message && i + 1 == messages.len();
        let end = match special {
            Some((range, id)) if !continued => {
                // EOS ends the turn; another special token does if it comes although nothing follows.
                let alone = || {
                    conversation
                        .prefix(i + 1, false)
                        .is_ok_and(|t| t.get(..range.end).is_some_and(|t| t == &text[..range.end]))
                };
                if tokenizer.eos_token_ids().contains(id) || alone() { range.end } else { said }
            }
            _ => said,
        };
        turns.push(start..end);
    }
    turns
}
