use super::*;
use crate::DType;
use crate::rng::{Purpose, Stream};

fn random(shape: [usize; 2], salt: u64) -> Tensor {
    let s = Stream::new(9, Purpose::Data, salt);
    Tensor::from_vec((0..shape[0] * shape[1]).map(|i| s.normal(i as u64)).collect::<Vec<f64>>(), shape).unwrap()
}

/// Log-probabilities of a row, whole.
fn row(h: &Tensor, w: &Tensor, o: &LmHead, temperature: f64, r: usize) -> Vec<f64> {
    let (size, h, w) = (h.dims()[1], h.as_slice::<f64>().unwrap(), w.as_slice::<f64>().unwrap());
    let z: Vec<f64> = w
        .chunks(size)
        .map(|w| w.iter().zip(&h[r * size..]).map(|(a, b)| a * b).sum::<f64>() * o.scale)
        .map(|z| o.softcap.map_or(z, |c| c * (z / c).tanh()) / temperature)
        .collect();
    let lse = z.iter().map(|z| z.exp()).sum::<f64>().ln();
    z.iter().map(|z| z - lse).collect()
}

fn definition(s: &[f64], t: &[f64], beta: f64) -> f64 {
    let kl = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    let m: Vec<f64> = s.iter().zip(t).map(|(s, t)| (beta * t.exp() + (1.0 - beta) * s.exp()).ln()).collect();
    match beta {
        0.0 => kl(t, s),
        1.0 => kl(s, t),
        _ => beta * kl(t, &m) + (1.0 - beta) * kl(s, &m),
    }
}

const BETAS: [f64; 4] = [0.0, 0.3, 0.5, 1.0];

#[test]
fn equals_the_definition_over_several_tiles() {
    let vocabulary = TILE + 321;
    let (h, w) = (random([4, 7], 0), random([vocabulary, 7], 1));
    let (th, tw) = (random([4, 5], 2), random([vocabulary, 5], 3));
    let (o, to) = (LmHead { scale: 0.5, softcap: Some(3.0) }, LmHead { scale: 0.7, softcap: None });
    for beta in BETAS {
        let what = Divergence { beta, temperature: 1.4 };
        let out = forward(&h, &w, &o, &Teacher::Head { hidden: &th, weight: &tw, options: to }, &what).unwrap();
        for r in 0..4 {
            let (s, t) = (row(&h, &w, &o, 1.4, r), row(&th, &tw, &to, 1.4, r));
            let (got, want) = (out.divergence.as_slice::<f64>().unwrap()[r], definition(&s, &t, beta));
            // f64 sums of 3393 terms of order 1e-3.
            assert!((got - want).abs() <= 1e-12, "beta {beta}: {got}, not {want}");
            let entropy: f64 = s.iter().map(|s| -s * s.exp()).sum();
            assert!((out.entropy.as_slice::<f64>().unwrap()[r] - entropy).abs() <= 1e-11);
            let best = |x: &[f64]| (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b])).unwrap();
            assert_eq!(out.agrees[r], best(&s) == best(&t));
        }
    }
}

/// From k tokens: the definition over k + 1 events; never above the whole, and equal to it with all tokens.
#[test]
fn k_tokens_give_a_lower_bound() {
    let vocabulary = TILE + 50;
    let (h, w) = (random([3, 6], 0), random([vocabulary, 6], 1));
    let (th, tw) = (random([3, 4], 2), random([vocabulary, 4], 3));
    let o = LmHead::default();
    for beta in BETAS {
        let what = Divergence { beta, temperature: 1.0 };
        let whole = forward(&h, &w, &o, &Teacher::Head { hidden: &th, weight: &tw, options: o }, &what).unwrap();
        for k in [1, 8, vocabulary] {
            let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
            for r in 0..3 {
                let t = row(&th, &tw, &o, 1.0, r);
                let mut order: Vec<usize> = (0..vocabulary).collect();
                order.sort_by(|&a, &b| t[b].total_cmp(&t[a]));
                ids.extend(order[..k].iter().map(|&v| v as u32));
                logprobs.extend(order[..k].iter().map(|&v| t[v]));
            }
            let out = forward(&h, &w, &o, &Teacher::Top { ids: &ids, logprobs: &logprobs, k }, &what).unwrap();
            for r in 0..3 {
                let s = row(&h, &w, &o, 1.0, r);
                let top = &ids[r * k..(r + 1) * k];
                let mut events: Vec<f64> = top.iter().map(|&v| s[v as usize]).collect();
                let mut theirs = logprobs[r * k..(r + 1) * k].to_vec();
                if k < vocabulary {
                    let sum: f64 = (0..vocabulary).filter(|v| !top.contains(&(*v as u32))).map(|v| s[v].exp()).sum();
                    events.push(sum.ln());
                    theirs.push((1.0 - theirs.iter().map(|t| t.exp()).sum::<f64>()).max(LEAST).ln());
                }
                let got = out.divergence.as_slice::<f64>().unwrap()[r];
                let (want, all) = (definition(&events, &theirs, beta), whole.divergence.as_slice::<f64>().unwrap()[r]);
                assert!((got - want).abs() <= 1e-11, "beta {beta}, k {k}: {got}, not {want}");
                assert!(got <= all + 1e-11, "beta {beta}, k {k}: {got} above {all}");
                assert!(k < vocabulary || (got - all).abs() <= 1e-11);
                assert_eq!(out.agrees[r], whole.agrees[r]);
            }
        }
    }
}

