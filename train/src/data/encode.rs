//! From typed rows to token ids with a mask: which tokens the loss is taken on.
//!
//! Follows TRL's `SFTTrainer` (1.16): plain prompt and completion are encoded as one text, a plain
//! text or completion gets the end-of-sequence token, conversations get what their template says,
//! `completion_only_loss` and `assistant_only_loss` combine by "and".
//!
//! Deviations: where a rendered prompt is not the beginning of the rendered conversation, TRL trains
//! on everything after the common prefix, which can be template text or an earlier turn; here the
//! provenance of tokens says where the completion begins. `text` that already ends in the
//! end-of-sequence token is recognised by its ids, so a tokenizer that appends it does not double it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::encode_steps::StepOptions;
use super::error::{DataError, Result, TextError};
use super::row::{ChatExtras, ChatMessage, Content, Source, TypedRow};
use super::text::{Rendering, TextEncoder};

/// A training example: tokens, and which of them are trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The loss is taken on predicting `ids[i]` where `mask[i]`; `mask[0]` never counts.
    pub mask: Vec<bool>,
    /// Leading tokens that are context: the prompt, or what comes before the first trained token.
    pub n_prompt: usize,
    /// Where it came from.
    pub source: Source,
}

impl Example {
    /// Number of tokens that the loss is taken on.
    pub fn supervised(&self) -> usize {
        supervised(&self.mask)
    }
}

/// Trained tokens of one segment: its first token has nothing to be predicted from.
pub(crate) fn supervised(mask: &[bool]) -> usize {
    mask.iter().skip(1).filter(|&&m| m).count()
}

/// What happens to an example longer than `max_length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// Its end is cut off (TRL's default).
    #[default]
    KeepStart,
    /// Its start is cut off.
    KeepEnd,
    /// It is dropped, and counted.
    Drop,
}

/// What happens to an example no token of which is trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUnsupervised {
    /// It is dropped, and counted (as TRL does, which does not count).
    #[default]
    Drop,
    /// It is an error.
    Error,
}

/// How rows become examples; names and defaults are TRL's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EncodeOptions {
    /// Most tokens of an example; `None` is no limit.
    pub max_length: Option<usize>,
    /// What happens to longer ones.
    pub truncation_mode: Truncation,
    /// Train on the completion only; `None` is true for rows with a prompt and a completion.
    pub completion_only_loss: Option<bool>,
    /// Train on the assistant's turns only.
    pub assistant_only_loss: bool,
    /// What happens to examples without a trained token.
    pub on_unsupervised: OnUnsupervised,
    /// Drop, and count, rows that are wrong by themselves ([`DataError::fault`]), instead of stopping.
    pub drop_invalid: bool,
    /// Positions that the model was made for: what is longer is reported.
    pub window: Option<usize>,
    /// Append the end-of-sequence token to plain texts and completions.
    pub append_eos: bool,
    /// Tokens that the model knows, where it is not what the tokenizer says.
    pub vocab_size: Option<usize>,
    /// How answers in steps become examples.
    pub steps: StepOptions,
    /// What `strftime_now` in a chat template takes for now, seconds since 1970 UTC; `None` is the time at
    /// which the encoder is made, for all its rows.
    pub template_time: Option<u64>,
}

impl Default for EncodeOptions {
    fn default() -> EncodeOptions {
        EncodeOptions {
            max_length: Some(1024),
            truncation_mode: Truncation::KeepStart,
            completion_only_loss: None,
            assistant_only_loss: false,
            on_unsupervised: OnUnsupervised::Drop,
            drop_invalid: false,
            window: None,
            append_eos: true,
            vocab_size: None,
            steps: StepOptions::default(),
            template_time: None,
        }
    }
}

/// Why an example was dropped.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dropped {
    /// Longer than `max_length`, and `truncation_mode` is drop.
    TooLong,
    /// No trained token was left when it was truncated.
    UnsupervisedAfterTruncation,
    /// It had no trained token to begin with.
    Unsupervised,
    /// The row is wrong.
    Invalid,
}

