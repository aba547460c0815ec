use planish_autograd::ops::gather::gather;
use planish_tensor::Tensor;
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["gather"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        lead in proptest::collection::vec(size(), 0..=2),
        width in 1usize..6,
        picks in size(),
        places in proptest::collection::vec(any::<prop::sample::Index>(), 125),
        seed: u64,
        layout in layout(),
    ) {
        let shape = [lead.clone(), vec![picks]].concat();
        let n = shape.iter().product::<usize>();
        let index: Vec<i64> = places[..n].iter().map(|i| i.index(width) as i64).collect();
        let index = Tensor::from_vec(index, shape).unwrap();
        check(|v| gather(&v[0], &index), &[random(&[lead, vec![width]].concat(), seed, layout)], seed)?;
    }
}
