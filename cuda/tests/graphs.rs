//! Recorded work: steps of decoding and of training, done again and again.

mod support;

use std::sync::Arc;

use planish_cuda::emulator::Emulator;
use planish_cuda::memory::DeviceBuffer;
use planish_cuda::ops::adamw::{self, AdamW};
use planish_cuda::ops::attention::{self, Attention, CacheSizes, Caches, Segments, TILE};
use planish_cuda::ops::matmul::{Epilogue, Layout, Term, matmul};
use planish_cuda::ops::rms_norm::{self, RmsNorm};
use planish_cuda::ops::rope::{self, Heads, Queries};
use planish_cuda::ops::{elementwise, embedding, gather, grad_norm, linear};
use planish_cuda::{DType, Device, Error, Queue, Recorder, Result};
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
    /// The same keys in caches that lie apart, and what says where they are.
    apart: [DeviceBuffer; BATCH],
    caches: Caches,
    cached: Segments,
    out: DeviceBuffer,
}

/// Pages of the two sequences: neither in order nor together.
const PAGES: [u32; 4] = [2, 0, 3, 1];
/// Steps that are taken.
const STEPS: u32 = 5;
/// Keys before the first step: the first sequence goes on to its second page.
const BEGIN: [u32; 2] = [62, 3];

impl Layer {
    fn new(queue: Queue<'_>) -> Layer {
        let of = |n: usize, salt| put(queue, &random(n, T, salt), T);
        let width = HEADS * SIZE;
        let cache = 4 * TILE * SIZE;
        let (keys, values) = (random(cache, T, 7), random(cache, T, 8));
        // Two pages of keys, then two of values.
        let own = |s: usize| {
            let page = |x: &[f64], i: usize| x[PAGES[2 * s + i] as usize * TILE * SIZE..][..TILE * SIZE].to_vec();
            put(queue, &[page(&keys, 0), page(&keys, 1), page(&values, 0), page(&values, 1)].concat(), T)
        };
        let apart = [own(0), own(1)];
        let sizes = CacheSizes { layers: 1, kv_heads: 1, size: SIZE };
        let caches = Caches::new(queue, &apart.each_ref().map(|cache| cache.slice(T)), sizes).unwrap();
        let after = BEGIN.map(|keys| keys + 1);
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
            keys: put(queue, &keys, T),
            values: put(queue, &values, T),
            segments: Segments::paged(queue, &[0, 1, 2], &BEGIN, &PAGES, 2).unwrap(),
            apart,
            caches,
            cached: Segments::cached(queue, &[0, 1, 2], &[0, 1, 2], &after).unwrap(),
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
        for table in [&mut self.segments, &mut self.cached] {
            table.set_keys(&position.map(|position| position + 1)).unwrap();
        }
    }
}

/// out = x + attention(norm(x)) W_o for x, the rows of the table, over pages, or over caches that lie apart.
fn work<const APART: bool>(queue: Queue<'_>, layer: &mut Layer) -> Result<()> {
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
    let (mut mixed, mut lse) = (alloc(width, T)?, alloc(HEADS, F32)?);
    if APART {
        let (mut turned, caches) = (alloc(width, T)?, (&layer.caches, 0));
        let queries = Some(Queries { y: turned.slice_mut(T), q: q.slice(T), heads: HEADS });
        rope::append(queue, queries, [k.slice(T), v.slice(T)], Some([cos, sin]), SIZE, caches, &layer.cached)?;
        let (out, lse) = (mixed.slice_mut(T), lse.slice_mut(F32));
        attention::forward_cached(queue, out, lse, turned.slice(T), caches, &layer.cached, &KIND)?;
    } else {
        for (x, heads) in [(&mut q, HEADS), (&mut k, 1)] {
            rope::turn_in_place(queue, x.slice_mut(T), cos, sin, Heads { heads, size: SIZE, half: 32 }, false)?;
        }
        gather::place(queue, layer.keys.slice_mut(T), k.slice(T), layer.places.slice(U32), SIZE)?;
        gather::place(queue, layer.values.slice_mut(T), v.slice(T), layer.places.slice(U32), SIZE)?;
        let (keys, values) = (layer.keys.slice(T), layer.values.slice(T));
        let (out, lse) = (mixed.slice_mut(T), lse.slice_mut(F32));
        attention::forward(queue, out, lse, q.slice(T), keys, values, &layer.segments, &KIND)?;
    }
    linear(&mut y, &mixed, &layer.o, HIDDEN, width)?;
    elementwise::binary(queue, elementwise::Binary::Add, layer.out.slice_mut(T), x.slice(T), y.slice(T))
}

