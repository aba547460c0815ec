//! Several answers with scores: their rows, and their tokens.
//!
//! The answers of a prompt begin after one number of tokens, as the sides of a pair do, and each is cut to `max_length`
//! by itself. A row stays whole: where one answer is dropped, all are.

use std::collections::HashMap;

use serde_json::Value;

use super::encode::{Dropped, Encoded, Encoder, Tokens};
use super::encode_pair::{common_prompt, is_empty};
use super::error::{DataError, Result};
use super::row::{ChatExtras, Content, Reader, Source, TypedRow};

/// `prompt`, `responses` and `scores`.
pub(crate) fn ranked(r: &Reader) -> Result<TypedRow> {
    let (prompt, extras) = (r.content("prompt")?, r.extras()?);
    let value = r.need("responses")?;
    let Value::Array(items) = value else { return Err(r.wrong("`responses`", "an array of answers", value)) };
    if items.len() < 2 {
        let found = Value::from(items.len());
        return Err(r.wrong("`responses`", "an array of at least two answers", &found));
    }
    let response = |(i, v): (usize, &Value)| {
        let path = format!("responses[{i}]");
        match (&prompt, v) {
            (Content::Text(_), Value::String(text)) => Ok(Content::Text(text.clone())),
            (Content::Text(_), _) => Err(r.wrong(path, "a string, as the prompt is", v)),
            (Content::Chat(_), Value::Array(_)) => Ok(Content::Chat(r.turns(&path, v)?)),
            (Content::Chat(_), _) => Err(r.wrong(path, "an array of messages, as the prompt is", v)),
        }
    };
    let responses = items.iter().enumerate().map(response).collect::<Result<Vec<_>>>()?;
    let value = r.need("scores")?;
    let Value::Array(items) = value else { return Err(r.wrong("`scores`", "an array of numbers", value)) };
    if items.len() != responses.len() {
        let found = Value::from(format!("{} of {} responses", items.len(), responses.len()));
        return Err(r.wrong("`scores`", "as long as `responses`", &found));
    }
    let score = |(i, v): (usize, &Value)| match v.as_f64() {
        Some(score) if score.is_finite() => Ok(score),
        _ => Err(r.wrong(format!("scores[{i}]"), "a finite number", v)),
    };
    let scores = items.iter().enumerate().map(score).collect::<Result<Vec<_>>>()?;
    Ok(TypedRow::Ranked { prompt, responses, scores, extras })
}

impl Encoder {
    /// A prompt with its answers: the first as the example, the others beside it.
    pub(super) fn ranked(
        &self,
        prompt: &Content,
        responses: &[Content],
        scores: &[f64],
        extras: &ChatExtras,
        source: Source,
    ) -> Result<Encoded> {
        if responses.iter().any(is_empty) {
            let error = DataError::EmptyCompletion { at: source.at(), column: "a response" };
            return self.teaches_nothing(error, Dropped::Unsupervised);
        }
        if scores.windows(2).all(|two| two[0] == two[1]) {
            return self.teaches_nothing(DataError::EqualScores { at: source.at() }, Dropped::Unsupervised);
        }
        let sides = responses.iter().map(|response| self.side(prompt, response, extras, &source));
        let mut sides = sides.collect::<Result<Vec<Tokens>>>()?;
        let n_prompt = common_prompt(&mut sides);
        let equal = |(first, second), when| DataError::EqualResponses { at: source.at(), first, second, when };
        if let Some(two) = twins(sides.iter().map(|side| &side.ids[..])) {
            return self.teaches_nothing(equal(two, ""), Dropped::Unsupervised);
        }
        if let Some(dropped) = self.full_prompt(n_prompt, &source)? {
            return Ok(dropped);
        }
        let all = sides.into_iter().map(|side| self.finish(side, source.clone()));
        let mut all = all.collect::<Result<Vec<Encoded>>>()?;
        if let Some(dropped) = all.iter().position(|e| e.example.is_err()) {
            return Ok(all.swap_remove(dropped));
        }
        if let Some(two) = twins(all.iter().filter_map(|e| e.example.as_ref().ok()).map(|e| &e.ids[..])) {
            let error = equal(two, " once they are cut to max_length");
            return self.teaches_nothing(error, Dropped::UnsupervisedAfterTruncation);
        }
        let any = |said: fn(&Encoded) -> bool| all.iter().any(said);
        let first = Encoded {
            scores: scores.to_vec(),
            full_len: all.iter().map(|e| e.full_len).max().unwrap_or(0),
            double_bos: any(|e| e.double_bos),
            missing_eos: any(|e| e.missing_eos),
            prompt_diverges: any(|e| e.prompt_diverges),
            ..all.remove(0)
        };
        let more = all.into_iter().filter_map(|e| e.example.ok()).map(|example| (example, Vec::new())).collect();
        Ok(Encoded { more, ..first })
    }
}

/// The first sequence that is also an earlier one, and that.
fn twins<'a>(sequences: impl Iterator<Item = &'a [u32]>) -> Option<(usize, usize)> {
    let mut seen = HashMap::new();
    for (i, ids) in sequences.enumerate() {
        if let Some(first) = seen.insert(ids, i) {
            return Some((first, i));
        }
    }
    None
}
