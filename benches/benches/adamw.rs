//! One update of AdamW: of a LoRA adapter (r = 16, 4.9 million numbers) and of the embedding (28 million).
//! Throughput is in bytes that must move: weight, gradient and both moments are read, all but the gradient
//! are written; with a bf16 weight its f32 master too.

use criterion::{Criterion, Throughput};
use planish_autograd::Param;
use planish_benches::{normal_in, smollm2::*};
use planish_tensor::DType;
use planish_train::optim::{AdamW, AdamWSettings, Update, grad_norm};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("adamw");
    group.sample_size(10);
    let settings = AdamWSettings { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let adapter = 16 * LAYERS * (4 * HIDDEN + 2 * KV_HEADS * HEAD + 2 * HIDDEN + 3 * (HIDDEN + MLP));
    for (name, dims, dtype) in [
        ("adapter/f32", [adapter / HIDDEN, HIDDEN], DType::F32),
        ("embedding/f32", [VOCABULARY, HIDDEN], DType::F32),
        ("embedding/bf16", [VOCABULARY, HIDDEN], DType::BF16),
    ] {
        let param = Param::trainable("weight", normal_in(dtype, 1, &dims)?);
        let grad = normal_in(DType::F32, 2, &dims)?;
        let mut optimizer = AdamW::new(std::slice::from_ref(&param), settings)?;
        let master = if dtype == DType::F32 { 0 } else { 2 * dtype.size() };
        let bytes = dims[0] * dims[1] * (7 * 4 + master);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(format!("step/{name}"), |b| {
            b.iter(|| {
                param.set_grad(Some(grad.clone()));
                optimizer.step(Update { learning_rate: 1e-4, grad_scale: 1.0 }).expect("the shapes agree")
            });
        });
        group.throughput(Throughput::Bytes((dims[0] * dims[1] * 4) as u64));
        param.set_grad(Some(grad.clone()));
        group.bench_function(format!("norm/{name}"), |b| b.iter(|| grad_norm([&param], 1.0).expect("a gradient")));
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
