//! The LM head at SmolLM2-135M's shapes: log-probabilities without logits.
//!
//! An element of throughput is a floating-point operation: 2 V size a row forward, 4 V size backward, and
//! 2 V size more with the weight's gradient. Gelem/s reads as GFLOP/s.

use criterion::{BenchmarkId, Criterion, Throughput};
use planish_benches::{normal, smollm2::*};
use planish_tensor::ops::lm_head::{LmHead, backward, forward, logits};
use planish_tensor::{DType, Result, Tensor};

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("lm_head");
    group.sample_size(10);
    let (weight, options) = (normal(1, &[VOCABULARY, HIDDEN])?, LmHead::default());
    let mut dweight = Tensor::zeros([VOCABULARY, HIDDEN], DType::F32)?;
    for rows in [64usize, 512] {
        let hidden = normal(2, &[rows, HIDDEN])?;
        let targets: Vec<u32> = (0..rows).map(|r| (r * 97 % VOCABULARY) as u32).collect();
        let work = (rows * VOCABULARY * HIDDEN) as u64;
        group.throughput(Throughput::Elements(2 * work));
        let id = |what: &str| BenchmarkId::new(what, rows);
        group.bench_function(id("forward"), |b| b.iter(|| forward(&hidden, &weight, &targets, &options)));
        let lse = forward(&hidden, &weight, &targets, &options)?.lse;
        let dlogprobs = normal(3, &[rows])?;
        group.throughput(Throughput::Elements(4 * work));
        group.bench_function(id("backward/frozen"), |b| {
            b.iter(|| backward(&dlogprobs, &hidden, &weight, &targets, &lse, &options, None));
        });
        group.throughput(Throughput::Elements(6 * work));
        group.bench_function(id("backward/trained"), |b| {
            b.iter(|| backward(&dlogprobs, &hidden, &weight, &targets, &lse, &options, Some(&mut dweight)));
        });
    }
    // What a step of decoding needs.
    let hidden = normal(2, &[1, HIDDEN])?;
    group.throughput(Throughput::Elements((2 * VOCABULARY * HIDDEN) as u64));
    group.bench_function("logits/1", |b| b.iter(|| logits(&hidden, &weight, &options)));
    group.finish();
    criterion.final_summary();
    Ok(())
}
