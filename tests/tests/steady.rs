//! A training step in the steady state takes no large block from the allocator or the system.

use planish_nn::adapters::{LoraConfig, Targets, attach_lora};
use planish_nn::quantize::{QuantizeAs, requantize};
use planish_tensor::pool;
use planish_tensor::quant::FourBitKind;
use planish_tests::heap::{Counting, large_blocks};
use planish_train::config::{Granularity, OptimSettings, WeightDtype};
use planish_train::data::{Batch, Cursor, Example, Source, Step};
use planish_train::models;
use planish_train::optim::{AdamW, AdamWSettings, Update, grad_norm};
use planish_train::trainer::accumulate_sharing;

#[global_allocator]
static HEAP: Counting = Counting;

/// Eight examples of 100 to 170 tokens, of which each four begin alike.
fn step(vocab_size: usize) -> Step {
    let source = Source { file: std::path::Path::new("steady").into(), line: 0, row: 0 };
    let example = |i: usize| {
        let n = 100 + 10 * i;
        let ids = (0..n).map(|t| (((if t < 35 { i / 4 } else { i }) * 131 + t * 7919) % vocab_size) as u32).collect();
        Example { ids, mask: (0..n).map(|t| t >= 40).collect(), n_prompt: 40, source: source.clone() }
    };
    let examples: Vec<Example> = (0..8).map(example).collect();
    let batch = Batch::from_examples(examples.iter().enumerate());
    let (supervised, tokens) = (batch.supervised(), batch.tokens());
    Step { micro_batches: vec![batch], supervised, tokens, dropped: 0, cursor: Cursor::default(), epoch: 0.0 }
}

/// What is trained, and on what.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trained {
    All,
    /// LoRA with dropout.
    Lora,
    /// LoRA without, so that what examples begin with is computed once; the base is of this dtype.
    Sharing(WeightDtype),
    /// The same on NF4.
    Nf4,
}

/// Full fine-tuning and LoRA, with and without recomputation, in one part and in several. One test: the
/// counters are the process's.
#[test]
fn a_steady_step_allocates_nothing_large() {
    let sharing = [WeightDtype::Float32, WeightDtype::Bfloat16].map(Trained::Sharing);
    for trained in [Trained::All, Trained::Lora, sharing[0], sharing[1], Trained::Nf4] {
        let ways = [(false, Granularity::Full), (true, Granularity::Selective), (true, Granularity::Full)];
        for (gradient_checkpointing, recompute_granularity) in ways {
            for tokens_per_pass in [0, 400] {
                let opened = models::open("builtin", "main", &mut |_| {}).unwrap();
                let dtype = if let Trained::Sharing(dtype) = trained { dtype } else { WeightDtype::Float32 };
                let mut model = opened.load(dtype, trained == Trained::All).unwrap();
                if trained == Trained::Nf4 {
                    let how = QuantizeAs::FourBit { kind: FourBitKind::Nf4, block: 64, double: true };
                    requantize(&mut model, how).unwrap();
                }
                if trained != Trained::All {
                    let lora_dropout = if trained == Trained::Lora { 0.1 } else { 0.0 };
                    let config =
                        LoraConfig { target_modules: Targets::AllLinear, lora_dropout, ..LoraConfig::default() };
                    attach_lora(&mut model, &config, 1).unwrap();
                }
                let share = !matches!(trained, Trained::All | Trained::Lora);
                let params = model.params();
                let settings = AdamWSettings { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
                let mut adamw = AdamW::new(&params, settings).unwrap();
                let own = OptimSettings { gradient_checkpointing, recompute_granularity, ..OptimSettings::default() };
                let optim = OptimSettings { tokens_per_pass: Some(tokens_per_pass), ..own };
                let step = step(model.config.vocab_size);
                let mut run = |done: u64| {
                    accumulate_sharing(&model, &optim, &step, done, share).unwrap();
                    grad_norm(adamw.params(), 1.0).unwrap();
                    adamw.step(Update { learning_rate: 1e-4, grad_scale: 1e-3 }).unwrap();
                };
                (0..3).for_each(&mut run);
                let asked = || (large_blocks(), pool::stats().fresh + pool::stats().grown, pool::stats().reused);
                let before = asked();
                (3..6).for_each(&mut run);
                let after = asked();
                let what = format!(
                    "{trained:?}, checkpointing {gradient_checkpointing}, {recompute_granularity}, {tokens_per_pass} a pass"
                );
                assert_eq!((after.0, after.1), (before.0, before.1), "{what}");
                assert!(after.2 > before.2, "the step's tensors are large enough to come from the pool: {what}");
            }
        }
    }
}
