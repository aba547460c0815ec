use planish_autograd::Var;
use planish_autograd::ops::lora_embedding::lora_embedding;
use planish_tensor::rng::{Purpose, Stream};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["lora_embedding"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        (tokens, vocabulary, width, r) in (size(), 1usize..6, size(), size()),
        scale in -2.0f64..2.0,
        seed: u64,
        layouts in (layout(), layout()),
    ) {
        let draw = Stream::new(seed, Purpose::Data, 3);
        let ids: Vec<u32> = (0..tokens as u64).map(|i| draw.below(i, vocabulary as u64) as u32).collect();
        let weight = Var::constant(random(&[vocabulary, width], seed ^ 3, layouts.1));
        let inputs = [random(&[r, vocabulary], seed, layouts.0), random(&[width, r], seed ^ 1, layouts.1)];
        check(|v| lora_embedding(&weight, &v[0], &v[1], &ids, scale), &inputs, seed)?;
    }
}
