//! Rows of SmolLM2-135M's embedding. Throughput is in bytes that must move: a read and a write a row
//! forward; two reads and a write backward.

use criterion::{BenchmarkId, Criterion, Throughput};
use planish_benches::{normal, normal_in, smollm2::*};
use planish_tensor::ops::embedding::{backward_add, forward};
use planish_tensor::{DType, Result, Tensor};

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("embedding");
    let mut dweight = Tensor::zeros([VOCABULARY, HIDDEN], DType::F32)?;
    for dtype in [DType::F32, DType::BF16] {
        let weight = normal_in(dtype, 1, &[VOCABULARY, HIDDEN])?;
        for tokens in [1_usize, 256, 4096] {
            let ids: Vec<u32> = (0..tokens).map(|i| (i * 7919 % VOCABULARY) as u32).collect();
            group.throughput(Throughput::Bytes((tokens * HIDDEN * (4 + dtype.size())) as u64));
            let id = BenchmarkId::new(format!("forward/{dtype}"), tokens);
            group.bench_function(id, |b| b.iter(|| forward(&weight, &ids)));
            if dtype == DType::F32 {
                let dy = normal(2, &[tokens, HIDDEN])?;
                group.throughput(Throughput::Bytes((tokens * HIDDEN * 12) as u64));
                group.bench_function(BenchmarkId::new("backward", tokens), |b| {
                    b.iter(|| backward_add(&dy, &ids, &mut dweight));
                });
            }
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