#[test]
fn a_decoding_step_is_replayed_with_the_same_bits() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let mut layer = Layer::new(queue);
    let plain: Vec<Vec<f64>> = (0..STEPS)
        .map(|step| {
            layer.tell(step);
            work::<false>(queue, &mut layer).unwrap();
            get(&layer.out, T)
        })
        .collect();
    let cache = get(&layer.keys, T);
    assert!(plain.windows(2).all(|steps| steps[0] != steps[1]));

    let pages = |layer: &Layer| get(&layer.keys, T);
    assert_eq!(replayed(&device, work::<false>, pages, &plain), cache);
    // The first sequence's keys, before its values.
    let own = replayed(&device, work::<true>, |layer| get(&layer.apart[0], T), &plain);
    for (i, page) in PAGES[..2].iter().enumerate() {
        let (at, of) = (i * TILE * SIZE, *page as usize * TILE * SIZE);
        assert_eq!(own[at..at + TILE * SIZE], cache[of..of + TILE * SIZE], "page {i}");
    }
}

/// Records a step and replays it, with these results; gives what is in the cache then.
fn replayed(
    device: &Device,
    work: fn(Queue<'_>, &mut Layer) -> Result<()>,
    keys: impl Fn(&Layer) -> Vec<f64>,
    plain: &[Vec<f64>],
) -> Vec<f64> {
    let queue = device.queue();
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
    let found = keys(recording.held());
    assert_eq!(device.pool().usage().in_use, usage.in_use);
    drop(recording);
    assert!(device.pool().usage().in_use < usage.in_use);
    found
}

/// A linear layer that learns, and all that it works on.
struct Learner {
    x: DeviceBuffer,
    target: DeviceBuffer,
    weight: DeviceBuffer,
    masters: DeviceBuffer,
    moments: [DeviceBuffer; 2],
    gradient: DeviceBuffer,
    update: DeviceBuffer,
    norm: DeviceBuffer,
}

const ROWS: usize = 24;
const INPUT: usize = 40;
const OUTPUT: usize = 16;

impl Learner {
    fn new(queue: Queue<'_>) -> Learner {
        let n = OUTPUT * INPUT;
        let zeros = || queue.zeros("a test", n, F32).unwrap();
        Learner {
            x: room(queue, ROWS * INPUT, T),
            target: room(queue, ROWS * OUTPUT, T),
            weight: put(queue, &random(n, T, 3), T),
            masters: put(queue, &random(n, T, 3), F32),
            moments: [zeros(), zeros()],
            gradient: room(queue, n, F32),
            update: room(queue, size_of::<adamw::Update>() / 4, F32),
            norm: room(queue, 1, DType::F64),
        }
    }

    /// What the host says before a step: another batch, another learning rate.
    fn tell(&mut self, step: u64) {
        let halves = |n, salt| -> Vec<u16> {
            random(n, T, salt).into_iter().map(|x| half::bf16::from_f64(x).to_bits()).collect()
        };
        self.x.upload(&halves(ROWS * INPUT, 100 + step)).unwrap();
        self.target.upload(&halves(ROWS * OUTPUT, 200 + step)).unwrap();
        let settings =
            AdamW { learning_rate: 0.1 / step as f64, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.01 };
        self.update.upload(&settings.update(step, 1.0 / ROWS as f64, Some(0.5)).bytes()).unwrap();
    }
}

/// A step on |x Wᵀ - target|² / 2 with clipping.
fn learn(queue: Queue<'_>, of: &mut Learner) -> Result<()> {
    let mut y = queue.alloc("a step", ROWS * OUTPUT, T)?;
    linear::forward(queue, y.slice_mut(T), of.x.slice(T), of.weight.slice(T), None, INPUT)?;
    elementwise::axpby(queue, y.slice_mut(T), of.target.slice(T), -1.0, 1.0)?;
    queue.device.driver().fill(of.gradient.ptr(), 0, of.gradient.bytes(), queue.stream)?;
    queue.device.driver().fill(of.norm.ptr(), 0, of.norm.bytes(), queue.stream)?;
    let (dw, x, weight) = (Some(of.gradient.slice_mut(F32)), of.x.slice(T), of.weight.slice(T));
    linear::backward(queue, None, dw, None, y.slice(T), x, weight, INPUT)?;
    grad_norm::add_squares(queue, of.norm.slice_mut(DType::F64), of.gradient.slice(F32))?;
    let [m, v] = &mut of.moments;
    let parameter = adamw::Parameter {
        p: of.masters.slice_mut(F32),
        weight: Some(of.weight.slice_mut(T)),
        m: m.slice_mut(F32),
        v: v.slice_mut(F32),
        g: of.gradient.slice(F32),
    };
    adamw::step_recorded(queue, parameter, of.norm.slice(DType::F64), of.update.slice(F32))
}

#[test]
fn a_training_step_is_replayed_with_the_same_bits() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let mut learner = Learner::new(queue);
    let plain: Vec<Vec<f64>> = (1..=4)
        .map(|step| {
            learner.tell(step);
            learn(queue, &mut learner).unwrap();
            get(&learner.masters, F32)
        })
        .collect();
    // The launch for many parameters gives the same bits.
    let mut by_value = Learner::new(queue);
    by_value.tell(1);
    learn(queue, &mut by_value).unwrap();
    let gradient = get(&by_value.gradient, F32);
    let mut fresh = Learner::new(queue);
    let g = put(queue, &gradient, F32);
    let settings = AdamW { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.01 };
    let update = settings.update(1, 1.0 / ROWS as f64, Some(0.5));
    let [m, v] = &mut fresh.moments;
    let parameter = adamw::Parameter {
        p: fresh.masters.slice_mut(F32),
        weight: Some(fresh.weight.slice_mut(T)),
        m: m.slice_mut(F32),
        v: v.slice_mut(F32),
        g: g.slice(F32),
    };
    adamw::step(queue, &[(parameter, update)], Some(by_value.norm.slice(DType::F64))).unwrap();
    assert_eq!(get(&fresh.masters, F32), plain[0]);

    let mut learner = Learner::new(queue);
    learner.tell(1);
    // Recording does the step once, and replaying it again; what it changes is not changed by recording.
    let mut recording = queue.record(learner, learn).unwrap();
    assert_eq!(get(&recording.held().masters, F32), plain[0]);
    for step in 2..=4 {
        recording.held_mut().tell(step);
        recording.replay(queue).unwrap();
        assert_eq!(get(&recording.held().masters, F32), plain[step as usize - 1], "step {step}");
    }
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

/// Recordings of one recorder work in the same memory; and if somebody keeps some of it, they are no more.
#[test]
fn recordings_share_memory_and_notice_when_it_is_gone() {
    let Some(device) = device() else { return };
    let device = Arc::new(device);
    let queue = device.queue();
    let x = put(queue, &[1.0; 8], F32);
    let mut sums = [(); 2].map(|()| put(queue, &[0.0; 8], F32));
    let before = device.pool().usage().in_use;
    let mut recorder = Recorder::new(device.clone()).unwrap();
    let mut in_use = Vec::new();
    let graphs: Vec<_> = sums
        .iter_mut()
        .zip([1.0, 10.0])
        .map(|(sum, factor)| {
            let graph = recorder.record(queue, |queue| -> Result<()> {
                let mut twice = queue.alloc("a test", 8, F32)?;
                elementwise::binary(queue, elementwise::Binary::Add, twice.slice_mut(F32), x.slice(F32), x.slice(F32))?;
                elementwise::axpby(queue, sum.slice_mut(F32), twice.slice(F32), factor, 1.0)
            });
            in_use.push(device.pool().usage().in_use);
            graph.unwrap().unwrap()
        })
        .collect();
    assert!(in_use[0] > before && in_use[1] == in_use[0], "{before}, then {in_use:?}");
    for graph in [1, 0, 1] {
        recorder.replay(graphs[graph], queue).unwrap();
    }
    assert_eq!((get(&sums[0], F32), get(&sums[1], F32)), (vec![4.0; 8], vec![60.0; 8]));

    let mut kept = None;
    let last = recorder.record(queue, |queue| -> Result<()> {
        if kept.is_none() {
            kept = Some(queue.alloc("a test", 8, F32)?);
        }
        Ok(())
    });
    let last = last.unwrap().unwrap();
    assert_eq!([graphs[0], graphs[1], last].map(|graph| recorder.has(graph)), [false, false, true]);
    assert!(recorder.replay(graphs[0], queue).is_err());
    recorder.replay(last, queue).unwrap();
    drop(recorder);
    // It outlives the stream that it was made for.
    let mut kept = kept.unwrap();
    drop((x, sums));
    assert!(device.pool().usage().in_use > 0);
    assert!(kept.fill(0).is_err(), "its stream is no more");
    drop(kept);
    assert_eq!(device.pool().usage().in_use, 0);
    device.pool().release().unwrap();
    assert_eq!(device.pool().usage().reserved, 0);
}

/// What is kept for recorded work stays its own while it is recorded, though somebody else finds no room meanwhile.
#[test]
fn memory_of_work_that_is_being_recorded_is_not_given_back() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let mut x = put(queue, &[1.0; 64], F32);
    let before = device.pool().usage();
    let mut recorder = Recorder::new(&device).unwrap();
    let mut times = 0;
    let graph = recorder.record(queue, |own| -> Result<()> {
        let mut twice = own.alloc("a test", 64, F32)?;
        elementwise::binary(own, elementwise::Binary::Add, twice.slice_mut(F32), x.slice(F32), x.slice(F32))?;
        elementwise::axpby(own, x.slice_mut(F32), twice.slice(F32), 1.0, 0.0)?;
        let at = twice.ptr();
        drop(twice);
        times += 1;
        if times == 2 {
            // More than the device has: the pool gives back what it keeps, and says that it was not enough.
            let error = queue.alloc("a test", 1 << 40, DType::U8).unwrap_err();
            assert!(matches!(error, Error::NoRoom { .. }), "{error}");
            device.pool().release()?;
        }
        assert_eq!(own.alloc("a test", 64, F32)?.ptr(), at, "it is kept");
        Ok(())
    });
    let graph = graph.unwrap().unwrap();
    assert_eq!((times, get(&x, F32)), (2, vec![2.0; 64]));
    recorder.replay(graph, queue).unwrap();
    assert_eq!(get(&x, F32), [4.0; 64]);
    drop(recorder);
    device.pool().release().unwrap();
    assert_eq!(device.pool().usage().reserved, before.reserved);
}