/// A row's bits do not depend on its company or on threads; a student that is its teacher is at 0.
#[test]
fn rows_are_independent_bit_for_bit() {
    let (rows, size, vocabulary) = (300, 24, TILE + 100);
    let narrow = |t: Tensor, dtype| t.to_dtype(dtype).unwrap();
    let (h, w) = (narrow(random([rows, size], 2), DType::F32), narrow(random([vocabulary, size], 3), DType::BF16));
    let (th, tw) = (narrow(random([rows, size], 4), DType::F32), narrow(random([vocabulary, size], 5), DType::F32));
    let o = LmHead { scale: 0.2, softcap: None };
    let bits = |t: &Tensor| -> Vec<u32> { t.as_slice::<f32>().unwrap().iter().map(|x| x.to_bits()).collect() };
    for beta in BETAS {
        let what = Divergence { beta, temperature: 1.0 };
        let whole = forward(&h, &w, &o, &Teacher::Head { hidden: &th, weight: &tw, options: o }, &what).unwrap();
        let ones = Tensor::full(1.0f32, [rows]).unwrap();
        let teacher = Teacher::Head { hidden: &th, weight: &tw, options: o };
        let gradient = backward(&ones, &h, &w, &o, &teacher, &what, &whole, None).unwrap();
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                for (start, len) in [(0, 1), (100, 37)] {
                    let part = |t: &Tensor| t.narrow(0, start, len).unwrap();
                    let (h, th) = (part(&h), part(&th));
                    let teacher = Teacher::Head { hidden: &th, weight: &tw, options: o };
                    let out = forward(&h, &w, &o, &teacher, &what).unwrap();
                    assert_eq!(bits(&out.divergence), bits(&whole.divergence)[start..start + len]);
                    let ones = Tensor::full(1.0f32, [len]).unwrap();
                    let dh = backward(&ones, &h, &w, &o, &teacher, &what, &out, None).unwrap();
                    assert_eq!(bits(&dh), bits(&gradient)[start * size..(start + len) * size]);
                }
            });
        }
        let same = Teacher::Head { hidden: &h, weight: &w, options: o };
        let out = forward(&h, &w, &o, &same, &what).unwrap();
        // Exactly nothing for the KL divergences; the mixture's logarithm is rounded.
        assert!(out.divergence.as_slice::<f32>().unwrap().iter().all(|d| d.abs() <= 1e-6), "beta {beta}");
        assert!(out.agrees.iter().all(|a| *a));
    }
}

#[test]
fn wrong_input_is_refused() {
    let (h, w) = (random([2, 3], 0), random([4, 3], 1));
    let o = LmHead::default();
    let what = Divergence { beta: 0.5, temperature: 1.0 };
    let head = |hidden, weight| Teacher::Head { hidden, weight, options: o };
    let (other, longer, more) = (random([4, 2], 2), random([5, 3], 2), random([3, 3], 0));
    assert!(forward(&h, &w, &o, &head(&h, &w), &what).is_ok());
    assert!(forward(&h, &w, &o, &head(&h, &longer), &what).is_err(), "another vocabulary");
    assert!(forward(&h, &w, &o, &head(&h, &other), &what).is_err());
    assert!(forward(&h, &w, &o, &head(&more, &w), &what).is_err(), "other rows");
    for bad in [(-0.1, 1.0), (1.1, 1.0), (f64::NAN, 1.0), (0.5, 0.0), (0.5, f64::INFINITY)] {
        let what = Divergence { beta: bad.0, temperature: bad.1 };
        assert!(matches!(forward(&h, &w, &o, &head(&h, &w), &what), Err(Error::InvalidValue { .. })), "{bad:?}");
    }
    let top = |ids, logprobs, k| Teacher::Top { ids, logprobs, k };
    let p = [-1.0, -2.0, -1.0, -2.0];
    assert!(forward(&h, &w, &o, &top(&[0, 1, 3, 2], &p, 2), &what).is_ok());
    assert!(forward(&h, &w, &o, &top(&[0, 1, 3], &p, 2), &what).is_err());
    assert!(forward(&h, &w, &o, &top(&[0, 0, 3, 2], &p, 2), &what).is_err(), "a token twice");
    assert!(matches!(forward(&h, &w, &o, &top(&[0, 4, 3, 2], &p, 2), &what), Err(Error::OutOfRange { .. })));
    assert!(forward(&h, &w, &o, &top(&[0, 1, 3, 2], &[0.5, -2.0, -1.0, -2.0], 2), &what).is_err());
    let (nothing, none) = (random([0, 3], 0), Teacher::Top { ids: &[], logprobs: &[], k: 2 });
    assert_eq!(forward(&nothing, &w, &o, &none, &what).unwrap().divergence.numel(), 0);
}
