use planish_autograd::ops::combine::combine;
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["combine"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(tokens in size(), k in 1usize..4, width in size(), salt in 0usize..100, seed: u64, layouts in (layout(), layout())) {
        let rows = tokens * k;
        // Each row once, from anywhere on, in either direction.
        let place = |c: usize| if salt % 2 == 0 { (c + salt) % rows } else { (rows - 1 - c + salt) % rows };
        let places: Vec<u32> = (0..rows).map(|c| place(c) as u32).collect();
        let parts = random(&[rows, width], seed, layouts.0);
        let weights = random(&[tokens, k], seed ^ 1, layouts.1);
        check(|v| combine(&v[0], &v[1], &places), &[parts, weights], seed)?;
    }
}
