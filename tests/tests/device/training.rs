//! Ten steps on the emulator are ten steps on the processor, but for the order of sums in f32.

use planish_nn::adapters::{AdapterConfig, adapter_params, attach, load_adapter, read_config};
use planish_nn::decoder::Model;
use planish_tensor::{DType, Device};
use planish_tests::law5::sequences;
use planish_train::config::OptimSettings;
use planish_train::data::{Batch, Cursor, Example, Source, Step};
use planish_train::optim::{Rates, Update, grad_norm, optimizer};
use planish_train::trainer::accumulate;

use crate::{emulator, fixture, load, small_emulator, with_lora};

pub(crate) const STEPS: usize = 10;

/// A step of two micro-batches of two examples.
pub(crate) fn step(model: &Model, number: usize) -> Step {
    step_of(model, &[5, 9, 3, 6], number)
}

/// A step of micro-batches of two examples of these lengths.
pub(crate) fn step_of(model: &Model, lengths: &[usize], number: usize) -> Step {
    let all = sequences(model, lengths, number as u64);
    let example = |ids: &Vec<u32>| Example {
        ids: ids.clone(),
        mask: (0..ids.len()).map(|i| i >= 2).collect(),
        n_prompt: 2,
        source: Source { file: std::path::Path::new("test").into(), line: 0, row: 0 },
    };
    let examples: Vec<Example> = all.iter().map(example).collect();
    let micro_batches: Vec<Batch> = examples
        .chunks(2)
        .enumerate()
        .map(|(i, pair)| Batch::from_examples(pair.iter().enumerate().map(|(k, e)| (2 * i + k, e))))
        .collect();
    Step {
        supervised: micro_batches.iter().map(Batch::supervised).sum(),
        tokens: micro_batches.iter().map(Batch::tokens).sum(),
        micro_batches,
        dropped: 0,
        cursor: Cursor::default(),
        epoch: 0.0,
    }
}

/// (loss, norm of the gradient) of each of so many steps, with clipping.
pub(crate) fn trajectory(model: &Model, recompute: bool, steps: usize) -> Vec<[f64; 2]> {
    trajectory_of(model, None, recompute, steps)
}

/// The same with what an adapter adds to the loss, and does after each step.
fn trajectory_of(model: &Model, adapter: Option<&AdapterConfig>, recompute: bool, steps: usize) -> Vec<[f64; 2]> {
    let optim = OptimSettings {
        learning_rate: 1e-3,
        weight_decay: 0.1,
        gradient_checkpointing: recompute,
        neftune_noise_alpha: Some(2.0),
        ..OptimSettings::default()
    };
    let mut adamw = optimizer(&model.params(), &optim, &Rates::default(), &std::env::temp_dir()).unwrap();
    let mut all = Vec::new();
    for number in 0..steps {
        let sum = accumulate(model, &optim, &step(model, number), number as u64).unwrap();
        let scale = 1.0 / sum.count as f64;
        let own = adapter_params(model, 0);
        let penalty = adapter.map_or(0.0, |a| a.penalise(&own, sum.count as f64).unwrap());
        let norm = grad_norm(&adamw.params(), scale).unwrap();
        let clip = (1.0 / (norm + 1e-6)).min(1.0);
        let gradients: Vec<_> = adapter.iter().flat_map(|_| own.iter().map(|p| p.grad())).collect();
        adamw.step(Update { learning_rate: 1e-3, grad_scale: scale * clip }).unwrap();
        if let Some(adapter) = adapter {
            adapter.stepped(&own, &gradients, scale * clip, number as u64 + 1).unwrap();
        }
        all.push([sum.mean() + penalty, norm]);
    }
    all
}

/// How far the loss and the norm of the gradient may be off in ten steps, relative.
///
/// Both sides compute in f32 (u = 6e-8) and sum in other orders. A loss is behind some thousand roundings, which know
/// nothing of each other: some tens of u. A norm is that of sums of such numbers with both signs, and AdamW's steps,
/// which go by the gradient's sign at first, carry the differences on. Something computed wrongly, such as a mask or one
/// term of a sum, is off by 1e-3 and more.
const BOUNDS: [f64; 2] = [5e-6, 1e-4];
/// The same where masters are rounded to bf16 weights: of two masters that differ by a rounding of f32 some lie on the two
/// sides of a tie, and these weights then differ by 2⁻⁸ of themselves.
const BOUNDS_OF_BF16: [f64; 2] = [2e-4, 2e-3];

