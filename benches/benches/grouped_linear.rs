//! A map of a layer of experts, 64 of 1024 by 2048 in bf16 as OLMoE's: all runs in one call, and run by run.
//!
//! An element of throughput is a floating-point operation: Gelem/s reads as GFLOP/s. A token has eight experts.

use criterion::{BenchmarkId, Criterion, Throughput};
use planish_benches::{normal, normal_in};
use planish_tensor::ops::{grouped_linear, linear};
use planish_tensor::{DType, Result, Tensor};

const EXPERTS: usize = 64;
const PER_TOKEN: usize = 8;
const OUT: usize = 1024;
const IN: usize = 2048;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("grouped_linear");
    let weights: Vec<Tensor> =
        (0..EXPERTS as u64).map(|e| normal_in(DType::BF16, e, &[OUT, IN])).collect::<Result<_>>()?;
    for tokens in [1_usize, 16, 512] {
        let rows = tokens * PER_TOKEN;
        let used = rows.min(EXPERTS);
        let starts: Vec<usize> = (0..=used).map(|e| e * rows / used).collect();
        let (x, weights) = (normal(99, &[rows, IN])?, &weights[..used]);
        group.throughput(Throughput::Elements((2 * rows * OUT * IN) as u64));
        group.bench_function(BenchmarkId::new("together", tokens), |c| {
            c.iter(|| grouped_linear::forward(&x, weights, &starts));
        });
        group.bench_function(BenchmarkId::new("one by one", tokens), |c| {
            c.iter(|| -> Result<Vec<Tensor>> {
                let run = |e: usize| x.narrow(0, starts[e], starts[e + 1] - starts[e]);
                (0..used).map(|e| linear::forward(&run(e)?, &weights[e], None)).collect()
            });
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
