//! Ops on a device at the edges: nothing, one, odd sizes, views. (That each computes what it should at ordinary sizes,
//! forward and backward, is what `planish doctor --device emulator` and its test check.)

use planish_tensor::ops::attention::{self, Attention, CachedPass, KeyValues};
use planish_tensor::ops::cayley::{self, Cayley};
use planish_tensor::ops::glu::Act;
use planish_tensor::ops::lm_head::{self, LmHead};
use planish_tensor::ops::lora_linear::Lora;
use planish_tensor::ops::{
    block_rotate, concat, dora_linear, dropout, elementwise, embedding, gather, glu, index_select, layer_norm, linear,
    lstm, reduction, rms_norm, rope, scatter_add, softmax, unary, view,
};
use planish_tensor::rng::{Purpose, Rows, Stream};
use planish_tensor::{DType, Device, Result, Tensor};

use crate::emulator;

fn random(dims: &[usize], salt: u64) -> Tensor {
    let s = Stream::new(salt, Purpose::Data, 0);
    let n = dims.iter().product::<usize>() as u64;
    Tensor::from_vec((0..n).map(|i| s.normal(i) as f32).collect(), dims).unwrap()
}

/// Runs `f` here and there, on tensors that its argument places.
fn same(device: Device, what: &str, f: impl Fn(&dyn Fn(Tensor) -> Tensor) -> Result<Vec<Tensor>>) {
    let run = |device: Device| f(&|t: Tensor| t.to_device(device).unwrap()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let (here, there) = (run(Device::Cpu), run(device));
    assert_eq!(here.len(), there.len());
    for (i, (want, got)) in here.iter().zip(&there).enumerate() {
        assert_eq!(got.device(), device, "{what}: result {i}");
        assert_eq!((got.dims(), got.dtype()), (want.dims(), want.dtype()), "{what}: result {i}");
        let values = |t: &Tensor| {
            let wide = t.to_device(Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
            wide.to_vec::<f64>().unwrap()
        };
        let (want, got) = (values(want), values(got));
        // Sums of a few dozen numbers of about 1, each operation a rounding of 6e-8.
        let size = want.iter().filter(|x| x.is_finite()).fold(1.0f64, |size, x| size.max(x.abs()));
        for (w, g) in want.iter().zip(&got) {
            let equal = w == g || (w.is_nan() && g.is_nan()) || (w - g).abs() <= 5e-6 * size;
            assert!(equal, "{what}, result {i}: {g} for {w}");
        }
    }
}

#[test]
fn nothing_is_computed_of_nothing() {
    let Some(device) = emulator(21) else { return };
    let all: [(&str, &[usize]); 4] =
        [("no rows", &[0, 5]), ("no columns", &[3, 0]), ("one", &[1, 1]), ("odd", &[3, 7])];
    for (what, dims) in all {
        same(device, &format!("elementwise, {what}"), |put| {
            let (a, b) = (put(random(dims, 1)), put(random(&dims[1..], 2)));
            let mut sum = a.copied()?;
            elementwise::add_assign(&mut sum, &a)?;
            Ok(vec![
                elementwise::add(&a, &b)?,
                elementwise::mul(&b, &a)?,
                elementwise::scale(&a, -0.3)?,
                elementwise::add_scalar(&a, 0.7)?,
                sum,
                unary::forward(unary::Unary::Softcap(2.0), &a)?,
                glu::forward(Act::GeluTanh, &a, &a)?,
                a.to_dtype(DType::BF16)?,
            ])
        });
        same(device, &format!("reductions, {what}"), |put| {
            let a = put(random(dims, 1));
            Ok(vec![
                reduction::sum(&a)?,
                reduction::mean(&a)?,
                reduction::sum_axis(&a, 0)?,
                reduction::sum_axis(&a, 1)?,
                reduction::sum_to(&a, &[1, dims[1]])?,
                softmax::logsumexp(&a)?,
            ])
        });
        same(device, &format!("rows, {what}"), |put| {
            let a = put(random(dims, 1));
            let ids = if dims[0] == 0 { vec![] } else { vec![0, dims[0] as u32 - 1, 0] };
            let rows = index_select::forward(&a, &ids)?;
            let keys = Rows::new(Stream::new(1, Purpose::Dropout, 0), (0..dims[0] as u64).collect());
            Ok(vec![
                scatter_add::forward(&a, &ids, &rows)?,
                rows,
                embedding::forward(&a.to_dtype(DType::F16)?, &ids)?,
                concat::forward(&[&a, &a.narrow(1, 0, dims[1] / 2)?, &a], 1)?,
                concat::forward(&[&a.narrow(0, 0, 0)?, &a], 0)?,
                dropout::forward(&a, 0.4, &keys)?,
            ])
        });
        if dims[1] == 0 {
            continue;
        }
        same(device, &format!("norms and softmax, {what}"), |put| {
            let (a, w) = (put(random(dims, 1)), put(random(&dims[1..], 2)));
            let (y, r) = rms_norm::forward(&a, &w, 1e-5, 1.0)?;
            let (z, stats) = layer_norm::forward(&a, &w, Some(&w), 1e-5)?;
            let mut dw = put(random(&dims[1..], 3));
            let dx = rms_norm::backward(&y, &a, &w, &r, None, 1.0, Some(&mut dw))?;
            let mut dv = put(random(&dims[1..], 3));
            layer_norm::backward_weight_add(&z, &a, &stats, &mut dv)?;
            let (best, index) = reduction::max_axis(&a, 1)?;
            Ok(vec![y, r, z, dx, dw, dv, softmax::softmax(&a)?, softmax::log_softmax(&a)?, best, index])
        });
        same(device, &format!("linear and head, {what}"), |put| {
            let (a, w) = (put(random(dims, 1)), put(random(&[9, dims[1]], 2)));
            let y = linear::forward(&a, &w, Some(&put(random(&[9], 3))))?;
            let mut dw = put(random(&[9, dims[1]], 4));
            linear::backward_weight_add(&y, &a, &mut dw)?;
            let targets: Vec<u32> = (0..dims[0] as u32).map(|r| r * 4 % 9).collect();
            let options = LmHead { scale: 0.5, softcap: Some(3.0) };
            let (out, gradient) = lm_head::forward_with_gradient(&a, &w, &targets, &options)?;
            let dx = linear::backward_input(&y, &w)?;
            let logits = lm_head::logits(&a, &w, &options)?;
            let again = lm_head::logprobs_of_logits(&logits, &targets)?;
            let (g, mut all) = (put(random(&[dims[0]], 5)), vec![y, dw, dx]);
            let mut dw = put(random(&[9, dims[1]], 6));
            let (scores, dh) = lm_head::forward_and_backward(&g, &a, &w, &targets, &options, &mut dw)?;
            all.extend([out.logprobs, out.entropy, gradient, logits, again, scores.logprobs, scores.entropy, dw, dh]);
            Ok(all)
        });
    }
}

#[test]
fn views_go_in_as_they_are() {
    let Some(device) = emulator(22) else { return };
    same(device, "views", |put| {
        let a = put(random(&[6, 5, 4], 1));
        let cut = a.narrow(1, 1, 3)?.transpose(0, 2)?; // (4, 3, 6)
        let stretched = put(random(&[1, 3, 1], 2)).broadcast_to([4, 3, 6])?;
        let flat = cut.reshape([12, 6])?;
        let weight = put(random(&[7, 9], 3)).narrow(1, 2, 6)?;
        let columns = put(random(&[6, 7], 4)).transpose(0, 1)?;
        let mut dx = put(random(&[6, 5, 4], 5)).narrow(2, 1, 2)?;
        view::narrow_backward_add(&cut.narrow(0, 0, 2)?.transpose(0, 2)?, 1, 2, &mut dx)?;
        let index = Tensor::from_vec(vec![2u32, 0, 2, 5, 1, 3, 4, 4], [4, 2]).unwrap();
        let picked = gather::forward(&cut.narrow(1, 1, 1)?.reshape([4, 6])?, &index)?;
        let mut dg = put(random(&[4, 6], 6));
        gather::backward_add(&picked, &index, &mut dg)?;
        let mut written = a.clone();
        written.write(2, 1, &put(random(&[2, 5, 6], 7)).transpose(0, 2)?)?;
        Ok(vec![
            elementwise::mul(&cut, &stretched)?,
            linear::forward(&flat, &weight, None)?,
            linear::forward(&cut, &columns, None)?,
            linear::forward(&flat.transpose(0, 1)?.copied()?.transpose(0, 1)?, &columns, None)?,
            reduction::sum_axis(&cut, 1)?,
            reduction::max_axis(&cut, 0)?.0,
            softmax::softmax(&cut)?,
            dx,
            picked,
            dg,
            written,
            a,
        ])
    });
}

#[test]
fn attention_and_rotation_at_the_edges() {
    let Some(device) = emulator(23) else { return };
    let causal = Attention::causal(0.4);
    let kinds =
        [causal, Attention { window: Some(2), ..causal }, Attention { causal: false, softcap: Some(1.5), ..causal }];
    for (cu_q, cu_k) in
        [(&[0u32, 0, 1, 4][..], &[0u32, 0, 3, 6][..]), (&[0, 5], &[0, 5]), (&[0, 0], &[0, 2]), (&[0], &[0])]
    {
        let (queries, keys) = (cu_q[cu_q.len() - 1] as usize, cu_k[cu_k.len() - 1] as usize);
        for kind in kinds {
            same(device, &format!("{cu_q:?} {cu_k:?} {kind:?}"), |put| {
                let (q, k) = (put(random(&[queries, 6, 5], 1)), put(random(&[keys, 2, 5], 2)));
                let v = put(random(&[keys, 2, 5], 3));
                let dout = put(random(&[queries, 6, 5], 4));
                let (out, lse) = attention::forward(&q, &k, &v, cu_q, cu_k, &kind)?;
                let (dq, dk, dv) = attention::backward(&dout, &q, &k, &v, &out, &lse, cu_q, cu_k, &kind)?;
                Ok(vec![out, lse, dq, dk, dv])
            });
        }
    }
    same(device, "rope", |put| {
        let x = put(random(&[3, 2, 7], 1)).narrow(2, 1, 6)?;
        let (cos, sin) = (put(random(&[3, 2], 2)), put(random(&[3, 2], 3)));
        Ok(vec![rope::forward(&x, &cos, &sin)?, rope::backward(&x, &cos, &sin)?])
    });
}

/// What adapters compute: lengths of rows, rotations, an encoder's recurrence.
#[test]
fn adapters_at_the_edges() {
    let Some(device) = emulator(26) else { return };
    for (rows, width, out) in [(0, 6, 4), (1, 2, 1), (5, 12, 9)] {
        for p in [0.0, 0.4] {
            same(device, &format!("dora_linear, {rows} × {width} to {out}, dropout {p}"), |put| {
                let put = |dims: &[usize], salt| put(random(dims, salt));
                let (x, w, bias) = (put(&[rows, width], 1), put(&[width, out], 2).transpose(0, 1)?, put(&[out], 3));
                let (a, b, m) = (put(&[3, width], 4), put(&[out, 3], 5), put(&[out], 6));
                let keys = Rows::new(Stream::new(1, Purpose::Dropout, 0), (0..rows as u64).collect());
                let lora = Lora { scale: 0.3, dropout: (p > 0.0).then_some((p, keys)) };
                let norms = dora_linear::row_norms(&w, &a, &b, 0.3)?;
                let (parts, lengths) = ((&a, &b), (&m, &norms));
                let o = dora_linear::forward(&x, &w, Some(&bias), parts, lengths, &lora)?;
                let (mut da, mut db, mut dm) = (put(&[3, width], 7), put(&[out, 3], 8), put(&[out], 9));
                let wanted =
                    dora_linear::Wanted { input: true, a: Some(&mut da), b: Some(&mut db), magnitude: Some(&mut dm) };
                let dx = dora_linear::backward(&o.y, &x, &w, parts, lengths, (&o.z, &o.h), &lora, wanted)?;
                Ok(vec![norms, o.y, dx.expect("wanted"), da, db, dm])
            });
        }
        for n in [1, width / 2, width] {
            same(device, &format!("block_rotate, {rows} × {width} by {n}"), |put| {
                let mut all = Vec::new();
                for blocks in [1, width / n] {
                    let (x, r) = (put(random(&[width, rows], 1)).transpose(0, 1)?, put(random(&[blocks, n, n], 2)));
                    let y = block_rotate::forward(&x, &r)?;
                    let mut dr = put(random(&[blocks, n, n], 3));
                    block_rotate::backward_r_add(&y, &x, &mut dr)?;
                    all.extend([block_rotate::backward_input(&x, &r)?, y, dr]);
                }
                Ok(all)
            });
        }
        for reverse in [false, true] {
            same(device, &format!("lstm, {rows} steps of {out}, reverse: {reverse}"), |put| {
                let w = put(random(&[out, 4 * out], 2)).transpose(0, 1)?;
                let (h, saved) = lstm::forward(&put(random(&[rows, 4 * out], 1)), &w, reverse)?;
                let (dgates, dw) = lstm::backward(&put(random(&[out, rows], 3)).transpose(0, 1)?, &w, &saved, reverse)?;
                Ok(vec![h, dgates, dw])
            });
        }
    }
    for (blocks, n) in [(0, 3), (1, 1), (2, 2), (3, 5)] {
        for kind in [Cayley::Exact, Cayley::Series(1), Cayley::Series(2), Cayley::Series(3), Cayley::Series(6)] {
            same(device, &format!("cayley, {blocks} of {n}, {kind:?}"), |put| {
                let entries = n * (n - 1) / 2;
                let q = elementwise::scale(&put(random(&[blocks, entries + 2], 1)).narrow(1, 1, entries)?, 0.2)?;
                let dr = put(random(&[blocks, n, n], 2)).transpose(1, 2)?;
                Ok(vec![cayley::forward(&q, n, kind)?, cayley::backward(&dr, &q, n, kind)?])
            });
        }
    }
}

/// An addition and the norm after it, at once.
#[test]
fn sums_and_their_norms() {
    let Some(device) = emulator(24) else { return };
    for dims in [[0, 6], [3, 6], [2, 1029]] {
        same(device, "rms_norm with an addition", |put| {
            let (x, added, w) = (put(random(&dims, 1)), put(random(&dims, 2)), put(random(&dims[1..], 3)));
            let (sum, y, r) = rms_norm::forward_added(&x, &added, &w, 1e-6, 1.0)?;
            assert!(rms_norm::forward_added(&x, &w, &w, 1e-6, 1.0).is_err());
            let mut dw = put(random(&dims[1..], 4));
            let dx = rms_norm::backward(&y, &sum, &w, &r, Some(&added), 1.0, Some(&mut dw))?;
            Ok(vec![dx, dw, rms_norm::backward(&y, &sum, &w, &r, Some(&x), 1.0, None)?, sum, y, r])
        });
    }
}

/// Keys and values of several sequences, turned on their way and attended to, with heads that no kernel of halves takes.
#[test]
fn caches_of_several_sequences() {
    let Some(device) = emulator(25) else { return };
    for window in [None, Some(3)] {
        same(device, "caches", |put| {
            let on = put(random(&[1], 0)).device();
            let mut caches = [(); 3].map(|()| KeyValues::new(2, 2, 6, DType::F32, on));
            let kind = Attention { window, ..Attention::causal(0.4) };
            let mut all = Vec::new();
            let mut held = vec![0; 3];
            for (step, new) in [[5, 0, 2], [1, 4, 1], [70, 1, 0]].into_iter().enumerate() {
                let cu = [0, new[0], new[0] + new[1], new[0] + new[1] + new[2]].map(|n| n as u32);
                let tokens = cu[3] as usize;
                let mut pass = CachedPass::new(caches.iter_mut().collect(), held.clone(), &cu, &cu)?;
                for layer in 0..2 {
                    let salt = 10 * (2 * step + layer) as u64;
                    let x = |heads, i| put(random(&[tokens, heads, 6], salt + i));
                    let (q, k, v) = (x(4, 1), x(2, 2), x(2, 3));
                    let (cos, sin) = (put(random(&[tokens, 2], 4)), put(random(&[tokens, 2], 5)));
                    let tables = (layer == 0).then_some([&cos, &sin]);
                    let q = pass.append(layer, Some(&q), [&k, &v], tables)?.expect("queries were given");
                    all.push(pass.attend(layer, &q, &kind)?);
                    all.push(q);
                    assert!(pass.append(layer, None, [&k, &put(random(&[1, 2, 6], 0))], None).is_err());
                }
                held.iter_mut().zip(new).for_each(|(held, new)| *held += new);
            }
            Ok(all)
        });
    }
}
