//! What quantising a model takes, as the heap counts it: a process of its own, whose other allocations are few.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

use planish_nn::quantize::{QuantizeAs, QuantizedTensors};
use planish_nn::weights::{WeightsReader, save_safetensors, save_sharded};
use planish_tensor::quant::{FourBitKind, Quantized};
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor};
use planish_tests::heap::{Counting, peak_of};

#[global_allocator]
static HEAP: Counting = Counting;

const SIDE: usize = 512;
/// Bytes of a file of the result.
const SHARD: usize = 1 << 20;
/// What there may be more for a model that is larger: names in the index, and where their tensors are, some 3 kB for each
/// weight, of up to seven parts.
const NAMES: usize = 256 << 10;

/// The weights of so many layers, in bf16, as a file.
fn write(layers: usize, file: &Path) {
    let stream = Stream::new(1, Purpose::Data, 0);
    let mut tensors = Vec::new();
    for layer in 0..layers {
        for (i, name) in ["q", "k", "v", "o", "gate", "up", "down"].into_iter().enumerate() {
            let first = ((layer * 7 + i) * SIDE * SIDE) as u64;
            let values: Vec<f32> = (0..(SIDE * SIDE) as u64).map(|i| stream.normal(first + i) as f32).collect();
            let module = if i < 4 { "self_attn" } else { "mlp" };
            let tensor = Tensor::from_vec(values, [SIDE, SIDE]).unwrap().to_dtype(DType::BF16).unwrap();
            tensors.push((format!("model.layers.{layer}.{module}.{name}_proj.weight"), tensor));
        }
    }
    save_safetensors(file, tensors, &BTreeMap::new()).unwrap();
}

/// Bytes at the most above those before, and files, of quantising the model.
fn peak(file: &Path, how: QuantizeAs) -> (usize, usize) {
    let out = tempfile::tempdir().unwrap();
    let source = WeightsReader::open(file).unwrap();
    let failed = Cell::new(None);
    let mut done = |_: &str, _: &Quantized, error: f64| assert!(error > 0.0 && error < 0.2);
    let ((), peak) = peak_of(|| {
        save_sharded(out.path(), QuantizedTensors::new(&source, how, &failed, &mut done), SHARD as u64).unwrap();
    });
    assert!(failed.take().is_none());
    (peak, std::fs::read_dir(out.path()).unwrap().count() - 1)
}

/// A model of twice the layers, whose result is so much larger, takes no more memory; and neither takes more than a
/// file of the result, what the next weight is made of, and the same as f32 twice.
#[test]
fn twice_the_layers_are_quantised_in_the_same_memory() {
    let dir = tempfile::tempdir().unwrap();
    let (small, large) = (dir.path().join("small.safetensors"), dir.path().join("large.safetensors"));
    write(8, &small);
    write(16, &large);
    for how in [QuantizeAs::FourBit { kind: FourBitKind::Nf4, block: 64, double: true }, QuantizeAs::Int8] {
        // Threads, and what they keep, are there from the first time on.
        peak(&small, how);
        let ((of_small, few), (of_large, many)) = (peak(&small, how), peak(&large, how));
        let share = if how == QuantizeAs::Int8 { 1.0 } else { 0.5 };
        let more = (8 * 7 * SIDE * SIDE) as f64 * share;
        assert!(many >= 2 * few - 1 && few >= 8, "{few} files, {many} of twice the layers");
        assert!(more > 10.0 * NAMES as f64);
        assert!(of_large <= of_small + NAMES, "{how:?}: {of_large} bytes at the most, {of_small} for half the layers");
        let bound = SHARD + SIDE * SIDE * (1 + 2 * 4) + NAMES;
        assert!(of_large <= bound, "{how:?}: {of_large} bytes at the most, {bound} are bounded");
    }
}
