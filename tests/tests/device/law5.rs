//! Law 5 on a device: a token's log-probability has the same bits in training, scoring, reading a prompt in chunks and
//! decoding, whatever else is in the batch.

use planish_autograd::{Tape, Var};
use planish_nn::Ctx;
use planish_nn::decoder::{Model, Packed, SequenceCache};
use planish_nn::generate::{Generator, SamplingParams};
use planish_tensor::{DType, Device, Tensor};
use planish_train::score::{ScoreError, ScoreRow, Scorer};

use crate::{emulator, load, sequences, stir, with_lora};

pub(crate) type Bits = Vec<Vec<u64>>;

fn bits(x: &Tensor) -> Vec<u64> {
    let here = x.to_device(Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    here.to_vec::<f64>().unwrap().into_iter().map(f64::to_bits).collect()
}

/// Log-probabilities of every token but the first of each sequence, from one packed pass.
fn packed(model: &Model, ctx: &Ctx, sequences: &[Vec<u32>]) -> Bits {
    let batch = Packed::new(sequences);
    let hidden = model.forward(ctx, &batch, false).unwrap();
    let (mut rows, mut targets) = (vec![], vec![]);
    for (start, s) in batch.cu_seqlens.iter().zip(sequences) {
        rows.extend((0..s.len() as u32 - 1).map(|i| start + i));
        targets.extend_from_slice(&s[1..]);
    }
    let scores = model.scores(ctx, &hidden, &rows, &targets).unwrap();
    let mut all = bits(scores.logprobs.value()).into_iter();
    sequences.iter().map(|s| all.by_ref().take(s.len() - 1).collect()).collect()
}

/// The same from caches, `chunk` tokens of each sequence at a time.
fn cached(model: &Model, ctx: &Ctx, sequences: &[Vec<u32>], chunk: usize) -> Bits {
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
        let hidden = Var::constant(model.decode(ctx, &tokens, &mut live).unwrap());
        let rows: Vec<u32> = (0..targets.len() as u32).collect();
        let scores = model.scores(ctx, &hidden, &rows, &targets).unwrap();
        who.into_iter().zip(bits(scores.logprobs.value())).for_each(|(i, x)| out[i].push(x));
    }
}

pub(crate) fn check(what: &str, model: &Model, ctx: &Ctx, sequences: &[Vec<u32>]) -> Bits {
    let want: Bits = sequences.iter().flat_map(|s| packed(model, ctx, std::slice::from_ref(s))).collect();
    assert_eq!(packed(model, &Ctx::training(&Tape::new(), None), sequences), want, "{what}: training");
    let rows = sequences.iter().map(|s| Ok::<_, ScoreError>(ScoreRow::completion(s.clone(), 1)));
    let lines = Scorer::new(model).batch_tokens(20).score(rows);
    let scored: Bits = lines.map(|l| l.unwrap().logprobs.into_iter().map(f64::to_bits).collect()).collect();
    assert_eq!(scored, want, "{what}: scored");
    for chunk in [1, 7] {
        assert_eq!(cached(model, ctx, sequences, chunk), want, "{what}: {chunk} a step");
    }
    want
}

#[test]
fn every_way_gives_the_same_bits() {
    let Some(device) = emulator(11) else { return };
    for (family, dtype) in [("smollm2", None), ("gemma2", Some(DType::BF16)), ("phi3", None), ("llama_bf16", None)] {
        let model = load(family, dtype, false);
        model.to_device(device).unwrap();
        let sequences = sequences(&model, &[12, 2, 19], 5);
        check(family, &model, &Ctx::inference(), &sequences);
    }
}

#[test]
fn adapters_too_and_off_is_the_base() {
    let Some(device) = emulator(12) else { return };
    let base = load("qwen3", None, false);
    let model = with_lora(base.clone(), 0.0);
    stir(&model);
    for m in [&base, &model] {
        m.to_device(device).unwrap();
    }
    let sequences = sequences(&model, &[9, 14], 5);
    let on = check("qwen3 with LoRA", &model, &Ctx::inference(), &sequences);
    let off = packed(&model, &Ctx::inference().without_adapters(), &sequences);
    assert_eq!(off, packed(&base, &Ctx::inference(), &sequences), "off is the base model");
    assert_ne!(on, off, "on is not");
}

/// What sampling reports is what scoring says afterwards; and greedy tokens are those of the processor.
#[test]
fn sampled_and_scored() {
    let Some(device) = emulator(13) else { return };
    let (here, there) = (load("mistral", None, false), load("mistral", None, false));
    there.to_device(device).unwrap();
    let prompts = sequences(&here, &[6, 3], 8);
    let params =
        SamplingParams { max_new_tokens: 4, temperature: 0.8, top_p: 0.9, n: 2, seed: 4, ..Default::default() };
    let generate = |model: &Model, params: &SamplingParams, batch: usize| {
        Generator::new(model).max_batch(batch).tokens_per_pass(5).generate(&prompts, params, &mut |_| true).unwrap()
    };
    let all = generate(&there, &params, 4);
    assert_eq!(all, generate(&there, &params, 1), "the batch is of no influence");
    for (prompt, sample) in prompts.iter().zip(&all).flat_map(|(p, all)| all.iter().map(move |s| (p, s))) {
        let row = ScoreRow::completion([&prompt[..], &sample.ids].concat(), prompt.len());
        let line = Scorer::new(&there).score([Ok::<_, ScoreError>(row)]).next().unwrap().unwrap();
        let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&sample.logprobs), bits(&line.logprobs));
    }
    let greedy = SamplingParams { temperature: 0.0, n: 1, max_new_tokens: 8, ..params };
    for (want, got) in generate(&here, &greedy, 4).iter().flatten().zip(generate(&there, &greedy, 4).iter().flatten()) {
        assert_eq!(got.ids, want.ids);
        for (got, want) in got.logprobs.iter().zip(&want.logprobs) {
            // A logit is a chain of 32 products, and there are 99 in a sum: hundreds of roundings of 6e-8.
            assert!((got - want).abs() <= 2e-5, "{got} for {want}");
        }
    }
}
