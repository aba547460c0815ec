//! Kernels of adapters: lengths of rows (DoRA), rotations (OFT, BOFT), a recurrent encoder (p-tuning).

use planish_cuda::DType;
use planish_cuda::ops::lstm::Step;
use planish_cuda::ops::{block_rotate, cayley, dora_linear, lstm};

use crate::shapes;
use crate::support::{TYPES, close, get, put, random, room, tolerance};

shapes! {
    fn lengths_of_updated_rows(queue; out in 1usize..40, input in 0usize..300, r in 0usize..6, types in 0usize..3; 10 cases) {
        let t = TYPES[types];
        let (mut w, a) = (random(out * input, t, 1), random(r * input, DType::F32, 2));
        let mut b = random(out * r, DType::F32, 3);
        // A row without a length.
        w[..input].fill(0.0);
        b[..r].fill(0.0);
        let [ws, a_s, bs] = [(&w, t), (&a, DType::F32), (&b, DType::F32)].map(|(x, t)| put(queue, x, t));
        let mut n = room(queue, out, DType::F32);
        let parts = [a_s.slice(DType::F32), bs.slice(DType::F32)];
        dora_linear::norms(queue, n.slice_mut(DType::F32), ws.slice(t), parts, 0.7).unwrap();
        let scale = f64::from(0.7f32);
        let row = |o: usize| -> f64 {
            let v = |i: usize| w[o * input + i] + (0..r).map(|k| scale * b[o * r + k] * a[k * input + i]).sum::<f64>();
            (0..input).map(|i| v(i) * v(i)).sum::<f64>().sqrt()
        };
        let want: Vec<f64> = (0..out).map(row).collect();
        // A chain of r, squared, and one of input / 32 of squares.
        close("norms", &get(&n, DType::F32), &want, 2e-6);
        assert_eq!(get(&n, DType::F32)[0], 0.0);

        let m = random(out, DType::F32, 4);
        let (ms, mut g) = (put(queue, &m, DType::F32), room(queue, out, DType::F32));
        dora_linear::gains(queue, g.slice_mut(DType::F32), ms.slice(DType::F32), n.slice(DType::F32)).unwrap();
        let n = get(&n, DType::F32);
        let gains: Vec<f64> = m.iter().zip(&n).map(|(m, &n)| if n == 0.0 { 0.0 } else { m / n }).collect();
        close("gains", &get(&g, DType::F32), &gains, 2e-7);
        assert_eq!(get(&g, DType::F32)[0], 0.0);

        let rows = input % 5;
        let x = random(rows * out, t, 5);
        let (xs, mut y) = (put(queue, &x, t), room(queue, rows * out, t));
        dora_linear::columns(queue, y.slice_mut(t), xs.slice(t), g.slice(DType::F32)).unwrap();
        let g = get(&g, DType::F32);
        let want: Vec<f64> = x.iter().enumerate().map(|(i, x)| x * g[i % out]).collect();
        close("columns", &get(&y, t), &want, tolerance(t));
    }
}

#[test]
fn sizes_that_do_not_agree_are_refused() {
    let Some(device) = crate::support::device() else { return };
    let queue = device.queue();
    let x = put(queue, &random(6, DType::F32, 1), DType::F32);
    let (mut four, all) = (room(queue, 4, DType::F32), x.slice(DType::F32));
    assert!(dora_linear::norms(queue, four.slice_mut(DType::F32), all, [all, all], 1.0).is_err());
    assert!(dora_linear::gains(queue, four.slice_mut(DType::F32), all, all).is_err());
    let mut six = room(queue, 6, DType::F32);
    assert!(dora_linear::norms(queue, six.slice_mut(DType::F32), all, [all, all], 1.0).is_err());
    assert!(dora_linear::columns(queue, six.slice_mut(DType::F32), all, four.slice(DType::F32)).is_err());
    assert!(
        block_rotate::forward(queue, six.slice_mut(DType::F32), all, four.slice(DType::F32), [6, 3], false).is_err()
    );
    assert!(block_rotate::forward(queue, six.slice_mut(DType::F32), all, all, [6, 4], false).is_err());
    assert!(block_rotate::blocks_add(queue, six.slice_mut(DType::F32), all, all, [6, 2]).is_err());
    assert!(cayley::forward(queue, four.slice_mut(DType::F32), all, 2, 0).is_err());
    assert!(cayley::forward(queue, six.slice_mut(DType::F32), all, 0, 0).is_err());
}

