//! Whole steps of training: data, forward, backward, clipping and AdamW, as the trainer does them.
//!
//! A step is one pass of 8192 tokens, as runs have by default (of `full_8bit` four), over rows of one length, all of whose tokens
//! are supervised, without recomputation. Its share of the product's rate is the MFU: 6 operations for each weight that a token is
//! multiplied with, or 4 where weights are frozen and need no gradient, and three times those of attention; an adapter's own do
//! not count.

use std::path::PathBuf;
use std::time::Instant;

use planish_nn::adapters::{LoraConfig, Targets, attach_lora};
use planish_nn::decoder::Model;
use planish_tensor::DType;
use planish_tensor::rng::{Purpose, Stream};
use planish_train::config::{OptimSettings, OptimizerChoice};
use planish_train::data::{Batch, Cursor, Example, Source, Step};
use planish_train::optim::{Optimizer, Rates, Update, grad_norm, optimizer};
use planish_train::trainer::accumulate;

use super::clock::Timing;
use super::models::{Held, Shape, model, shapes};
use super::{Entry, Figures, Ground, Spent, Trouble, Unit};

/// Rank of LoRA, on all linear modules.
const RANK: usize = 16;

pub(super) fn entries(emulated: bool) -> Vec<Entry> {
    let lengths: &[usize] = if emulated { &[16] } else { &[1024, 4096] };
    let mut all = Vec::new();
    for shape in shapes(emulated) {
        for (training, held) in [("lora", Held::Frozen), ("full", Held::Trained), ("qlora", Held::Nf4)] {
            all.extend(lengths.iter().map(|&length| step(&shape, training, held, length, 1)));
        }
        // What a card of 141 GB has room for; four passes a step, as its optimizer goes over all weights once for them.
        if shape.name == "tiny" || shape.name == "8b" {
            all.push(step(&shape, "full_8bit", Held::Trained8bit, lengths[0], 4));
        }
    }
    all
}

fn step(shape: &Shape, training: &str, held: Held, length: usize, passes: usize) -> Entry {
    let of = shape.clone();
    let rows = passes * shape.tokens / length;
    Entry {
        name: format!("step/{}/{training}/{length}", shape.name),
        shape: format!("{rows} x {length} tokens, {training}, bf16"),
        run: Box::new(move |ground| run(ground, &of, held, rows, length)),
    }
}

/// Bytes that a step needs, about: weights, with f32 masters, moments and gradients if they are trained, and activations.
fn needs(shape: &Shape, held: Held) -> u64 {
    shape.weight_bytes(held) as u64 + (shape.tokens * shape.activation_bytes()) as u64
}

fn run(ground: &Ground<'_>, shape: &Shape, held: Held, rows: usize, length: usize) -> Result<Figures, Trouble> {
    ground.room(needs(shape, held))?;
    let (measured, peak) = ground.device.peak_of(|| {
        let mut model = model(ground, shape, held)?;
        if !held.is_trained() {
            let config = LoraConfig { r: RANK, target_modules: targets(shape), ..LoraConfig::default() };
            attach_lora(&mut model, &config, 0)?;
            model.to_device(ground.device)?;
        }
        model.set_activations(DType::BF16)?;
        timed(ground, &model, shape, held, [rows, length])
    })?;
    let (timing, loss, kernels) = measured?;
    let rate = (rows * length) as f64 / timing.seconds;
    let per_weight = if held.is_trained() { 6.0 } else { 4.0 };
    let flops = per_weight * shape.multiplied() as f64 + 3.0 * shape.attention_flops(length);
    Ok(Figures {
        share: ground.product_tflops.map(|tflops| rate * flops / (tflops * 1e12)),
        peak_memory_bytes: Some(peak as u64),
        loss: Some(loss),
        kernels,
        ..Figures::new(timing, Unit::Tokens, rate)
    })
}

/// Modules with an adapter: every linear one, but of experts, which PEFT leaves out as they are no modules of their own.
fn targets(shape: &Shape) -> Targets {
    match shape.config.moe {
        Some(_) => Targets::Names(["q_proj", "k_proj", "v_proj", "o_proj"].map(String::from).to_vec()),
        None => Targets::AllLinear,
    }
}

/// Seconds of some steps after some that do not count, and the last one's loss.
fn timed(
    ground: &Ground<'_>,
    model: &Model,
    shape: &Shape,
    held: Held,
    size: [usize; 2],
) -> Result<(Timing, f64, Option<Vec<Spent>>), Trouble> {
    let settings = OptimSettings {
        gradient_checkpointing: false,
        tokens_per_pass: Some(shape.tokens as u64),
        learning_rate: 1e-5,
        optim: if held == Held::Trained8bit { OptimizerChoice::AdamW8bit } else { OptimizerChoice::AdamW },
        ..OptimSettings::default()
    };
    let mut optimizer = optimizer(&model.params(), &settings, &Rates::default(), &std::env::temp_dir())?;
    let (before, most, patience) = if ground.emulated { (0, 2, 0.0) } else { (2, 10, 3.0) };
    let (mut samples, mut began, mut loss) = (Vec::new(), Instant::now(), f64::NAN);
    for number in 0.. {
        if number == before {
            began = Instant::now();
        }
        let data = data(shape, size, number);
        let start = Instant::now();
        loss = one(model, &settings, &mut *optimizer, &data, number)?;
        if number >= before {
            samples.push(start.elapsed().as_secs_f64());
        }
        if samples.len() >= most || samples.len() >= 3 && began.elapsed().as_secs_f64() > patience {
            break;
        }
    }
    let kernels = ground.spent(|| one(model, &settings, &mut *optimizer, &data(shape, size, 0), 0).map(drop))?;
    match loss.is_finite() {
        true => Ok((Timing::of(samples, 1), loss, kernels)),
        false => Err(Trouble::Failed(format!("the loss is {loss}"))),
    }
}

/// A step as the trainer does it; the loss, read at its end.
fn one(
    model: &Model,
    settings: &OptimSettings,
    optimizer: &mut dyn Optimizer,
    data: &Step,
    number: u64,
) -> Result<f64, Trouble> {
    let sum = accumulate(model, settings, data, number)?;
    let scale = 1.0 / sum.count as f64;
    let norm = grad_norm(&optimizer.params(), scale)?;
    let clip = (settings.max_grad_norm / (norm + 1e-6)).min(1.0);
    optimizer.step(Update { learning_rate: settings.learning_rate, grad_scale: scale * clip })?;
    model.device().synchronize()?;
    Ok(sum.mean())
}

/// Rows of random tokens.
fn data(shape: &Shape, [rows, length]: [usize; 2], number: u64) -> Step {
    let vocabulary = shape.config.vocab_size as u64;
    let example = |row: usize| {
        let stream = Stream::new(number, Purpose::Data, row as u64);
        Example {
            ids: (0..length as u64).map(|i| stream.below(i, vocabulary) as u32).collect(),
            mask: (0..length).map(|i| i > 0).collect(),
            n_prompt: 1,
            source: Source { file: PathBuf::new().into(), line: 0, row: row as u64 },
        }
    };
    let rows: Vec<Example> = (0..rows).map(example).collect();
    let batch = Batch::from_examples(rows.iter().enumerate());
    Step {
        supervised: batch.supervised(),
        tokens: batch.tokens(),
        micro_batches: vec![batch],
        dropped: 0,
        cursor: Cursor::default(),
        epoch: 0.0,
    }
}
