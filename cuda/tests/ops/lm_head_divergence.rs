//! lm_head_divergence.

use planish_cuda::memory::DeviceBuffer;
use planish_cuda::ops::lm_head::{Gradients, LmHead, Rows, TILE};
use planish_cuda::ops::lm_head_divergence::{self, Side, Top};
use planish_cuda::{DType, Queue};

use crate::shapes;
use crate::support::*;

const F32: DType = DType::F32;
const U32: DType = DType::U32;

/// A model's hidden states and head, what they give in f64, and all of it on the device.
struct Model {
    hidden: Vec<f64>,
    weight: Vec<f64>,
    size: usize,
    head: LmHead,
    /// Capped logits: (rows, vocabulary).
    z: Vec<f64>,
    lse: Vec<f64>,
    there: [DeviceBuffer; 4],
    t: DType,
}

impl Model {
    fn new(queue: Queue<'_>, [rows, size, vocabulary]: [usize; 3], head: LmHead, t: DType, salt: u64) -> Model {
        let hidden = random(rows * size, t, salt);
        let scaled = |w: &f64| round(1.5 * w / (size as f64).sqrt(), t);
        let weight: Vec<f64> = random(vocabulary * size, t, salt + 1).iter().map(scaled).collect();
        let (scale, cap) = (f64::from(head.scale), head.softcap.map(f64::from));
        let mut z = Vec::new();
        for h in hidden.chunks(size) {
            let dot = |w: &[f64]| scale * h.iter().zip(w).map(|(h, w)| h * w).sum::<f64>();
            z.extend(weight.chunks(size).map(dot).map(|z| cap.map_or(z, |c| c * (z / c).tanh())));
        }
        let sum = |z: &[f64]| {
            let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            top + z.iter().map(|z| (z - top).exp()).sum::<f64>().ln()
        };
        let lse: Vec<f64> = z.chunks(vocabulary).map(sum).collect();
        let words = queue.upload("a test", &vec![0u32; rows]).unwrap();
        let there = [put(queue, &hidden, t), put(queue, &weight, t), words, put(queue, &lse, F32)];
        Model { hidden, weight, size, head, z, lse, there, t }
    }

    fn side(&self) -> Side<'_> {
        let [hidden, weight, words, lse] = &self.there;
        let of = Rows { hidden: hidden.slice(self.t), weight: weight.slice(self.t), targets: words.slice(U32) };
        Side { of, head: self.head, lse: lse.slice(F32) }
    }

    /// cap'(z) scale.
    fn slope(&self, z: f64) -> f64 {
        f64::from(self.head.scale) * self.head.softcap.map_or(1.0, |c| 1.0 - (z / f64::from(c)).powi(2))
    }

    /// dhidden and dW from dz: (rows, vocabulary).
    fn gradients(&self, dz: &[f64]) -> [Vec<f64>; 2] {
        let (mut dh, mut dw) = (vec![0.0; self.hidden.len()], vec![0.0; self.weight.len()]);
        let vocabulary = self.weight.len() / self.size;
        for (i, d) in dz.iter().enumerate() {
            let (r, v) = (i / vocabulary, i % vocabulary);
            for c in 0..self.size {
                dh[r * self.size + c] += d * self.weight[v * self.size + c];
                dw[v * self.size + c] += d * self.hidden[r * self.size + c];
            }
        }
        [dh, dw]
    }

    /// Holds what `run` gives against these.
    fn check(&self, queue: Queue<'_>, what: &str, d: &[f64], dz: &[f64], run: impl FnOnce(Gradients<'_>)) {
        let upstream = put(queue, d, F32);
        let (mut dh, mut dw) = (room(queue, self.hidden.len(), F32), put(queue, &vec![1.0; self.weight.len()], F32));
        run(Gradients {
            dlogprobs: Some(upstream.slice(F32)),
            dhidden: dh.slice_mut(F32),
            dweight: Some(dw.slice_mut(F32)),
        });
        let [want_dh, mut want_dw] = self.gradients(dz);
        want_dw.iter_mut().for_each(|x| *x += 1.0);
        // dz is rounded to the type of the hidden states.
        let most = if self.t == F32 { 2e-5 } else { 2.0 * tolerance(self.t) };
        close(&format!("dhidden {what}"), &get(&dh, F32), &want_dh, most);
        close(&format!("dweight {what}"), &get(&dw, F32), &want_dw, most);
    }
}

