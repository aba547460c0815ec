//! The places that compute a token's log-probability, for tests that all of them give the same bits (law 5).

use planish_autograd::{Param, Tape, Var};
use planish_nn::Ctx;
use planish_nn::adapters::{LoraConfig, Targets, adapter_params, attach_lora};
use planish_nn::decoder::{Model, Packed, SequenceCache};
use planish_nn::generate::{Generator, SamplingParams};
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Device, Tensor};
use planish_train::score::{ScoreError, ScoreRow, Scorer};

/// Bits of the log-probability of every token but the first, by sequence.
pub type Bits = Vec<Vec<u64>>;

/// Random sequences of these lengths.
pub fn sequences(model: &Model, lengths: &[usize], seed: u64) -> Vec<Vec<u32>> {
    let vocabulary = model.config.vocab_size as u64;
    let draw = |s: usize, i: usize| Stream::new(seed, Purpose::Data, s as u64).below(i as u64, vocabulary) as u32;
    lengths.iter().enumerate().map(|(s, &len)| (0..len).map(|i| draw(s, i)).collect()).collect()
}

/// Of numbers on any device.
///
/// # Panics
/// If they cannot be read.
pub fn bits(x: &Tensor) -> Vec<u64> {
    let here = x.to_device(Device::Cpu).and_then(|x| x.to_dtype(DType::F64)).expect("numbers come to the processor");
    here.to_vec::<f64>().expect("they are f64").into_iter().map(f64::to_bits).collect()
}

/// From one packed pass.
///
/// # Panics
/// If the model cannot run it.
pub fn packed(model: &Model, ctx: &Ctx, sequences: &[Vec<u32>], recompute: bool) -> Bits {
    let batch = Packed::new(sequences);
    let hidden = model.forward(ctx, &batch, recompute).expect("a forward pass");
    let (mut rows, mut targets) = (vec![], vec![]);
    for (start, s) in batch.cu_seqlens.iter().zip(sequences) {
        rows.extend((0..s.len() as u32 - 1).map(|i| start + i));
        targets.extend_from_slice(&s[1..]);
    }
    let scores = model.scores(ctx, &hidden, &rows, &targets).expect("the head");
    let mut all = bits(scores.logprobs.value()).into_iter();
    sequences.iter().map(|s| all.by_ref().take(s.len() - 1).collect()).collect()
}

/// From caches, all sequences together, `chunk` tokens of each at a time.
///
/// # Panics
/// If the model cannot run it.
pub fn cached(model: &Model, ctx: &Ctx, sequences: &[Vec<u32>], chunk: usize) -> Bits {
    let mut caches: Vec<SequenceCache> = sequences.iter().map(|_| model.cache()).collect();
    let mut out: Bits = vec![vec![]; sequences.len()];
    loop {
        let (mut tokens, mut targets, mut who, mut live) = (vec![], vec![], vec![], vec![]);
        for (i, (s, cache)) in sequences.iter().zip(&mut caches).enumerate() {
            let (start, end) = (cache.len(), (cache.len() + chunk).min(s.len() - 1));
            if start < end {
                tokens.push(&s[start..end]);
                targets.extend_from_slice(&s[start + 1..end + 1]);
                who.extend(std::iter::repeat_n(i, end - start));
                live.push(cache);
            }
        }
        if live.is_empty() {
            return out;
        }
        let hidden = Var::constant(model.decode(ctx, &tokens, &mut live).expect("a step over caches"));
        let rows: Vec<u32> = (0..targets.len() as u32).collect();
        let scores = model.scores(ctx, &hidden, &rows, &targets).expect("the head");
        who.into_iter().zip(bits(scores.logprobs.value())).for_each(|(i, x)| out[i].push(x));
    }
}

/// By the scorer, in batches of `batch_tokens`.
///
/// # Panics
/// If it refuses a sequence: one of a single token has nothing to score.
pub fn scored(model: &Model, ctx: &Ctx, sequences: &[Vec<u32>], batch_tokens: usize) -> Bits {
    let rows = sequences.iter().map(|s| Ok::<_, ScoreError>(ScoreRow::completion(s.clone(), 1)));
    let lines = Scorer::new(model).ctx(ctx).batch_tokens(batch_tokens).score(rows);
    lines.map(|line| of(&line.expect("a line").logprobs)).collect()
}

/// By the scorer, of the completion of a prompt.
///
/// # Panics
/// If it refuses them.
pub fn scored_completion(model: &Model, ctx: &Ctx, prompt: &[u32], completion: &[u32]) -> Vec<u64> {
    let row = ScoreRow::completion([prompt, completion].concat(), prompt.len());
    let line = Scorer::new(model).ctx(ctx).score([Ok::<_, ScoreError>(row)]).next().expect("a line for a row");
    of(&line.expect("a line").logprobs)
}

