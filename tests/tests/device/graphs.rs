//! Steps of decoding that are recorded as graphs: the same bits as those launched one by one, and less to do.

use planish_cuda::emulator::Emulator;
use planish_nn::Ctx;
use planish_nn::decoder::Model;
use planish_nn::generate::{Completion, Generator, SamplingParams};
use planish_tensor::replay::{Recorder, Table};
use planish_tensor::{DType, Device, Tensor, ops::elementwise};
use planish_tests::law5::{of, scored_completion, sequences};

use crate::half::{in_bf16, tiny, watched};
use crate::quantised::requantized;
use crate::{emulator, has_nvrtc, install, load, stir, with_lora};

/// What a generator gives with graphs and without, which must be the same; and how many steps were replayed.
fn both(what: &str, generator: impl Fn() -> Generator<'static>, device: Device, run: &Run<'_>) -> (Answers, u64) {
    let go = |graphs: bool| {
        let before = device.replays().unwrap();
        // Some answers are ended by their reader.
        let mut left = vec![run.readers; run.prompts.len()];
        let all = generator().cuda_graphs(graphs).generate(run.prompts, run.params, &mut |event| {
            left[event.prompt] = left[event.prompt].saturating_sub(1);
            event.prompt % 3 != 2 || left[event.prompt] > 0
        });
        (all.unwrap(), device.replays().unwrap() - before)
    };
    let (want, none) = go(false);
    let (got, replays) = go(true);
    assert_eq!(none, 0, "{what}: without graphs nothing is replayed");
    assert_eq!(got, want, "{what}");
    for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
        assert_eq!(of(&got.logprobs), of(&want.logprobs), "{what}");
    }
    (got, replays)
}

type Answers = Vec<Vec<Completion>>;

struct Run<'a> {
    prompts: &'a [Vec<u32>],
    params: &'a SamplingParams,
    /// Tokens of a prompt's answers together, of every third prompt, before its reader has enough.
    readers: usize,
}

/// Tests end with their process.
fn forever(model: Model) -> &'static Model {
    Box::leak(Box::new(model))
}

/// The end is any of these tokens of the 104, so that sequences leave at different times.
fn ends() -> Vec<u32> {
    (0..104).step_by(9).collect()
}

/// Sequences of different lengths enter, grow out of their caches of 64 keys, and leave; and what is reported is what
/// scoring says afterwards.
#[test]
fn steps_that_are_replayed_give_the_bits_of_launched_ones() {
    let Some((device, _)) = watched(47, (9, 0)) else { return };
    let model = forever(in_bf16(tiny(DType::BF16, false), device));
    let prompts = sequences(model, &[58, 3, 60, 9, 1], 3);
    let free = SamplingParams { max_new_tokens: 12, seed: 4, ..SamplingParams::default() };
    let kinds = [
        SamplingParams { temperature: 0.0, ..free.clone() },
        SamplingParams { temperature: 0.9, top_p: 0.95, n: 2, eos_token_ids: ends(), ..free.clone() },
        SamplingParams { repetition_penalty: 1.3, min_new_tokens: 3, eos_token_ids: ends(), ..free },
    ];
    for params in &kinds {
        for max_batch in [3, 32] {
            let what = format!("{max_batch} sequences, {params:?}");
            let generator = || Generator::new(model).max_batch(max_batch).tokens_per_pass(40);
            let run = Run { prompts: &prompts, params, readers: 5 };
            let (all, replays) = both(&what, generator, device, &run);
            assert!(replays >= 2, "{what}: {replays} replays");
            for (prompt, sample) in prompts.iter().zip(&all).flat_map(|(p, all)| all.iter().map(move |s| (p, s))) {
                assert_eq!(of(&sample.logprobs), scored_completion(model, &Ctx::inference(), prompt, &sample.ids));
            }
        }
    }
    // One sequence, of which only the first two steps are not replayed.
    let run = Run { prompts: &prompts[..1], params: &kinds[0], readers: 99 };
    let (_, replays) = both("alone", || Generator::new(model), device, &run);
    assert_eq!(replays, 12 - 1 - 2);
}

