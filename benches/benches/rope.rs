//! Rotary embedding of SmolLM2-135M's query heads. Throughput is in bytes that must move: a read and a
//! write of x.

use criterion::{BenchmarkId, Criterion, Throughput};
use planish_benches::{normal, smollm2::*};
use planish_tensor::Result;
use planish_tensor::ops::rope::{backward, forward};

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("rope");
    for tokens in [1_usize, 256, 4096] {
        let x = normal(1, &[tokens, HEADS, HEAD])?;
        let (cos, sin) = (normal(2, &[tokens, HEAD / 2])?, normal(3, &[tokens, HEAD / 2])?);
        group.throughput(Throughput::Bytes((2 * 4 * tokens * HEADS * HEAD) as u64));
        group.bench_function(BenchmarkId::new("forward", tokens), |b| b.iter(|| forward(&x, &cos, &sin)));
        group.bench_function(BenchmarkId::new("backward", tokens), |b| b.iter(|| backward(&x, &cos, &sin)));
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
