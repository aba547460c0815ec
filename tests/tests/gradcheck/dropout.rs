use planish_autograd::ops::dropout::dropout;
use planish_autograd::{Tape, Var};
use planish_tensor::Tensor;
use planish_tensor::rng::{Purpose, Stream};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["dropout"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(dims in proptest::collection::vec(size(), 0..=3), seed: u64, layout in layout(), p in 0.0f64..0.95) {
        let stream = Stream::new(seed, Purpose::Dropout, 3);
        check(|v| dropout(&v[0], p, stream), &[random(&dims, seed, layout)], seed)?;
    }
}

#[test]
fn nothing_dropped_is_the_variable_itself() {
    let tape = Tape::new();
    let x = tape.leaf(Tensor::full(2.0f32, [5]).unwrap());
    let y = dropout(&x, 0.0, Stream::new(1, Purpose::Dropout, 0)).unwrap();
    assert!(tape.is_empty() && y.value().shares_storage(x.value()));
}

#[test]
fn the_kept_share_and_the_scale_are_right() {
    let n = 40_000;
    let x = Var::constant(Tensor::full(1.0f32, [n]).unwrap());
    for p in [0.1, 0.5, 0.9] {
        let y = dropout(&x, p, Stream::new(2, Purpose::Dropout, 0)).unwrap().into_value().to_vec::<f32>().unwrap();
        let kept = y.iter().filter(|&&y| y != 0.0).count() as f64 / n as f64;
        // Five standard errors of a share.
        assert!((kept - (1.0 - p)).abs() <= 5.0 * (p * (1.0 - p) / n as f64).sqrt(), "{kept} kept at p = {p}");
        assert!(y.iter().all(|&y| y == 0.0 || y == (1.0 / (1.0 - p)) as f32));
    }
    for p in [1.0, -0.1, f64::NAN] {
        assert!(dropout(&x, p, Stream::new(2, Purpose::Dropout, 0)).is_err());
    }
}
