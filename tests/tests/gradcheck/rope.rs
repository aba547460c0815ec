use planish_autograd::ops::rope::rope;
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["rope"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        (tokens, heads, half, rest) in (size(), size(), size(), size()),
        seed: u64,
        layouts in (layout(), layout()),
    ) {
        let x = random(&[tokens, heads, 2 * half + rest], seed, layouts.0);
        // No pair of these is a point on the circle: the rule must hold for any factor on cos and sin.
        let [cos, sin] = [1, 2].map(|i| random(&[tokens, half], seed ^ i, layouts.1));
        check(|v| rope(&v[0], &cos, &sin), &[x], seed)?;
    }
}
