use planish_autograd::ops::cayley::{Cayley, cayley};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["cayley"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients((blocks, n) in (size(), 1usize..6), terms in 0usize..8, seed: u64, layout in layout()) {
        let kind = if terms == 0 { Cayley::Exact } else { Cayley::Series(terms) };
        // Small entries: powers up to the seventh of large ones would leave no digit to the differences.
        let inputs = [random_map(&[blocks, n * (n - 1) / 2], seed, layout, |x| 0.3 * x)];
        check(|v| cayley(&v[0], n, kind), &inputs, seed)?;
    }
}
