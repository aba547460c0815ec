use planish_autograd::ops::lm_head::{LmHead, lm_head};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["lm_head"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        targets in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        vocabulary in 1usize..9,
        width in size(),
        (scale, softcap) in (0.5f64..2.0, prop_oneof![Just(None), Just(Some(2.0f64))]),
        seed: u64,
        layouts in (layout(), layout()),
    ) {
        let targets: Vec<u32> = targets.iter().map(|i| i.index(vocabulary) as u32).collect();
        let inputs =
            [random(&[targets.len(), width], seed, layouts.0), random(&[vocabulary, width], seed ^ 1, layouts.1)];
        let options = LmHead { scale, softcap };
        check(|v| Ok(lm_head(&v[0], &v[1], &targets, &options)?.logprobs), &inputs, seed)?;
    }
}
