//! Law 5 on a device: a token's log-probability has the same bits in training, scoring, reading a prompt in chunks and
//! decoding, whatever else is in the batch.

use planish_autograd::Tape;
use planish_nn::Ctx;
use planish_nn::decoder::Model;
use planish_nn::generate::{Generator, SamplingParams};
use planish_tensor::DType;
use planish_tests::law5::{Bits, cached, of, packed, scored, scored_completion, sequences};

use crate::{emulator, load, stir, with_lora};

pub(crate) fn check(what: &str, model: &Model, ctx: &Ctx, sequences: &[Vec<u32>]) -> Bits {
    let want: Bits = sequences.iter().flat_map(|s| packed(model, ctx, std::slice::from_ref(s), false)).collect();
    assert_eq!(packed(model, &Ctx::training(&Tape::new(), None), sequences, false), want, "{what}: training");
    assert_eq!(scored(model, ctx, sequences, 20), want, "{what}: scored");
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
    let off = packed(&model, &Ctx::inference().without_adapters(), &sequences, false);
    assert_eq!(off, packed(&base, &Ctx::inference(), &sequences, false), "off is the base model");
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
        assert_eq!(of(&sample.logprobs), scored_completion(&there, &Ctx::inference(), prompt, &sample.ids));
    }
    // Rules that are followed on the processor.
    let ruled = SamplingParams { repetition_penalty: 1.3, min_new_tokens: 2, eos_token_ids: vec![7], ..params.clone() };
    assert_eq!(generate(&there, &ruled, 4), generate(&there, &ruled, 1));
    let greedy = SamplingParams { temperature: 0.0, n: 1, max_new_tokens: 8, ..params };
    for (want, got) in generate(&here, &greedy, 4).iter().flatten().zip(generate(&there, &greedy, 4).iter().flatten()) {
        assert_eq!(got.ids, want.ids);
        for (got, want) in got.logprobs.iter().zip(&want.logprobs) {
            // A logit is a chain of 32 products, and there are 99 in a sum: hundreds of roundings of 6e-8.
            assert!((got - want).abs() <= 2e-5, "{got} for {want}");
        }
    }
}
