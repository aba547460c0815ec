//! Memory of a device: what a plan says is what a run takes, and what finds no room says what to change. And devices that
//! fail in the middle of a run.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use planish_cuda::driver::{Image, Launch, Stream};
use planish_nn::config::ModelConfig;
use planish_nn::decoder::{LoadOptions, Model};
use planish_tensor::{DType, Device, Tensor};
use planish_tests::runs::{metrics_with_clock, repo, settings};
use planish_train::Error;
use planish_train::config::SftConfig;
use planish_train::recipes::sft;
use planish_train::run::{Observer, Silent, StepMetrics};

use crate::half::Random;
use crate::{has_nvrtc, small_emulator};

const GIB: u64 = 1 << 30;

/// A model of four layers with the builtin model's tokenizer, and rows of about 30 tokens.
pub(crate) fn prepare(dir: &Path, vocabulary: usize) {
    let config = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocabulary, "hidden_size": 128,
        "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 64, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "eos_token_id": 0,
    });
    let config = ModelConfig::from_json(&config).unwrap();
    let options = LoadOptions { dtype: Some(DType::F32), trainable: false };
    let model = Model::load(config, &Random, options).unwrap();
    std::fs::create_dir_all(dir.join("model")).unwrap();
    model.save(&dir.join("model")).unwrap();
    std::fs::copy(repo("train/builtin/tokenizer.json"), dir.join("model/tokenizer.json")).unwrap();
    let mut rows = String::new();
    for i in 0..24 {
        writeln!(
            rows,
            r#"{{"prompt":"the bird and the dog {i} ","completion":"and {} then the sun is red and it is blue"}}"#,
            i + 3
        )
        .unwrap();
    }
    std::fs::write(dir.join("rows.jsonl"), rows).unwrap();
}

/// Settings of a run on this device.
fn config(dir: &Path, device: Device, out: &str, extra: &[(&str, &str)]) -> SftConfig {
    let (model, device) = (dir.join("model").display().to_string(), device.to_string());
    let own = [("model", &model[..]), ("device", &device), ("max_steps", "2"), ("per_device_train_batch_size", "4")];
    let own = own.into_iter().filter(|(k, _)| !extra.iter().any(|(e, _)| e == k));
    let all: Vec<_> = own.chain(extra.iter().copied()).collect();
    settings(&dir.join("rows.jsonl"), &dir.join(out), &all)
}

/// Law 7 on a device: the forecast of `planish plan` against the most that the run had in use.
#[test]
fn plans_are_what_runs_take() {
    if !has_nvrtc() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    prepare(dir, 1536);
    let lora = [("use_peft", "true"), ("lora_r", "8"), ("lora_target_modules", "all-linear")];
    let cases: [&[(&str, &str)]; 6] = [
        &[("gradient_accumulation_steps", "1"), ("gradient_checkpointing", "false")],
        &[("dtype", "bfloat16"), ("gradient_checkpointing", "false")],
        &[lora[0], lora[1], lora[2], ("gradient_checkpointing", "false")],
        &[lora[0], lora[1], lora[2], ("dtype", "bfloat16"), ("gradient_checkpointing", "true")],
        &[lora[0], lora[1], lora[2], ("bf16", "false"), ("lora_dropout", "0.1"), ("gradient_checkpointing", "false")],
        &[lora[0], lora[2], ("peft_type", "VERA"), ("vera_r", "16"), ("gradient_checkpointing", "false")],
    ];
    for (i, extra) in cases.iter().enumerate() {
        let on = |number: u32| small_emulator(number, GIB).unwrap();
        let (device, other) = (on(70 + 2 * i as u32), on(71 + 2 * i as u32));
        let extra = &[extra, &[("max_steps", "1")][..]].concat();
        let forecast = sft::plan(&config(dir, device, "unused", extra)).unwrap();
        assert_eq!(forecast.device, device.to_string());
        let out = format!("run-{i}");
        sft::run(&config(dir, other, &out, extra), &mut Silent).unwrap();
        let rows = metrics_with_clock(&dir.join(out));
        let measured = rows.iter().map(|row| row["peak_memory_bytes"].as_f64().unwrap()).fold(0.0, f64::max);
        let ratio = forecast.memory.total() as f64 / measured;
        assert!((ratio - 1.0).abs() <= 0.05, "{extra:?}: {} of {measured} bytes, {ratio:.3}", forecast.memory.total());
    }
}

/// Does something after a step.
struct After<F>(u64, F);