/// (D's term, g) of a token.
fn terms(s: f64, t: f64, beta: f64) -> [f64; 2] {
    let (p, q) = (s.exp(), t.exp());
    if beta == 0.0 {
        return [q * (t - s) - q + p, -q];
    }
    if beta == 1.0 {
        return [p * (s - t) - p + q, p * (s - t)];
    }
    let m = (beta * q + (1.0 - beta) * p).ln();
    [beta * q * (t - m) + (1.0 - beta) * p * (s - m), (1.0 - beta) * p * (s - m)]
}

/// Heads of a student and of a teacher of another size.
fn check(
    queue: Queue<'_>,
    rows: usize,
    [size, theirs]: [usize; 2],
    vocabulary: usize,
    beta: f64,
    head: LmHead,
    t: DType,
) {
    let student = Model::new(queue, [rows, size, vocabulary], head, t, 1);
    let other = LmHead { scale: 0.8, softcap: None };
    let teacher = Model::new(queue, [rows, theirs, vocabulary], other, t, 11);
    let d = random(rows, F32, 5);
    let (mut divergence, mut centre, mut dz) = (vec![0.0; rows], vec![0.0; rows], Vec::new());
    for r in 0..rows {
        let row = r * vocabulary..(r + 1) * vocabulary;
        let logs = |m: &Model| m.z[row.clone()].iter().map(|z| z - m.lse[r]).collect::<Vec<_>>();
        let (s, of) = (logs(&student), logs(&teacher));
        let all: Vec<[f64; 2]> = s.iter().zip(&of).map(|(s, t)| terms(*s, *t, beta)).collect();
        divergence[r] = all.iter().map(|x| x[0]).sum();
        centre[r] = all.iter().map(|x| x[1]).sum();
        let sum = if beta == 0.0 { -1.0 } else { centre[r] };
        let slope = |v: usize| student.slope(student.z[r * vocabulary + v]);
        dz.extend((0..vocabulary).map(|v| d[r] * (all[v][1] - s[v].exp() * sum) * slope(v)));
    }
    let what = format!("{rows} x {size} and {theirs} x {vocabulary}, beta {beta}, {head:?}, {t}");
    let [mut a, mut b] = [(); 2].map(|()| room(queue, rows, F32));
    let sides = [student.side(), teacher.side()];
    let to = [a.slice_mut(F32), b.slice_mut(F32)];
    lm_head_divergence::forward(queue, to, sides.each_ref(), beta as f32).unwrap();
    // A sum of terms of any sign below e^-lse: absolute, in nats.
    for (got, want) in [(get(&a, F32), &divergence), (get(&b, F32), &centre)] {
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= 3e-6 * (1.0 + want.abs()), "{got} for {want}, {what}");
        }
    }
    student.check(queue, &what, &d, &dz, |to| {
        lm_head_divergence::backward(queue, to, sides.each_ref(), b.slice(F32), beta as f32).unwrap();
    });
}