/// A row after encoding.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// The example, or why there is none. Of a preference pair, the chosen side.
    pub example: Result<Example, Dropped>,
    /// The rejected side of a preference pair.
    pub rejected: Option<Rejected>,
    /// Whether the completion is a wanted one, for rows that say so.
    pub label: Option<bool>,
    /// By how much the chosen side of a pair is better, for rows that say so.
    pub margin: Option<f64>,
    /// Whether each step is right, for answers in steps: one for each token of the mask.
    pub steps: Vec<bool>,
    /// Further answers of the row, with the same of theirs.
    pub more: Vec<(Example, Vec<bool>)>,
    /// How good each answer is, for answers that are ranked, or empty.
    pub scores: Vec<f64>,
    /// Tokens before truncation.
    pub full_len: usize,
    /// It begins with two beginning-of-sequence tokens.
    pub double_bos: bool,
    /// No trained token ends the sequence, although nothing was cut off.
    pub missing_eos: bool,
    /// The prompt, encoded alone, is not the beginning of the whole.
    pub prompt_diverges: bool,
}

impl Encoded {
    /// A row that was dropped.
    pub(super) fn dropped(why: Dropped) -> Encoded {
        Encoded {
            example: Err(why),
            rejected: None,
            label: None,
            margin: None,
            steps: Vec::new(),
            more: Vec::new(),
            scores: Vec::new(),
            full_len: 0,
            double_bos: false,
            missing_eos: false,
            prompt_diverges: false,
        }
    }
}

/// The rejected side of a preference pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Prompt and completion.
    pub example: Example,
    /// Tokens before truncation.
    pub full_len: usize,
}

/// Tokens of a row before truncation.
pub(super) struct Tokens {
    pub(super) ids: Vec<u32>,
    pub(super) mask: Vec<bool>,
    /// Length of an explicit prompt.
    pub(super) n_prompt: Option<usize>,
    pub(super) diverges: bool,
}

/// Seconds since 1970 UTC; 0 on a machine whose clock stands before.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Turns typed rows into examples. A pure function of the row (the time is fixed when the encoder is made):
/// safe to call from any thread, in any order.
#[derive(Clone)]
pub struct Encoder {
    text: Arc<dyn TextEncoder>,
    options: EncodeOptions,
}

impl Encoder {
    /// An encoder.
    ///
    /// # Errors
    /// [`DataError::Setting`] when `max_length` is below 2: one token predicts nothing.
    pub fn new(text: Arc<dyn TextEncoder>, mut options: EncodeOptions) -> Result<Encoder> {
        if let Some(n) = options.max_length.filter(|&n| n < 2 || n > u32::MAX as usize) {
            let value = n.to_string();
            return Err(DataError::Setting { key: "max_length", value, expected: "from 2 to 4294967295" });
        }
        options.template_time.get_or_insert_with(now);
        Ok(Encoder { text, options })
    }

    /// The settings; `template_time` is never `None`.
    pub fn options(&self) -> &EncodeOptions {
        &self.options
    }

    /// The tokenizer.
    pub fn text(&self) -> &dyn TextEncoder {
        &*self.text
    }

    /// The same encoder without a limit of length, for recipes that cut the stream themselves.
    #[must_use]
    pub fn unlimited(&self) -> Encoder {
        self.with_options(EncodeOptions { max_length: None, ..self.options.clone() })
    }

    /// The same with other options, which were right once.
    pub(super) fn with_options(&self, options: EncodeOptions) -> Encoder {
        Encoder { text: self.text.clone(), options }
    }

    /// Encodes a row.
    ///
    /// # Errors
    /// A tokenizer or template that fails, a token id outside of the vocabulary, a prompt alone, and, if so
    /// set, an example without a trained token, an empty completion, or two equal ones.
    pub fn encode(&self, row: &TypedRow, source: Source) -> Result<Encoded> {
        match row {
            TypedRow::Preference { prompt, chosen, rejected, margin, extras } => {
                let encoded = self.preference(prompt, chosen, rejected, extras, source)?;
                Ok(Encoded { margin: *margin, ..encoded })
            }
            TypedRow::Labelled { prompt, completion, label, extras } => {
                self.labelled(prompt, completion, *label, extras, source)
            }
            TypedRow::Ranked { prompt, responses, scores, extras } => {
                self.ranked(prompt, responses, scores, extras, source)
            }
            TypedRow::Stepwise { prompt, trajectories } => self.stepwise(prompt, trajectories, source),
            _ => self.finish(self.tokens(row, &source)?, source),
        }
    }

