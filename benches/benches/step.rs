//! Loss and gradient end to end: cross-entropy of 512 tokens in four segments through SmolLM2-135M's
//! shapes with 4 of its 30 layers, all tokens supervised. An element of throughput is a token.

use criterion::{BenchmarkId, Criterion, Throughput};
use planish_autograd::{Param, Tape};
use planish_benches::{model, smollm2::VOCABULARY};
use planish_nn::Ctx;
use planish_nn::adapters::{LoraConfig, Targets, attach_lora};
use planish_nn::decoder::Packed;
use planish_tensor::DType;
use planish_train::losses::cross_entropy;

const LAYERS: usize = 4;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("step");
    group.sample_size(10);
    let segments: Vec<Vec<u32>> = [200_u32, 31, 180, 101]
        .into_iter()
        .map(|n| (0..n).map(|i| (i * 7919 + n) % VOCABULARY as u32).collect())
        .collect();
    let batch = Packed::new(&segments);
    let mask = vec![true; batch.len()];
    group.throughput(Throughput::Elements(batch.len() as u64));
    for (name, dtype, lora) in
        [("full/f32", DType::F32, false), ("lora/f32", DType::F32, true), ("lora/bf16", DType::BF16, true)]
    {
        let mut model = model(LAYERS, dtype, !lora)?;
        if lora {
            let config = LoraConfig { r: 16, target_modules: Targets::AllLinear, ..LoraConfig::default() };
            attach_lora(&mut model, &config, 0)?;
        }
        for recompute in [false, true] {
            let id = BenchmarkId::new(name, if recompute { "recompute" } else { "keep" });
            group.bench_function(id, |b| {
                b.iter(|| {
                    let ctx = Ctx::training(&Tape::new(), None);
                    cross_entropy(&model, &ctx, &batch, &mask, recompute).expect("ids of the vocabulary")
                });
            });
        }
        model.params().iter().for_each(Param::clear_grad);
        group.bench_function(BenchmarkId::new(name, "loss alone"), |b| {
            b.iter(|| cross_entropy(&model, &Ctx::inference(), &batch, &mask, false).expect("ids of the vocabulary"));
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
