use planish_autograd::ops::dropout::dropout;
use planish_autograd::{Tape, Var};
use planish_tensor::Tensor;
use planish_tensor::rng::{Purpose, Rows, Stream};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["dropout"];

fn keyed(seed: u64, rows: usize) -> Rows {
    let keys: Vec<u64> = (0..rows as u32).map(|position| Rows::key(3, 0, position)).collect();
    Rows::new(Stream::new(seed, Purpose::Dropout, 3), keys.into())
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(dims in proptest::collection::vec(size(), 0..=3), seed: u64, layout in layout(), p in 0.0f64..0.95) {
        let rows = dims.split_last().map_or(1, |(_, lead)| lead.iter().product());
        let rows = keyed(seed, rows);
        check(|v| dropout(&v[0], p, &rows), &[random(&dims, seed, layout)], seed)?;
    }
}

#[test]
fn nothing_dropped_is_the_variable_itself() {
    let tape = Tape::new();
    let x = tape.leaf(Tensor::full(2.0f32, [5]).unwrap());
    let y = dropout(&x, 0.0, &keyed(1, 1)).unwrap();
    assert!(tape.is_empty() && y.value().shares_storage(x.value()));
}

#[test]
fn the_kept_share_and_the_scale_are_right() {
    let n = 40_000;
    let x = Var::constant(Tensor::full(1.0f32, [200, 200]).unwrap());
    for p in [0.1, 0.5, 0.9] {
        let y = dropout(&x, p, &keyed(2, 200)).unwrap().into_value().to_vec::<f32>().unwrap();
        let kept = y.iter().filter(|&&y| y != 0.0).count() as f64 / n as f64;
        // Five standard errors of a share.
        assert!((kept - (1.0 - p)).abs() <= 5.0 * (p * (1.0 - p) / n as f64).sqrt(), "{kept} kept at p = {p}");
        assert!(y.iter().all(|&y| y == 0.0 || y == (1.0 / (1.0 - p)) as f32));
    }
    for p in [1.0, -0.1, f64::NAN] {
        assert!(dropout(&x, p, &keyed(2, 200)).is_err());
    }
}

#[test]
fn a_mask_goes_by_the_row_s_key() {
    let x = Var::constant(Tensor::full(1.0f32, [3, 50]).unwrap());
    let stream = Stream::new(2, Purpose::Dropout, 0);
    let masked = |keys: [u64; 3]| -> Vec<Vec<f32>> {
        let y = dropout(&x, 0.5, &Rows::new(stream, keys.into())).unwrap().into_value().to_vec::<f32>().unwrap();
        y.chunks(50).map(<[f32]>::to_vec).collect()
    };
    let (a, b) = (masked([7, 8, 9]), masked([9, 7, 1]));
    assert_eq!((&a[0], &a[2]), (&b[1], &b[0]));
    assert!(a[0] != a[1] && a[1] != a[2] && b[2] != a[1]);
    let short = Rows::new(stream, [1, 2].into());
    let problem = dropout(&x, 0.5, &short).unwrap_err().to_string();
    assert!(problem.contains("a key for each row"), "{problem}");
}
