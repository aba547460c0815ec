//! The real SmolLM2-135M-Instruct against transformers (fixture made by
//! `tests/fixtures/generate/smollm2.py`).
//!
//! The model is not in the repository: `scripts/fetch-smollm2` gets it. Without it these tests say that
//! they were skipped, unless PLANISH_REQUIRE_SMOLLM2=1 asks them to fail.

// What was skipped, and how fast it went, is for whoever reads the test's output.
#![allow(clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use planish_nn::Ctx;
use planish_nn::decoder::{LoadOptions, Model, Packed};
use planish_nn::generate::{Generator, SamplingParams};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_tensor::DType;
use planish_tests::law5;
use planish_train::score::{ScoreError, ScoreRow, Scorer};
use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The opened file; `None`, with a word about it, if it is not there.
fn opened() -> Option<Pretrained> {
    let path = root().join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if path.exists() {
        return Some(Pretrained::open(&path).unwrap());
    }
    let required = std::env::var("PLANISH_REQUIRE_SMOLLM2").is_ok_and(|v| v == "1");
    assert!(!required, "{} is missing: get it with scripts/fetch-smollm2", path.display());
    eprintln!("skipped: {} is missing; get it with scripts/fetch-smollm2", path.display());
    None
}

fn load(file: &Pretrained) -> Model {
    file.load(LoadOptions { dtype: Some(DType::F32), trainable: false }).unwrap()
}

fn expected() -> Value {
    read_json(&root().join("tests/fixtures/smollm2/expected.json")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The file's blocks, kept packed, compute the bits that their values compute.
#[test]
fn packed_blocks_compute_what_their_values_do() {
    let Some(file) = opened() else { return };
    let (dense, packed) = (load(&file), file.load(LoadOptions::default()).unwrap());
    assert!(packed.layers[0].linears()[0].weight.base.value().quantized().is_some());
    let bytes = |m: &Model| m.base_params().iter().map(|p| p.value().nbytes()).sum::<usize>();
    assert!(bytes(&packed) < bytes(&dense) / 5, "{} of {}", bytes(&packed), bytes(&dense));
    let ids: Vec<u32> = (0..40).map(|i| i * 1201 % 49_152).collect();
    let logprobs = |m: &Model| {
        let rows = [Ok::<_, ScoreError>(ScoreRow::completion(ids.clone(), 1))];
        let line = Scorer::new(m).score(rows).next().unwrap().unwrap();
        line.logprobs.into_iter().map(f64::to_bits).collect::<Vec<_>>()
    };
    assert_eq!(logprobs(&packed), logprobs(&dense));
}

/// Law 5 on the real model: trained itself, and with an adapter on and off.
#[test]
fn every_place_computes_the_same_bits() {
    let Some(file) = opened() else { return };
    let load = |dtype, trainable| file.load(LoadOptions { dtype: Some(dtype), trainable }).unwrap();
    let sequences = law5::sequences(&load(DType::BF16, false), &[13, 2, 17], 0);
    law5::check("bf16", &load(DType::BF16, true), true, &sequences, 1);
    law5::check("bf16, LoRA", &law5::with_lora(load(DType::BF16, false), 3), true, &sequences, 3);
    law5::check("f32, LoRA off", &law5::with_lora(load(DType::F32, false), 3), false, &sequences, 2);
}

#[test]
fn scores_are_those_of_transformers() {
    let Some(file) = opened() else { return };
    let (model, expected) = (load(&file), expected());
    let cases = expected["score"].as_array().unwrap();
    assert!(cases.len() >= 6);
    let rows = cases.iter().map(|case| Ok::<_, ScoreError>(ScoreRow::completion(ids(&case["ids"]), 1)));
    let start = Instant::now();
    let lines: Vec<_> = Scorer::new(&model).score(rows).map(|line| line.unwrap()).collect();
    let tokens: usize = lines.iter().map(|line| line.ids.len()).sum();
    eprintln!("scored {:.0} tokens/s", tokens as f64 / start.elapsed().as_secs_f64());
    assert_eq!(lines.len(), cases.len());
    for (line, case) in lines.iter().zip(cases) {
        let want = floats(&case["logprobs"]);
        assert_eq!(line.logprobs.len(), want.len());
        for (i, (got, want)) in line.logprobs.iter().zip(&want).enumerate() {
            // Both in f32; sums in another order through 30 layers.
            let difference = (got - want).abs();
            assert!(difference <= 1e-3, "row {}, token {}: {got} against {want}", line.index, i + 1);
        }
    }
}

/// All ten prompts in one batch: 32 tokens, of which every choice wins by at least the fixture's
/// `min_margin`, which the fixture records.
#[test]
fn greedy_continuations_are_those_of_transformers() {
    let Some(file) = opened() else { return };
    let (model, expected) = (load(&file), expected());
    let cases = expected["greedy"].as_array().unwrap();
    assert_eq!(cases.len(), 10);
    let prompts: Vec<Vec<u32>> = cases.iter().map(|case| ids(&case["prompt_ids"])).collect();
    let params = SamplingParams {
        max_new_tokens: 32,
        temperature: 0.0,
        // <|im_end|>
        eos_token_ids: vec![2],
        ..Default::default()
    };
    let start = Instant::now();
    let mut first = None;
    let all = Generator::new(&model)
        .generate(&prompts, &params, &mut |_| {
            first.get_or_insert_with(Instant::now);
            true
        })
        .unwrap();
    let (prefill, decode) = (first.unwrap() - start, first.unwrap().elapsed());
    let read: usize = prompts.iter().map(Vec::len).sum();
    let made: usize = all.iter().flatten().map(|c| c.ids.len()).sum();
    // The first pass holds up to 512 prompt tokens; with these prompts the second finishes reading.
    eprintln!(
        "{read} prompt tokens ({prefill:?} to the first token); {:.1} tokens/s in a batch of ten",
        made as f64 / decode.as_secs_f64()
    );
    for (case, samples) in cases.iter().zip(&all) {
        assert_eq!(samples[0].ids, ids(&case["ids"]), "{}", case["messages"]);
    }
}

#[test]
fn the_likeliest_tokens_are_those_of_transformers() {
    let Some(file) = opened() else { return };
    let (model, expected) = (load(&file), expected());
    let case = &expected["top5"];
    let prompt = ids(&case["prompt_ids"]);
    let ctx = Ctx::inference();
    let hidden = model.forward(&ctx, &Packed::new(&[&prompt]), false).unwrap();
    let last = hidden.value().narrow(0, prompt.len() - 1, 1).unwrap();
    let logits = model.logits(&ctx, &last).unwrap().to_vec::<f32>().unwrap();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let want = ids(&case["ids"]);
    assert_eq!(order.iter().take(want.len()).map(|&i| i as u32).collect::<Vec<_>>(), want);
    for (&i, want) in order.iter().zip(floats(&case["logits"])) {
        // As for the log-probabilities.
        assert!((logits[i] as f64 - want).abs() <= 1e-3, "{} against {want}", logits[i]);
    }
}
