use planish_autograd::ops::elementwise::{add, add_scalar, div, mul, neg, scale, sub};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["add", "sub", "mul", "div", "scale", "add_scalar"];

/// A shape that broadcasts to `dims`: some leading sizes dropped, some of the others 1.
fn narrowed(dims: &[usize], dropped: usize, ones: u8) -> Vec<usize> {
    let rest = dims[dropped.min(dims.len())..].iter().enumerate();
    rest.map(|(i, &d)| if ones >> i & 1 == 1 { 1 } else { d }).collect()
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        dims in proptest::collection::vec(size(), 0..=3),
        (dropped, a_ones, b_ones) in (0usize..3, 0u8..8, 0u8..8),
        stretch_first: bool,
        seed: u64,
        layouts in (layout(), layout()),
    ) {
        let (mut a, mut b) = (narrowed(&dims, 0, a_ones), narrowed(&dims, dropped, b_ones));
        if stretch_first {
            std::mem::swap(&mut a, &mut b);
        }
        let a = random(&a, seed, layouts.0);
        let b = random_map(&b, seed ^ 1, layouts.1, off_zero(0.3));
        let x = [a, b];
        check(|v| add(&v[0], &v[1]), &x, seed)?;
        check(|v| sub(&v[0], &v[1]), &x, seed)?;
        check(|v| mul(&v[0], &v[1]), &x, seed)?;
        check(|v| div(&v[0], &v[1]), &x, seed)?;
    }

    #[test]
    fn gradients_of_one(dims in proptest::collection::vec(size(), 0..=3), seed: u64, layout in layout(), k in -3.0f64..3.0) {
        let x = [random(&dims, seed, layout)];
        check(|v| neg(&v[0]), &x, seed)?;
        check(|v| scale(&v[0], k), &x, seed)?;
        check(|v| add_scalar(&v[0], k), &x, seed)?;
        // The same variable on both sides: the two gradients add up.
        check(|v| mul(&v[0], &v[0]), &x, seed)?;
    }
}
