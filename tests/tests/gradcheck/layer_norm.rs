use planish_autograd::ops::layer_norm::layer_norm;
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["layer_norm"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        dims in proptest::collection::vec(size(), 0..=2),
        width in prop_oneof![0usize..5, Just(19usize)],
        seed: u64,
        layouts in (layout(), layout()),
        bias: bool,
    ) {
        let dims = [dims, vec![width]].concat();
        let mut inputs = vec![random(&dims, seed, layouts.0), random(&[width], seed ^ 1, layouts.1)];
        if bias {
            inputs.push(random(&[width], seed ^ 2, layouts.1));
        }
        // ε keeps the curvature where two numbers are close within what the step of the difference allows.
        check(|v| layer_norm(&v[0], &v[1], v.get(2), 0.05), &inputs, seed)?;
    }
}
