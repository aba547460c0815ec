//! Products with weights that stay packed, beside bf16: up_proj of SmolLM2-135M at a step of decoding, sixteen sequences of
//! it, and a micro-batch.
//!
//! An element of throughput is a floating-point operation: Gelem/s reads as GFLOP/s.

use criterion::{BenchmarkId, Criterion, Throughput};
use planish_benches::{normal, normal_in, smollm2::*};
use planish_tensor::ops::linear;
use planish_tensor::quant::{FourBit, FourBitKind, Int8, Panels};
use planish_tensor::{DType, Result, Tensor};

fn main() -> Result<()> {
    let panels = |blocks| Panels::of(&Tensor::packed(blocks)).map(Tensor::packed);
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("quantised_linear");
    let w = normal_in(DType::BF16, 1, &[MLP, HIDDEN])?;
    let weights = [
        ("bf16", w.clone()),
        ("bf16 panels", Tensor::packed(Panels::of(&w)?)),
        ("nf4", Tensor::packed(FourBit::quantize(&w, FourBitKind::Nf4, 64, false)?)),
        ("nf4 double", Tensor::packed(FourBit::quantize(&w, FourBitKind::Nf4, 64, true)?)),
        ("nf4 panels", panels(FourBit::quantize(&w, FourBitKind::Nf4, 64, false)?)?),
        ("int8", Tensor::packed(Int8::quantize(&w)?)),
        ("int8 panels", panels(Int8::quantize(&w)?)?),
    ];
    for (name, w) in &weights {
        for tokens in [1, 16, 1024] {
            let x = normal(2, &[tokens, HIDDEN])?;
            group.throughput(Throughput::Elements(2 * (tokens * MLP * HIDDEN) as u64));
            group.bench_function(BenchmarkId::new(*name, tokens), |b| b.iter(|| linear::forward(&x, w, None)));
        }
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}
