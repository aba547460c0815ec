use super::*;
use crate::rng::{Purpose, Stream};
use crate::{DType, bf16};

fn random(shape: [usize; 2], salt: u64) -> Tensor {
    let s = Stream::new(9, Purpose::Data, salt);
    Tensor::from_vec((0..shape[0] * shape[1]).map(|i| s.normal(i as u64)).collect::<Vec<f64>>(), shape).unwrap()
}

#[test]
fn equals_the_definition_over_several_tiles() {
    let (rows, size, vocabulary) = (5, 7, TILE + 321);
    let (h, w) = (random([rows, size], 0), random([vocabulary, size], 1));
    let targets = [0, 17, TILE as u32, (TILE + 320) as u32, 5];
    for o in [LmHead::default(), LmHead { scale: 0.5, softcap: Some(3.0) }] {
        let out = forward(&h, &w, &targets, &o).unwrap();
        let (hd, wd) = (h.as_slice::<f64>().unwrap(), w.as_slice::<f64>().unwrap());
        for r in 0..rows {
            let z: Vec<f64> = (0..vocabulary)
                .map(|v| (0..size).map(|k| hd[r * size + k] * wd[v * size + k]).sum::<f64>() * o.scale)
                .map(|z| o.softcap.map_or(z, |c| c * (z / c).tanh()))
                .collect();
            let lse = z.iter().map(|z| z.exp()).sum::<f64>().ln();
            let entropy = z.iter().map(|z| -(z - lse) * (z - lse).exp()).sum::<f64>();
            let best = (0..vocabulary).max_by(|&a, &b| z[a].total_cmp(&z[b])).unwrap();
            let got = |t: &Tensor| t.as_slice::<f64>().unwrap()[r];
            // f64 sums of 2369 positive terms: relative error well below 1e-12.
            assert!((got(&out.logprobs) - (z[targets[r] as usize] - lse)).abs() < 1e-11);
            assert!((got(&out.entropy) - entropy).abs() < 1e-11);
            assert_eq!(out.correct.read().unwrap()[r], best == targets[r] as usize);
        }
    }
}

/// The gradient of one pass against that of two, and the same log-probabilities to the bit.
#[test]
fn one_pass_gives_the_gradient_of_two() {
    for (rows, vocabulary) in [(0, 5), (1, 3), (ROWS + 3, TILE + 321)] {
        let (h, w) = (random([rows, 7], 0), random([vocabulary, 7], 1));
        let targets: Vec<u32> = (0..rows as u32).map(|r| r * 31 % vocabulary as u32).collect();
        let ones = Tensor::full(1.0f64, [rows]).unwrap();
        for o in [LmHead::default(), LmHead { scale: 0.5, softcap: Some(3.0) }] {
            let plain = forward(&h, &w, &targets, &o).unwrap();
            let (out, got) = forward_with_gradient(&h, &w, &targets, &o).unwrap();
            assert_eq!(out.logprobs.as_slice::<f64>().unwrap(), plain.logprobs.as_slice::<f64>().unwrap());
            let want = backward(&ones, &h, &w, &targets, &out.lse, &o, None).unwrap();
            for (g, w) in got.as_slice::<f64>().unwrap().iter().zip(want.as_slice::<f64>().unwrap()) {
                // Two orders of a sum of a few thousand terms below 1 in f64.
                assert!((g - w).abs() <= 1e-11, "{g} against {w}");
            }
        }
    }
}

