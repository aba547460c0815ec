//! Numbers against the peers', from committed fixtures (made by `tests/fixtures/generate`).

mod adapter_gradients;
mod adapters;
mod experts;
mod families;
mod optim;
mod program;
mod quant;
mod sft;
mod trajectory;

use std::path::PathBuf;

use planish_nn::Ctx;
use planish_nn::decoder::{Model, Packed};
use planish_nn::weights::WeightsReader;

/// A file or directory under `tests/fixtures`.
fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn ids(reader: &WeightsReader, name: &str) -> Vec<u32> {
    reader.get(name).unwrap().to_vec::<i64>().unwrap().into_iter().map(|id| id as u32).collect()
}

fn floats(reader: &WeightsReader, name: &str) -> Vec<f32> {
    reader.get(name).unwrap().to_vec::<f32>().unwrap()
}

/// Logits of each of the fixture's sequences, computed in one packed batch.
fn packed_logits(model: &Model, ctx: &Ctx, sequences: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let batch = Packed::new(sequences);
    let hidden = model.forward(ctx, &batch, false).unwrap();
    let logits = model.logits(ctx, hidden.value()).unwrap();
    batch
        .cu_seqlens
        .windows(2)
        .map(|w| logits.narrow(0, w[0] as usize, (w[1] - w[0]) as usize).unwrap().to_vec::<f32>().unwrap())
        .collect()
}

/// Largest absolute difference; infinite if the lengths differ or a value is not finite.
fn difference(got: &[f32], want: &[f32]) -> f32 {
    if got.len() != want.len() {
        return f32::INFINITY;
    }
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| {
        if d <= m {
            m
        } else if d.is_nan() {
            f32::INFINITY
        } else {
            d
        }
    })
}
