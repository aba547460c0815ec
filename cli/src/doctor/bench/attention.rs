//! Attention, forward and backward, and over caches.

use planish_cuda::DType;
use planish_cuda::ops::attention::{self, Attention, CacheSizes, Caches, Segments};

use super::Entry;
use super::item::{Need, Work, item, launch};

const T: DType = DType::BF16;
const F32: DType = DType::F32;

/// Sequences of one length with these heads.
#[derive(Clone, Copy)]
struct Sizes {
    sequences: usize,
    length: usize,
    heads: usize,
    kv_heads: usize,
    size: usize,
}

pub(super) fn entries(emulated: bool) -> Vec<Entry> {
    let whole = |heads, kv_heads, size| match emulated {
        true => Sizes { sequences: 2, length: 70, heads: 2 * heads / kv_heads, kv_heads: 2, size },
        false => Sizes { sequences: 2, length: 8192, heads, kv_heads, size },
    };
    let mut all = Vec::new();
    for (name, sizes) in [
        ("/128", whole(16, 16, 128)),
        ("/128_grouped", whole(32, 8, 128)),
        ("/64", whole(32, 32, 64)),
        ("/256", whole(16, 8, 256)),
    ] {
        all.extend([forward(name, sizes), backward(name, sizes)]);
    }
    let cached = match emulated {
        true => Sizes { sequences: 3, length: 70, heads: 4, kv_heads: 2, size: 128 },
        false => Sizes { sequences: 64, length: 4096, heads: 32, kv_heads: 8, size: 128 },
    };
    all.push(decode(cached));
    all.push(decode_long(match emulated {
        true => Sizes { sequences: 1, length: 1100, heads: 4, kv_heads: 2, size: 128 },
        false => Sizes { sequences: 1, length: 32768, heads: 32, kv_heads: 8, size: 128 },
    }));
    all
}

impl Sizes {
    fn kind(&self) -> Attention {
        let scale = (self.size as f32).powf(-0.5);
        let &Sizes { heads, kv_heads, size, .. } = self;
        Attention { heads, kv_heads, size, scale, causal: true, window: None, softcap: None }
    }

    fn shape(&self) -> String {
        let Sizes { sequences, length, heads, kv_heads, size } = self;
        format!("{sequences} x {length} tokens, {heads} heads over {kv_heads} of {size}, causal, bf16")
    }

    /// Operations of the two products of the forward pass, of which causal masking leaves half.
    fn flops(&self) -> f64 {
        2.0 * (self.sequences * self.heads * self.size) as f64 * (self.length as f64).powi(2)
    }

    /// Elements of queries, and of keys.
    fn elements(&self) -> [usize; 2] {
        [self.heads, self.kv_heads].map(|heads| self.sequences * self.length * heads * self.size)
    }

    /// Where sequences of `step` tokens begin.
    fn table(&self, step: usize) -> Vec<u32> {
        (0..=self.sequences).map(|s| (s * step) as u32).collect()
    }
}

fn forward(name: &str, sizes: Sizes) -> Entry {
    let ([q, kv], kind) = (sizes.elements(), sizes.kind());
    let needs = [Need::zeros(q, T), Need::zeros(q / sizes.size, F32), Need::half(q), Need::half(kv), Need::half(kv)];
    let name = format!("attention/forward{name}");
    item(name, sizes.shape(), Work::Flops(sizes.flops()), needs, move |queue, [mut out, mut lse, q, k, v]| {
        let table = sizes.table(sizes.length);
        let of = Segments::packed(queue, &table, &table)?;
        launch(move |queue| {
            let (out, lse) = (out.slice_mut(T), lse.slice_mut(F32));
            attention::forward(queue, out, lse, q.slice(T), k.slice(T), v.slice(T), &of, &kind)
        })
    })
}

fn backward(name: &str, sizes: Sizes) -> Entry {
    let ([q, kv], kind) = (sizes.elements(), sizes.kind());
    let needs = [
        Need::zeros(q, T),
        Need::zeros(kv, T),
        Need::zeros(kv, T),
        Need::zeros(q, T),
        Need::zeros(q / sizes.size, F32),
        Need::half(q),
        Need::half(q),
        Need::half(kv),
        Need::half(kv),
    ];
    let name = format!("attention/backward{name}");
    // Five products for two: the probabilities are made again.
    let work = Work::Flops(2.5 * sizes.flops());
    item(name, sizes.shape(), work, needs, move |queue, [mut dq, mut dk, mut dv, mut out, mut lse, dout, q, k, v]| {
        let table = sizes.table(sizes.length);
        let of = Segments::packed(queue, &table, &table)?;
        let (to, to_lse) = (out.slice_mut(T), lse.slice_mut(F32));
        attention::forward(queue, to, to_lse, q.slice(T), k.slice(T), v.slice(T), &of, &kind)?;
        launch(move |queue| {
            let grads = [dq.slice_mut(T), dk.slice_mut(T), dv.slice_mut(T)];
            let qkv = [q.slice(T), k.slice(T), v.slice(T)];
            attention::backward(queue, grads, dout.slice(T), qkv, out.slice(T), lse.slice(F32), &of, &kind)
        })
    })
}

/// One query of each sequence over its cache: bound by reading keys and values.
fn decode(sizes: Sizes) -> Entry {
    let Sizes { sequences, length, heads, kv_heads, size } = sizes;
    let (q, kv, kind) = (sequences * heads * size, sizes.elements()[1], sizes.kind());
    let shape = format!("1 token x {sequences} over {length} keys, {heads} heads over {kv_heads} of {size}, bf16");
    let needs = [Need::zeros(q, T), Need::zeros(q / size, F32), Need::half(q), Need::half(kv), Need::half(kv)];
    let work = Work::Bytes(4.0 * (q + kv) as f64);
    item("attention/decode", shape, work, needs, move |queue, [mut out, mut lse, q, k, v]| {
        let of = Segments::packed(queue, &sizes.table(1), &sizes.table(length))?;
        launch(move |queue| {
            let (out, lse) = (out.slice_mut(T), lse.slice_mut(F32));
            attention::forward(queue, out, lse, q.slice(T), k.slice(T), v.slice(T), &of, &kind)
        })
    })
}

/// The same of one sequence, over the cache that it has to itself: so few blocks that keys are shared out among more.
fn decode_long(sizes: Sizes) -> Entry {
    let Sizes { sequences, length, heads, kv_heads, size } = sizes;
    let (q, kv, kind) = (sequences * heads * size, sizes.elements()[1], sizes.kind());
    let shape = format!("1 token x {sequences} over {length} keys, {heads} heads over {kv_heads} of {size}, bf16");
    let needs = [Need::zeros(q, T), Need::zeros(q / size, F32), Need::half(q), Need::half(2 * kv)];
    let work = Work::Bytes(4.0 * (q + kv) as f64);
    item("attention/decode_long", shape, work, needs, move |queue, [mut out, mut lse, q, cache]| {
        let caches = Caches::new(queue, &[cache.slice(T)], CacheSizes { layers: 1, kv_heads, size })?;
        let of = Segments::cached(queue, &[0, 1], &[0, 1], &[length as u32])?;
        launch(move |queue| {
            // The cache is held as long as its table.
            let _held = &cache;
            let (out, lse) = (out.slice_mut(T), lse.slice_mut(F32));
            attention::forward_cached(queue, out, lse, q.slice(T), (&caches, 0), &of, &kind)
        })
    })
}
