//! One step of decoding with all 30 layers of SmolLM2-135M's shapes over caches of 128 tokens: the new
//! token of each sequence through the model, and the logits after it. An element of throughput is a token. With weights
//! as they are stored, and laid out in panels.

use criterion::{BenchmarkId, Criterion, Throughput};
use planish_benches::{model, smollm2::*};
use planish_nn::decoder::SequenceCache;
use planish_nn::quantize::lay_out;
use planish_nn::{Ctx, Result};
use planish_tensor::DType;

const CACHED: u32 = 128;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(10);
    let ctx = Ctx::inference();
    for (dtype, panels) in [(DType::F32, false), (DType::F32, true), (DType::BF16, false), (DType::BF16, true)] {
        let mut model = model(LAYERS, dtype, false)?;
        if panels {
            lay_out(&mut model)?;
        }
        let prompt: Vec<u32> = (0..CACHED).map(|i| i * 7919 % VOCABULARY as u32).collect();
        let mut cache = model.cache();
        model.decode(&ctx, &[&prompt], &mut [&mut cache])?;
        for sequences in [1_usize, 4, 16] {
            let tokens = vec![[5_u32]; sequences];
            let mut caches: Vec<SequenceCache> = (0..sequences).map(|_| cache.clone()).collect();
            // The first token makes each cache a memory of its own.
            model.decode(&ctx, &tokens, &mut caches.iter_mut().collect::<Vec<_>>())?;
            group.throughput(Throughput::Elements(sequences as u64));
            group.bench_function(
                BenchmarkId::new(format!("{}{}", dtype.name(), if panels { "/panels" } else { "" }), sequences),
                |b| {
                    b.iter(|| -> Result<_> {
                        caches.iter_mut().for_each(|cache| cache.truncate(CACHED as usize));
                        let hidden = model.decode(&ctx, &tokens, &mut caches.iter_mut().collect::<Vec<_>>())?;
                        model.logits(&ctx, &hidden)
                    });
                },
            );
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
