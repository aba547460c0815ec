//! The most probable tokens of rows of logits.

use planish_cuda::driver::Arg;
use planish_cuda::kernels::LM_HEAD_TOP;
use planish_cuda::ops::lm_head_top;
use planish_cuda::{DType, Queue, Shape};

use crate::shapes;
use crate::support::*;

const F32: DType = DType::F32;

/// Ids and log-probabilities in f64, by a sort.
fn reference(z: &[f64], k: usize, temperature: f64) -> (Vec<u32>, Vec<f64>) {
    let mut order: Vec<u32> = (0..z.len() as u32).collect();
    // The two zeros are equal.
    order.sort_by(|&a, &b| z[b as usize].partial_cmp(&z[a as usize]).unwrap().then(a.cmp(&b)));
    let top = z[order[0] as usize];
    let log = z.iter().map(|z| ((z - top) / temperature).exp()).sum::<f64>().ln();
    order.truncate(k);
    let logprobs = order.iter().map(|&id| (z[id as usize] - top) / temperature - log).collect();
    (order, logprobs)
}

fn run(queue: Queue<'_>, z: &[f64], width: usize, k: usize, temperature: f32, naive: bool) -> (Vec<u32>, Vec<f64>) {
    let rows = z.len() / width;
    let (logits, mut logprobs) = (put(queue, z, F32), room(queue, rows * k, F32));
    let mut ids = room(queue, rows * k, DType::U32);
    if naive {
        let args = [
            ids.slice_mut(DType::U32).arg(),
            logprobs.slice_mut(F32).arg(),
            logits.slice(F32).arg(),
            Arg::U32(rows as u32),
            Arg::U32(width as u32),
            Arg::U32(k as u32),
            Arg::F32(temperature),
        ];
        let shape = Shape::line(rows.div_ceil(32), 32);
        queue.launch(&LM_HEAD_TOP, "lm_head_top_naive", &defines(&[]), shape, &args).unwrap();
    } else {
        let to = (ids.slice_mut(DType::U32), logprobs.slice_mut(F32));
        lm_head_top::most_probable(queue, to.0, to.1, logits.slice(F32), width, k, temperature).unwrap();
    }
    (ids.download().unwrap(), get(&logprobs, F32))
}

#[track_caller]
fn check(queue: Queue<'_>, z: &[f64], width: usize, k: usize, temperature: f32) {
    let both = [false, true].map(|naive| run(queue, z, width, k, temperature, naive));
    for (r, row) in z.chunks(width).enumerate() {
        let (ids, logprobs) = reference(row, k, f64::from(temperature));
        for (naive, got) in both.iter().enumerate() {
            assert_eq!(got.0[r * k..][..k], ids, "ids of row {r}, k {k} of {width}, naive {naive}");
            for (got, want) in got.1[r * k..][..k].iter().zip(&logprobs) {
                assert!((got - want).abs() <= 2e-6 * (1.0 + want.abs()), "{got} for {want}, naive {naive}");
            }
        }
    }
}

shapes! {
    /// Rows of few and many tokens, of numbers that are all different or of `levels` only: then ids break ties.
    fn the_most_probable_tokens(queue; rows in 1usize..4, width in 1usize..1500, k in 1usize..70, levels in 0usize..6, warm in 0usize..3; 12 cases) {
        let z = random(rows * width, F32, 1 + levels as u64);
        let z: Vec<f64> = z.iter().map(|&z| if levels == 0 { 4.0 * z } else { (z * levels as f64).trunc() }).collect();
        check(queue, &z, width, k.min(width), [0.3, 1.0, 2.5][warm]);
    }
}

#[test]
fn all_of_a_row_and_the_most_that_are_sorted() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let z = random(3 * 1024, F32, 7);
    check(queue, &z, 1024, 1024, 1.0);
    check(queue, &vec![-0.5; 2100], 2100, 1000, 1.0);
    // The two zeros are equal, the infinite is last.
    let z = [0.0, -0.0, f64::NEG_INFINITY, 1.0, -0.0, 0.0];
    assert_eq!(run(queue, &z, 6, 6, 1.0, false).0, [3, 0, 1, 4, 5, 2]);
}

/// Another row's logits change nothing; a NaN of either sign is first, and says so.
#[test]
fn a_row_depends_on_itself() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let (a, mut b) = (random(700, F32, 1), random(700, F32, 2));
    let alone = run(queue, &a, 700, 9, 1.0, false);
    b[650] = f64::NAN;
    b[33] = -f64::NAN;
    let both = run(queue, &[b, a].concat(), 700, 9, 1.0, false);
    assert_eq!((&both.0[9..], &both.1[9..]), (&alone.0[..], &alone.1[..]));
    assert_eq!(both.0[..2], [33, 650]);
    assert!(both.1[..9].iter().all(|p| p.is_nan()));
}

#[test]
fn what_cannot_be_asked_for_is_named() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let (logits, mut ids, mut logprobs) =
        (put(queue, &[0.0; 12], F32), room(queue, 6, DType::U32), room(queue, 6, F32));
    let mut ask = |width, k, temperature| {
        let to = (ids.slice_mut(DType::U32), logprobs.slice_mut(F32));
        lm_head_top::most_probable(queue, to.0, to.1, logits.slice(F32), width, k, temperature).unwrap_err().to_string()
    };
    assert!(ask(4, 0, 1.0).contains("at most 1024"));
    assert!(ask(4, 5, 1.0).contains("from 1 to the vocabulary"));
    assert!(ask(4, 2, 0.0).contains("positive"));
    assert!(ask(4, 2, f32::NAN).contains("positive"));
    assert!(ask(5, 2, 1.0).contains("the vocabulary"));
    assert!(ask(4, 3, 1.0).contains("the ids"));
}
