use planish_autograd::ops::view::{broadcast_to, narrow, reshape, transpose};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["broadcast_to", "narrow", "reshape", "transpose"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        dims in proptest::collection::vec(size(), 1..=3),
        (a, b, cut, kept) in (0usize..3, 0usize..3, 0usize..6, 0usize..6),
        lead in proptest::collection::vec(size(), 0..=2),
        ones in 0u8..8,
        seed: u64,
        layout in layout(),
    ) {
        let (a, b) = (a % dims.len(), b % dims.len());
        let x = [random(&dims, seed, layout)];
        check(|v| transpose(&v[0], a, b), &x, seed)?;
        let (start, len) = (cut.min(dims[a]), kept.min(dims[a] - cut.min(dims[a])));
        check(|v| narrow(&v[0], a, start, len), &x, seed)?;
        check(|v| reshape(&v[0], &[1, dims.iter().product()]), &x, seed)?;
        let small: Vec<usize> = dims.iter().enumerate().map(|(i, &d)| if ones >> i & 1 == 1 { 1 } else { d }).collect();
        let target = [lead, dims].concat();
        check(|v| broadcast_to(&v[0], &target), &[random(&small, seed, layout)], seed)?;
    }

    /// Two cuts of one variable: their gradients meet in one buffer.
    #[test]
    fn cuts_that_overlap_add_up(n in 3usize..7, seed: u64) {
        let both = |v: &[planish_autograd::Var]| {
            let (a, b) = (narrow(&v[0], 1, 0, 3)?, narrow(&v[0], 1, n - 3, 3)?);
            planish_autograd::ops::elementwise::mul(&a, &b)
        };
        check(both, &[random(&[2, n], seed, Layout::Plain)], seed)?;
    }
}