pub(crate) fn compare(what: &str, here: &Model, there: &Model, device: Device, recompute: bool) {
    compare_of(what, (here, None), (there, None), device, recompute);
}

type Adapted<'a> = (&'a Model, Option<&'a AdapterConfig>);

fn compare_of(what: &str, (here, ours): Adapted<'_>, (there, theirs): Adapted<'_>, device: Device, recompute: bool) {
    there.to_device(device).unwrap();
    assert!(there.params().iter().all(|p| p.value().device() == device));
    let bf16 = here.params().iter().any(|p| p.is_trainable() && p.value().dtype() == DType::BF16);
    let bounds = if bf16 { BOUNDS_OF_BF16 } else { BOUNDS };
    let (want, got) = (trajectory_of(here, ours, recompute, STEPS), trajectory_of(there, theirs, recompute, STEPS));
    for (step, (want, got)) in want.iter().zip(&got).enumerate() {
        for (i, name) in ["loss", "norm"].iter().enumerate() {
            let off = (want[i] - got[i]).abs() / want[i].abs();
            assert!(off <= bounds[i], "{what}, step {step}: {name} {} for {}, off by {off:.1e}", got[i], want[i]);
        }
    }
    assert!(want[STEPS - 1] != want[0], "{what}: nothing was trained");
}

/// Each family's own parts: biases, norms of q and k, norms after the blocks, fused projections, windows, soft-caps,
/// scaled residuals and logits, layers without rotation, bf16 weights with f32 masters.
const FAMILIES: [&str; 11] =
    ["smollm2", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "granite", "mistral", "smollm3", "llama_bf16"];

#[test]
fn all_weights_of_every_family() {
    let Some(device) = emulator(1) else { return };
    for (i, family) in FAMILIES.iter().enumerate() {
        let model = || load(family, None, true);
        compare(family, &model(), &model(), device, i % 4 == 3);
    }
}

#[test]
fn lora_on_every_family() {
    let Some(device) = emulator(2) else { return };
    for (i, family) in FAMILIES.iter().enumerate() {
        let model = || with_lora(load(family, None, false), 0.1);
        compare(&format!("{family} with LoRA"), &model(), &model(), device, i % 4 == 2);
    }
}

/// What LoRA can be besides updates of linear modules.
pub(crate) const LORAS: [&str; 6] =
    ["llama3_embed", "qwen2_bias_all", "qwen2_dora", "qwen2_saved_both", "smollm2_head", "smollm2_pissa"];

