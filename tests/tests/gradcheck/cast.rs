use planish_autograd::ops::cast::cast;
use planish_autograd::{Error, Tape};
use planish_tensor::{DType, Tensor};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["cast"];

proptest! {
    #![proptest_config(config())]
    /// Rounding has no slope that a difference could find: the gradient of a cast is that of the identity, so
    /// what comes back is the upstream gradient, in the compute dtype of what was cast.
    #[test]
    fn gradients(dims in proptest::collection::vec(size(), 0..=3), seed: u64, layout in layout()) {
        check(|v| cast(&v[0], DType::F64), &[random(&dims, seed, layout)], seed)?;
        let x = random(&dims, seed, layout);
        for (from, to) in [
            (DType::F64, DType::F32),
            (DType::F32, DType::F64),
            (DType::F32, DType::BF16),
            (DType::BF16, DType::F32),
            (DType::F16, DType::F64),
        ] {
            let tape = Tape::new();
            let leaf = tape.leaf(x.to_dtype(from).unwrap());
            let y = cast(&leaf, to).unwrap();
            prop_assert_eq!(y.value().dtype(), to);
            let compute = |dtype| if dtype == DType::F64 { DType::F64 } else { DType::F32 };
            // f32 numbers, which every dtype of a gradient holds exactly.
            let upstream = random(&dims, seed ^ 1, layout).to_dtype(DType::F32).unwrap();
            let gradients = tape.backward_from(vec![(y, upstream.to_dtype(compute(to)).unwrap())]).unwrap();
            let dx = gradients.get(&leaf).unwrap();
            prop_assert_eq!(dx.dtype(), compute(from));
            let dx = dx.to_dtype(DType::F32).unwrap();
            prop_assert_eq!(dx.to_vec::<f32>().unwrap(), upstream.to_vec::<f32>().unwrap());
        }
    }
}

#[test]
fn a_tracked_variable_cannot_become_integers() {
    let x = Tape::new().leaf(Tensor::full(1.5f32, [2]).unwrap());
    assert!(matches!(cast(&x, DType::I64), Err(Error::Tensor(_))));
    assert_eq!(cast(&x.detach(), DType::I64).unwrap().value().to_vec::<i64>().unwrap(), [1, 1]);
}
