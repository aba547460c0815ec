//! Activations in bf16 on a device: on tensor cores, close to f32, and with the same laws.

use std::collections::BTreeSet;
use std::sync::Arc;

use planish_autograd::Param;
use planish_cuda::emulator::Emulator;
use planish_nn::Ctx;
use planish_nn::adapters::load_adapter;
use planish_nn::config::ModelConfig;
use planish_nn::decoder::{LoadOptions, Model, TensorSource};
use planish_nn::generate::{Generator, SamplingParams};
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Device, Tensor};
use planish_tests::law5::{of, scored_completion, sequences};
use planish_train::config::OptimSettings;
use planish_train::trainer::accumulate;

use crate::training::{LORAS, STEPS, step, step_of, trajectory};
use crate::{emulator, fixture, has_nvrtc, install, law5, load, stir, with_lora};

/// Random weights by name, scaled as trained ones are.
pub(crate) struct Random;

impl TensorSource for Random {
    fn tensor(&self, name: &str, shape: &[usize]) -> planish_nn::Result<Option<Tensor>> {
        let salt = name.bytes().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let (s, n) = (Stream::new(3, Purpose::Init, salt), shape.iter().product::<usize>() as u64);
        let scale = if name.contains("embed") { 1.0 } else { (shape[shape.len() - 1] as f64).powf(-0.5) };
        let value = |i| if shape.len() == 1 { 1.0 + 0.1 * s.normal(i) } else { scale * s.normal(i) };
        Ok(Some(Tensor::from_vec((0..n).map(|i| value(i) as f32).collect(), shape)?))
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A Llama of two layers whose sizes are those that tensor cores take: heads of 64, everything a multiple of 8.
pub(crate) fn tiny(dtype: DType, trainable: bool) -> Model {
    tiny_of(64, dtype, trainable)
}

/// The same with heads of another size.
pub(crate) fn tiny_of(head: usize, dtype: DType, trainable: bool) -> Model {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": 104, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": head, "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    let config = ModelConfig::from_json(&config).unwrap();
    Model::load(config, &Random, LoadOptions { dtype: Some(dtype), trainable }).unwrap()
}

/// An emulator of this capability that notes what it is asked to do.
pub(crate) fn watched(number: u32, capability: (u32, u32)) -> Option<(Device, Arc<Emulator>)> {
    has_nvrtc().then(|| install(number, Emulator::new(capability).unwrap().with_memory(1 << 30).with_reports()))
}

pub(crate) fn kernels_of(emulator: &Emulator) -> BTreeSet<String> {
    emulator.take_reports().into_iter().map(|report| report.kernel).collect()
}

pub(crate) fn in_bf16(mut model: Model, device: Device) -> Model {
    model.to_device(device).unwrap();
    model.set_activations(DType::BF16).unwrap();
    model
}

/// How far the loss and the norm of the gradient may be off in ten steps, relative, between f32 and bf16 activations.
///
/// A bf16 is off by up to u = 2⁻⁹, and by 0.6 u in the root mean square. Behind a logit are some 30 roundings in a row
/// (weights, norms, q, k, p, residuals), which know nothing of each other: it is off by about √30 · 0.6 u = 0.6% of its size,
/// and a loss, the mean over a dozen tokens, by a few tenths of that. The gradient has as many roundings once more. Its
/// norm averages them over all parameters; but AdamW's steps, which go by the gradient's sign at first, carry differences
/// on. Something computed wrongly is off by tens of per cent.
pub(crate) const BOUNDS: [f64; 2] = [4e-3, 1e-2];
/// The same for the fixtures of families, whose weights are drawn so wide that attention is nearly a choice of one key: the
/// gradient is then a difference of like terms, and that of a few parameters alone is off by more.
pub(crate) const BOUNDS_OF_FIXTURES: [f64; 2] = [1e-2, 1e-1];

pub(crate) fn close(what: &str, want: &[[f64; 2]], got: &[[f64; 2]], bounds: [f64; 2]) {
    let mut worst = 0.0f64;
    for (step, (want, got)) in want.iter().zip(got).enumerate() {
        for (i, name) in ["loss", "norm"].iter().enumerate() {
            let off = (want[i] - got[i]).abs() / want[i].abs();
            assert!(off <= bounds[i], "{what}, step {step}: {name} {} for {}, off by {off:.1e}", got[i], want[i]);
            worst = worst.max(off);
        }
    }
    assert!(worst > 1e-5, "{what}: nothing was rounded to bf16");
}

/// Products and attention, forward and backward, by tensor cores alone: those of Hopper there, `mma.sync` elsewhere. With f32
/// weights, whose products take them rounded, and with bf16 weights under f32 masters.
#[test]
fn ten_steps_on_tensor_cores() {
    let hopper = ["matmul_hopper", "attention_hopper", "attention_dq_hopper", "attention_dkv_hopper"];
    let wide = ["matmul_hopper", "attention_wide_hopper", "attention_dq_scores_hopper", "attention_dkv_wide_hopper"];
    let cards = [
        (31, (9, 0), 64, DType::F32, hopper),
        (32, (8, 0), 64, DType::BF16, ["matmul", "attention_forward", "attention_dq", "attention_dkv"]),
        // Filled up to 64.
        (43, (9, 0), 24, DType::BF16, hopper),
        // Filled up to 256.
        (59, (9, 0), 200, DType::BF16, wide),
    ];
    for (number, capability, head, dtype, [product, attention @ ..]) in cards {
        let Some((device, emulator)) = watched(number, capability) else { return };
        let steps = if head == 64 { STEPS } else { 2 };
        let here = trajectory(&tiny_of(head, dtype, true), false, steps);
        let there = in_bf16(tiny_of(head, dtype, true), device);
        close(
            &format!("heads of {head}, {dtype} weights, on {capability:?}"),
            &here,
            &trajectory(&there, false, steps),
            BOUNDS,
        );
        let seen = kernels_of(&emulator);
        let of = |stem: &str| seen.iter().filter(|k| k.starts_with(stem)).map(String::as_str).collect::<BTreeSet<_>>();
        // At the head of a micro-batch there may be but few rows.
        let rows = of("matmul_rows_hopper");
        assert_eq!(&of("matmul") - &rows, BTreeSet::from([product]));
        assert!(rows.is_empty() || product == "matmul_hopper", "{rows:?}");
        assert_eq!(of("attention"), attention.into_iter().chain(["attention_delta"]).collect());
    }
}

/// A rank of 4 is filled up to 8 for tensor cores; dropout, and what an f32 adapter on bf16 activations takes.
#[test]
fn ten_steps_of_lora() {
    let Some((device, emulator)) = watched(33, (9, 0)) else { return };
    let made = || with_lora(tiny(DType::BF16, false), 0.1);
    let there = in_bf16(made(), device);
    close("LoRA", &trajectory(&made(), false, STEPS), &trajectory(&there, true, STEPS), BOUNDS);
    let seen = kernels_of(&emulator);
    // Products with four columns or rows are no tensor core's.
    assert!(seen.contains("matmul_hopper") && seen.contains("attention_hopper"), "{seen:?}");
    for p in there.params().iter().filter(|p| p.is_trainable()) {
        assert_eq!((p.value().dtype(), p.value().device()), (DType::F32, device), "{}", p.name());
    }
}

/// Biases, norms of q and k, norms after the blocks, fused projections, windows, soft-caps, scaled residuals, layers without
/// rotation: sizes for plain kernels.
#[test]
fn other_families() {
    let Some(device) = emulator(34) else { return };
    for (i, family) in
        ["qwen2", "gemma2", "phi3", "olmo2", "granite", "qwen3", "gemma3", "mistral", "smollm3"].iter().enumerate()
    {
        let made = |here: bool| {
            let model = load(family, None, i % 2 == 0);
            let model = if i % 2 == 0 { model } else { with_lora(model, 0.1) };
            if here { model } else { in_bf16(model, device) }
        };
        close(family, &trajectory(&made(true), false, 2), &trajectory(&made(false), i == 3, 2), BOUNDS_OF_FIXTURES);
    }
}

/// A model of the fixtures with an adapter of them.
fn adapted(name: &str) -> Model {
    let dir = fixture("adapters").join(name);
    let text = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let base = config["base_model_name_or_path"].as_str().unwrap();
    let mut model = load(base.trim_start_matches("models/"), None, false);
    load_adapter(&mut model, &dir).unwrap();
    model
}

/// Adapters hold f32 parameters that meet bf16 activations: scales, norms, virtual tokens, updates of the ends of the model.
#[test]
fn other_adapters() {
    let Some(device) = emulator(42) else { return };
    let others = [
        "smollm2_adalora",
        "llama3_oft",
        "smollm2_oft_exact",
        "qwen2_boft",
        "qwen2_ia3",
        "qwen2_vera",
        "llama3_ln",
        "gemma2_prompt",
        "smollm2_prefix_mlp",
        "llama3_p_tuning",
    ];
    for name in LORAS.into_iter().chain(others) {
        let (here, there) = (adapted(name), in_bf16(adapted(name), device));
        close(name, &trajectory(&here, false, 2), &trajectory(&there, false, 2), BOUNDS_OF_FIXTURES);
    }
}

/// Each parameter's gradient, as a vector, is off by 1 to 3% of its length: some 60 roundings of 0.1% along the way of a
/// token, of which those of a dozen tokens add up. Something computed wrongly is off by a half.
#[test]
fn gradients_point_where_those_of_f32_do() {
    let Some((device, _)) = watched(35, (9, 0)) else { return };
    let gradients = |model: Model| -> Vec<(String, Vec<f64>)> {
        accumulate(&model, &OptimSettings::default(), &step(&model, 3), 0).unwrap();
        let values = |p: &Param| {
            let grad = p.grad().unwrap();
            assert_eq!(grad.dtype(), DType::F32, "{}", p.name());
            grad.to_device(Device::Cpu).unwrap().to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap()
        };
        model.params().iter().filter(|p| p.is_trainable()).map(|p| (p.name().to_owned(), values(p))).collect()
    };
    let lora = || {
        let model = with_lora(tiny(DType::F32, false), 0.0);
        stir(&model);
        model
    };
    for (want, got) in [
        (gradients(tiny(DType::F32, true)), gradients(in_bf16(tiny(DType::F32, true), device))),
        (gradients(lora()), gradients(in_bf16(lora(), device))),
        (gradients(load("phi3", None, true)), gradients(in_bf16(load("phi3", None, true), device))),
    ] {
        for ((name, want), (_, got)) in want.iter().zip(&got) {
            let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let off = length(&mut want.iter().zip(got).map(|(w, g)| w - g)) / length(&mut want.iter().copied());
            assert!(off <= 0.05, "{name}: off by {off:.3} of its length");
        }
    }
}

/// Recomputation gives the same bits: a gradient that comes together from several places is rounded once either way.
#[test]
fn recomputation_changes_no_bit() {
    let Some(device) = emulator(36) else { return };
    for made in [|| tiny(DType::BF16, true), || with_lora(load("olmo2", None, false), 0.1)] {
        let run = |recompute| {
            let all = trajectory(&in_bf16(made(), device), recompute, 2);
            all.into_iter().map(|row| row.map(f64::to_bits)).collect::<Vec<_>>()
        };
        assert_eq!(run(true), run(false));
    }
}

/// Law 5: training, scoring, prompts read in pieces and decoding give one token the same bits, in every company.
#[test]
fn every_way_gives_the_same_bits() {
    // On one card more tokens than a tile of keys, and than a small tile of rows.
    for (number, capability, lengths) in [(37, (9, 0), [66, 2, 9]), (38, (8, 0), [33, 2, 9])] {
        let Some((device, emulator)) = watched(number, capability) else { return };
        let lora = with_lora(tiny(DType::F32, false), 0.0);
        stir(&lora);
        for (what, model, lengths) in [("bf16 weights", tiny(DType::BF16, false), lengths), ("LoRA", lora, [9, 2, 17])]
        {
            let model = in_bf16(model, device);
            let sequences = sequences(&model, &lengths, 5);
            law5::check(&format!("{what} on {capability:?}"), &model, &Ctx::inference(), &sequences);
        }
        assert!(!kernels_of(&emulator).contains("matmul_plain"));
    }
}

/// Heads whose kernels are of their own, on Hopper and elsewhere; more tokens than a step of keys.
#[test]
fn every_way_of_large_heads() {
    let Some(device) = emulator(98) else { return };
    let model = in_bf16(tiny_of(256, DType::BF16, false), device);
    let sequences = sequences(&model, &[70, 2], 5);
    law5::check("heads of 256", &model, &Ctx::inference(), &sequences);
}

/// The same with other sizes, with adapters, and what sampling reports.
#[test]
fn every_way_of_other_families() {
    let Some(device) = emulator(39) else { return };
    for family in ["gemma2", "phi3"] {
        let model = in_bf16(load(family, Some(DType::BF16), false), device);
        let sequences = sequences(&model, &[12, 2, 19], 5);
        law5::check(family, &model, &Ctx::inference(), &sequences);
    }
    for name in
        ["qwen2_prefix", "gemma2_prompt", "smollm2_head", "qwen2_dora", "smollm2_adalora", "llama3_oft", "qwen2_boft"]
    {
        let model = in_bf16(adapted(name), device);
        let sequences = sequences(&model, &[5, 2], 5);
        law5::check(name, &model, &Ctx::inference(), &sequences);
    }
    let model = in_bf16(tiny(DType::F32, false), device);
    let prompts = sequences(&model, &[6, 3], 8);
    let params = SamplingParams { max_new_tokens: 4, temperature: 0.8, n: 2, seed: 4, ..Default::default() };
    let all =
        Generator::new(&model).max_batch(3).tokens_per_pass(5).generate(&prompts, &params, &mut |_| true).unwrap();
    for (prompt, sample) in prompts.iter().zip(&all).flat_map(|(p, all)| all.iter().map(move |s| (p, s))) {
        assert_eq!(of(&sample.logprobs), scored_completion(&model, &Ctx::inference(), prompt, &sample.ids));
    }
    let cache = |activations| {
        let mut model = tiny(DType::F32, false);
        model.to_device(device).unwrap();
        model.set_activations(activations).unwrap();
        let mut cache = model.cache();
        model.decode(&Ctx::inference(), &[&prompts[0]], &mut [&mut cache]).unwrap();
        cache.bytes()
    };
    assert_eq!(cache(DType::F32), 2 * cache(DType::BF16));
}

/// What a training step needs beyond weights and gradients: half of it, but for what is f32 in any case.
#[test]
fn activations_take_half_the_memory() {
    let Some(device) = emulator(40) else { return };
    let peak = |activations| {
        let mut model = with_lora(tiny(DType::BF16, false), 0.0);
        model.to_device(device).unwrap();
        model.set_activations(activations).unwrap();
        let run = || accumulate(&model, &OptimSettings::default(), &step_of(&model, &[20, 30], 1), 0).unwrap();
        // Gradients are there already the second time.
        run();
        device.peak_of(run).unwrap().1
    };
    let (wide, half) = (peak(DType::F32), peak(DType::BF16));
    assert!(half * 10 < wide * 6, "{half} bytes for {wide}");
}

#[test]
fn activations_that_there_are_not_are_refused() {
    let mut model = tiny(DType::F32, false);
    let refused = |model: &mut Model, dtype| model.set_activations(dtype).unwrap_err().to_string();
    let words = "activations in bfloat16 are not supported on cpu: they are float32, or on a GPU bfloat16";
    assert_eq!(refused(&mut model, DType::BF16), words);
    model.set_activations(DType::F32).unwrap();
    let Some(device) = emulator(41) else { return };
    model.to_device(device).unwrap();
    assert!(refused(&mut model, DType::F16).starts_with("activations in float16 are not supported on emulator:41"));
    assert_eq!(model.activations(), DType::F32);
}