/// Weights of other kinds, heads of other sizes, windows and caps, rotations that depend on the length; an adapter, beside
/// prompts of the base alone.
#[test]
fn other_models_and_adapters_too() {
    let Some(device) = emulator(48) else { return };
    let lora = |model: Model| {
        let model = with_lora(model, 0.0);
        stir(&model);
        model
    };
    let on = |model: Model| {
        model.to_device(device).unwrap();
        model
    };
    let params = SamplingParams { max_new_tokens: 7, temperature: 0.8, ..SamplingParams::default() };
    for (what, model) in [
        ("smollm2 in f32", on(load("smollm2", None, false))),
        ("gemma2 in bf16", in_bf16(load("gemma2", Some(DType::BF16), false), device)),
        ("phi3 with LoRA", on(lora(load("phi3", None, false)))),
        ("f32 weights in bf16 with LoRA", in_bf16(lora(tiny(DType::F32, false)), device)),
        ("4 bits with LoRA", in_bf16(lora(requantized(tiny(DType::BF16, false))), device)),
    ] {
        let model = forever(model);
        let prompts = sequences(model, &[5, 2, 7], 3);
        let run = Run { prompts: &prompts, params: &params, readers: 4 };
        let (all, replays) = both(what, || Generator::new(model), device, &run);
        assert!(replays >= 2, "{what}: {replays} replays");
        if what.contains("LoRA") {
            let slots = |prompt: usize| (prompt != 1).then_some(0);
            let (some, replays) = both(what, || Generator::new(model).adapter_of(slots), device, &run);
            assert!(replays >= 4, "{what}: {replays} replays for both");
            assert_eq!((&some[0], &some[2]), (&all[0], &all[2]), "{what}: who else is in the batch");
            assert_ne!(some[1], all[1], "{what}: the adapter does something");
        }
    }
}

/// A cache that grows long is decoded by other kernels, with the same bits, and by a recording of its own.
#[test]
fn steps_over_caches_that_grow_long_are_recorded_anew() {
    for (number, capability) in [(57, (8, 0)), (58, (9, 0))] {
        let Some((device, emulator)) = watched(number, capability) else { return };
        let model = forever(in_bf16(tiny(DType::BF16, false), device));
        let prompts = sequences(model, &[505, 3], 3);
        let params = SamplingParams { max_new_tokens: 14, temperature: 0.0, ..SamplingParams::default() };
        let run = Run { prompts: &prompts, params: &params, readers: 99 };
        let (all, replays) = both(&format!("{capability:?}"), || Generator::new(model), device, &run);
        // 13 steps after the prompts, of which the first two of both kinds are not replayed: from the eighth on there is
        // room for 1024 keys.
        assert_eq!(replays, 13 - 4, "{capability:?}");
        for (prompt, answers) in prompts.iter().zip(&all) {
            let scored = scored_completion(model, &Ctx::inference(), prompt, &answers[0].ids);
            assert_eq!(of(&answers[0].logprobs), scored, "{capability:?}");
        }
        let launches = |name: &str| emulator.take_reports().iter().filter(|r| r.kernel.starts_with(name)).count();
        assert!(launches("attention_values") > 0, "{capability:?}");
    }
}

/// Where recording fails steps are launched one by one, with the same bits, and it is not tried again.
#[test]
fn steps_that_cannot_be_recorded_are_launched() {
    if !has_nvrtc() {
        return;
    }
    let emulator = Emulator::new((9, 0)).unwrap().with_memory(1 << 30).without_captures();
    let (device, _) = install(65, emulator);
    let model = forever(in_bf16(tiny(DType::BF16, false), device));
    let prompts = sequences(model, &[5, 9, 7], 3);
    let params = SamplingParams { max_new_tokens: 6, temperature: 0.8, ..SamplingParams::default() };
    let run = Run { prompts: &prompts, params: &params, readers: 4 };
    let (all, replays) = both("a driver without graphs", || Generator::new(model), device, &run);
    assert_eq!((replays, all.len()), (0, 3));
    let left = device.memory().unwrap().unwrap().in_use;
    both("once more", || Generator::new(model), device, &run);
    assert_eq!(device.memory().unwrap().unwrap().in_use, left, "nothing is held back");
}

