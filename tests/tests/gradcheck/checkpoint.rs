use planish_autograd::ops::{linear::linear, unary::tanh};
use planish_autograd::{Tape, Var};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["checkpoint"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients((rows, width) in (size(), size()), seed: u64, layouts in (layout(), layout())) {
        let inputs = [random(&[rows, width], seed, layouts.0), random(&[3, width], seed ^ 1, layouts.1)];
        let segment = |_: Option<&Tape>, x: &[Var]| Ok(vec![tanh(&linear(&x[0], &x[1], None)?)?]);
        let recomputed = |v: &[Var]| match v[0].tape() {
            Some(tape) => Ok(planish_autograd::checkpoint(tape, segment, &[&v[0], &v[1]])?.remove(0)),
            None => Ok(segment(None, v)?.remove(0)),
        };
        check(recomputed, &inputs, seed)?;
    }
}
