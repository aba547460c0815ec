use planish_autograd::ops::unary::{exp, ln, sigmoid, softcap, sqrt, tanh};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["exp", "ln", "sqrt", "tanh", "sigmoid", "softcap"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(dims in proptest::collection::vec(size(), 0..=3), seed: u64, layout in layout(), cap in 0.5f64..5.0) {
        let x = [random(&dims, seed, layout)];
        check(|v| exp(&v[0]), &x, seed)?;
        check(|v| tanh(&v[0]), &x, seed)?;
        check(|v| sigmoid(&v[0]), &x, seed)?;
        check(|v| softcap(&v[0], cap), &x, seed)?;
        let x = [random_map(&dims, seed, layout, positive(0.2))];
        check(|v| ln(&v[0]), &x, seed)?;
        check(|v| sqrt(&v[0]), &x, seed)?;
    }
}
