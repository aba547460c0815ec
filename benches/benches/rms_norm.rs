//! RMSNorm at SmolLM2-135M's width. Throughput is in bytes that must move: a read and a write of x
//! forward; two reads and a write backward; with an addition two of each forward, and a read more backward.

use criterion::{BenchmarkId, Criterion, Throughput};
use planish_benches::{normal, smollm2::HIDDEN};
use planish_tensor::ops::rms_norm::{backward, forward, forward_added};
use planish_tensor::{DType, Result, Tensor};

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("rms_norm");
    let weight = normal(1, &[HIDDEN])?;
    for tokens in [1usize, 256, 4096] {
        let (x, dy) = (normal(2, &[tokens, HIDDEN])?, normal(3, &[tokens, HIDDEN])?);
        let bytes = (4 * tokens * HIDDEN) as u64;
        group.throughput(Throughput::Bytes(2 * bytes));
        group.bench_function(BenchmarkId::new("forward", tokens), |b| b.iter(|| forward(&x, &weight, 1e-5, 0.0)));
        group.throughput(Throughput::Bytes(4 * bytes));
        group.bench_function(BenchmarkId::new("forward, added", tokens), |b| {
            b.iter(|| forward_added(&x, &dy, &weight, 1e-5, 0.0));
        });
        let (_, r) = forward(&x, &weight, 1e-5, 0.0)?;
        let mut dweight = Tensor::zeros([HIDDEN], DType::F32)?;
        group.throughput(Throughput::Bytes(3 * bytes));
        group.bench_function(BenchmarkId::new("backward", tokens), |b| {
            b.iter(|| backward(&dy, &x, &weight, &r, None, 0.0, Some(&mut dweight)));
        });
        group.throughput(Throughput::Bytes(4 * bytes));
        group.bench_function(BenchmarkId::new("backward, added", tokens), |b| {
            b.iter(|| backward(&dy, &x, &weight, &r, Some(&dy), 0.0, Some(&mut dweight)));
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
