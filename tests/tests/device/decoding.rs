//! What a step of decoding asks of a device: it must not grow with the number of sequences.

use std::collections::BTreeMap;

use planish_cuda::emulator::Emulator;
use planish_nn::Ctx;
use planish_nn::generate::{Generator, SamplingParams};
use planish_tensor::{DType, Device};
use planish_tests::law5::{bits, sequences};

use crate::half::{in_bf16, tiny, watched};

/// Launches by kernel, uploads and downloads.
type Work = (BTreeMap<String, usize>, u64, u64);

/// Of the last of the steps, in which nothing is new but the tokens.
fn steady_step(device: Device, emulator: &Emulator, params: &SamplingParams, count: usize) -> Work {
    let model = in_bf16(tiny(DType::BF16, false), device);
    let prompts = sequences(&model, &vec![5; count], 3);
    let mut seen = Vec::new();
    let mut note = || {
        let launches = emulator.take_reports().into_iter().fold(BTreeMap::new(), |mut all, report| {
            *all.entry(report.kernel).or_insert(0) += 1;
            all
        });
        seen.push((launches, device.transfers().unwrap()));
    };
    let mut tokens = 0;
    Generator::new(&model)
        .max_batch(count)
        .generate(&prompts, params, &mut |_| {
            tokens += 1;
            if tokens % count == 0 {
                note();
            }
            true
        })
        .unwrap();
    assert_eq!(seen.len(), params.max_new_tokens);
    let [.., (_, before), (launches, after)] = &seen[..] else { panic!("there are several steps") };
    (launches.clone(), after.uploads - before.uploads, after.downloads - before.downloads)
}

#[test]
fn a_step_of_many_sequences_asks_for_no_more_than_one_of_one() {
    let Some((device, emulator)) = watched(45, (9, 0)) else { return };
    for temperature in [0.0, 0.8] {
        let params = SamplingParams { max_new_tokens: 4, temperature, ..SamplingParams::default() };
        let one = steady_step(device, &emulator, &params, 1);
        assert_eq!(one, steady_step(device, &emulator, &params, 5), "temperature {temperature}");
        let (launches, uploads, downloads) = one;
        // Token ids, rotations, numbers of keys; and what is drawn, where it is.
        assert_eq!(uploads, if temperature == 0.0 { 3 } else { 4 });
        // The new tokens, with their log-probabilities.
        assert_eq!(downloads, 1);
        for (kernel, a_layer, besides) in [
            ("matmul_rows_hopper", 7, 1),
            ("rms_norm_forward", 2, 1),
            ("attention_hopper", 1, 0),
            ("rope_append", 1, 0),
            ("glu_forward", 1, 0),
        ] {
            assert_eq!(launches[kernel], 2 * a_layer + besides, "{kernel}: {launches:?}");
        }
        // The embedding and its cast, and the log-probability by the one tile that the vocabulary has; and the choice.
        let choice: usize = launches.iter().filter(|(kernel, _)| kernel.starts_with("sampling")).map(|(_, n)| n).sum();
        assert_eq!(choice, if temperature == 0.0 { 2 } else { 3 }, "{launches:?}");
        assert_eq!(launches.values().sum::<usize>(), 2 * 12 + 2 + 5 + choice, "{launches:?}");
    }
}

/// What is kept in clones of a cache is theirs, and caches that grow keep what they have.
#[test]
fn clones_of_a_cache_go_on_apart() {
    let Some((device, _)) = watched(46, (9, 0)) else { return };
    let model = in_bf16(tiny(DType::BF16, false), device);
    let (ctx, all) = (Ctx::inference(), sequences(&model, &[63, 4, 4], 5));
    let mut read = model.cache();
    model.decode(&ctx, &[&all[0]], &mut [&mut read]).unwrap();
    let alone: Vec<_> = all[1..]
        .iter()
        .map(|tokens| {
            let mut cache = model.cache();
            model.decode(&ctx, &[&all[0]], &mut [&mut cache]).unwrap();
            // From the 63rd on, so that the cache grows on the way.
            bits(&model.decode(&ctx, &[tokens], &mut [&mut cache]).unwrap())
        })
        .collect();
    let (mut a, mut b) = (read.clone(), read.clone());
    let both = model.decode(&ctx, &[&all[1][..1], &all[2]], &mut [&mut a, &mut b]).unwrap();
    let rest = model.decode(&ctx, &[&all[1][1..]], &mut [&mut a]).unwrap();
    let hidden = alone[0].len() / 4;
    assert_eq!([&bits(&both)[..hidden], &bits(&rest)[..]].concat(), alone[0]);
    assert_eq!(bits(&both)[hidden..], alone[1]);
    let again = model.decode(&ctx, &[&all[1]], &mut [&mut read]).unwrap();
    assert_eq!(bits(&again), alone[0]);
}
