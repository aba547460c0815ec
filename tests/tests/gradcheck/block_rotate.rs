use planish_autograd::ops::block_rotate::block_rotate;
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["block_rotate"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        lead in proptest::collection::vec(size(), 0..=2),
        (groups, n) in (1usize..4, 1usize..5),
        shared: bool,
        seed: u64,
        layouts in (layout(), layout()),
    ) {
        let inputs = [
            random(&[lead, vec![groups * n]].concat(), seed, layouts.0),
            random(&[if shared { 1 } else { groups }, n, n], seed ^ 1, layouts.1),
        ];
        check(|v| block_rotate(&v[0], &v[1]), &inputs, seed)?;
    }
}