shapes! {
    fn blocks_turn_their_features(queue; groups in 1usize..6, n in 1usize..20, rows in 0usize..40, types in 0usize..3, shared in 0usize..2; 10 cases) {
        let (t, width) = (TYPES[types], groups * n);
        let one = shared == 1;
        // Parts of several rows, and more than one of them.
        let rows = rows * 17;
        let (x, dy) = (random(rows * width, t, 1), random(rows * width, t, 2));
        let r = random(if one { n * n } else { groups * n * n }, DType::F32, 3);
        let at = |g: usize, k: usize, c: usize| (if one { 0 } else { g * n * n }) + k * n + c;
        let (xs, ds, rs) = (put(queue, &x, t), put(queue, &dy, t), put(queue, &r, DType::F32));
        for turned in [false, true] {
            let mut y = room(queue, rows * width, t);
            let (to, from, blocks) = (y.slice_mut(t), xs.slice(t), rs.slice(DType::F32));
            block_rotate::forward(queue, to, from, blocks, [width, n], turned).unwrap();
            let element = |i: usize| -> f64 {
                let (g, c, first) = (i % width / n, i % n, i - i % n);
                (0..n).map(|k| x[first + k] * r[if turned { at(g, c, k) } else { at(g, k, c) }]).sum()
            };
            let want: Vec<f64> = (0..rows * width).map(element).collect();
            close("y", &get(&y, t), &want, tolerance(t));
        }
        let before = random(r.len(), DType::F32, 4);
        let mut dr = put(queue, &before, DType::F32);
        block_rotate::blocks_add(queue, dr.slice_mut(DType::F32), xs.slice(t), ds.slice(t), [width, n]).unwrap();
        let mut want = before;
        for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
            for i in 0..width * n {
                let (g, k, c) = (i / (n * n), i / n % n, i % n);
                want[at(g, k, c)] += x[g * n + k] * dy[g * n + c];
            }
        }
        close("dR", &get(&dr, DType::F32), &want, 2e-6);
    }
}

/// C = A B in f64.
fn times(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    (0..n * n).map(|e| (0..n).map(|k| a[e / n * n + k] * b[k * n + e % n]).sum()).collect()
}

fn skew(q: &[f64], n: usize) -> Vec<f64> {
    let (mut m, mut entries) = (vec![0.0; n * n], q.iter());
    for i in 0..n {
        for j in i + 1..n {
            m[i * n + j] = *entries.next().unwrap();
            m[j * n + i] = -m[i * n + j];
        }
    }
    m
}

/// R of one block in f64: the series with its coefficients written out, or (I - Q)(I + Q)⁻¹ by iterated refinement of the
/// inverse's series, which nears it for small Q.
fn orthogonal(q: &[f64], n: usize, terms: u32) -> Vec<f64> {
    let m = skew(q, n);
    let identity: Vec<f64> = (0..n * n).map(|e| if e / n == e % n { 1.0 } else { 0.0 }).collect();
    let coefficients: Vec<f64> = match terms {
        // (I - Q)(I + Q)⁻¹ = I - 2 Q + 2 Q² - …
        0 => (0..120).map(|k| if k == 0 { 1.0 } else { 2.0 * f64::powi(-1.0, k) }).collect(),
        1 => vec![1.0],
        2 => vec![1.0, 2.0],
        3 | 4 => vec![1.0, 2.0, 2.0, 1.0],
        5 => vec![1.0, 2.0, 2.0, 2.0, 1.0],
        _ => unreachable!("not tried"),
    };
    let (mut power, mut r) = (identity, vec![0.0; n * n]);
    for c in coefficients {
        r.iter_mut().zip(&power).for_each(|(r, p)| *r += c * p);
        power = times(&power, &m, n);
    }
    r
}

shapes! {
    fn orthogonal_blocks(queue; blocks in 1usize..4, n in 1usize..11, terms in 0u32..6; 12 cases) {
        let entries = n * (n - 1) / 2;
        // So small that the series of the exact transform converges: |Q| < 0.7.
        let round = |x: f64| f64::from(x as f32);
        let q: Vec<f64> = random(blocks * entries, DType::F32, 1).iter().map(|x| round(x * 0.4 / n as f64)).collect();
        let dr = random(blocks * n * n, DType::F32, 2);
        let (qs, ds) = (put(queue, &q, DType::F32), put(queue, &dr, DType::F32));
        let (mut r, mut dq) = (room(queue, dr.len(), DType::F32), room(queue, q.len(), DType::F32));
        cayley::forward(queue, r.slice_mut(DType::F32), qs.slice(DType::F32), n, terms).unwrap();
        let (to, from, of) = (dq.slice_mut(DType::F32), ds.slice(DType::F32), qs.slice(DType::F32));
        if entries > 0 {
            cayley::backward(queue, to, from, of, n, terms).unwrap();
        }
        let (r, dq) = (get(&r, DType::F32), get(&dq, DType::F32));
        let (mut want_r, mut want_dq) = (Vec::new(), Vec::new());
        for (b, dr) in dr.chunks(n * n).enumerate() {
            let q = &q[b * entries..(b + 1) * entries];
            want_r.extend(orthogonal(q, n, terms));
            let along = |i: usize, by: f64| -> f64 {
                let mut moved = q.to_vec();
                moved[i] += by;
                orthogonal(&moved, n, terms).iter().zip(dr).map(|(r, d)| r * d).sum()
            };
            // Central differences in f64: off by some 1e-9.
            want_dq.extend((0..entries).map(|i| (along(i, 1e-5) - along(i, -1e-5)) / 2e-5));
        }
        close("R", &r, &want_r, 2e-6);
        close("dq", &dq, &want_dq, 1e-5);
    }
}

