//! A linear layer with a LoRA update, r = 16, at the shape of SmolLM2-135M's up projection.
//!
//! An element of throughput is a floating-point operation: Gelem/s reads as GFLOP/s, to be compared with
//! `gemm`'s for the base alone.

use criterion::{BenchmarkId, Criterion, Throughput};
use planish_benches::{normal, normal_in, smollm2::*};
use planish_tensor::ops::lora_linear::{Lora, Wanted, backward, forward};
use planish_tensor::{DType, Result, Tensor};

const RANK: usize = 16;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("lora_linear");
    let lora = Lora { scale: 2.0, dropout: None };
    let (a, b) = (normal(1, &[RANK, HIDDEN])?, normal(2, &[MLP, RANK])?);
    for dtype in [DType::F32, DType::BF16] {
        let w = normal_in(dtype, 3, &[MLP, HIDDEN])?;
        for tokens in [256_usize, 2048] {
            let (x, dy) = (normal(4, &[tokens, HIDDEN])?, normal(5, &[tokens, MLP])?);
            let (base, update) = (2 * tokens * MLP * HIDDEN, 2 * tokens * RANK * (MLP + HIDDEN));
            let id = |what: &str| BenchmarkId::new(format!("{what}/{dtype}"), tokens);
            group.throughput(Throughput::Elements((base + update) as u64));
            group.bench_function(id("forward"), |c| c.iter(|| forward(&x, &w, None, &a, &b, &lora)));
            let (_, h) = forward(&x, &w, None, &a, &b, &lora)?;
            let (mut da, mut db) =
                (Tensor::zeros([RANK, HIDDEN], DType::F32)?, Tensor::zeros([MLP, RANK], DType::F32)?);
            group.throughput(Throughput::Elements((base + 2 * update) as u64));
            group.bench_function(id("backward"), |c| {
                c.iter(|| {
                    let wanted = Wanted { input: true, a: Some(&mut da), b: Some(&mut db) };
                    backward(&dy, &x, &w, &a, &b, &h, &lora, wanted)
                });
            });
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