impl<F: FnMut()> Observer for After<F> {
    fn stepped(&mut self, metrics: &StepMetrics) {
        if metrics.step == self.0 {
            (self.1)();
        }
    }
}

/// A kernel that writes where there is nothing.
fn break_down(device: Device) {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry broken() {
        .reg .b64 %d; .reg .b32 %r; mov.u64 %d, 64; mov.u32 %r, 1; st.global.u32 [%d], %r; ret; }";
    let launch = Launch { grid: [1; 3], block: [1; 3], cluster: [1; 3], shared_bytes: 0 };
    let launched = device.with_gpu(|gpu| {
        let driver = gpu.driver();
        let function = driver.function(driver.load(Image::Ptx(text))?, "broken")?;
        driver.launch(function, &launch, &[], Stream::default())
    });
    launched.unwrap().unwrap_err();
}

/// Six steps with a checkpoint every other, and what is wrong in the end; the step after `step` is done with `then`.
fn fails(dir: &Path, device: Device, out: &str, step: u64, then: impl FnMut()) -> Error {
    let config = config(dir, device, out, &[("max_steps", "6"), ("use_peft", "true"), ("save_steps", "2")]);
    sft::run(&config, &mut After(step, then)).unwrap_err()
}

#[test]
fn a_device_that_fails_ends_the_run_with_the_last_checkpoint() {
    let Some(device) = small_emulator(90, GIB) else { return };
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    prepare(dir, 1536);
    let error = fails(dir, device, "broken", 3, || break_down(device));
    let words = error.to_string();
    assert!(matches!(error, Error::DeviceFailed { step: 4, .. }) && !error.is_usage(), "{words}");
    let last: PathBuf = dir.join("broken/checkpoint-2");
    assert!(words.starts_with("step 4: ") && words.contains("broken"), "{words}");
    assert!(words.ends_with(&format!("started again to use the device (the last checkpoint is {})", last.display())));
    // Nothing is half written, and the next process goes on from there.
    let Some(device) = small_emulator(91, GIB) else { return };
    let on = [("max_steps", "3"), ("use_peft", "true"), ("resume_from_checkpoint", "latest")];
    sft::run(&config(dir, device, "broken", &on), &mut Silent).unwrap();
}

#[test]
fn what_finds_no_room_says_what_to_change() {
    if !has_nvrtc() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    prepare(dir, 1536);
    let refused = |number: u32, bytes: u64, extra: &[(&str, &str)]| -> String {
        let device = small_emulator(number, bytes).unwrap();
        let error = sft::run(&config(dir, device, "none", extra), &mut Silent).unwrap_err();
        assert!(!dir.join("none").exists(), "something was written");
        error.to_string()
    };
    // 3.9 MiB of weights.
    let words = refused(92, 1 << 20, &[]);
    assert!(words.contains(".weight: a tensor needs ") && words.contains("; set dtype to bfloat16"), "{words}");
    let words = refused(93, 19 << 18, &[("use_peft", "true"), ("gradient_checkpointing", "false")]);
    assert!(words.contains(" needs ") && words.contains("; set gradient_checkpointing to true, or lower"), "{words}");
    let words = refused(94, 6 << 20, &[]);
    assert!(words.contains("lower tokens_per_pass") || words.contains("use_peft"), "{words}");
    let words = refused(95, 16 << 20, &[]);
    assert!(words.contains("but emulator:95 can give 16 MiB") && words.contains("train a LoRA adapter"), "{words}");
    assert!(!words.contains("paged"), "{words}");
    // Somebody else takes it all in the middle of a run.
    let device = small_emulator(96, GIB).unwrap();
    let mut taken = Vec::new();
    let error = fails(dir, device, "crowded", 3, || {
        device.with_gpu(|gpu| gpu.pool().release()).unwrap().unwrap();
        let free = device.memory().unwrap().unwrap().free as usize;
        taken.push(Tensor::zeros_on(device, [free / 16 * 15], DType::U8).unwrap());
        while let Ok(more) = Tensor::zeros_on(device, [1 << 16], DType::U8) {
            taken.push(more);
        }
    });
    let words = error.to_string();
    assert!(matches!(error, Error::DeviceFull { .. }) && !error.is_usage(), "{words}");
    assert!(words.contains(" bytes of device memory: ") && words.contains("; lower tokens_per_pass"), "{words}");
    assert!(words.ends_with("crowded/checkpoint-2)"), "{words}");
}
