//! Answers in steps as tokens: the label of each step stands at its last token.
//!
//! Follows TRL's `PRMTrainer` (0.2x): prompt, steps and separator are encoded each by itself, without the special tokens
//! that a tokenizer adds, after the beginning-of-sequence token if the tokenizer has one; the separator follows every
//! step, and its last token has the step's label. A prompt is cut at its beginning, the steps together at their end.
//!
//! Deviation: `truncation_mode` says what happens to what is longer than `max_length`; there its end is cut off.

use serde::{Deserialize, Serialize};

use super::encode::{Dropped, Encoded, Encoder, Example, OnUnsupervised, Tokens, Truncation};
use super::error::{DataError, Result, TextError};
use super::row::{Source, Trajectory};

/// How answers in steps become examples; names and defaults are TRL's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepOptions {
    /// What follows every step.
    pub step_separator: String,
    /// Most tokens of a prompt, whose beginning is cut off.
    pub max_prompt_length: Option<usize>,
    /// Most tokens of the steps together, whose end is cut off.
    pub max_completion_length: Option<usize>,
    /// Only the last step of an answer has a label.
    pub train_on_last_step_only: bool,
    /// Whether rows without labels are refused.
    pub labelled: bool,
}

impl Default for StepOptions {
    fn default() -> StepOptions {
        StepOptions {
            step_separator: "\n".to_owned(),
            max_prompt_length: Some(512),
            max_completion_length: None,
            train_on_last_step_only: false,
            labelled: true,
        }
    }
}

/// Tokens of one answer, with the labels of those steps that have one.
struct Answer {
    tokens: Tokens,
    labels: Vec<bool>,
}

impl Encoder {
    /// A prompt with its answers. Those that are dropped leave the others; the row is dropped with the last of them.
    pub(super) fn stepwise(&self, prompt: &str, trajectories: &[Trajectory], source: Source) -> Result<Encoded> {
        let blank = |text: &str| text.trim().is_empty();
        let nothing = match () {
            () if blank(prompt) => Some("prompt"),
            () if trajectories.is_empty() || trajectories.iter().any(|t| t.steps.is_empty()) => {
                Some("the list of steps")
            }
            () if trajectories.iter().flat_map(|t| &t.steps).any(|s| blank(s)) => Some("a step"),
            () => None,
        };
        let refused = |column| {
            let error = DataError::EmptyCompletion { at: source.at(), column };
            self.teaches_nothing(error, Dropped::Unsupervised)
        };
        if let Some(column) = nothing {
            return refused(column);
        }
        let (mut kept, mut dropped): (Option<Encoded>, Option<Encoded>) = (None, None);
        for trajectory in trajectories {
            let (tokens, mut labels) = match self.answer(prompt, trajectory, &source)? {
                Ok(Answer { tokens, labels }) => (tokens, labels),
                Err(column) => return refused(column),
            };
            let mut encoded = self.finish(tokens, source.clone())?;
            // The end of a sequence is no part of what is learnt here.
            encoded.missing_eos = false;
            let Ok(example) = &encoded.example else {
                dropped.get_or_insert(encoded);
                continue;
            };
            let left = example.supervised();
            match self.options().truncation_mode {
                Truncation::KeepEnd => drop(labels.drain(..labels.len().saturating_sub(left))),
                _ => labels.truncate(left),
            }
            match &mut kept {
                None => kept = Some(Encoded { steps: labels, ..encoded }),
                Some(first) => {
                    first.full_len = first.full_len.max(encoded.full_len);
                    first.more.extend(encoded.example.ok().map(|example| (example, labels)));
                }
            }
        }
        Ok(kept.or(dropped).expect("there is an answer"))
    }

    /// The tokens of an answer, or what has none: a step is judged at a token of its own, after others.
    fn answer(
        &self,
        prompt: &str,
        trajectory: &Trajectory,
        source: &Source,
    ) -> Result<std::result::Result<Answer, &'static str>> {
        let failed = |e: TextError| DataError::Text { at: source.at(), source: e };
        let o = &self.options().steps;
        let mut ids: Vec<u32> = self.text().bos().into_iter().collect();
        ids.extend(self.text().encode_piece(prompt).map_err(failed)?);
        if let Some(most) = o.max_prompt_length {
            ids.drain(..ids.len().saturating_sub(most));
        }
        let n_prompt = ids.len();
        if n_prompt == 0 {
            return Ok(Err("prompt"));
        }
        let separator = self.text().encode_piece(&o.step_separator).map_err(failed)?;
        let given = match &trajectory.labels {
            Some(labels) => &labels[..],
            None if o.labelled => {
                let found = vec!["prompt".to_owned(), "completions".to_owned()];
                return Err(DataError::MissingColumn { at: source.at(), column: "labels".to_owned(), found });
            }
            None => &[],
        };
        let (mut mask, mut labels) = (vec![false; n_prompt], Vec::new());
        let last = trajectory.steps.len() - 1;
        for (i, step) in trajectory.steps.iter().enumerate() {
            ids.extend(self.text().encode_piece(step).map_err(failed)?);
            ids.extend(&separator);
            if ids.len() == mask.len() {
                return Ok(Err("a step"));
            }
            mask.resize(ids.len(), false);
            let judged = !o.train_on_last_step_only || i == last;
            if judged && let Some(end) = mask.last_mut() {
                *end = true;
                labels.extend(given.get(i));
            }
        }
        if let Some(most) = o.max_completion_length {
            ids.truncate(n_prompt + most);
            mask.truncate(n_prompt + most);
            // Before `truncation_mode` cuts, which may be at the other end.
            labels.truncate(mask.iter().filter(|on| **on).count());
        }
        Ok(Ok(Answer { tokens: Tokens { ids, mask, n_prompt: Some(n_prompt), diverges: false }, labels }))
    }

    /// The same encoder for held-out rows, all steps of which are judged.
    #[must_use]
    pub fn of_held_out(&self) -> Encoder {
        let mut options = self.options().clone();
        options.steps.train_on_last_step_only = false;
        self.with_options(options)
    }

    pub(super) fn teaches_nothing(&self, error: DataError, dropped: Dropped) -> Result<Encoded> {
        match self.options().on_unsupervised {
            OnUnsupervised::Error => Err(error),
            OnUnsupervised::Drop => Ok(Encoded::dropped(dropped)),
        }
    }
}

impl Encoded {
    /// All examples with their labels: one, or of a row with several answers in steps each of them.
    pub fn answers(self) -> Vec<(Example, Vec<bool>)> {
        let first = self.example.ok().map(|example| (example, self.steps));
        first.into_iter().chain(self.more).collect()
    }
}
