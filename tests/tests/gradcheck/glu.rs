use planish_autograd::ops::glu::{geglu, geglu_tanh, swiglu};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["swiglu", "geglu"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(dims in proptest::collection::vec(size(), 0..=3), seed: u64, layouts in (layout(), layout())) {
        let inputs = [random(&dims, seed, layouts.0), random(&dims, seed ^ 1, layouts.1)];
        check(|v| swiglu(&v[0], &v[1]), &inputs, seed)?;
        check(|v| geglu(&v[0], &v[1]), &inputs, seed)?;
        check(|v| geglu_tanh(&v[0], &v[1]), &inputs, seed)?;
    }
}
