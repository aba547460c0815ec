//! Matrix products of `planish_tensor::gemm` at SmolLM2-135M's shapes: y = x Wᵀ, dx = dy W, dW += dyᵀ x.
//!
//! An element of throughput is a floating-point operation: Gelem/s reads as GFLOP/s.

use criterion::{BenchmarkId, Criterion, Throughput};
use planish_benches::{normal, normal_in, smollm2::*};
use planish_tensor::ops::linear;
use planish_tensor::{DType, Result, Tensor};

/// Name, rows of the weight, columns of the weight.
const WEIGHTS: [(&str, usize, usize); 4] = [
    ("q_proj", HIDDEN, HIDDEN),
    ("k_proj", KV_HEADS * HEAD, HIDDEN),
    ("up_proj", MLP, HIDDEN),
    ("down_proj", HIDDEN, MLP),
];

/// A step of decoding, a short micro-batch, a long one.
const TOKENS: [usize; 3] = [1, 256, 2048];

fn forward(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("gemm/forward");
    for (name, out, input) in WEIGHTS {
        for dtype in [DType::F32, DType::BF16] {
            let w = normal_in(dtype, 1, &[out, input])?;
            for tokens in TOKENS {
                let x = normal(2, &[tokens, input])?;
                group.throughput(Throughput::Elements(2 * (tokens * out * input) as u64));
                let id = BenchmarkId::new(format!("{name}/{dtype}"), tokens);
                group.bench_function(id, |b| b.iter(|| linear::forward(&x, &w, None)));
            }
        }
    }
    group.finish();
    Ok(())
}

fn backward(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("gemm/backward");
    for (name, out, input) in WEIGHTS {
        let (w, tokens) = (normal(1, &[out, input])?, 2048);
        let (x, dy) = (normal(2, &[tokens, input])?, normal(3, &[tokens, out])?);
        group.throughput(Throughput::Elements(2 * (tokens * out * input) as u64));
        group.bench_function(format!("{name}/input"), |b| b.iter(|| linear::backward_input(&dy, &w)));
        let mut dw = Tensor::zeros([out, input], DType::F32)?;
        group.bench_function(format!("{name}/weight"), |b| b.iter(|| linear::backward_weight_add(&dy, &x, &mut dw)));
    }
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    forward(&mut criterion)?;
    backward(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