/// Every other adapter, as PEFT saved it: the embedding and the head, trained copies, biases, lengths of rows, scales, norms,
/// rotations and virtual tokens.
#[test]
fn other_adapters() {
    let Some(device) = emulator(3) else { return };
    let mut seen = Vec::new();
    let mut names: Vec<_> = std::fs::read_dir(fixture("adapters")).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    for dir in names.iter().filter(|p| p.is_dir()) {
        let text = std::fs::read_to_string(dir.join("adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        let base = config["base_model_name_or_path"].as_str().unwrap().trim_start_matches("models/").to_owned();
        let made = || {
            let mut model = load(&base, None, false);
            let adapter = load_adapter(&mut model, dir).unwrap();
            (model, adapter)
        };
        let (here, adapter) = made();
        let kind = adapter.peft_type().to_owned();
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let again = !matches!(kind.as_str(), "LORA" | "OFT" | "BOFT") && seen.contains(&kind);
        if again || (kind == "LORA" && !LORAS.contains(&name.as_str())) {
            continue;
        }
        seen.push(kind);
        compare(&dir.display().to_string(), &here, &made().0, device, false);
    }
    let all =
        ["LORA", "ADALORA", "IA3", "VERA", "LN_TUNING", "OFT", "BOFT", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"];
    for kind in all {
        assert!(seen.iter().any(|s| s == kind), "{kind} was not tried: {seen:?}");
    }
}

/// A fresh adapter with settings under PEFT's names.
fn fresh(settings: &serde_json::Value) -> (Model, AdapterConfig) {
    let config = read_config(settings, std::path::Path::new("a test")).unwrap();
    let mut model = load("smollm2", None, false);
    attach(&mut model, &*config, 3, None).unwrap();
    (model, config)
}

/// AdaLoRA's penalty, and which ranks it keeps: found on the host, from what the device has.
#[test]
fn ranks_fall_as_on_the_processor() {
    let Some(device) = emulator(7) else { return };
    let settings = serde_json::json!({
        "peft_type": "ADALORA", "target_modules": "all-linear", "init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 2,
        "deltaT": 2, "total_step": STEPS, "lora_dropout": 0.1, "orth_reg_weight": 0.5,
    });
    let ((here, ours), (there, theirs)) = (fresh(&settings), fresh(&settings));
    compare_of("AdaLoRA", (&here, Some(&ours)), (&there, Some(&theirs)), device, false);
    let ranks = |config: &AdapterConfig| config.to_json()["rank_pattern"].clone();
    assert_eq!(ranks(&theirs), ranks(&ours));
    let kept = ranks(&theirs);
    let kept = kept.as_object().unwrap().values().flat_map(|v| v.as_array().unwrap());
    let (kept, gone): (Vec<_>, Vec<_>) = kept.partition(|v| v.as_bool().unwrap());
    assert_eq!(kept.len(), gone.len());
    let saved = |config: &AdapterConfig, model: &Model| {
        let all = config.saved(&adapter_params(model, 0)).unwrap();
        all.into_iter().map(|(name, t)| (name, t.dims().to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(saved(&theirs, &there), saved(&ours, &here));
}

/// P-tuning's encoder with LSTMs in both directions, whose results PEFT's files hold instead of it; and DoRA with dropout.
#[test]
fn fresh_adapters() {
    let Some(device) = emulator(8) else { return };
    for settings in [
        serde_json::json!({
            "peft_type": "P_TUNING", "num_virtual_tokens": 5, "encoder_reparameterization_type": "LSTM",
            "encoder_hidden_size": 9, "encoder_num_layers": 2,
        }),
        serde_json::json!({
            "peft_type": "LORA", "target_modules": "all-linear", "r": 3, "use_dora": true, "lora_dropout": 0.2,
        }),
    ] {
        let ((here, _), (there, _)) = (fresh(&settings), fresh(&settings));
        compare(&settings.to_string(), &here, &there, device, true);
    }
}

/// Deliberately too little memory: what finds no room is named.
#[test]
fn no_room_names_the_tensor() {
    let Some(device) = small_emulator(5, 64 << 10) else { return };
    let refused = load("smollm2", None, true).to_device(device).unwrap_err();
    assert!(refused.is_of_device());
    let words = refused.to_string();
    assert!(words.starts_with("model.layers.") && words.contains(".weight: a tensor needs "), "{words}");
    let model = load("smollm2", None, true);
    let bytes = |n: usize, size: usize| (n * size).next_multiple_of(512) as u64;
    let weights: u64 = model.params().iter().map(|p| bytes(p.value().numel(), p.value().dtype().size())).sum();
    let Some(device) = small_emulator(6, weights + 40 * 512) else { return };
    model.to_device(device).unwrap();
    let Err(refused) = optimizer(&model.params(), &OptimSettings::default(), &Rates::default(), &std::env::temp_dir())
    else {
        panic!("there is no room for the moments")
    };
    assert!(!refused.is_usage());
    let words = refused.to_string();
    assert!(words.starts_with("AdamW's moments of model."), "{words}");
}

/// A step waits for the device twice: for the scores of all its tokens, and for the norm.
#[test]
fn numbers_come_back_once_a_step() {
    let Some(device) = emulator(4) else { return };
    let model = load("smollm2", None, true);
    model.to_device(device).unwrap();
    let optim = OptimSettings::default();
    let mut adamw = optimizer(&model.params(), &optim, &Rates::default(), &std::env::temp_dir()).unwrap();
    for number in 0..2 {
        let before = device.transfers().unwrap();
        let step = step(&model, number);
        let sum = accumulate(&model, &optim, &step, 0).unwrap();
        grad_norm(&adamw.params(), 1.0).unwrap();
        adamw.step(Update { learning_rate: 1e-3, grad_scale: 1.0 / sum.count as f64 }).unwrap();
        let after = device.transfers().unwrap();
        // Log-probability, entropy and best token of each supervised token, for each micro-batch; and the norm.
        assert_eq!(after.downloads - before.downloads, 2 * 3 + 1);
        assert_eq!(after.download_bytes - before.download_bytes, 12 * sum.count + 8);
        assert!(after.upload_bytes - before.upload_bytes < 20_000, "{before:?} {after:?}");
    }
}
