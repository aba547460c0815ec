//! Law 5: one log-probability, computed in every place that computes it.

use planish_autograd::{Tape, Var};
use planish_nn::Ctx;
use planish_nn::decoder::{Model, Packed, SequenceCache};
use planish_tensor::DType;

use super::{Check, Found, on_threads};
use crate::Result;
use crate::data::Example;
use crate::score::{ScoreError, ScoreRow, Scorer};

/// Log-probabilities of every token but the first, by sequence.
type LogProbs = Vec<Vec<f64>>;

/// Adds the checks of this law.
pub(super) fn checks(
    model: &Model,
    training: &'static str,
    examples: &[Example],
    threads: usize,
    progress: &mut dyn FnMut(&str),
    checks: &mut Vec<Check>,
) -> Result<()> {
    let sequences: Vec<&[u32]> = examples.iter().map(|e| &e.ids[..]).filter(|ids| ids.len() > 1).collect();
    progress(&format!("law 5, {training}: each sequence alone"));
    let mut want = LogProbs::new();
    for sequence in &sequences {
        want.extend(forward(model, &Ctx::inference(), &[*sequence], false)?);
    }
    let mut add = |what: String, got: LogProbs| {
        checks.push(Check::new(5, training, what, compare(&got, &want)));
    };
    // A tape is bound to its thread, so each makes its own.
    let trained = |recompute| forward(model, &Ctx::training(&Tape::new(), None), &sequences, recompute);
    for n in if threads == 1 { vec![1] } else { vec![1, threads] } {
        let on = if n == 1 { "1 thread".to_owned() } else { format!("{n} threads") };
        progress(&format!("law 5, {training}: {on}"));
        add(format!("training pass, all in one stream, {on}"), on_threads(n, || trained(false))?);
        add(format!("training pass, activations recomputed, {on}"), on_threads(n, || trained(true))?);
        for budget in [1, 100] {
            let scored = on_threads(n, || scored(model, &sequences, budget))?;
            add(format!("scored, up to {budget} tokens a batch, {on}"), scored);
        }
        for chunk in [1, 7, 64] {
            let decoded = on_threads(n, || cached(model, &sequences, chunk))?;
            let what = if chunk == 1 { "decoded token by token".to_owned() } else { format!("read {chunk} at a time") };
            add(format!("{what} over a cache, {on}"), decoded);
        }
    }
    Ok(())
}

/// From one pass over all sequences.
fn forward(model: &Model, ctx: &Ctx, sequences: &[&[u32]], recompute: bool) -> Result<LogProbs> {
    let batch = Packed::new(sequences);
    let hidden = model.forward(ctx, &batch, recompute)?;
    let (mut rows, mut targets) = (vec![], vec![]);
    for (start, s) in batch.cu_seqlens.iter().zip(sequences) {
        rows.extend((0..s.len() as u32 - 1).map(|i| start + i));
        targets.extend_from_slice(&s[1..]);
    }
    let mut all = values(model, ctx, &hidden, &rows, &targets)?.into_iter();
    Ok(sequences.iter().map(|s| all.by_ref().take(s.len() - 1).collect()).collect())
}

/// From caches, all sequences together, `chunk` tokens of each at a time.
fn cached(model: &Model, sequences: &[&[u32]], chunk: usize) -> Result<LogProbs> {
    let ctx = Ctx::inference();
    let mut caches: Vec<SequenceCache> = sequences.iter().map(|_| model.cache()).collect();
    let mut out: LogProbs = vec![vec![]; sequences.len()];
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
            return Ok(out);
        }
        let hidden = Var::constant(model.decode(&ctx, &tokens, &mut live)?);
        let rows: Vec<u32> = (0..targets.len() as u32).collect();
        let found = values(model, &ctx, &hidden, &rows, &targets)?;
        who.into_iter().zip(found).for_each(|(i, x)| out[i].push(x));
    }
}

/// By the scorer.
fn scored(model: &Model, sequences: &[&[u32]], batch_tokens: usize) -> Result<LogProbs> {
    let rows = sequences.iter().map(|s| Ok::<_, ScoreError>(ScoreRow::completion(s.to_vec(), 1)));
    let lines = Scorer::new(model).batch_tokens(batch_tokens).score(rows);
    Ok(lines.map(|line| Ok(line?.logprobs)).collect::<Result<_, ScoreError>>()?)
}

fn values(model: &Model, ctx: &Ctx, hidden: &Var, rows: &[u32], targets: &[u32]) -> Result<Vec<f64>> {
    let scores = model.scores(ctx, hidden, rows, targets)?;
    Ok(scores.logprobs.value().to_dtype(DType::F64)?.to_vec::<f64>()?)
}

/// Equal bits are demanded; the deviation is the largest in nats.
fn compare(got: &LogProbs, want: &LogProbs) -> Found {
    let mut found = Found::default();
    let missing: u64 = got.iter().zip(want).map(|(got, want)| got.len().abs_diff(want.len()) as u64).sum();
    found.differing = missing + got.len().abs_diff(want.len()) as u64;
    for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
        found.compared += 1;
        found.differing += u64::from(got.to_bits() != want.to_bits());
        let deviation = (got - want).abs();
        if !(deviation <= found.deviation) {
            found.deviation = deviation;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bit_counts() {
        let want = vec![vec![-1.0, -2.0], vec![-3.0]];
        let check = |got: &LogProbs| Check::new(5, "full", "planted", compare(got, &want));
        assert!(check(&want).passed);
        let last_bit = f64::from_bits((-3.0_f64).to_bits() + 1);
        for got in [
            vec![vec![-1.0, -2.0], vec![last_bit]],
            vec![vec![-1.0, f64::NAN], vec![-3.0]],
            vec![vec![-1.0], vec![-3.0]],
            vec![vec![-1.0, -2.0]],
            vec![],
        ] {
            assert!(!check(&got).passed, "{got:?}");
        }
    }
}