    /// Checks and truncates.
    pub(super) fn finish(&self, tokens: Tokens, source: Source) -> Result<Encoded> {
        let vocab = self.options.vocab_size.unwrap_or_else(|| self.text.vocab_size());
        if let Some((i, &id)) = tokens.ids.iter().enumerate().find(|&(_, &id)| id as usize >= vocab) {
            let path = format!("token {i}");
            return Err(DataError::TokenId { at: source.at(), path, id: id.into(), vocab });
        }
        let full_len = tokens.ids.len();
        let bos = self.text.bos();
        let double_bos = bos.is_some() && full_len > 1 && tokens.ids[..2].iter().all(|&id| Some(id) == bos);
        let ends = |(&id, &on): (&u32, &bool)| on && (self.text.eos_ids().contains(&id) || self.text.eos() == Some(id));
        let had_any = supervised(&tokens.mask) > 0;
        let limit = self.options.max_length.unwrap_or(usize::MAX);
        let cut = full_len > limit;
        let encoded = Encoded {
            missing_eos: had_any && !cut && !tokens.ids.iter().zip(&tokens.mask).any(ends),
            full_len,
            double_bos,
            prompt_diverges: tokens.diverges,
            ..Encoded::dropped(Dropped::TooLong)
        };
        if cut && self.options.truncation_mode == Truncation::Drop {
            return Ok(encoded);
        }
        let (skip, keep) = match self.options.truncation_mode {
            Truncation::KeepEnd => (full_len.saturating_sub(limit), full_len.min(limit)),
            _ => (0, full_len.min(limit)),
        };
        let Tokens { mut ids, mut mask, n_prompt, .. } = tokens;
        ids.drain(..skip);
        mask.drain(..skip);
        ids.truncate(keep);
        mask.truncate(keep);
        if supervised(&mask) == 0 {
            let why = match (had_any, full_len) {
                (true, _) => "truncation to max_length left none",
                (false, 0 | 1) => "it is empty",
                (false, _) if self.options.assistant_only_loss => {
                    "no turn of the assistant, or a template that marks none"
                }
                (false, _) => "its completion is empty or masked",
            };
            if self.options.on_unsupervised == OnUnsupervised::Error {
                return Err(DataError::Unsupervised { at: source.at(), why });
            }
            let dropped = if had_any { Dropped::UnsupervisedAfterTruncation } else { Dropped::Unsupervised };
            return Ok(Encoded { example: Err(dropped), ..encoded });
        }
        let n_prompt = match n_prompt {
            Some(n) => n.saturating_sub(skip).min(ids.len()),
            None => mask.iter().position(|&m| m).unwrap_or(0),
        };
        Ok(Encoded { example: Ok(Example { ids, mask, n_prompt, source }), ..encoded })
    }

    fn tokens(&self, row: &TypedRow, source: &Source) -> Result<Tokens> {
        let failed = |e: TextError| DataError::Text { at: source.at(), source: e };
        match row {
            TypedRow::Text(text) => {
                let ids = self.with_eos(self.text.encode(text).map_err(failed)?);
                Ok(Tokens { mask: vec![true; ids.len()], ids, n_prompt: None, diverges: false })
            }
            TypedRow::Messages(messages, extras) => {
                let chat = self.chat(messages, extras, false, source)?;
                let mask = if self.options.assistant_only_loss { chat.assistant } else { vec![true; chat.ids.len()] };
                Ok(Tokens { ids: chat.ids, mask, n_prompt: None, diverges: false })
            }
            TypedRow::PromptCompletion { prompt: Content::Chat(p), completion: Content::Chat(c), extras } => {
                self.chat_pair(p, c, extras, source)
            }
            TypedRow::PromptCompletion { prompt: Content::Text(p), completion: Content::Text(c), .. } => {
                self.plain_pair(p, c, source)
            }
            TypedRow::Task(task) if self.text.template().is_some() => {
                let user = [ChatMessage::new("user", task.user.as_str())];
                let answer = [ChatMessage::new("assistant", task.answer.as_str())];
                self.chat_pair(&user, &answer, &ChatExtras::default(), source)
            }
            TypedRow::Task(task) => self.plain_pair(&task.plain, &format!("{}{}", task.separator, task.answer), source),
            TypedRow::Tokenized { ids, mask } => self.tokenized(ids, mask, source),
            _ => Err(DataError::Value {
                at: source.at(),
                path: "the row".into(),
                expected: "one sequence",
                found: "a prompt".into(),
            }),
        }
    }

