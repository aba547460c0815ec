use planish_autograd::ops::linear::linear;
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["linear"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        lead in proptest::collection::vec(size(), 0..=2),
        (input, output) in (size(), size()),
        bias: bool,
        seed: u64,
        layouts in (layout(), layout()),
    ) {
        let mut inputs =
            vec![random(&[lead, vec![input]].concat(), seed, layouts.0), random(&[output, input], seed ^ 1, layouts.1)];
        if bias {
            inputs.push(random(&[output], seed ^ 2, layouts.0));
        }
        check(|v| linear(&v[0], &v[1], v.get(2)), &inputs, seed)?;
    }
}