/// A teacher's k tokens.
fn check_top(queue: Queue<'_>, rows: usize, size: usize, vocabulary: usize, k: usize, head: LmHead, t: DType) {
    let student = Model::new(queue, [rows, size, vocabulary], head, t, 1);
    let ids: Vec<u32> = (0..rows * k).map(|i| ((i / k * 7 + i % k * (vocabulary / k)) % vocabulary) as u32).collect();
    let (slopes, factors, d) = (random(rows * k, F32, 3), random(rows, F32, 4), random(rows, F32, 5));
    let (mut kept, mut rest, mut dz) = (Vec::new(), Vec::new(), Vec::new());
    for r in 0..rows {
        let z = &student.z[r * vocabulary..][..vocabulary];
        let own = &ids[r * k..][..k];
        kept.extend(own.iter().map(|id| z[*id as usize]));
        let others = || (0..vocabulary).filter(|v| !own.contains(&(*v as u32))).map(|v| z[v]);
        let top = others().fold(f64::NEG_INFINITY, f64::max);
        rest.push([top, others().map(|z| (z - top).exp()).sum::<f64>()]);
        dz.extend((0..vocabulary).map(|v| {
            let known = own.iter().position(|id| *id as usize == v);
            let free = factors[r] * (z[v] - student.lse[r]).exp();
            d[r] * known.map_or(free, |j| slopes[r * k + j]) * student.slope(z[v])
        }));
    }
    let what = format!("{rows} x {size} x {vocabulary}, {k} tokens, {head:?}, {t}");
    let (mut a, mut b) = (room(queue, rows * k, F32), room(queue, rows * 2, F32));
    let words = queue.upload("a test", &ids).unwrap();
    let (side, top) = (student.side(), Top { ids: words.slice(U32), k });
    let to = [a.slice_mut(F32), b.slice_mut(F32)];
    lm_head_divergence::forward_top(queue, to, &side, top).unwrap();
    close(&format!("kept {what}"), &get(&a, F32), &kept, 2e-6);
    for (got, [top, sum]) in get(&b, F32).chunks(2).zip(&rest) {
        let known = if *sum == 0.0 { got[0] == *top } else { (got[0] - top).abs() <= 1e-5 * (1.0 + top.abs()) };
        assert!(known && (got[1] - sum).abs() <= 2e-5 * sum, "{got:?} for {top} {sum}, {what}");
    }
    let [slopes, factors] = [&slopes, &factors].map(|x| put(queue, x, F32));
    student.check(queue, &what, &d, &dz, |to| {
        let known = [slopes.slice(F32), factors.slice(F32)];
        lm_head_divergence::backward_top(queue, to, &side, top, known).unwrap();
    });
}

const HEADS: [LmHead; 3] = [
    LmHead { scale: 1.0, softcap: None },
    LmHead { scale: 0.5, softcap: None },
    LmHead { scale: 1.2, softcap: Some(3.0) },
];

shapes! {
    fn divergences_from_a_head(queue; rows in 0usize..5, size in 1usize..3, theirs in 1usize..4, vocabulary in 1usize..150, kind in 0usize..4, head in 0usize..3, half in proptest::bool::ANY; 8 cases) {
        let t = if half { DType::BF16 } else { F32 };
        let beta = [0.0, 1.0, 0.5, 0.1][kind];
        check(queue, rows, [8 * size, 8 * theirs], vocabulary, beta, HEADS[head], t);
    }
}

shapes! {
    fn divergences_from_few_tokens(queue; rows in 0usize..5, size in 1usize..3, vocabulary in 1usize..150, k in 1usize..20, head in 0usize..3, half in proptest::bool::ANY; 8 cases) {
        let t = if half { DType::BF16 } else { F32 };
        check_top(queue, rows, 8 * size, vocabulary, k.min(vocabulary), HEADS[head], t);
    }
}

/// A vocabulary of more than one tile; and all of one that the teacher names, of which none is left.
#[test]
fn several_tiles_and_no_other_token() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    for beta in [0.0, 0.5, 1.0] {
        check(queue, 2, [8, 16], TILE + 37, beta, HEADS[0], F32);
    }
    check_top(queue, 2, 8, TILE + 37, 5, HEADS[2], F32);
    check_top(queue, 3, 8, 12, 12, HEADS[0], F32);
}

#[test]
fn what_does_not_agree_is_named() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let [a, b, c] = [[2, 8, 20], [2, 8, 21], [3, 8, 20]].map(|sizes| Model::new(queue, sizes, HEADS[0], F32, 1));
    let [mut d, mut g] = [(); 2].map(|()| room(queue, 2, F32));
    let mut run = |other: &Model| {
        let to = [d.slice_mut(F32), g.slice_mut(F32)];
        lm_head_divergence::forward(queue, to, [&a.side(), &other.side()], 0.5).unwrap_err().to_string()
    };
    assert!(run(&b).contains("the teacher's vocabulary"));
    assert!(run(&c).contains("the teacher's rows"));
    let words = queue.upload("a test", &[1u32, 2, 3]).unwrap();
    let to = [d.slice_mut(F32), g.slice_mut(F32)];
    let top = Top { ids: words.slice(U32), k: 2 };
    let error = lm_head_divergence::forward_top(queue, to, &a.side(), top).unwrap_err().to_string();
    assert!(error.contains("the teacher's tokens"), "{error}");
}
