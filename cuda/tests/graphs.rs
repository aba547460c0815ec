//! Recorded work: a step of decoding, done again and again.

mod support;

use planish_cuda::memory::DeviceBuffer;
use planish_cuda::ops::attention::{self, Attention, Segments, TILE};
use planish_cuda::ops::matmul::{Epilogue, Layout, Term, matmul};
use planish_cuda::ops::rms_norm::{self, RmsNorm};
use planish_cuda::ops::rope::{self, Heads};
use planish_cuda::ops::{elementwise, embedding, gather};
use planish_cuda::{DType, Queue, Result};
use support::*;

const T: DType = DType::BF16;
const F32: DType = DType::F32;
const U32: DType = DType::U32;
const HIDDEN: usize = 128;
const SIZE: usize = 64;
const HEADS: usize = 2;
const BATCH: usize = 2;
const VOCABULARY: usize = 16;
const KIND: Attention =
    Attention { heads: HEADS, kv_heads: 1, size: SIZE, scale: 0.125, causal: true, window: None, softcap: None };

/// A layer's attention for one new token of each sequence, and all that it works on.
struct Layer {
    ids: DeviceBuffer,
    table: DeviceBuffer,
    norm: DeviceBuffer,
    q: DeviceBuffer,
    k: DeviceBuffer,
    v: DeviceBuffer,
    o: DeviceBuffer,
    cos: DeviceBuffer,
    sin: DeviceBuffer,
    places: DeviceBuffer,
    keys: DeviceBuffer,
    values: DeviceBuffer,
    segments: Segments,
    out: DeviceBuffer,
}

/// Pages of the two sequences: neither in order nor together.
const PAGES: [u32; 4] = [2, 0, 3, 1];
/// Keys before the first step: the first sequence goes on to its second page.
const BEGIN: [u32; 2] = [62, 3];

impl Layer {
    fn new(queue: Queue<'_>) -> Layer {
        let of = |n: usize, salt| put(queue, &random(n, T, salt), T);
        let width = HEADS * SIZE;
        let cache = 4 * TILE * SIZE;
        Layer {
            ids: queue.upload("a test", &[0u32; BATCH]).unwrap(),
            table: of(VOCABULARY * HIDDEN, 1),
            norm: of(HIDDEN, 2),
            q: of(width * HIDDEN, 3),
            k: of(SIZE * HIDDEN, 4),
            v: of(SIZE * HIDDEN, 5),
            o: of(HIDDEN * width, 6),
            cos: room(queue, BATCH * SIZE / 2, F32),
            sin: room(queue, BATCH * SIZE / 2, F32),
            places: room(queue, BATCH, U32),
            keys: of(cache, 7),
            values: of(cache, 8),
            segments: Segments::paged(queue, &[0, 1, 2], &BEGIN, &PAGES, 2).unwrap(),
            out: room(queue, BATCH * HIDDEN, T),
        }
    }

    /// What the host says before a step.
    fn tell(&mut self, step: u32) {
        let position = BEGIN.map(|keys| keys + step);
        self.ids.upload(&[step * 5 % VOCABULARY as u32, (step * 3 + 1) % VOCABULARY as u32]).unwrap();
        let angle = |i: usize| (position[i / 32] as f32) * 10f32.powf(-(i as f32 % 32.0) / 8.0);
        self.cos.upload(&(0..BATCH * 32).map(|i| angle(i).cos()).collect::<Vec<f32>>()).unwrap();
        self.sin.upload(&(0..BATCH * 32).map(|i| angle(i).sin()).collect::<Vec<f32>>()).unwrap();
        let place = |s: usize| PAGES[s * 2 + position[s] as usize / TILE] * TILE as u32 + position[s] % TILE as u32;
        self.places.upload(&[place(0), place(1)]).unwrap();
        self.segments.set_keys(&position.map(|position| position + 1)).unwrap();
    }
}

