//! SwiGLU and GeGLU at SmolLM2-135M's width. Throughput is in bytes that must move: two reads and a
//! write forward; three reads and two writes backward, and copies of gate and up, which are shared here.

use criterion::{BenchmarkId, Criterion, Throughput};
use planish_benches::{normal, smollm2::MLP};
use planish_tensor::Result;
use planish_tensor::ops::glu::{Act, backward, forward};

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    for (name, act) in [("swiglu", Act::Silu), ("geglu", Act::Gelu), ("geglu_tanh", Act::GeluTanh)] {
        let mut group = criterion.benchmark_group(name);
        for tokens in [1usize, 256, 4096] {
            let (gate, up) = (normal(1, &[tokens, MLP])?, normal(2, &[tokens, MLP])?);
            let dy = normal(3, &[tokens, MLP])?;
            let bytes = (4 * tokens * MLP) as u64;
            group.throughput(Throughput::Bytes(3 * bytes));
            group.bench_function(BenchmarkId::new("forward", tokens), |b| b.iter(|| forward(act, &gate, &up)));
            group.throughput(Throughput::Bytes(5 * bytes));
            group.bench_function(BenchmarkId::new("backward", tokens), |b| {
                b.iter(|| backward(act, &dy, gate.clone(), up.clone()))
            });
        }
        group.finish();
    }
    criterion.final_summary();
    Ok(())
}