/// (h; i, f, g, o) of an LSTM in f64.
fn recurrent(gates: &[f64], w: &[f64], n: usize, order: &[Step]) -> Vec<f64> {
    let steps = gates.len() / (4 * n);
    let (mut c, mut h) = (vec![0.0; steps * n], vec![0.0; steps * n]);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for step in order {
        for j in 0..n {
            let z = |k: usize| {
                let row = &w[(k * n + j) * n..(k * n + j + 1) * n];
                let last = step.before.map_or(0.0, |b| row.iter().zip(&h[b * n..]).map(|(w, h)| w * h).sum());
                gates[step.row * 4 * n + k * n + j] + last
            };
            let cell = step.before.map_or(0.0, |b| sigmoid(z(1)) * c[b * n + j]) + sigmoid(z(0)) * z(2).tanh();
            (c[step.row * n + j], h[step.row * n + j]) = (cell, sigmoid(z(3)) * cell.tanh());
        }
    }
    h
}

shapes! {
    fn steps_of_a_recurrence(queue; steps in 1usize..5, n in 1usize..40, reverse in 0usize..2; 6 cases) {
        let order: Vec<Step> = match reverse {
            0 => (0..steps).map(|row| Step { row, before: row.checked_sub(1) }).collect(),
            _ => (0..steps).rev().map(|row| Step { row, before: Some(row + 1).filter(|&b| b < steps) }).collect(),
        };
        let small = |x: &f64| f64::from((x * 0.3) as f32);
        let gates = random(steps * 4 * n, DType::F32, 1);
        let w: Vec<f64> = random(4 * n * n, DType::F32, 2).iter().map(small).collect();
        let dh = random(steps * n, DType::F32, 3);
        let (mut gs, ws, ds) = (put(queue, &gates, DType::F32), put(queue, &w, DType::F32), put(queue, &dh, DType::F32));
        let (mut c, mut h) = (room(queue, steps * n, DType::F32), room(queue, steps * n, DType::F32));
        for &step in &order {
            let rows = [gs.slice_mut(DType::F32), c.slice_mut(DType::F32), h.slice_mut(DType::F32)];
            lstm::step(queue, rows, ws.slice(DType::F32), n, step).unwrap();
        }
        close("h", &get(&h, DType::F32), &recurrent(&gates, &w, n, &order), 5e-6);
        // Through the last step alone: nothing comes from one after it.
        let last = order[steps - 1];
        let zeros = vec![0.0; n];
        let (mut dc, next) = (put(queue, &zeros, DType::F32), put(queue, &zeros, DType::F32));
        let mut dgates = queue.zeros("a test", steps * 4 * n, DType::F32).unwrap();
        let from = [gs.slice(DType::F32), c.slice(DType::F32), ds.slice(DType::F32), next.slice(DType::F32)];
        let to = [dgates.slice_mut(DType::F32), dc.slice_mut(DType::F32)];
        lstm::step_backward(queue, to, from, n, last).unwrap();
        let row = last.row * 4 * n..(last.row + 1) * 4 * n;
        let along = |i: usize, by: f64| -> f64 {
            let mut moved = gates.clone();
            moved[row.start + i] += by;
            let h = recurrent(&moved, &w, n, &order);
            (last.row * n..(last.row + 1) * n).map(|j| h[j] * dh[j]).sum()
        };
        let want: Vec<f64> = (0..4 * n).map(|i| (along(i, 1e-5) - along(i, -1e-5)) / 2e-5).collect();
        close("dgates", &get(&dgates, DType::F32)[row.clone()], &want, 2e-5);
        let wrong = Step { row: steps, before: None };
        let rows = [gs.slice_mut(DType::F32), c.slice_mut(DType::F32), h.slice_mut(DType::F32)];
        assert!(lstm::step(queue, rows, ws.slice(DType::F32), n, wrong).is_err());
    }
}
