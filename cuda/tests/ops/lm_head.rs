//! lm_head.

use planish_cuda::driver::Arg;
use planish_cuda::kernels::LM_HEAD;
use planish_cuda::ops::linear;
use planish_cuda::ops::lm_head::{self, Gradients, LmHead, Output, Rows, TILE};
use planish_cuda::{DType, Device, Shape};

use crate::shapes;
use crate::support::*;

fn check(device: &Device, rows: usize, size: usize, vocabulary: usize, head: LmHead, t: DType) {
    let (queue, f32) = (device.queue(), DType::F32);
    let hidden = random(rows * size, t, 1);
    // Logits of a few units, as a model's.
    let weight: Vec<f64> = random(vocabulary * size, t, 2).iter().map(|w| round(w / (size as f64).sqrt(), t)).collect();
    let targets: Vec<u32> = (0..rows).map(|r| ((r * 7919 + vocabulary - 1) % vocabulary) as u32).collect();
    let d = random(rows, f32, 3);
    let (scale, cap) = (f64::from(head.scale), head.softcap.map(f64::from));
    let (mut logprobs, mut entropy, mut lse, mut best) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut dh, mut dw) = (vec![0.0; rows * size], vec![0.0; vocabulary * size]);
    for r in 0..rows {
        let h = &hidden[r * size..][..size];
        let z: Vec<f64> = weight
            .chunks(size)
            .map(|w| scale * h.iter().zip(w).map(|(h, w)| h * w).sum::<f64>())
            .map(|z| cap.map_or(z, |c| c * (z / c).tanh()))
            .collect();
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = top + z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
        lse.push(sum);
        logprobs.push(z[targets[r] as usize] - sum);
        entropy.push(z.iter().map(|z| (sum - z) * (z - sum).exp()).sum());
        best.push(z.iter().position(|&z| z == top).unwrap() as u32);
        for (v, z) in z.iter().enumerate() {
            let hot = if v == targets[r] as usize { 1.0 } else { 0.0 };
            let slope = scale * cap.map_or(1.0, |c| 1.0 - (z / c).powi(2));
            let dz = d[r] * (hot - (z - sum).exp()) * slope;
            for c in 0..size {
                dh[r * size + c] += dz * weight[v * size + c];
                dw[v * size + c] += dz * h[c];
            }
        }
    }
    let (hs, ws, ts, ds) = (
        put(queue, &hidden, t),
        put(queue, &weight, t),
        queue.upload("a test", &targets).unwrap(),
        put(queue, &d, f32),
    );
    let of = Rows { hidden: hs.slice(t), weight: ws.slice(t), targets: ts.slice(DType::U32) };
    let [mut a, mut b, mut c] = [0; 3].map(|_| room(queue, rows, f32));
    let mut e = room(queue, rows, DType::U32);
    let out = Output {
        logprobs: a.slice_mut(f32),
        entropy: Some(b.slice_mut(f32)),
        lse: c.slice_mut(f32),
        best: e.slice_mut(DType::U32),
    };
    lm_head::forward(queue, out, of, &head).unwrap();
    close("logprobs", &get(&a, f32), &logprobs, 3e-6);
    close("entropy", &get(&b, f32), &entropy, 3e-6);
    close("lse", &get(&c, f32), &lse, 3e-6);
    assert_eq!(e.download::<u32>().unwrap(), best);
    let before = [&a, &b, &c].map(|x| get(x, f32));
    let mut unit = room(queue, rows * size, f32);
    let out = Output {
        logprobs: a.slice_mut(f32),
        entropy: Some(b.slice_mut(f32)),
        lse: c.slice_mut(f32),
        best: e.slice_mut(DType::U32),
    };
    let to = Gradients { dlogprobs: None, dhidden: unit.slice_mut(f32), dweight: None };
    lm_head::forward_with_gradients(queue, out, to, of, &head).unwrap();
    assert!([&a, &b, &c].map(|x| get(x, f32)) == before && e.download::<u32>().unwrap() == best);
    // ∂logprob/∂h, of which the upstream gradient makes dhidden.
    let scaled: Vec<f64> = get(&unit, f32).iter().enumerate().map(|(i, u)| u * d[i / size]).collect();
    close("the gradient", &scaled, &dh, if t == f32 { 1e-5 } else { tolerance(t) });
    let mut dhidden = room(queue, rows * size, f32);
    let mut dweight = queue.zeros("a test", vocabulary * size, f32).unwrap();
    let dlogprobs = Some(ds.slice(f32));
    let to = Gradients { dlogprobs, dhidden: dhidden.slice_mut(f32), dweight: Some(dweight.slice_mut(f32)) };
    lm_head::backward(queue, to, c.slice(f32), of, &head).unwrap();
    // dz is rounded to t.
    let most = if t == f32 { 1e-5 } else { tolerance(t) };
    close("dhidden", &get(&dhidden, f32), &dh, most);
    close("dweight", &get(&dweight, f32), &dw, most);

    // All in one pass: the same, added to a gradient that is there.
    let (again, back) = (get(&dhidden, f32), get(&dweight, f32));
    let first = random(vocabulary * size, f32, 4);
    let (mut dhidden, mut dweight) = (room(queue, rows * size, f32), put(queue, &first, f32));
    let to = Gradients { dlogprobs, dhidden: dhidden.slice_mut(f32), dweight: Some(dweight.slice_mut(f32)) };
    let out = Output {
        logprobs: a.slice_mut(f32),
        entropy: Some(b.slice_mut(f32)),
        lse: c.slice_mut(f32),
        best: e.slice_mut(DType::U32),
    };
    lm_head::forward_with_gradients(queue, out, to, of, &head).unwrap();
    assert!([&a, &b, &c].map(|x| get(x, f32)) == before && e.download::<u32>().unwrap() == best);
    assert!(get(&dhidden, f32) == again);
    let added: Vec<f64> = back.iter().zip(&first).map(|(x, y)| x + y).collect();
    close("dweight added", &get(&dweight, f32), &added, 1e-6);
}

