use planish_autograd::ops::lstm::lstm;
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["lstm"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients((steps, hidden) in (0usize..6, 1usize..4), reverse: bool, seed: u64, layout in layout()) {
        let inputs = [
            random_map(&[steps, 4 * hidden], seed, layout, |x| x),
            random_map(&[4 * hidden, hidden], seed.wrapping_add(1), layout, |x| x),
        ];
        check(|v| lstm(&v[0], &v[1], reverse), &inputs, seed)?;
    }
}