    fn completion_only(&self) -> bool {
        self.options.completion_only_loss.unwrap_or(true)
    }

    fn with_eos(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(eos) = self.text.eos().filter(|&eos| self.options.append_eos && ids.last() != Some(&eos)) {
            ids.push(eos);
        }
        ids
    }

    fn chat(
        &self,
        messages: &[ChatMessage],
        extras: &ChatExtras,
        add_generation_prompt: bool,
        source: &Source,
    ) -> Result<super::text::RenderedChat> {
        if self.text.template().is_none() {
            return Err(DataError::NoTemplate { at: source.at() });
        }
        let how = Rendering {
            add_generation_prompt,
            return_assistant_tokens_mask: self.options.assistant_only_loss,
            now: self.options.template_time.unwrap_or_default(),
        };
        let chat = self.text.encode_chat(messages, extras, how);
        chat.map_err(|e| DataError::Text { at: source.at(), source: e })
    }

    pub(super) fn chat_pair(
        &self,
        p: &[ChatMessage],
        c: &[ChatMessage],
        extras: &ChatExtras,
        source: &Source,
    ) -> Result<Tokens> {
        let prompt = self.chat(p, extras, true, source)?;
        let whole = self.chat(&[p, c].concat(), extras, false, source)?;
        let diverges = !whole.ids.starts_with(&prompt.ids);
        let n_prompt = if diverges {
            // The first token that came from a message of the completion; if a template shows
            // nothing of it, nothing is trained on.
            whole.message.iter().position(|m| m.is_some_and(|m| m as usize >= p.len())).unwrap_or(whole.ids.len())
        } else {
            prompt.ids.len()
        };
        let mut mask = self.mask(n_prompt, whole.ids.len());
        if self.options.assistant_only_loss {
            mask.iter_mut().zip(&whole.assistant).for_each(|(m, &a)| *m &= a);
        }
        Ok(Tokens { ids: whole.ids, mask, n_prompt: Some(n_prompt), diverges })
    }

    pub(super) fn plain_pair(&self, p: &str, c: &str, source: &Source) -> Result<Tokens> {
        let failed = |e: TextError| DataError::Text { at: source.at(), source: e };
        let prompt = self.text.encode(p).map_err(failed)?;
        let ids = self.with_eos(self.text.encode(&format!("{p}{c}")).map_err(failed)?);
        let common = prompt.iter().zip(&ids).take_while(|(a, b)| a == b).count();
        // A tokenizer that appends the end of sequence by itself is no divergence.
        let appended = common + 1 == prompt.len() && prompt.last().copied() == self.text.eos();
        let diverges = common < prompt.len() && !appended;
        Ok(Tokens { mask: self.mask(common, ids.len()), ids, n_prompt: Some(common), diverges })
    }

    fn mask(&self, n_prompt: usize, len: usize) -> Vec<bool> {
        let only = self.completion_only();
        (0..len).map(|i| !only || i >= n_prompt).collect()
    }

    fn tokenized(&self, ids: &[i64], mask: &[bool], source: &Source) -> Result<Tokens> {
        let vocab = self.options.vocab_size.unwrap_or_else(|| self.text.vocab_size());
        let check = |(i, &id): (usize, &i64)| match u32::try_from(id) {
            Ok(id) if (id as usize) < vocab => Ok(id),
            _ => Err(DataError::TokenId { at: source.at(), path: format!("input_ids[{i}]"), id, vocab }),
        };
        let ids = ids.iter().enumerate().map(check).collect::<Result<Vec<u32>>>()?;
        Ok(Tokens { ids, mask: mask.to_vec(), n_prompt: None, diverges: false })
    }
}