shapes! {
    fn the_head_equals_its_definition(queue; rows in 0usize..5, size in 1usize..5, vocabulary in 1usize..200, types in 0usize..3, capped in proptest::bool::ANY; 6 cases) {
        let head = if capped { LmHead { scale: 0.5, softcap: Some(1.0) } } else { LmHead::default() };
        check(queue.device, rows, 8 * size, vocabulary, head, TYPES[types]);
    }
}

#[test]
fn a_vocabulary_of_more_than_a_tile() {
    let Some(device) = device() else { return };
    check(&device, 3, 16, TILE + 321, LmHead::default(), DType::BF16);
}

#[test]
fn more_rows_than_are_taken_at_a_time() {
    let Some(device) = device() else { return };
    check(&device, lm_head::ROWS + 3, 8, 16, LmHead::default(), DType::BF16);
}

/// Both rungs take in two tiles of different maxima.
#[test]
fn the_naive_kernel_agrees() {
    let Some(device) = device() else { return };
    let (queue, f32) = (device.queue(), DType::F32);
    let (rows, width) = (4, 150);
    let logits = [random(rows * width, f32, 1), random(rows * width, f32, 2).iter().map(|z| z + 1.0).collect()];
    let targets = queue.upload("a test", &[3u32, 149, 150, 299]).unwrap();
    let d = defines(&[("T", "f32")]);
    let run = |name, shape: Shape, naive: bool| {
        let (states, best) = (room(queue, 4 * rows, f32), room(queue, rows, DType::U32));
        let begin = [Arg::Ptr(states.ptr()), Arg::Ptr(best.ptr()), Arg::U32(rows as u32)];
        queue.launch(&LM_HEAD, "lm_head_begin", &d, Shape::line(1, 32), &begin).unwrap();
        for (i, z) in logits.iter().enumerate() {
            let z = put(queue, z, f32);
            let mut args = vec![
                Arg::Ptr(states.ptr()),
                Arg::Ptr(best.ptr()),
                Arg::Ptr(z.ptr()),
                Arg::U64(width as u64),
                Arg::Ptr(targets.ptr()),
                Arg::U32((i * width) as u32),
            ];
            args.extend(naive.then_some(Arg::U32(rows as u32)));
            args.push(Arg::U32(width as u32));
            args.extend((!naive).then_some(Arg::U32(width as u32)));
            args.extend([Arg::F32(1.0), Arg::F32(0.0)]);
            queue.launch(&LM_HEAD, name, &d, shape, &args).unwrap();
        }
        (get(&states, f32), best.download::<u32>().unwrap())
    };
    let (shipped, best) = run("lm_head_take", Shape::line(rows, 128), false);
    let (naive, naive_best) = run("lm_head_take_naive", Shape::line(1, 32), true);
    assert_eq!(best, naive_best);
    close("states", &shipped, &naive, 1e-6);
}

/// Law 5: a row's log-probability is the same bits in company, alone, and from the logits of decoding.
#[test]
fn a_rows_bits_do_not_depend_on_company_or_on_decoding() {
    let Some(device) = device() else { return };
    let (queue, t, f32) = (device.queue(), DType::BF16, DType::F32);
    let (rows, size, vocabulary) = (40, 16, TILE + 72);
    let (hs, ws) = (put(queue, &random(rows * size, t, 1), t), put(queue, &random(vocabulary * size, t, 2), t));
    let targets: Vec<u32> = (0..rows as u32).map(|r| (r * 7919 + 5) % vocabulary as u32).collect();
    let ts = queue.upload("a test", &targets).unwrap();
    let head = LmHead { scale: 0.5, softcap: Some(4.0) };
    let run = |start: usize, count: usize, decoding: bool| {
        let hidden = hs.slice(t).part(start * size, count * size).unwrap();
        let targets = ts.slice(DType::U32).part(start, count).unwrap();
        let [mut a, mut b, mut c] = [0; 3].map(|_| room(queue, count, f32));
        let mut best = room(queue, count, DType::U32);
        let entropy = Some(b.slice_mut(f32));
        let out =
            Output { logprobs: a.slice_mut(f32), entropy, lse: c.slice_mut(f32), best: best.slice_mut(DType::U32) };
        if decoding {
            let mut z = room(queue, count * vocabulary, f32);
            linear::forward(queue, z.slice_mut(f32), hidden, ws.slice(t), None, size).unwrap();
            lm_head::from_logits(queue, out, z.slice(f32), targets, vocabulary, &head).unwrap();
        } else {
            lm_head::forward(queue, out, Rows { hidden, weight: ws.slice(t), targets }, &head).unwrap();
        }
        (get(&a, f32), get(&b, f32), best.download::<u32>().unwrap())
    };
    let whole = run(0, rows, false);
    for (start, count, decoding) in [(0, 1, false), (39, 1, true), (5, 3, true), (2, 35, false), (0, 0, true)] {
        let (logprobs, entropy, best) = run(start, count, decoding);
        let part = start..start + count;
        assert_eq!(logprobs, whole.0[part.clone()]);
        assert_eq!(entropy, whole.1[part.clone()]);
        assert_eq!(best, whole.2[part]);
    }
}
