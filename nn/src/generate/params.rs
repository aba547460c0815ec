//! [`SamplingParams`]: how tokens are chosen and when to stop.

use crate::{Error, Result};

/// How tokens are chosen and when a sequence ends, under transformers' names and with its meaning.
///
/// For each token the logits go through, in this order: `repetition_penalty`, `min_new_tokens`,
/// `temperature`, `top_k`, `top_p`, `min_p`; then one token is drawn from the softmax of what is left. With temperature 0 the
/// largest logit (after the penalty) wins instead, the lowest id among equals.
///
/// The default is plain sampling from the model's own distribution (transformers also cuts to its
/// `top_k` of 50).
///
/// # Source
/// `transformers.generation.logits_process`: `RepetitionPenaltyLogitsProcessor`,
/// `MinNewTokensLengthLogitsProcessor`, `TemperatureLogitsWarper`, `TopKLogitsWarper`, `TopPLogitsWarper`,
/// `MinPLogitsWarper`.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Most tokens to add to a prompt, the end token included.
    pub max_new_tokens: usize,
    /// An end token is not taken before there are this many new tokens; 0 is off. Stop strings end an
    /// answer all the same.
    pub min_new_tokens: usize,
    /// Logits are divided by it; 0 is greedy (transformers' `do_sample=False`).
    pub temperature: f64,
    /// Only the k largest logits stay, and those equal to the k-th; 0 is off.
    pub top_k: usize,
    /// Only the most probable tokens stay, as many as it takes to reach this probability; 1 is off.
    pub top_p: f64,
    /// Only tokens at least this probable, relative to the most probable one, stay; 0 is off.
    pub min_p: f64,
    /// Logits of tokens that the prompt or the answer holds are divided by it if positive and multiplied
    /// if negative; 1 is off.
    pub repetition_penalty: f64,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Samples for each prompt.
    pub n: usize,
    /// A sequence ends when its text holds one of these.
    pub stop: Vec<String>,
    /// A sequence ends with any of these tokens.
    pub eos_token_ids: Vec<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            max_new_tokens: 256,
            min_new_tokens: 0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            n: 1,
            stop: Vec::new(),
            eos_token_ids: Vec::new(),
        }
    }
}

impl SamplingParams {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first that cannot be.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, key, value: &dyn std::fmt::Display, expected| match ok {
            true => Ok(()),
            false => Err(Error::Setting { key, value: value.to_string(), expected }),
        };
        let share = |x: f64| (0.0..=1.0).contains(&x);
        let positive = |x: f64| x > 0.0 && x.is_finite();
        check(self.max_new_tokens > 0, "max_new_tokens", &self.max_new_tokens, "at least 1")?;
        let least = self.min_new_tokens;
        check(least <= self.max_new_tokens, "min_new_tokens", &least, "at most max_new_tokens")?;
        let t = self.temperature;
        check(t == 0.0 || positive(t), "temperature", &t, "0 (greedy) or a positive number")?;
        check(share(self.top_p), "top_p", &self.top_p, "between 0 and 1")?;
        check(share(self.min_p), "min_p", &self.min_p, "between 0 and 1")?;
        let p = self.repetition_penalty;
        check(positive(p), "repetition_penalty", &p, "a positive number (1 is off)")?;
        check(self.n > 0, "n", &self.n, "at least 1")?;
        let empty = self.stop.iter().any(String::is_empty);
        check(!empty, "stop", &"\"\"", "strings of at least one character")
    }

    /// Whether the largest logit wins.
    pub fn greedy(&self) -> bool {
        self.temperature == 0.0
    }
}
