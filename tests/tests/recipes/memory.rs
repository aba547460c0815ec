//! Law 7: the plan's memory is what the engine takes.

use planish_nn::adapters::{LoraConfig, Targets, attach_lora};
use planish_nn::decoder::{LoadOptions, Model};
use planish_nn::pretrained::Pretrained;
use planish_tensor::DType;
use planish_tensor::memory::peak_of;
use planish_tensor::ops::lm_head::{ROWS, TILE};
use planish_train::config::{Granularity, OptimSettings};
use planish_train::data::{Batch, Cursor, Example, Source, Step};
use planish_train::plan::{self, Work};
use planish_train::trainer::accumulate;

use crate::repo;

fn model(dtype: DType, targets: Option<Targets>, dropout: f64) -> Model {
    let opened = Pretrained::open(&repo("train/builtin")).unwrap();
    let mut model = opened.load(LoadOptions { dtype: Some(dtype), trainable: targets.is_none() }).unwrap();
    if let Some(target_modules) = targets {
        let config = LoraConfig { r: 8, lora_dropout: dropout, target_modules, ..LoraConfig::default() };
        attach_lora(&mut model, &config, 1).unwrap();
    }
    model
}

/// One micro-batch of examples of 20 to 279 tokens, the last 40% of each supervised.
fn step(tokens: usize) -> Step {
    let (mut examples, mut left) = (Vec::new(), tokens);
    while left > 0 {
        let n = left.min(20 + left * 31 % 260);
        let ids = (0..n).map(|i| ((left * 13 + i * 7) % 1400) as u32).collect();
        let mask = (0..n).map(|i| i * 10 >= n * 6).collect();
        let source = Source { file: std::path::Path::new("made").into(), line: 0, row: 0 };
        examples.push(Example { ids, mask, n_prompt: 1, source });
        left -= n;
    }
    let batch = Batch::from_examples(examples.iter().enumerate());
    let (supervised, tokens) = (batch.supervised(), batch.tokens());
    Step { micro_batches: vec![batch], supervised, tokens, dropped: 0, cursor: Cursor::default(), epoch: 0.0 }
}

#[test]
fn activations_of_a_large_micro_batch_are_foreseen_from_small_ones() {
    let all = || Some(Targets::AllLinear);
    let last = || Some(Targets::Regex(r".*layers\.[23]\..*proj".into()));
    for (name, model) in [
        ("LoRA", model(DType::F32, all(), 0.0)),
        ("LoRA with dropout, bf16", model(DType::BF16, all(), 0.1)),
        ("LoRA of two layers", model(DType::F32, last(), 0.1)),
        ("all weights", model(DType::F32, None, 0.0)),
        ("all weights, bf16", model(DType::BF16, None, 0.0)),
    ] {
        let mut peaks = Vec::new();
        let ways = [(false, Granularity::Full), (true, Granularity::Selective), (true, Granularity::Full)];
        for (gradient_checkpointing, recompute_granularity) in ways {
            let own = OptimSettings { gradient_checkpointing, recompute_granularity, ..OptimSettings::default() };
            let optim = OptimSettings { tokens_per_pass: Some(0), ..own };
            let step = step(3000);
            let work = Work {
                tokens: 3000,
                mean_length: 3000.0 / step.micro_batches[0].segments() as f64,
                longest: 3000,
                supervised_share: step.supervised as f64 / 3000.0,
            };
            let predicted = plan::measure(&model, &optim, &work, plan::MEMORY_TOKENS).unwrap().bytes(3000);
            assert!(model.params().iter().all(|p| p.grad().is_none()), "the trial leaves no gradients");
            // Buffers of gradients are counted apart: they are there from the first micro-batch on.
            accumulate(&model, &optim, &step, 0).unwrap();
            let (_, peak) = peak_of(|| accumulate(&model, &optim, &step, 0).unwrap());
            let measured = (peak + ROWS * TILE * 4) as f64;
            let ratio = predicted as f64 / measured;
            // Lengths that differ, and a peak that may move from one place to another: a few percent.
            let way = format!("{gradient_checkpointing}, {recompute_granularity}");
            assert!((ratio - 1.0).abs() <= 0.05, "{name}, checkpointing {way}: {predicted} of {measured} bytes");
            peaks.push(measured);
            model.params().iter().for_each(|p| p.clear_grad());
        }
        assert!(peaks[0] > 1.1 * peaks[1] && peaks[1] > 1.1 * peaks[2], "{name}: {peaks:?}");
    }
}
