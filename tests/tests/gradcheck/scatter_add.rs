use planish_autograd::ops::scatter_add::scatter_add;
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["scatter_add"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        index in proptest::collection::vec(any::<prop::sample::Index>(), 0..7),
        rows in 1usize..5,
        rest in proptest::collection::vec(size(), 0..=2),
        seed: u64,
        layouts in (layout(), layout()),
    ) {
        let index: Vec<u32> = index.iter().map(|i| i.index(rows) as u32).collect();
        let x = random(&[vec![rows], rest.clone()].concat(), seed, layouts.0);
        let source = random(&[vec![index.len()], rest].concat(), seed ^ 1, layouts.1);
        check(|v| scatter_add(&v[0], &index, &v[1]), &[x, source], seed)?;
    }
}
