use planish_autograd::Var;
use planish_autograd::ops::elementwise::{add, mul};
use planish_autograd::ops::rms_norm::{rms_norm, rms_norm_added};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["rms_norm"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        dims in proptest::collection::vec(size(), 0..=2),
        width in prop_oneof![0usize..5, Just(19usize)],
        seed: u64,
        layouts in (layout(), layout()),
        offset in prop_oneof![Just(0.0), Just(1.0)],
    ) {
        let dims = [dims, vec![width]].concat();
        let inputs = [random(&dims, seed, layouts.0), random(&[width], seed ^ 1, layouts.1)];
        // ε keeps the curvature of a row of one small number within what the step of the difference allows.
        check(|v| rms_norm(&v[0], &v[1], 0.05, offset), &inputs, seed)?;
        let [x, weight] = inputs;
        let inputs = [x, random(&dims, seed ^ 2, layouts.1), weight];
        let added = |v: &[Var]| rms_norm_added(&v[0], &v[1], &v[2], 0.05, offset);
        // The sum alone, its norm alone, and both.
        check(|v| Ok(added(v)?.0), &inputs, seed)?;
        check(|v| Ok(added(v)?.1), &inputs, seed)?;
        check(|v| added(v).and_then(|(sum, y)| add(&mul(&sum, &v[1])?, &y)), &inputs, seed)?;
    }
}
