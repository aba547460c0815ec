//! The running batch: sequences enter, are read, are decoded and leave.

use std::collections::BTreeMap;

use planish_tensor::ops::index_select;
use planish_tensor::ops::lm_head::{LmHead, from_logits, logprobs_of_logits};
use planish_tensor::ops::sampling::{self, Sampling};
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{Device, Real, Tensor, dispatch_real, parallel};

use super::steady::Recordings;
use super::{Completion, FinishReason, Generator, SamplingParams, StopMatcher, TextStream, TokenEvent, sampler};
use crate::decoder::SequenceCache;
use crate::{Error, Result};

/// One sequence of the batch.
struct Sequence<'a> {
    prompt: usize,
    sample: usize,
    /// The prompt and what has been generated.
    ids: Vec<u32>,
    n_prompt: usize,
    /// Keys and values of the first of `ids`; none while another sample of the prompt is reading it.
    cache: Option<SequenceCache>,
    random: Stream,
    logprobs: Vec<f64>,
    text: String,
    stream: Option<(Box<dyn TextStream + 'a>, StopMatcher)>,
    finish: Option<FinishReason>,
}

/// A prompt that has been read, for its samples that have not begun.
struct Prefix {
    cache: SequenceCache,
    /// Logits after its last token, (1, vocabulary).
    logits: Tensor,
    /// How many samples have not begun.
    waiting: usize,
}

/// What goes through the model together in a pass.
#[derive(Default)]
struct Part<'c> {
    tokens: Vec<&'c [u32]>,
    caches: Vec<&'c mut SequenceCache>,
    /// Sequences, by their places in the batch, whose last token is among them, and its rows.
    ready: Vec<usize>,
    rows: Vec<u32>,
    total: u32,
}

pub(super) struct Batch<'a, 'b, S> {
    generator: &'b Generator<'a>,
    prompts: &'b [S],
    params: &'b SamplingParams,
    running: Vec<Sequence<'b>>,
    prefixes: BTreeMap<usize, Prefix>,
    /// (prompt, sample) of the next to enter.
    next: (usize, usize),
    done: Vec<Vec<Option<Completion>>>,
    recordings: Recordings<'b>,
}

impl<'a, 'b, S: AsRef<[u32]>> Batch<'a, 'b, S> {
    pub(super) fn new(generator: &'b Generator<'a>, prompts: &'b [S], params: &'b SamplingParams) -> Self {
        let done = prompts.iter().map(|_| Vec::new()).collect();
        let recordings = Recordings::new(generator.model, generator.graphs);
        let (running, prefixes) = (vec![], BTreeMap::new());
        Batch { generator, prompts, params, running, prefixes, next: (0, 0), done, recordings }
    }

