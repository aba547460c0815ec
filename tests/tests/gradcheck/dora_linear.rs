use planish_autograd::Var;
use planish_autograd::ops::dora_linear::{Lora, dora_linear, row_norms};
use planish_tensor::Tensor;
use planish_tensor::quant::{FourBit, FourBitKind};
use planish_tensor::rng::{Purpose, Rows, Stream};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["dora_linear"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        lead in proptest::collection::vec(size(), 0..=2),
        (input, output, r) in (size(), size(), size()),
        (bias, dropout, quantised) in any::<(bool, bool, bool)>(),
        scale in -2.0f64..2.0,
        seed: u64,
        layouts in (layout(), layout()),
    ) {
        let weight = random(&[output, input], seed ^ 3, layouts.1);
        let weight = match quantised {
            true => Tensor::packed(FourBit::quantize(&weight, FourBitKind::Nf4, 32, false).unwrap()),
            false => weight,
        };
        let weight = Var::constant(weight);
        let keys: Vec<u64> = (0..lead.iter().product::<usize>() as u64).collect();
        let rows = || Rows::new(Stream::new(seed, Purpose::Dropout, 0), keys.into());
        let lora = Lora { scale, dropout: dropout.then(|| (0.4, rows())) };
        let mut inputs = vec![
            random(&[lead, vec![input]].concat(), seed, layouts.0),
            random(&[r, input], seed ^ 1, layouts.1),
            random(&[output, r], seed ^ 2, layouts.1),
            random_map(&[output], seed ^ 5, layouts.0, positive(0.5)),
        ];
        if bias {
            inputs.push(random(&[output], seed ^ 4, layouts.0));
        }
        // Constant to the gradient: those of the unperturbed A and B, and away from 0.
        let norms = row_norms(weight.value(), &inputs[1], &inputs[2], scale).unwrap();
        let norms = planish_tensor::ops::elementwise::add_scalar(&norms, 0.5).unwrap();
        check(|v| dora_linear(&v[0], &weight, v.get(4), (&v[1], &v[2]), (&v[3], &norms), &lora), &inputs, seed)?;
    }
}
