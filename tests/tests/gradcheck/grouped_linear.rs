use planish_autograd::ops::grouped_linear::grouped_linear;
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["grouped_linear"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(runs in proptest::collection::vec(size(), 1..=4), input in size(), out in size(), seed: u64, layout in layout()) {
        let starts: Vec<usize> =
            (0..=runs.len()).map(|g| runs[..g].iter().sum()).collect();
        let mut inputs = vec![random(&[starts[runs.len()], input], seed, layout)];
        inputs.extend((0..runs.len() as u64).map(|g| random(&[out, input], seed ^ (g + 1), layout)));
        check(|v| grouped_linear(&v[0], &v[1..], &starts), &inputs, seed)?;
    }
}