    pub(super) fn run(mut self, on_token: &mut dyn FnMut(&TokenEvent<'_>) -> bool) -> Result<Vec<Vec<Completion>>> {
        loop {
            self.admit();
            if self.running.is_empty() {
                break;
            }
            for (ready, logits) in self.pass()? {
                self.choose(&ready, logits, on_token)?;
            }
            for (sequence, logits) in self.begin() {
                self.choose(&[sequence], logits, on_token)?;
            }
            self.retire();
        }
        Ok(self.done.into_iter().map(|samples| samples.into_iter().flatten().collect()).collect())
    }

    fn admit(&mut self) {
        while self.running.len() < self.generator.max_batch && self.next.0 < self.prompts.len() {
            let (prompt, sample) = self.next;
            let ids = self.prompts[prompt].as_ref().to_vec();
            let number = self.generator.first_prompt.wrapping_add(prompt as u64);
            let random = Stream::new(self.params.seed, Purpose::Sampling, number).substream(sample as u64);
            let cache = (sample == 0).then(|| {
                let mut cache = self.generator.model.cache();
                cache.expect(ids.len().saturating_add(self.params.max_new_tokens));
                cache
            });
            self.running.push(Sequence {
                prompt,
                sample,
                n_prompt: ids.len(),
                ids,
                cache,
                random,
                logprobs: vec![],
                text: String::new(),
                stream: self.generator.text.as_ref().map(|make| (make(), StopMatcher::new(&self.params.stop))),
                finish: None,
            });
            self.done[prompt].push(None);
            self.next = if sample + 1 < self.params.n { (prompt, sample + 1) } else { (prompt + 1, 0) };
        }
    }

    /// One pass: tokens of every sequence as far as the budget goes, through the model once for each adapter that they
    /// ask for. Gives the sequences that have none left to run, with the logits after their last.
    fn pass(&mut self) -> Result<Vec<(Vec<usize>, Tensor)>> {
        let generator = self.generator;
        let mut budget = generator.tokens_per_pass;
        let mut parts: BTreeMap<Option<usize>, Part<'_>> = BTreeMap::new();
        for (i, sequence) in self.running.iter_mut().enumerate() {
            let Some(cache) = sequence.cache.as_mut().filter(|_| budget > 0) else { continue };
            let part = parts.entry(generator.slot(sequence.prompt)).or_default();
            let left = &sequence.ids[cache.len()..];
            let take = left.len().min(budget);
            budget -= take;
            part.total += take as u32;
            if take == left.len() {
                part.ready.push(i);
                part.rows.push(part.total - 1);
            }
            part.tokens.push(&left[..take]);
            part.caches.push(cache);
        }
        let mut found = vec![];
        for (slot, mut part) in parts {
            let ctx = generator.ctx.clone();
            let ctx = if let Some(slot) = slot { ctx.with_adapter(slot) } else { ctx.without_adapters() };
            let hidden = match self.recordings.decode(&ctx, &part.tokens, &mut part.caches)? {
                Some(hidden) => hidden,
                None => generator.model.decode(&ctx, &part.tokens, &mut part.caches)?,
            };
            if !part.rows.is_empty() {
                // In a step of decoding every row is a sequence's last.
                let all = part.rows.len() == hidden.dims()[0];
                let last = if all { hidden } else { index_select::forward(&hidden, &part.rows)? };
                let logits = generator.model.logits(&ctx, &last)?;
                found.push((part.ready, logits));
            }
        }
        for (ready, logits) in &found {
            self.keep_prefixes(ready, logits)?;
        }
        Ok(found)
    }

    /// Keeps what prompts that have just been read left, for their other samples.
    fn keep_prefixes(&mut self, ready: &[usize], logits: &Tensor) -> Result<()> {
        for (row, &i) in ready.iter().enumerate() {
            let sequence = &self.running[i];
            let just_read = sequence.logprobs.is_empty();
            if let Some(cache) = sequence.cache.as_ref().filter(|_| just_read && self.params.n > 1) {
                let prefix = Prefix {
                    cache: cache.clone(),
                    logits: logits.narrow(0, row, 1)?.copied()?,
                    waiting: self.params.n - 1,
                };
                self.prefixes.insert(sequence.prompt, prefix);
            }
        }
        Ok(())
    }

    /// Gives the samples that wait for their prompt to be read its keys and values, where it has been, and
    /// returns these samples with the logits after the prompt.
    fn begin(&mut self) -> Vec<(usize, Tensor)> {
        let mut begun = vec![];
        for (i, sequence) in self.running.iter_mut().enumerate().filter(|(_, s)| s.cache.is_none()) {
            let Some(prefix) = self.prefixes.get_mut(&sequence.prompt) else { continue };
            prefix.waiting -= 1;
            let (cache, logits) = match prefix.waiting {
                // The last one needs no copy.
                0 => self.prefixes.remove(&sequence.prompt).map(|p| (p.cache, p.logits)).expect("just found"),
                _ => (prefix.cache.clone(), prefix.logits.clone()),
            };
            sequence.cache = Some(cache);
            begun.push((i, logits));
        }
        begun
    }

    /// Chooses the next token of the sequences `which` from the rows of `logits`.
    fn choose(
        &mut self,
        which: &[usize],
        mut logits: Tensor,
        on_token: &mut dyn FnMut(&TokenEvent<'_>) -> bool,
    ) -> Result<()> {
        let sequence = |&i: &usize| (&self.running[i].ids[..], self.running[i].n_prompt, self.running[i].random);
        let sequences: Vec<_> = which.iter().map(sequence).collect();
        let chosen = next_tokens(&mut logits, &sequences, self.params)?;
        for (&i, chosen) in which.iter().zip(chosen) {
            let sequence = &mut self.running[i];
            let Some((id, logprob)) = chosen else {
                return Err(Error::LogitsNotFinite { prompt: sequence.prompt, position: sequence.ids.len() });
            };
            sequence.push(id, logprob, self.params, on_token);
        }
        Ok(())
    }

    /// Takes finished sequences out.
    fn retire(&mut self) {
        for s in self.running.extract_if(.., |s| s.finish.is_some()) {
            let finish = s.finish.expect("just seen");
            let ids = s.ids[s.n_prompt..].to_vec();
            self.done[s.prompt][s.sample] = Some(Completion { ids, logprobs: s.logprobs, finish, text: s.text });
        }
    }
}

/// The next token of each row's sequence and its log-probability; `None` where the logits are not numbers.
fn next_tokens(
    logits: &mut Tensor,
    sequences: &[(&[u32], usize, Stream)],
    params: &SamplingParams,
) -> planish_tensor::Result<Vec<Option<(u32, f64)>>> {
    if !logits.device().is_cpu() {
        return next_tokens_on_device(logits, sequences, params);
    }
    let vocabulary = logits.dims()[1];
    dispatch_real!("generate", logits.dtype(), R => {
        let mut chosen = vec![None; sequences.len()];
        // On the threads of kernels, which are awake, and not on those of a pool beside them.
        parallel::chunks2(logits.as_slice_mut::<R>()?, vocabulary, &mut chosen, 1, |first, rows, chosen| {
            let rows = rows.chunks_exact_mut(vocabulary).zip(&sequences[first..]);
            for ((row, (ids, n_prompt, random)), chosen) in rows.zip(chosen) {
                *chosen = next_token(row, (ids, *n_prompt), random, params);
            }
        });
        Ok(chosen)
    })
}

/// The same for logits on a device: it chooses, with each token's log-probability in the bits of its own LM head. Rules
/// that its sampler does not know are followed here, for which the logits are copied. Which it is follows from the settings
/// alone: the two may differ in a draw by a rounding, and a sample must not depend on what else is in the batch.
fn next_tokens_on_device(
    logits: &Tensor,
    sequences: &[(&[u32], usize, Stream)],
    params: &SamplingParams,
) -> planish_tensor::Result<Vec<Option<(u32, f64)>>> {
    let vocabulary = logits.dims()[1];
    let forbids = !params.eos_token_ids.is_empty() && params.min_new_tokens > 0;
    if params.repetition_penalty == 1.0 && !forbids && vocabulary <= sampling::MAX_VOCABULARY {
        let &SamplingParams { temperature, top_k, top_p, min_p, .. } = params;
        let draws: Vec<_> = sequences.iter().map(|(ids, _, random)| (*random, ids.len() as u64)).collect();
        let all = sampling::next_tokens(logits, &draws, &Sampling { temperature, top_k, top_p, min_p })?;
        return Ok(all.into_iter().map(|row| row.map(|(id, logprob)| (id, logprob.into()))).collect());
    }
    let here = logits.to_device(Device::Cpu)?;
    let all = here.as_slice::<f32>()?;
    let ids: Vec<Option<u32>> = parallel::map(sequences.len(), |i| {
        let (ids, n_prompt, random) = &sequences[i];
        let row = &all[i * vocabulary..][..vocabulary];
        sampler::choose(row, (ids, *n_prompt), params, random.uniform_f64(ids.len() as u64))
    });
    let targets: Vec<u32> = ids.iter().map(|id| id.unwrap_or(0)).collect();
    let logprobs = logprobs_of_logits(logits, &targets)?.to_device(Device::Cpu)?.to_vec::<f32>()?;
    Ok(ids.into_iter().zip(logprobs).map(|(id, p)| id.filter(|_| p.is_finite()).map(|id| (id, p.into()))).collect())
}

fn next_token<R: Real>(
    logits: &mut [R],
    ids: (&[u32], usize),
    random: &Stream,
    params: &SamplingParams,
) -> Option<(u32, f64)> {
    let id = sampler::choose(logits, ids, params, random.uniform_f64(ids.0.len() as u64))?;
    // The row is capped and scaled already.
    let (logprob, _) = from_logits(logits, id, &LmHead::default());
    let logprob = logprob.to_f64();
    logprob.is_finite().then_some((id, logprob))
}

impl Sequence<'_> {
    fn push(
        &mut self,
        id: u32,
        logprob: f64,
        params: &SamplingParams,
        on_token: &mut dyn FnMut(&TokenEvent<'_>) -> bool,
    ) {
        self.ids.push(id);
        self.logprobs.push(logprob);
        let eos = params.eos_token_ids.contains(&id);
        let full = self.ids.len() - self.n_prompt >= params.max_new_tokens;
        let mut finish = if eos { Some(FinishReason::Eos) } else { full.then_some(FinishReason::Length) };
        let start = self.text.len();
        if let Some((stream, matcher)) = &mut self.stream {
            let mut pieces = vec![];
            // The end token has no text of its own.
            pieces.extend((!eos).then(|| stream.push(id)).flatten());
            pieces.extend(finish.and_then(|_| stream.finish()));
            for piece in pieces {
                let (text, stopped) = matcher.push(&piece);
                self.text.push_str(&text);
                if stopped {
                    finish = Some(FinishReason::Stop);
                    break;
                }
            }
            if finish.is_some() {
                self.text.push_str(&matcher.finish());
            }
        }
        let (prompt, sample, text) = (self.prompt, self.sample, &self.text[start..]);
        let go_on = on_token(&TokenEvent { prompt, sample, id, logprob, text, finish });
        self.finish = finish.or((!go_on).then_some(FinishReason::Cancelled));
    }
}
