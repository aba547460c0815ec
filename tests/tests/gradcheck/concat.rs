use planish_autograd::ops::concat::concat;
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["concat"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        dims in proptest::collection::vec(size(), 1..=3),
        axis in 0usize..3,
        sizes in proptest::collection::vec(size(), 1..4),
        seed: u64,
        layout in layout(),
    ) {
        let axis = axis % dims.len();
        let inputs: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(i, &n)| {
                let mut dims = dims.clone();
                dims[axis] = n;
                random(&dims, seed ^ i as u64, layout)
            })
            .collect();
        check(|v| concat(&v.iter().collect::<Vec<_>>(), axis), &inputs, seed)?;
    }
}
