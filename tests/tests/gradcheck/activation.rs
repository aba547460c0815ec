use planish_autograd::ops::activation::{gelu, gelu_tanh, relu, silu};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["silu", "gelu", "relu"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(dims in proptest::collection::vec(size(), 0..=3), seed: u64, layout in layout()) {
        let x = [random(&dims, seed, layout)];
        check(|v| silu(&v[0]), &x, seed)?;
        check(|v| gelu(&v[0]), &x, seed)?;
        check(|v| gelu_tanh(&v[0]), &x, seed)?;
        check(|v| relu(&v[0]), &[random_map(&dims, seed, layout, off_zero(0.01))], seed)?;
    }
}
