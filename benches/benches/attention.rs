//! Attention over packed segments at SmolLM2-135M's shapes.
//!
//! An element of throughput is a floating-point operation of the visible query-key pairs: 4 size a pair
//! and head forward, 10 backward. Gelem/s reads as GFLOP/s.

use criterion::{Criterion, Throughput};
use planish_benches::{cu_seqlens, normal, smollm2::*};
use planish_tensor::Result;
use planish_tensor::ops::attention::{Attention, backward, forward};

/// Name, lengths of the segments, window.
const BATCHES: [(&str, &[u32], Option<usize>); 4] = [
    ("1x2048", &[2048], None),
    ("8x256", &[256; 8], None),
    ("ragged", &[700, 31, 512, 1, 330, 474], None),
    ("1x2048/window256", &[2048], Some(256)),
];

/// Query-key pairs that causal attention looks at.
fn pairs(lengths: &[u32], window: Option<usize>) -> u64 {
    let seen = |position: u32| (position as u64 + 1).min(window.map_or(u64::MAX, |w| w as u64));
    lengths.iter().flat_map(|&n| (0..n).map(seen)).sum()
}

fn packed(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("attention");
    for (name, lengths, window) in BATCHES {
        let cu = cu_seqlens(lengths);
        let tokens = lengths.iter().sum::<u32>() as usize;
        let q = normal(1, &[tokens, HEADS, HEAD])?;
        let (k, v) = (normal(2, &[tokens, KV_HEADS, HEAD])?, normal(3, &[tokens, KV_HEADS, HEAD])?);
        let options = Attention { window, ..Attention::causal((HEAD as f64).powf(-0.5)) };
        let work = pairs(lengths, window) * (HEADS * HEAD) as u64;
        group.throughput(Throughput::Elements(4 * work));
        group.bench_function(format!("forward/{name}"), |b| b.iter(|| forward(&q, &k, &v, &cu, &cu, &options)));
        let (out, lse) = forward(&q, &k, &v, &cu, &cu, &options)?;
        let dout = normal(4, &[tokens, HEADS, HEAD])?;
        group.throughput(Throughput::Elements(10 * work));
        group.bench_function(format!("backward/{name}"), |b| {
            b.iter(|| backward(&dout, &q, &k, &v, &out, &lse, &cu, &cu, &options));
        });
    }
    group.finish();
    Ok(())
}

/// One new token over a cache.
fn decode(criterion: &mut Criterion) -> Result<()> {
    let mut group = criterion.benchmark_group("attention/decode");
    let options = Attention::causal((HEAD as f64).powf(-0.5));
    for keys in [128usize, 2048] {
        let q = normal(1, &[1, HEADS, HEAD])?;
        let (k, v) = (normal(2, &[keys, KV_HEADS, HEAD])?, normal(3, &[keys, KV_HEADS, HEAD])?);
        let cu_k = [0, keys as u32];
        group.throughput(Throughput::Elements((4 * keys * HEADS * HEAD) as u64));
        group.bench_function(keys.to_string(), |b| b.iter(|| forward(&q, &k, &v, &[0, 1], &cu_k, &options)));
    }
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    packed(&mut criterion)?;
    decode(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
