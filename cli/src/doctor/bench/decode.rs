//! Decoding: greedy tokens of one and of many sequences, by the generator that `planish generate` uses.
//!
//! The prompts are read in one pass and do not count. The second step is recorded as a graph and the others replay it, so the
//! median is that of a replayed step; where kernels are measured one by one they are launched. A step's share is that of copying, of the bytes of the weights alone:
//! what a step must read at least.

use std::time::Instant;

use planish_nn::generate::{Generator, SamplingParams};
use planish_tensor::DType;
use planish_tensor::rng::{Purpose, Stream};

use super::clock::Timing;
use super::models::{Held, Shape, model, shapes};
use super::{Entry, Figures, Ground, Trouble, Unit};

/// Tokens of a prompt, and new ones of a sequence.
#[derive(Clone, Copy)]
struct Lengths {
    prompt: usize,
    new: usize,
}

pub(super) fn entries(emulated: bool) -> Vec<Entry> {
    let counts = if emulated { [1, 2] } else { [1, 64] };
    let lengths = if emulated { Lengths { prompt: 5, new: 5 } } else { Lengths { prompt: 128, new: 64 } };
    let mut all = Vec::new();
    for shape in shapes(emulated) {
        all.extend(counts.map(|sequences| decode(&shape, sequences, lengths)));
    }
    all
}

fn decode(shape: &Shape, sequences: usize, lengths: Lengths) -> Entry {
    let (of, Lengths { prompt, new }) = (shape.clone(), lengths);
    Entry {
        name: format!("decode/{}/{sequences}", shape.name),
        shape: format!("{sequences} x {new} tokens after {prompt}, greedy, bf16"),
        run: Box::new(move |ground| run(ground, &of, sequences, lengths)),
    }
}

fn run(ground: &Ground<'_>, shape: &Shape, sequences: usize, lengths: Lengths) -> Result<Figures, Trouble> {
    let bytes = 2 * shape.parameters() as u64;
    let c = &shape.config;
    let caches = 8 * sequences * (lengths.prompt + lengths.new) * c.num_layers() * c.num_kv_heads * c.head_dim;
    // The activations of a layer, as the prompts are read, and the logits.
    let pass = sequences * (lengths.prompt * 2 * (6 * c.hidden_size + 3 * c.intermediate_size) + 8 * c.vocab_size);
    ground.room(bytes + (caches + pass) as u64)?;
    let (measured, peak) = ground.device.peak_of(|| -> Result<_, Trouble> {
        let mut model = model(ground, shape, Held::Frozen)?;
        model.set_activations(DType::BF16)?;
        let generator = Generator::new(&model).max_batch(sequences).tokens_per_pass(sequences * lengths.prompt);
        let prompts: Vec<Vec<u32>> = (0..sequences).map(|s| prompt(shape, lengths.prompt, s)).collect();
        let tokens = |new: usize| -> Result<Vec<Instant>, Trouble> {
            let params = SamplingParams { max_new_tokens: new, temperature: 0.0, ..SamplingParams::default() };
            let mut seen = Vec::new();
            generator.generate(&prompts, &params, &mut |_| {
                seen.push(Instant::now());
                true
            })?;
            Ok(seen)
        };
        // Compiles the kernels.
        tokens(2)?;
        let seen = tokens(lengths.new)?;
        // From the last token of one step to the last token of the next.
        let steps: Vec<Instant> = seen.chunks(sequences).filter_map(|step| step.last().copied()).collect();
        let samples = steps.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs_f64());
        // Reading the prompts and one step.
        let kernels = ground.spent(|| tokens(2).map(drop))?;
        Ok((Timing::of(samples.collect(), 1), kernels))
    })?;
    let (timing, kernels) = measured?;
    let rate = sequences as f64 / timing.seconds;
    let read = 2.0 * shape.read(sequences) as f64 / timing.seconds / 1e9;
    Ok(Figures {
        share: ground.copy_gb_per_second.map(|copy| read / copy),
        peak_memory_bytes: Some(peak as u64),
        kernels,
        ..Figures::new(timing, Unit::Tokens, rate)
    })
}

fn prompt(shape: &Shape, length: usize, number: usize) -> Vec<u32> {
    let stream = Stream::new(1, Purpose::Data, number as u64);
    (0..length as u64).map(|i| stream.below(i, shape.config.vocab_size as u64) as u32).collect()
}
