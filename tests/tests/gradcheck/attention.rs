use std::sync::Arc;

use planish_autograd::ops::attention::{Attention, Stem, attention, branched};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["attention"];

fn cumulative(lengths: impl Iterator<Item = usize>) -> Arc<[u32]> {
    std::iter::once(0)
        .chain(lengths.scan(0, |sum, n| {
            *sum += n as u32;
            Some(*sum)
        }))
        .collect()
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        // Queries, and keys before them, of each segment.
        segments in proptest::collection::vec((0usize..4, 0usize..3), 0..3),
        (kv_heads, group, width) in (1usize..3, 1usize..3, 1usize..5),
        window in prop_oneof![Just(None), (1usize..4).prop_map(Some)],
        softcap in prop_oneof![Just(None), Just(Some(1.5f64))],
        causal: bool,
        seed: u64,
        layouts in (layout(), layout()),
    ) {
        let cu_q = cumulative(segments.iter().map(|s| s.0));
        let cu_k = cumulative(segments.iter().map(|s| s.0 + s.1));
        let (queries, keys) = (*cu_q.last().unwrap() as usize, *cu_k.last().unwrap() as usize);
        let options = Attention { scale: 0.7, causal, window: if causal { window } else { None }, softcap };
        let inputs = [
            random(&[queries, kv_heads * group, width], seed, layouts.0),
            random(&[keys, kv_heads, width], seed ^ 1, layouts.1),
            random(&[keys, kv_heads, width], seed ^ 2, layouts.0),
        ];
        check(|v| attention(&v[0], &v[1], &v[2], &cu_q, &cu_k, &options), &inputs, seed)?;
    }
}

proptest! {
    #![proptest_config(config())]
    /// Segments that go on from the first keys of an earlier one; some have no key or no query of their own.
    #[test]
    fn branches(
        // Queries and more keys of a root, and of each branch its queries and how much of the root it sees.
        families in proptest::collection::vec(
            ((0usize..4, 0usize..3), proptest::collection::vec((0usize..3, any::<prop::sample::Index>()), 0..4)),
            0..3,
        ),
        (kv_heads, group, width) in (1usize..3, 1usize..3, 1usize..4),
        window in prop_oneof![Just(None), (1usize..4).prop_map(Some)],
        softcap in prop_oneof![Just(None), Just(Some(1.5f64))],
        seed: u64,
        layouts in (layout(), layout()),
    ) {
        let (mut lengths, mut stems) = (vec![], vec![]);
        for ((queries, more), branches) in &families {
            let (root, keys) = (stems.len() as u32, queries + more);
            lengths.push((*queries, keys));
            stems.push(None);
            for (own, seen) in branches {
                lengths.push((*own, *own));
                stems.push(Some(Stem { of: root, len: seen.index(keys + 1) as u32 }));
            }
        }
        let cu_q = cumulative(lengths.iter().map(|l| l.0));
        let cu_k = cumulative(lengths.iter().map(|l| l.1));
        let (queries, keys) = (*cu_q.last().unwrap() as usize, *cu_k.last().unwrap() as usize);
        let (options, stems) = (Attention { scale: 0.7, causal: true, window, softcap }, stems.into());
        let inputs = [
            random(&[queries, kv_heads * group, width], seed, layouts.0),
            random(&[keys, kv_heads, width], seed ^ 1, layouts.1),
            random(&[keys, kv_heads, width], seed ^ 2, layouts.0),
        ];
        check(|v| branched(&v[0], &v[1], &v[2], &cu_q, &cu_k, &stems, &options), &inputs, seed)?;
    }
}