/// All in one pass: the log-probabilities of the forward pass to the bit, and the gradients of the backward pass, added to
/// what is there; in blocks of whole rows and with one that is not whole.
#[test]
fn at_once_is_forward_and_backward() {
    let in_two_blocks = (WHOLE_BYTES / 8 / (TILE * 8)).min(ROWS) + 5;
    for (rows, vocabulary) in [(0, 5), (1, 3), (9, TILE + 321), (in_two_blocks, TILE * 8)] {
        let (h, w) = (random([rows, 3], 0), random([vocabulary, 3], 1));
        let g = random([1, rows], 2).reshape([rows]).unwrap();
        let targets: Vec<u32> = (0..rows as u32).map(|r| r * 31 % vocabulary as u32).collect();
        for o in [LmHead::default(), LmHead { scale: 0.5, softcap: Some(3.0) }] {
            let plain = forward(&h, &w, &targets, &o).unwrap();
            let (mut want, mut got) = (random([vocabulary, 3], 4), random([vocabulary, 3], 4));
            let back = backward(&g, &h, &w, &targets, &plain.lse, &o, Some(&mut want)).unwrap();
            let (out, dhidden) = forward_and_backward(&g, &h, &w, &targets, &o, &mut got).unwrap();
            let numbers = |t: &Tensor| t.as_slice::<f64>().unwrap().to_vec();
            assert_eq!(numbers(&out.logprobs), numbers(&plain.logprobs));
            assert_eq!(numbers(&out.entropy), numbers(&plain.entropy));
            assert_eq!(out.correct.read().unwrap(), plain.correct.read().unwrap());
            for (got, want) in [(&dhidden, &back), (&got, &want)] {
                // Orders of sums of a few thousand terms below 1 in f64.
                assert!(numbers(got).iter().zip(numbers(want)).all(|(g, w)| (g - w).abs() <= 1e-11));
            }
        }
    }
    let (h, w) = (random([2, 3], 0), random([4, 3], 1));
    let (g, mut dw) = (Tensor::full(1.0f64, [3]).unwrap(), random([4, 3], 2));
    assert!(forward_and_backward(&g, &h, &w, &[0, 1], &LmHead::default(), &mut dw).is_err());
}

/// Law 5: a row's bits do not depend on its company, on threads, or on being computed from logits.
#[test]
fn rows_are_independent_bit_for_bit() {
    let (rows, size, vocabulary) = (300, 24, TILE + 100);
    let h = random([rows, size], 2).to_dtype(DType::F32).unwrap();
    let w = random([vocabulary, size], 3).to_dtype(DType::BF16).unwrap();
    let targets: Vec<u32> = (0..rows as u32).map(|r| r * 7 % vocabulary as u32).collect();
    let o = LmHead::default();
    let whole = forward(&h, &w, &targets, &o).unwrap();
    let want: Vec<u32> = whole.logprobs.as_slice::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
    for threads in 1..=4 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            for (start, len) in [(0, 1), (299, 1), (100, 37), (20, 280)] {
                let part = h.narrow(0, start, len).unwrap();
                let out = forward(&part, &w, &targets[start..start + len], &o).unwrap();
                let got: Vec<u32> = out.logprobs.as_slice::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
                assert_eq!(got, want[start..start + len], "{len} rows from {start} on {threads} threads");
                let mut logits = super::super::linear::forward(&part, &w, None).unwrap();
                let row = &mut logits.as_slice_mut::<f32>().unwrap()[..vocabulary];
                assert_eq!(from_logits(row, targets[start], &o).0.to_bits(), want[start]);
            }
        });
    }
}

#[test]
fn wrong_input_is_refused() {
    let (h, w) = (random([2, 3], 0), random([4, 3], 1));
    let o = LmHead::default();
    assert!(matches!(forward(&h, &w, &[0, 4], &o), Err(Error::OutOfRange { index: 4, len: 4, .. })));
    assert!(forward(&h, &w, &[0], &o).is_err());
    assert!(forward(&h, &random([4, 2], 1), &[0, 1], &o).is_err());
    assert!(forward(&h, &w, &[0, 1], &LmHead { softcap: Some(0.0), ..o }).is_err());
    assert!(forward(&h, &Tensor::full(bf16::ONE, [4, 3]).unwrap(), &[0, 1], &o).is_ok());
    assert_eq!(forward(&random([0, 3], 0), &w, &[], &o).unwrap().logprobs.numel(), 0);
}
