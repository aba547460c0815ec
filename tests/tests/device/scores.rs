//! Scores with the most probable tokens in each place, which a device finds by itself.

use planish_nn::Ctx;
use planish_nn::decoder::Model;
use planish_tensor::DType;
use planish_tests::law5::sequences;
use planish_train::score::{ScoreError, ScoreRow, Scorer, Top};

use crate::half::{kernels_of, tiny, watched};

/// Of two rows, of which the first two tokens are prompts.
fn top(model: &Model, k: usize) -> Vec<Top> {
    let rows = sequences(model, &[9, 23], 5);
    let rows = rows.into_iter().map(|ids| Ok::<_, ScoreError>(ScoreRow::completion(ids, 2)));
    let lines = Scorer::new(model).ctx(&Ctx::inference()).top(k, 0.7).score(rows);
    lines.map(|line| line.unwrap().top.unwrap()).collect()
}

#[test]
fn the_most_probable_tokens_are_those_of_the_processor() {
    let Some((device, emulator)) = watched(64, (9, 0)) else { return };
    let (here, there) = (tiny(DType::F32, false), tiny(DType::F32, false));
    there.to_device(device).unwrap();
    const ALL: usize = 104;
    let (want, all) = (top(&here, ALL), top(&there, ALL));
    assert!(kernels_of(&emulator).contains("lm_head_top"));
    assert_eq!(want.iter().map(|t| t.ids.len()).sum::<usize>(), 7 + 21);
    for (want, all) in want.iter().zip(&all) {
        let places = want.ids.iter().zip(&want.logprobs).zip(all.ids.iter().zip(&all.logprobs));
        for ((ids, logprobs), (found, got)) in places {
            let mut of = [f64::NAN; ALL];
            ids.iter().zip(logprobs).for_each(|(id, p)| of[*id as usize] = *p);
            // Logits are f32 of other sums: near ties may change places.
            for (id, p) in found.iter().zip(got) {
                let want = of[*id as usize];
                assert!((p - want).abs() <= 1e-4 * (1.0 + want.abs()), "token {id}: {p} for {want}");
            }
            assert!(got.is_sorted_by(|a, b| a >= b) && found[0] == ids[0]);
        }
    }
    // Fewer are the first of all, to the bit.
    for k in [1, 7] {
        for (few, all) in top(&there, k).iter().zip(&all) {
            for (some, all) in few.ids.iter().zip(&all.ids) {
                assert_eq!(some[..], all[..k]);
            }
            for (some, all) in few.logprobs.iter().zip(&all.logprobs) {
                assert_eq!(some[..], all[..k]);
            }
        }
    }
}
