use planish_autograd::ops::lm_head::LmHead;
use planish_autograd::ops::lm_head_divergence::{Divergence, Teacher, lm_head_divergence};
use proptest::prelude::*;

use crate::support::*;

pub(crate) const COVERS: &[&str] = &["lm_head_divergence"];

proptest! {
    #![proptest_config(config())]
    #[test]
    fn gradients(
        rows in 0usize..5,
        vocabulary in 1usize..9,
        (width, theirs) in (size(), 1usize..4),
        (scale, softcap) in (0.5f64..2.0, prop_oneof![Just(None), Just(Some(2.0f64))]),
        (beta, temperature) in (prop_oneof![Just(0.0), Just(1.0), 0.1f64..0.9], 0.5f64..2.0),
        top in prop_oneof![Just(None), (1usize..9, 0.1f64..0.9).prop_map(Some)],
        seed: u64,
        layouts in (layout(), layout()),
    ) {
        let inputs = [random(&[rows, width], seed, layouts.0), random(&[vocabulary, width], seed ^ 1, layouts.1)];
        let teacher = match top {
            None => Teacher::Head {
                hidden: random(&[rows, theirs], seed ^ 2, layouts.1),
                weight: random(&[vocabulary, theirs], seed ^ 3, layouts.0),
                options: LmHead { scale: 0.8, softcap: None },
            },
            Some((k, mass)) => {
                let k = k.min(vocabulary);
                // The k tokens from another place on in each row, of falling probabilities that sum to less than 1.
                let id = |r: usize, j: usize| ((r + j + seed as usize % 7) % vocabulary) as u32;
                let total = (1..=k).map(|j| 1.0 / j as f64).sum::<f64>();
                Teacher::Top {
                    ids: (0..rows).flat_map(|r| (0..k).map(move |j| id(r, j))).collect(),
                    logprobs: (0..rows).flat_map(|_| (1..=k).map(|j| (mass / j as f64 / total).ln())).collect(),
                    k,
                }
            }
        };
        let (options, what) = (LmHead { scale, softcap }, Divergence { beta, temperature });
        check(|v| Ok(lm_head_divergence(&v[0], &v[1], &options, &teacher, &what)?.divergence), &inputs, seed)?;
    }
}
