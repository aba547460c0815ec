//! Law 3: how a step is split into micro-batches changes gradients by rounding only, with dropout and
//! noise too.

use std::path::Path;

use planish_autograd::Param;
use planish_nn::adapters::{LoraConfig, Targets, attach_lora};
use planish_nn::decoder::{LoadOptions, Model};
use planish_nn::pretrained::Pretrained;
use planish_tensor::rng::{Purpose, Rows, Stream};
use planish_tensor::{DType, Tensor};
use planish_train::config::{OptimSettings, SftConfig};
use planish_train::data::{Batch, Cursor, Example, Source, Step};
use planish_train::recipes::sft;
use planish_train::run::read_metrics;
use planish_train::trainer::{accumulate, row_keys};

use crate::resume::{base, prepare};
use crate::{repo, result, settings};

const EXAMPLES: usize = 8;

fn examples() -> Vec<Example> {
    let random = Stream::new(11, Purpose::Data, 0);
    let example = |i: usize| {
        let n = 3 + 5 * i % 11;
        let ids = (0..n).map(|t| random.below((i * 100 + t) as u64, 90) as u32 + 3).collect();
        Example {
            ids,
            mask: vec![true; n],
            n_prompt: 1,
            source: Source { file: Path::new("made").into(), line: i as u64 + 1, row: i as u64 },
        }
    };
    (0..EXAMPLES).map(example).collect()
}

/// A step of the examples, in the order and groups given.
fn step(examples: &[Example], groups: &[&[usize]]) -> Step {
    let batch = |group: &&[usize]| Batch::from_examples(group.iter().map(|&i| (i, &examples[i])));
    let micro_batches: Vec<Batch> = groups.iter().map(batch).collect();
    let supervised = micro_batches.iter().map(Batch::supervised).sum();
    let tokens = micro_batches.iter().map(Batch::tokens).sum();
    Step { micro_batches, supervised, tokens, dropped: 0, cursor: Cursor::default(), epoch: 0.0 }
}

/// The ways to split: 1×8, 2×4, 8×1, and rows as packing makes them, in an order of its own.
const SPLITS: [&[&[usize]]; 4] = [
    &[&[0, 1, 2, 3, 4, 5, 6, 7]],
    &[&[0, 1, 2, 3], &[4, 5, 6, 7]],
    &[&[0], &[1], &[2], &[3], &[4], &[5], &[6], &[7]],
    &[&[7, 2, 4], &[0, 6, 5, 1], &[3]],
];

#[test]
fn a_token_has_the_same_key_in_every_split() {
    let examples = examples();
    let by_token = |split: &[&[usize]]| {
        let step = step(&examples, split);
        let mut all = Vec::new();
        for (batch, keys) in step.micro_batches.iter().zip(row_keys(&step.micro_batches)) {
            assert_eq!(batch.tokens(), keys.len());
            for (s, &example) in batch.example_indices.iter().enumerate() {
                let range = batch.cu_seqlens[s] as usize..batch.cu_seqlens[s + 1] as usize;
                all.extend(range.map(|t| (example, batch.positions[t], keys[t])));
            }
        }
        all.sort_unstable();
        all
    };
    let want = by_token(SPLITS[0]);
    for split in &SPLITS[1..] {
        assert_eq!(by_token(split), want);
    }
    // An example that comes twice does not get the same masks twice.
    let twice = row_keys(&step(&examples, &[&[3, 3], &[3]]).micro_batches);
    let mut keys: Vec<u64> = twice.iter().flat_map(|k| k.iter().copied()).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 3 * examples[3].ids.len());
}

/// A small model in f64 with an adapter that is not zero.
fn model(dropout: f64) -> Model {
    let opened = Pretrained::open(&repo("tests/fixtures/models/smollm2")).unwrap();
    let mut model = opened.load(LoadOptions { dtype: Some(DType::F64), trainable: false }).unwrap();
    let config =
        LoraConfig { r: 4, lora_dropout: dropout, target_modules: Targets::AllLinear, ..LoraConfig::default() };
    attach_lora(&mut model, &config, 1).unwrap();
    for (i, param) in trained(&model).into_iter().enumerate() {
        let random = Stream::new(5, Purpose::Data, i as u64);
        let dims = param.value().dims().to_vec();
        let values: Vec<f64> = (0..param.value().numel() as u64).map(|e| 0.1 * random.normal(e)).collect();
        param.update(|t| Tensor::from_vec(values, dims).map(|new| *t = new)).unwrap();
    }
    model
}

fn trained(model: &Model) -> Vec<Param> {
    model.params().into_iter().filter(Param::is_trainable).collect()
}

/// (loss, gradients) of a step.
fn gradients(dropout: f64, recompute: bool, split: &[&[usize]], done: u64) -> (f64, Vec<Vec<f64>>) {
    let model = model(dropout);
    let optim =
        OptimSettings { neftune_noise_alpha: Some(5.0), gradient_checkpointing: recompute, ..OptimSettings::default() };
    let sum = accumulate(&model, &optim, &step(&examples(), split), done).unwrap();
    let grads = trained(&model).iter().map(|p| p.take_grad().unwrap().to_vec::<f64>().unwrap()).collect();
    (sum.loss, grads)
}