/// out = x + attention(norm(x)) W_o for x, the rows of the table.
fn work(queue: Queue<'_>, layer: &mut Layer) -> Result<()> {
    let alloc = |n, dtype| queue.alloc("a step", BATCH * n, dtype);
    let (mut x, mut y, mut r) = (alloc(HIDDEN, T)?, alloc(HIDDEN, T)?, alloc(1, F32)?);
    embedding::forward(queue, x.slice_mut(T), layer.table.slice(T), layer.ids.slice(U32), HIDDEN)?;
    let norm = RmsNorm { eps: 1e-6, offset: 0.0 };
    rms_norm::forward(queue, y.slice_mut(T), r.slice_mut(F32), x.slice(T), layer.norm.slice(T), None, norm)?;
    let linear = |to: &mut DeviceBuffer, x: &DeviceBuffer, w: &DeviceBuffer, n: usize, k: usize| {
        let term = Term { a: x.slice(T), b: w.slice(T), depth: k };
        matmul(queue, to.slice_mut(T), [BATCH, n], Layout::FORWARD, &[term], Epilogue::default())
    };
    let width = HEADS * SIZE;
    let (mut q, mut k, mut v) = (alloc(width, T)?, alloc(SIZE, T)?, alloc(SIZE, T)?);
    linear(&mut q, &y, &layer.q, width, HIDDEN)?;
    linear(&mut k, &y, &layer.k, SIZE, HIDDEN)?;
    linear(&mut v, &y, &layer.v, SIZE, HIDDEN)?;
    let (cos, sin) = (layer.cos.slice(F32), layer.sin.slice(F32));
    for (x, heads) in [(&mut q, HEADS), (&mut k, 1)] {
        rope::turn_in_place(queue, x.slice_mut(T), cos, sin, Heads { heads, size: SIZE, half: 32 }, false)?;
    }
    gather::place(queue, layer.keys.slice_mut(T), k.slice(T), layer.places.slice(U32), SIZE)?;
    gather::place(queue, layer.values.slice_mut(T), v.slice(T), layer.places.slice(U32), SIZE)?;
    let (mut mixed, mut lse) = (alloc(width, T)?, alloc(HEADS, F32)?);
    let (keys, values) = (layer.keys.slice(T), layer.values.slice(T));
    let (out, lse) = (mixed.slice_mut(T), lse.slice_mut(F32));
    attention::forward(queue, out, lse, q.slice(T), keys, values, &layer.segments, &KIND)?;
    linear(&mut y, &mixed, &layer.o, HIDDEN, width)?;
    elementwise::binary(queue, elementwise::Binary::Add, layer.out.slice_mut(T), x.slice(T), y.slice(T))
}

#[test]
fn a_decoding_step_is_replayed_with_the_same_bits() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    const STEPS: u32 = 5;
    let mut layer = Layer::new(queue);
    let plain: Vec<Vec<f64>> = (0..STEPS)
        .map(|step| {
            layer.tell(step);
            work(queue, &mut layer).unwrap();
            get(&layer.out, T)
        })
        .collect();
    let cache = get(&layer.keys, T);
    assert!(plain.windows(2).all(|steps| steps[0] != steps[1]));

    let mut layer = Layer::new(queue);
    layer.tell(0);
    let mut recording = queue.record(layer, work).unwrap();
    assert_eq!(get(&recording.held().out, T), plain[0]);
    let usage = device.pool().usage();
    for step in 1..STEPS {
        recording.held_mut().tell(step);
        // Somebody else's memory in between is not the recording's.
        let mut other = room(queue, BATCH * HIDDEN, T);
        other.fill(0xff).unwrap();
        recording.replay(queue).unwrap();
        assert_eq!(get(&recording.held().out, T), plain[step as usize], "step {step}");
        assert!(other.download::<u8>().unwrap().iter().all(|&byte| byte == 0xff));
    }
    assert_eq!(get(&recording.held().keys, T), cache);
    assert_eq!(device.pool().usage().in_use, usage.in_use);
    drop(recording);
    assert!(device.pool().usage().in_use < usage.in_use);
}

#[test]
fn what_cannot_be_recorded_is_refused() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let x = put(queue, &[1.0; 8], F32);
    let refused = queue.record(x, |queue, _| queue.upload("a test", &[2.0f32; 8]).map(drop)).unwrap_err().to_string();
    assert_eq!(refused, "upload failed: the stream is being captured");
    // The queue is as good as before, and nothing is left over.
    let x = put(queue, &[1.0; 8], F32);
    let mut doubling = queue
        .record(x, |queue, x| {
            let mut twice = queue.alloc("a test", 8, F32)?;
            elementwise::binary(queue, elementwise::Binary::Add, twice.slice_mut(F32), x.slice(F32), x.slice(F32))?;
            elementwise::axpby(queue, x.slice_mut(F32), twice.slice(F32), 1.0, 0.0)
        })
        .unwrap();
    assert_eq!(get(doubling.held(), F32), [2.0; 8]);
    let side = device.driver().create_stream().unwrap();
    doubling.replay(device.queue_on(side)).unwrap();
    doubling.replay(queue).unwrap();
    assert_eq!(get(doubling.held(), F32), [8.0; 8]);
    drop(doubling);
    device.driver().destroy_stream(side).unwrap();
    assert_eq!(device.pool().usage().in_use, 0);
}
