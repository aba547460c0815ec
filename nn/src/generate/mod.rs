//! Generation: many sequences decoded together, token by token.
//!
//! A [`Generator`] runs the prompts through the model in chunks, then all sequences one token at a time,
//! together. Sequences that are done leave the batch and waiting ones enter at once; prompts are read in
//! the same passes in which others are decoded, and the samples of one prompt read it once.
//!
//! What a sample is depends on the model, the settings, its prompt, the prompt's number and the sample's
//! number, and on nothing else: not on what else is in the batch, the batch's size, the chunks or the
//! threads (laws 5 and 6 of the design). The log-probabilities are the model's own, of the logits before
//! any setting of sampling, with the bits that [`Model::scores`] gives the same tokens afterwards.

mod batch;
mod params;
mod sampler;
mod steady;
#[cfg(test)]
mod tests;
mod text;

pub use params::SamplingParams;
pub use text::{StopMatcher, TextStream};

use crate::decoder::Model;
use crate::{Ctx, Error, Result};

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end token, which is its last.
    Eos,
    /// A stop string.
    Stop,
    /// `max_new_tokens`.
    Length,
    /// The caller's wish.
    Cancelled,
}

impl FinishReason {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Eos => "eos",
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// What a prompt was continued with.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The new tokens, the end token included.
    pub ids: Vec<u32>,
    /// Log-probability of each under the model, nats, whatever the temperature.
    pub logprobs: Vec<f64>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Their text without the stop string and what came with it, if the generator was given a
    /// [`Generator::text`].
    pub text: String,
}

/// A token just chosen.
#[derive(Debug)]
pub struct TokenEvent<'a> {
    /// Which of the prompts.
    pub prompt: usize,
    /// Which of its samples.
    pub sample: usize,
    /// The token.
    pub id: u32,
    /// Its log-probability, nats.
    pub logprob: f64,
    /// Text that is now certain: empty while a character is incomplete or a stop string may have begun.
    pub text: &'a str,
    /// Why the sequence ends here, if it does.
    pub finish: Option<FinishReason>,
}

/// Which adapter continues a prompt.
type AdapterOf<'a> = Box<dyn Fn(usize) -> Option<usize> + 'a>;

/// Makes the text stream of a new sequence.
type MakeText<'a> = Box<dyn Fn() -> Box<dyn TextStream + 'a> + 'a>;

/// Continues prompts; see the [module](self).
pub struct Generator<'a> {
    model: &'a Model,
    ctx: Ctx,
    max_batch: usize,
    tokens_per_pass: usize,
    first_prompt: u64,
    graphs: bool,
    adapter_of: Option<AdapterOf<'a>>,
    text: Option<MakeText<'a>>,
}

impl<'a> Generator<'a> {
    /// With adapters on, up to 32 sequences at a time and 512 tokens a pass.
    pub fn new(model: &'a Model) -> Generator<'a> {
        let (ctx, adapter_of, text) = (Ctx::inference(), None, None);
        Generator { model, ctx, max_batch: 32, tokens_per_pass: 512, first_prompt: 0, graphs: true, adapter_of, text }
    }

    /// Runs the model in this context, e.g. without its adapters. Nothing is recorded.
    pub fn ctx(mut self, ctx: &Ctx) -> Self {
        self.ctx = ctx.on(None);
        self
    }

    /// At most this many sequences at a time (at least 1). Each holds its keys and values, and a row of
    /// logits.
    pub fn max_batch(mut self, sequences: usize) -> Self {
        self.max_batch = sequences.max(1);
        self
    }

    /// At most this many tokens in one pass through the model (at least 1): longer prompts are read in
    /// chunks, which bounds the activations' memory.
    pub fn tokens_per_pass(mut self, tokens: usize) -> Self {
        self.tokens_per_pass = tokens.max(1);
        self
    }

    /// Number of the first prompt, which its random numbers depend on: for prompts that come in several
    /// calls and shall give what one call would.
    pub fn first_prompt(mut self, number: u64) -> Self {
        self.first_prompt = number;
        self
    }

    /// Whether a device records the steps of a steady batch as graphs and does them by one call each, as it does unless told.
    /// Tokens and log-probabilities are the same without; a step takes longer, and less memory is taken.
    pub fn cuda_graphs(mut self, on: bool) -> Self {
        self.graphs = on;
        self
    }

    /// Which adapter continues a prompt: from its place among the prompts the adapter's number, as
    /// [`load_adapter_as`](crate::adapters::load_adapter_as) gave it, or `None` for the base alone. Prompts of several
    /// adapters are in one batch; a pass goes through the model once for each adapter that has tokens in it.
    pub fn adapter_of(mut self, slot: impl Fn(usize) -> Option<usize> + 'a) -> Self {
        self.adapter_of = Some(Box::new(slot));
        self
    }

    /// The adapter of a prompt: the context's unless prompts have their own.
    fn slot(&self, prompt: usize) -> Option<usize> {
        self.adapter_of.as_ref().map_or(self.ctx.adapter(), |of| of(prompt))
    }

    /// How to turn ids into text; needed for stop strings. `make` is called for each sequence.
    pub fn text<T: TextStream + 'a>(mut self, make: impl Fn() -> T + 'a) -> Self {
        self.text = Some(Box::new(move || Box::new(make())));
        self
    }

    /// Continues every prompt `params.n` times. The result is by prompt, then by sample.
    ///
    /// `on_token` sees each token as soon as it is chosen and says whether its sequence should go on.
    ///
    /// # Errors
    /// [`Error::Setting`]; [`Error::EmptyPrompt`]; [`Error::TokenId`]; [`Error::LogitsNotFinite`] if the
    /// model computes NaN; those of the kernels.
    pub fn generate<S: AsRef<[u32]>>(
        &self,
        prompts: &[S],
        params: &SamplingParams,
        on_token: &mut dyn FnMut(&TokenEvent<'_>) -> bool,
    ) -> Result<Vec<Vec<Completion>>> {
        params.validate()?;
        if !params.stop.is_empty() && self.text.is_none() {
            let value = format!("{:?}", params.stop);
            return Err(Error::Setting { key: "stop", value, expected: "empty where there is no tokenizer" });
        }
        let vocab_size = self.model.config.vocab_size;
        for (prompt, ids) in prompts.iter().map(AsRef::as_ref).enumerate() {
            if ids.is_empty() {
                return Err(Error::EmptyPrompt { prompt });
            }
            if let Some(position) = ids.iter().position(|&id| id as usize >= vocab_size) {
                return Err(Error::TokenId { id: ids[position], position, vocab_size });
            }
        }
        batch::Batch::new(self, prompts, params).run(on_token)
    }
}
