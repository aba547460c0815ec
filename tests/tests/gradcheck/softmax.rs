use planish_autograd::ops::softmax::{log_softmax, logsumexp, softmax};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["softmax", "log_softmax", "logsumexp"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(dims in proptest::collection::vec(size(), 1..=3), width in prop_oneof![0usize..5, Just(19usize)], seed: u64, layout in layout()) {
        let mut dims = dims;
        *dims.last_mut().unwrap() = width;
        let x = [random(&dims, seed, layout)];
        check(|v| softmax(&v[0]), &x, seed)?;
        check(|v| log_softmax(&v[0]), &x, seed)?;
        if width > 0 {
            // Of no element the result is -∞, which no weighted sum survives.
            check(|v| logsumexp(&v[0]), &x, seed)?;
        }
    }
}
