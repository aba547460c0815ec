//! How fast steps of decoding read the weights, beside a loop that reads the same bytes and does nothing else. Both take turns,
//! every few milliseconds, since what a machine reads a second changes with what else its host does.
//!
//! ```console
//! cargo run --release -p planish-benches --example decode_reading -- --threads 2 --dtype bfloat16 --cached 128
//! ```
//!
//! SmolLM2-135M's shapes, random weights in panels. Prints a JSON line: medians of tokens a second, GB/s of either, and the
//! ratio within each turn.

// A program that prints its results.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use planish_benches::{model, smollm2::*};
use planish_nn::Ctx;
use planish_nn::quantize::lay_out;
use planish_tensor::quant::Layout;
use planish_tensor::{DType, Tensor, parallel};

/// Bytes that a thread reads before it takes the next.
const PART: usize = 4 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let (mut threads, mut dtype, mut cached, mut sequences, mut turns) =
        (2_usize, DType::BF16, 128_usize, 1_usize, 200_usize);
    let args: Vec<String> = std::env::args().skip(1).collect();
    for pair in args.chunks(2) {
        let [name, value] = pair else { return Err(format!("{} needs a value", pair[0]).into()) };
        match name.as_str() {
            "--threads" => threads = value.parse()?,
            "--dtype" => dtype = DType::parse(value).ok_or("no such dtype")?,
            "--cached" => cached = value.parse()?,
            "--sequences" => sequences = value.parse()?,
            "--turns" => turns = value.parse()?,
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build()?.install(|| run(dtype, cached, sequences, turns))?;
    Ok(())
}

fn run(dtype: DType, cached: usize, sequences: usize, turns: usize) -> planish_nn::Result<()> {
    let ctx = Ctx::inference();
    let mut model = model(LAYERS, dtype, false)?;
    lay_out(&mut model)?;
    // The very same memory: some of a machine's is faster than other.
    let weights: Vec<Tensor> = model.base_params().iter().map(|param| param.value().clone()).collect();
    let panels = weights.iter().filter_map(|weight| match weight.quantized()?.layout() {
        Layout::Panels(panels) => Some(panels.memory()),
        _ => None,
    });
    let panels: Vec<&[u8]> = panels.flat_map(|memory| memory.chunks(PART)).collect();
    let bytes: usize = panels.iter().map(|part| part.len()).sum();
    let prompt: Vec<u32> = (0..cached).map(|i| (i * 7919 % VOCABULARY) as u32).collect();
    let mut caches: Vec<_> = (0..sequences).map(|_| model.cache()).collect();
    let mut each: Vec<_> = caches.iter_mut().collect();
    model.decode(&ctx, &vec![&prompt; sequences], &mut each)?;
    let tokens = vec![[5_u32]; sequences];
    let (mut steps, mut reads, mut shares) = (vec![], vec![], vec![]);
    for _ in 0..turns {
        let start = Instant::now();
        black_box(parallel::map(panels.len(), |i| {
            let word = |bytes: &[u8; 8]| u64::from_ne_bytes(*bytes);
            black_box(panels[i]).as_chunks().0.iter().fold(0_u64, |sum, bytes| sum.wrapping_add(word(bytes)))
        }));
        let read = start.elapsed().as_secs_f64();
        each.iter_mut().for_each(|cache| cache.truncate(cached));
        let start = Instant::now();
        let hidden = model.decode(&ctx, &tokens, &mut each)?;
        black_box(model.logits(&ctx, &hidden)?);
        let step = start.elapsed().as_secs_f64();
        steps.push(sequences as f64 / step);
        reads.push(bytes as f64 / read / 1e9);
        shares.push(read / step);
    }
    let median = |all: &mut Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (steps, reads, shares) = (median(&mut steps), median(&mut reads), median(&mut shares));
    let weights = steps / sequences as f64 * bytes as f64 / 1e9;
    println!(
        "{}",
        serde_json::json!({ "tokens_per_second": steps, "weights_gb_per_second": weights, "loop_gb_per_second": reads, "share": shares })
    );
    Ok(())
}
