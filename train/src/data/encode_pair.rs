//! Preference pairs and labelled completions as tokens.
//!
//! Follows TRL's `DPOTrainer` and `KTOTrainer` (1.16): prompt and completion are encoded as one text, the
//! completion begins where the encoded prompt and the encoded whole part, for both sides of a pair at the same
//! token; plain completions get the end-of-sequence token; each side is cut to `max_length` by itself.
//!
//! Deviations: a prompt that alone fills `max_length`, an empty completion and two equal sides are errors, or
//! counted where dropping is set; TRL drops the first without a word and trains on the others.

use super::encode::{Dropped, Encoded, Encoder, Rejected, Tokens, Truncation};
use super::error::{DataError, Result};
use super::row::{ChatExtras, Content, Source};

impl Encoder {
    /// A pair: the chosen side as the example, the rejected one beside it, of one prompt length.
    pub(super) fn preference(
        &self,
        prompt: &Content,
        chosen: &Content,
        rejected: &Content,
        extras: &ChatExtras,
        source: Source,
    ) -> Result<Encoded> {
        for (content, column) in [(chosen, "chosen"), (rejected, "rejected")] {
            if is_empty(content) {
                let error = DataError::EmptyCompletion { at: source.at(), column };
                return self.teaches_nothing(error, Dropped::Unsupervised);
            }
        }
        let mut sides = [self.side(prompt, chosen, extras, &source)?, self.side(prompt, rejected, extras, &source)?];
        let n_prompt = common_prompt(&mut sides);
        let [chosen, rejected] = sides;
        let equal = |when| DataError::EqualPair { at: source.at(), when };
        if chosen.ids == rejected.ids {
            return self.teaches_nothing(equal(""), Dropped::Unsupervised);
        }
        if let Some(dropped) = self.full_prompt(n_prompt, &source)? {
            return Ok(dropped);
        }
        let (chosen, rejected) = (self.finish(chosen, source.clone())?, self.finish(rejected, source.clone())?);
        let other = match rejected.example {
            Ok(example) => Rejected { example, full_len: rejected.full_len },
            Err(why) => return Ok(Encoded { example: Err(why), ..chosen }),
        };
        if chosen.example.as_ref().is_ok_and(|e| e.ids == other.example.ids) {
            let error = equal(" once they are cut to max_length");
            return self.teaches_nothing(error, Dropped::UnsupervisedAfterTruncation);
        }
        Ok(Encoded {
            double_bos: chosen.double_bos || rejected.double_bos,
            missing_eos: chosen.missing_eos || rejected.missing_eos,
            prompt_diverges: chosen.prompt_diverges || rejected.prompt_diverges,
            rejected: chosen.example.is_ok().then_some(other),
            ..chosen
        })
    }

    /// A completion with its label.
    pub(super) fn labelled(
        &self,
        prompt: &Content,
        completion: &Content,
        label: bool,
        extras: &ChatExtras,
        source: Source,
    ) -> Result<Encoded> {
        if is_empty(completion) {
            let error = DataError::EmptyCompletion { at: source.at(), column: "completion" };
            return self.teaches_nothing(error, Dropped::Unsupervised);
        }
        let tokens = self.side(prompt, completion, extras, &source)?;
        if let Some(dropped) = self.full_prompt(tokens.n_prompt.unwrap_or(0), &source)? {
            return Ok(dropped);
        }
        Ok(Encoded { label: Some(label), ..self.finish(tokens, source)? })
    }

    pub(super) fn side(
        &self,
        prompt: &Content,
        completion: &Content,
        extras: &ChatExtras,
        source: &Source,
    ) -> Result<Tokens> {
        match (prompt, completion) {
            (Content::Chat(p), Content::Chat(c)) => self.chat_pair(p, c, extras, source),
            (Content::Text(p), Content::Text(c)) => self.plain_pair(p, c, source),
            // Reading a row has made them of one form.
            _ => Err(DataError::Value {
                at: source.at(),
                path: "the completion".into(),
                expected: "of the form of the prompt",
                found: "another".into(),
            }),
        }
    }

    /// A row dropped, or an error, because its prompt leaves no room.
    pub(super) fn full_prompt(&self, prompt: usize, source: &Source) -> Result<Option<Encoded>> {
        match self.options().max_length {
            Some(max) if prompt >= max && self.options().truncation_mode == Truncation::KeepStart => {
                let error = DataError::PromptFills { at: source.at(), prompt, max };
                self.teaches_nothing(error, Dropped::UnsupervisedAfterTruncation).map(Some)
            }
            _ => Ok(None),
        }
    }
}

/// Gives all sides the shortest prompt among theirs, which it returns: a token of the prompt that merges with one of the
/// completions belongs to the completions of all.
pub(super) fn common_prompt(sides: &mut [Tokens]) -> usize {
    let n_prompt = sides.iter().filter_map(|s| s.n_prompt).min().unwrap_or(0);
    for side in sides {
        side.mask.iter_mut().enumerate().for_each(|(i, m)| *m = i >= n_prompt);
        side.n_prompt = Some(n_prompt);
    }
    n_prompt
}

/// Whether there is nothing in it but white space; turns that only call tools are something.
pub(super) fn is_empty(content: &Content) -> bool {
    match content {
        Content::Text(text) => text.trim().is_empty(),
        Content::Chat(turns) => turns.iter().all(|t| t.content.trim().is_empty() && t.extra.is_empty()),
    }
}
