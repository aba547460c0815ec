use planish_autograd::ops::embedding::embedding;
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["embedding"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        ids in proptest::collection::vec(any::<prop::sample::Index>(), 0..7),
        vocabulary in 1usize..5,
        width in size(),
        seed: u64,
        layout in layout(),
    ) {
        let ids: Vec<u32> = ids.iter().map(|i| i.index(vocabulary) as u32).collect();
        check(|v| embedding(&v[0], &ids), &[random(&[vocabulary, width], seed, layout)], seed)?;
    }
}
