use planish_autograd::ops::index_select::index_select;
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["index_select"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        index in proptest::collection::vec(any::<prop::sample::Index>(), 0..7),
        rows in 1usize..5,
        rest in proptest::collection::vec(size(), 0..=2),
        seed: u64,
        layout in layout(),
    ) {
        let index: Vec<u32> = index.iter().map(|i| i.index(rows) as u32).collect();
        check(|v| index_select(&v[0], &index), &[random(&[vec![rows], rest].concat(), seed, layout)], seed)?;
    }
}