/// Of numbers.
pub fn of(x: &[f64]) -> Vec<u64> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// An adapter whose B is not zero, on every linear module.
///
/// # Panics
/// If it cannot be attached.
pub fn with_lora(mut model: Model, seed: u64) -> Model {
    let config = LoraConfig { r: 4, target_modules: Targets::AllLinear, ..LoraConfig::default() };
    attach_lora(&mut model, &config, seed).expect("the linear modules are there");
    stir(&model, seed, |name| name.ends_with("lora_B.weight"));
    model
}

/// Adds random numbers to the adapter's parameters of these names.
///
/// # Panics
/// If they cannot be changed.
pub fn stir(model: &Model, seed: u64, which: impl Fn(&str) -> bool) {
    for (i, p) in adapter_params(model, 0).into_iter().enumerate().filter(|(_, p)| which(p.name())) {
        let (dims, s) = (p.value().dims().to_vec(), Stream::new(seed, Purpose::Data, i as u64));
        let values: Vec<f64> = (0..p.value().numel()).map(|k| 0.05 * s.normal(k as u64)).collect();
        let values = Tensor::from_vec(values, dims)
            .expect("the parameter's shape")
            .to_dtype(p.value().dtype())
            .expect("the parameter's dtype");
        p.update(|t| planish_tensor::ops::elementwise::add(t, &values).map(|new| *t = new)).expect("they add up");
    }
}

/// Runs `f` on so many threads.
///
/// # Panics
/// If they cannot be started.
pub fn on_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads").install(f)
}

/// A context that records nothing. (One is bound to its thread, so each thread makes its own.)
pub fn context(adapters: bool) -> Ctx {
    if adapters { Ctx::inference() } else { Ctx::inference().without_adapters() }
}

/// Everything that must agree, for one model and set of sequences, with its adapter or without. Of a model whose weights
/// are trained, the training pass must be one that records.
///
/// # Panics
/// If a bit differs.
pub fn check(what: &str, model: &Model, adapters: bool, sequences: &[Vec<u32>], salt: usize) {
    let ctx = &context(adapters);
    let want: Bits = sequences.iter().flat_map(|s| packed(model, ctx, std::slice::from_ref(s), false)).collect();
    let threads = 1 + salt % 4;
    on_threads(threads, || {
        let ctx = &context(adapters);
        let trains = model.base_params().iter().any(Param::is_trainable);
        for (lean, recompute) in [(false, false), (true, false), (false, true)] {
            let tape = Tape::new();
            let training = Ctx::training(&tape, None).lean(lean);
            let training = if adapters { training } else { training.without_adapters() };
            assert_eq!(packed(model, &training, sequences, recompute), want, "{what}: training, {threads} threads");
            assert!(!trains || !tape.is_empty(), "{what}: the pass records");
        }
        let reversed: Vec<Vec<u32>> = sequences.iter().rev().cloned().collect();
        let mut got = packed(model, ctx, &reversed, false);
        got.reverse();
        assert_eq!(got, want, "{what}: packed in another order, {threads} threads");
        let budget = 1 + salt % 97;
        // A row of one token has nothing to score, and is refused.
        let long: Vec<Vec<u32>> = sequences.iter().filter(|s| s.len() > 1).cloned().collect();
        let want_long: Bits = want.iter().filter(|w| !w.is_empty()).cloned().collect();
        assert_eq!(scored(model, ctx, &long, budget), want_long, "{what}: scored, {budget} tokens a batch");
        for chunk in [1, 2 + salt % 30] {
            assert_eq!(cached(model, ctx, sequences, chunk), want, "{what}: {chunk} a step, {threads} threads");
        }
    });
    // What sampling reports is what scoring says afterwards.
    let prompts: Vec<&[u32]> = sequences.iter().map(|s| &s[..s.len().div_ceil(2)]).collect();
    let params = SamplingParams {
        max_new_tokens: 5,
        temperature: 0.8,
        top_p: 0.95,
        n: 2,
        seed: salt as u64,
        ..Default::default()
    };
    let all = on_threads(threads, || {
        let generator =
            Generator::new(model).ctx(&context(adapters)).max_batch(1 + salt % 5).tokens_per_pass(1 + salt % 23);
        generator.generate(&prompts, &params, &mut |_| true).expect("a batch that fits")
    });
    for (prompt, samples) in prompts.iter().zip(all) {
        for sample in samples {
            let scored = scored_completion(model, ctx, prompt, &sample.ids);
            assert_eq!(of(&sample.logprobs), scored, "{what}: sampled and scored");
        }
    }
}