/// A driver that captures nothing: the work is done, the recording refused, and nothing held back.
#[test]
fn what_the_driver_does_not_capture_is_not_recorded() {
    let Some(cache) = cache() else { return };
    let emulator = Emulator::new((9, 0)).unwrap().without_captures();
    let device = Device::new(Arc::new(emulator), cache);
    let (x, mut sum) = (put(device.queue(), &[1.0; 8], F32), put(device.queue(), &[1.0; 8], F32));
    let mut recorder = Recorder::new(&device).unwrap();
    let refused = recorder.record(device.queue(), |queue| -> Result<()> {
        queue.alloc("a test", 8, F32)?;
        elementwise::axpby(queue, sum.slice_mut(F32), x.slice(F32), 1.0, 1.0)
    });
    assert_eq!(refused.unwrap_err().to_string(), "begin_capture failed: this device captures no work");
    drop(recorder);
    assert_eq!(get(&sum, F32), [2.0; 8]);
    drop((x, sum));
    device.pool().release().unwrap();
    assert_eq!(device.pool().usage().reserved, 0);
}

/// Other caches in the places of those that a step was recorded with.
#[test]
fn a_recorded_step_goes_on_with_other_caches() {
    let Some(device) = device() else { return };
    let queue = device.queue();
    let mut layer = Layer::new(queue);
    layer.tell(0);
    let mut recording = queue.record(layer, work::<true>).unwrap();
    let (first, mut other) = (get(&recording.held().out, T), Layer::new(queue));
    // Of twice the room: pages of keys, as many that are empty, and the same of values.
    let grown = |cache: &DeviceBuffer| {
        let (all, empty) = (get(cache, T), vec![0.0; 2 * TILE * SIZE]);
        let (keys, values) = all.split_at(all.len() / 2);
        put(queue, &[keys, &empty, values, &empty].concat(), T)
    };
    other.apart = other.apart.each_ref().map(grown);
    other.apart.swap(0, 1);
    let held = recording.held_mut();
    let same = held.apart.each_ref().map(|cache| cache.slice(T));
    assert!(!held.caches.exchange(queue, &same).unwrap(), "they are these already");
    let caches = other.apart.each_ref().map(|cache| cache.slice(T));
    assert!(held.caches.exchange(queue, &caches).unwrap());
    assert!(held.caches.exchange(queue, &caches[..1]).is_err());
    // The sequences have changed places, and so have their tokens and positions.
    let angle = |i: usize| BEGIN[1 - i / 32] as f32 * 10f32.powf(-(i as f32 % 32.0) / 8.0);
    held.cos.upload(&(0..BATCH * 32).map(|i| angle(i).cos()).collect::<Vec<f32>>()).unwrap();
    held.sin.upload(&(0..BATCH * 32).map(|i| angle(i).sin()).collect::<Vec<f32>>()).unwrap();
    held.ids.upload(&[1u32, 0]).unwrap();
    held.cached.set_keys(&[BEGIN[1] + 1, BEGIN[0] + 1]).unwrap();
    recording.replay(queue).unwrap();
    let (a, b) = first.split_at(HIDDEN);
    assert_eq!(get(&recording.held().out, T), [b, a].concat());
}
