use planish_autograd::ops::reduction::{argmax_axis, max_axis, mean, mean_axis, sum, sum_axis};
use planish_autograd::{Error, Tape};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["sum", "mean", "max"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(dims in proptest::collection::vec(size(), 1..=3), axis in 0usize..3, seed: u64, layout in layout()) {
        let axis = axis % dims.len();
        let x = [random(&dims, seed, layout)];
        check(|v| sum(&v[0]), &x, seed)?;
        check(|v| sum_axis(&v[0], axis), &x, seed)?;
        check(|v| mean(&v[0]), &x, seed)?;
        check(|v| mean_axis(&v[0], axis), &x, seed)?;
    }

    #[test]
    fn gradients_of_maxima(dims in proptest::collection::vec(1usize..6, 1..=3), axis in 0usize..3, seed: u64) {
        let axis = axis % dims.len();
        check(|v| max_axis(&v[0], axis), &[distinct(&dims, seed)], seed)?;
    }
}

#[test]
fn a_place_has_no_gradient() {
    let x = distinct(&[2, 3], 5);
    let tracked = Tape::new().leaf(x);
    assert!(matches!(argmax_axis(&tracked, 1), Err(Error::NoRule { op: "argmax", .. })));
    assert!(argmax_axis(&tracked.detach(), 1).is_ok());
}
