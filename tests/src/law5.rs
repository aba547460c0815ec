//! The places that compute a token's log-probability, for tests that all of them give the same bits (law 5).

use planish_autograd::Var;
use planish_nn::Ctx;
use planish_nn::decoder::{Model, Packed, SequenceCache};
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
