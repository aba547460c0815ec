//! Law 7: the plan's memory is what the engine takes.

use planish_nn::adapters::{LoraConfig, Targets, attach_lora};
use planish_nn::decoder::{LoadOptions, Model};
use planish_nn::pretrained::Pretrained;
use planish_tensor::DType;
use planish_tensor::memory::peak_of;
use planish_tensor::ops::lm_head::{ROWS, TILE};
use planish_train::config::{OptimSettings, SftConfig};
use planish_train::data::{Batch, Cursor, Example, Source, Step};
use planish_train::plan::{self, Work};
use planish_train::recipes::sft;
use planish_train::run::Silent;
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
        for gradient_checkpointing in [false, true] {
            let optim = OptimSettings { gradient_checkpointing, tokens_per_pass: 0, ..OptimSettings::default() };
            let step = step(3000);
            let work = Work {
                tokens: 3000,
                mean_length: 3000.0 / step.micro_batches[0].segments() as f64,
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
            let what = format!("{name}, checkpointing {gradient_checkpointing}: {predicted} of {measured} bytes");
            assert!((ratio - 1.0).abs() <= 0.05, "{what}");
            model.params().iter().for_each(|p| p.clear_grad());
        }
    }
}

/// A budget makes passes shorter, then recomputes layers, then is refused; the choice is written down, and a
/// resumed run keeps it though the budget is another.
#[test]
fn a_memory_budget_chooses_passes_and_recomputation() {
    let place = tempfile::tempdir().unwrap();
    let rows = place.path().join("rows.jsonl");
    let row = |i: usize| {
        let words = "blue bird red dog sun ".repeat(12 + i % 9);
        format!("{{\"prompt\": \"say {words}\", \"completion\": \"{words}\"}}\n")
    };
    std::fs::write(&rows, (0..64).map(row).collect::<String>()).unwrap();
    let flags = |run: &str, more: &[(&'static str, &'static str)]| {
        let mut flags = vec![
            ("model".to_owned(), vec!["builtin".to_owned()]),
            ("dataset".to_owned(), vec![rows.display().to_string()]),
            ("output_dir".to_owned(), vec![place.path().join(run).display().to_string()]),
            ("save_steps".to_owned(), vec!["1".to_owned()]),
            ("per_device_train_batch_size".to_owned(), vec!["16".to_owned()]),
        ];
        flags.extend(more.iter().map(|(k, v)| (k.to_string(), vec![v.to_string()])));
        planish_train::config::resolve::<SftConfig>(None, &flags).unwrap().config
    };
    let chosen = |run: &str| {
        let text = std::fs::read_to_string(place.path().join(run).join("config.yaml")).unwrap();
        let of = |key: &str| {
            let line = text.lines().find(|l| l.starts_with(&format!("{key}:"))).unwrap();
            line.split_once(": ").unwrap().1.to_owned()
        };
        (of("tokens_per_pass").parse::<u64>().unwrap(), of("gradient_checkpointing") == "true")
    };
    let plenty = flags("plenty", &[("memory_budget", "64"), ("max_steps", "1")]);
    sft::run(&plenty, &mut Silent).unwrap();
    assert_eq!(chosen("plenty"), (1024, false), "the longest pass fits, and nothing is recomputed");
    let none = flags("none", &[("memory_budget", "0.001"), ("max_steps", "1")]);
    let problem = sft::run(&none, &mut Silent).unwrap_err().to_string();
    assert!(problem.contains("memory_budget allows 1 MiB") && problem.contains("raise memory_budget"), "{problem}");
    assert!(!place.path().join("none").exists(), "nothing is written");
    // What this process has in use already counts, and tests run side by side: so the budget is found.
    let mut least = 0.0;
    for mib in (40..4000).step_by(20) {
        let _ = std::fs::remove_dir_all(place.path().join("some"));
        let mut some = flags("some", &[("max_steps", "1")]);
        some.optim.memory_budget = Some(mib as f64 / 1024.0);
        if sft::run(&some, &mut Silent).is_ok() {
            least = mib as f64 / 1024.0;
            break;
        }
    }
    assert!(least > 0.0, "some budget is enough");
    assert_ne!(chosen("some"), (1024, false), "the smallest that is enough asks for something");
    let mut on = flags("some", &[("max_steps", "2"), ("resume_from_checkpoint", "latest")]);
    on.optim.memory_budget = Some(64.0);
    let before = chosen("some");
    sft::run(&on, &mut Silent).unwrap();
    assert_eq!(chosen("some").0, before.0, "a resumed run keeps its passes");
}