/// Once a step is recorded, the next ones take nothing from the pool, tell the device three tables, and launch what they
/// would without; at the end all is given back.
#[test]
fn a_replayed_step_takes_no_memory() {
    let Some((device, emulator)) = watched(49, (9, 0)) else { return };
    let model = in_bf16(tiny(DType::BF16, false), device);
    let prompts = sequences(&model, &[5, 9, 7], 3);
    let params = SamplingParams { max_new_tokens: 8, temperature: 0.0, ..SamplingParams::default() };
    let run = |graphs: bool| {
        let mut seen = Vec::new();
        let mut tokens = 0;
        let mut note = |_: &planish_nn::generate::TokenEvent<'_>| {
            tokens += 1;
            if tokens % prompts.len() == 0 {
                let mut kernels: Vec<String> = emulator.take_reports().into_iter().map(|r| r.kernel).collect();
                kernels.sort();
                let usage = device.with_gpu(|gpu| gpu.pool().usage()).unwrap();
                seen.push((kernels, device.transfers().unwrap(), usage, device.replays().unwrap()));
            }
            true
        };
        Generator::new(&model).cuda_graphs(graphs).generate(&prompts, &params, &mut note).unwrap();
        seen
    };
    let plain = run(false);
    let in_use = device.memory().unwrap().unwrap().in_use;
    let seen = run(true);
    // Tables of where caches are, which are new, are kept for a while; the recording's memory is not.
    let left = device.memory().unwrap().unwrap().in_use - in_use;
    let recorded = seen.last().unwrap().2.in_use - plain.last().unwrap().2.in_use;
    assert!(left <= 2048 && recorded > 2 * left, "{left} bytes are left of {recorded}");
    for (step, pair) in seen.windows(2).enumerate().skip(2) {
        let [(_, before, memory, replays), (kernels, after, now, replayed)] = pair else { unreachable!() };
        assert_eq!(replayed - replays, 1, "step {step}");
        assert_eq!((now.in_use, now.reserved), (memory.in_use, memory.reserved), "step {step}");
        assert_eq!(after.uploads - before.uploads, 3, "step {step}: ids, rotations, numbers of keys");
        assert_eq!(after.downloads - before.downloads, 1, "step {step}");
        assert_eq!(*kernels, plain[step + 1].0, "step {step}");
    }
}

/// What comes from the host or goes to it cannot be recorded: it would not happen again.
#[test]
fn what_the_host_says_cannot_be_recorded() {
    let Some(device) = emulator(56) else { return };
    let host = Tensor::full(2.0f32, [8]).unwrap();
    let mut table = Table::new(device, [8], DType::F32).unwrap();
    table.tell(&host).unwrap();
    let mut recorder = Recorder::new(device).unwrap();
    let refused = |recorder: &mut Recorder, work: &mut dyn FnMut() -> planish_tensor::Result<()>| {
        recorder.record(work).unwrap_err().to_string()
    };
    let there = table.tensor().clone();
    let upload = refused(&mut recorder, &mut || host.to_device(device).map(drop));
    assert_eq!(upload, "an upload cannot be recorded");
    let download = refused(&mut recorder, &mut || there.to_device(Device::Cpu).map(drop));
    assert_eq!(download, "a download cannot be recorded");
    let rows = there.reshape([4, 2]).unwrap();
    let index = || planish_tensor::ops::index_select::forward(&rows, &[1, 3]).map(drop);
    // Even one that is kept on the device from before.
    index().unwrap();
    assert_eq!(refused(&mut recorder, &mut || index()), "a table of the host cannot be recorded");
    let profiled = device.with_gpu(|gpu| gpu.profile(|| refused(&mut recorder, &mut || Ok(())))).unwrap().unwrap().0;
    assert_eq!(profiled, "work that is profiled cannot be recorded");

    // And what can be is recorded as if nothing had happened; several pieces of work in one memory.
    let mut sums = [1.0f32, 10.0].map(|_| Table::new(device, [8], DType::F32).unwrap());
    let [one, ten] = [1.0, 10.0].map(|factor| {
        let sum = if factor == 1.0 { 0 } else { 1 };
        recorder
            .record(|| {
                let twice = elementwise::add(table.tensor(), table.tensor())?;
                let scaled = elementwise::scale(&twice, factor)?;
                sums[sum].take(&scaled)
            })
            .unwrap()
    });
    let read = |table: &Table| table.tensor().to_device(Device::Cpu).unwrap().to_vec::<f32>().unwrap();
    assert_eq!((read(&sums[0]), read(&sums[1])), (vec![4.0; 8], vec![40.0; 8]));
    table.tell(&Tensor::full(3.0f32, [8]).unwrap()).unwrap();
    recorder.replay(ten).unwrap();
    recorder.replay(one).unwrap();
    assert_eq!((read(&sums[0]), read(&sums[1])), (vec![6.0; 8], vec![60.0; 8]));
    assert_eq!(device.replays().unwrap(), 2);
    recorder.forget(ten).unwrap();
    assert!(recorder.has(one) && !recorder.has(ten));
    assert!(recorder.replay(ten).unwrap_err().to_string().ends_with("is not one of this device's"));
    // A table takes what has its shape and type, from its own device.
    assert!(table.tell(&Tensor::full(3.0f32, [9]).unwrap()).is_err());
    assert!(table.tell(&there).unwrap_err().to_string().contains("to_device"));
    assert!(Table::new(Device::Cpu, [8], DType::F32).is_err() && Recorder::new(Device::Cpu).is_err());
}