/// ‖a - b‖ / ‖b‖ over all.
fn distance(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let squares = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        a.iter().flatten().zip(b.iter().flatten()).map(|(&a, &b)| f(a, b).powi(2)).sum()
    };
    (squares(&|a, b| a - b) / squares(&|_, b| b)).sqrt()
}

#[test]
fn gradients_of_every_split_agree() {
    let (loss, grads) = gradients(0.1, false, SPLITS[0], 3);
    for (i, split) in SPLITS.iter().enumerate() {
        for recompute in [false, true] {
            let (got, found) = gradients(0.1, recompute, split, 3);
            // The values of tokens are the same bits; 57 of them are added in another order: an error of at
            // most 57 units of 1.1e-16 in the loss, whose terms have one sign, and of some multiple of that
            // (terms of both signs cancel) in the gradients.
            assert!(((got - loss) / loss).abs() <= 1e-14, "split {i}: loss {got}, not {loss}");
            let off = distance(&found, &grads);
            assert!(off <= 1e-12, "split {i}, recompute {recompute}: gradients off by {off:e}");
        }
    }
    // The comparison can fail: other masks, and the masks of the next step, are far away.
    for (what, (other, found)) in
        [("dropout", gradients(0.2, false, SPLITS[0], 3)), ("step", gradients(0.1, false, SPLITS[0], 4))]
    {
        assert!(((other - loss) / loss).abs() > 1e-4 && distance(&found, &grads) > 1e-2, "another {what} is no other");
    }
}

#[test]
fn masks_of_one_token_agree_bit_for_bit() {
    let examples = examples();
    let x = |n: usize| Tensor::full(1.0f32, [n, 40]).unwrap();
    let masks = |split: &[&[usize]]| {
        let step = step(&examples, split);
        let mut all = Vec::new();
        for (batch, keys) in step.micro_batches.iter().zip(row_keys(&step.micro_batches)) {
            let rows = Rows::new(Stream::new(1, Purpose::Dropout, 2), keys).substream(6);
            let y = planish_tensor::ops::dropout::forward(&x(batch.tokens()), 0.3, &rows).unwrap();
            let y = y.to_vec::<f32>().unwrap();
            for (s, &example) in batch.example_indices.iter().enumerate() {
                let range = batch.cu_seqlens[s] as usize * 40..batch.cu_seqlens[s + 1] as usize * 40;
                all.push((example, y[range].iter().map(|v| v.to_bits()).collect::<Vec<_>>()));
            }
        }
        all.sort();
        all
    };
    let want = masks(SPLITS[0]);
    SPLITS[1..].iter().for_each(|split| assert_eq!(masks(split), want));
}

#[test]
fn a_run_s_first_step_is_that_of_every_split() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    prepare(dir);
    let base = base(dir);
    let rows: String = std::fs::read_to_string(dir.join("pairs.jsonl"))
        .unwrap()
        .lines()
        .take(EXAMPLES)
        .fold(String::new(), |all, row| all + row + "\n");
    std::fs::write(dir.join("eight.jsonl"), rows).unwrap();
    let run = |out: &str, extra: &[(&str, &str)]| -> [f64; 2] {
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let (base, data, out) = (base.to_string_lossy().into_owned(), path("eight.jsonl"), path(out));
        let mut flags = vec![
            ("model", base.as_str()),
            ("dataset", &data),
            ("output_dir", &out),
            ("use_peft", "true"),
            ("lora_r", "4"),
            ("lora_dropout", "0.1"),
            ("neftune_noise_alpha", "5"),
            ("max_length", "64"),
            ("learning_rate", "1e-2"),
            ("max_steps", "2"),
        ];
        flags.extend(extra);
        let end = result(sft::run(&settings::<SftConfig>(&flags), &mut planish_train::run::Silent).unwrap());
        let log = read_metrics(&end.parent().unwrap_or(Path::new(".")).join("metrics.jsonl")).unwrap();
        ["loss", "grad_norm"].map(|key| log[0][key].as_f64().unwrap())
    };
    let want = run("whole", &[("per_device_train_batch_size", "8")]);
    let halves = [("per_device_train_batch_size", "4"), ("gradient_accumulation_steps", "2")];
    let single = [("per_device_train_batch_size", "1"), ("gradient_accumulation_steps", "8")];
    let packed = [("packing", "true"), ("per_device_train_batch_size", "2"), ("gradient_accumulation_steps", "8")];
    for (what, extra) in [("halves", &halves[..]), ("single", &single), ("packed", &packed)] {
        let [loss, norm] = run(what, extra);
        assert!(((loss - want[0]) / want[0]).abs() <= 1e-14, "{what}: loss {loss}, not {}", want[0]);
        // Sums of some hundred f32 products: units of 6e-8, hardly cancelling in a norm.
        assert!(((norm - want[1]) / want[1]).abs() <= 1e-5, "{what}: norm {norm}, not {}", want[1]);
    }
}
