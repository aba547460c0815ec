//! Distillation on the emulator: the losses and gradients of the processor, from a teacher's head and from its best tokens.

use std::path::Path;

use planish_tensor::Device;
use planish_tests::program::planish;
use planish_tests::runs::{Listener, metrics, repo, result, settings};
use planish_train::config::DistillConfig;
use planish_train::recipes::distill;

use crate::{emulator, room};

/// Loss, norm of the gradient, divergence, entropy and agreement of each step of a run on this device.
fn followed(dir: &Path, device: Device, bf16: bool, out: &str, extra: &[(&str, &str)]) -> Vec<[f64; 5]> {
    let name = device.to_string();
    let own = [
        ("model", "builtin"),
        ("max_steps", "2"),
        ("per_device_train_batch_size", "2"),
        ("device", &name),
        ("learning_rate", "1e-3"),
    ];
    let half = [("bf16", "false")];
    let half = if device.is_cpu() || bf16 { &[][..] } else { &half[..] };
    let config = settings::<DistillConfig>(&dir.join("rows.jsonl"), &dir.join(out), &[&own[..], half, extra].concat());
    result(distill::run(&config, &mut Listener::stopping_after(u64::MAX)).unwrap());
    let of = |line: &serde_json::Map<String, serde_json::Value>| {
        ["loss", "grad_norm", "divergence", "entropy", "teacher_agreement"].map(|key| line[key].as_f64().unwrap())
    };
    metrics(&dir.join(out)).iter().map(of).collect()
}

#[test]
fn a_student_learns_as_on_the_processor() {
    let Some(device) = emulator(66) else { return };
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    // The builtin student's.
    room::prepare(dir, 1408);
    for file in ["tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(repo("train/builtin").join(file), dir.join("model").join(file)).unwrap();
    }
    let text = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (teacher, scores, data) = (text("model"), text("scores.jsonl"), text("rows.jsonl"));
    let done = planish(&["score", "--model", &teacher, "--dataset", &data, "--output", &scores, "--top-k", "8"]);
    assert_eq!(done.code, 0, "{done:?}");
    let lora = [("use_peft", "true"), ("lora_r", "4")];
    let cases: [Vec<(&str, &str)>; 4] = [
        vec![("teacher_model", &teacher), ("beta", "0"), ("feature_layers", "0=1"), ("feature_weight", "0.1")],
        [&lora[..], &[("teacher_model", &teacher), ("beta", "0.3"), ("temperature", "2"), ("feature_layers", "1=0")]]
            .concat(),
        vec![("teacher_model", &teacher), ("beta", "1"), ("hard_weight", "0.5")],
        [&lora[..], &[("teacher_scores", &scores), ("beta", "0.5"), ("tokens_per_pass", "60")]].concat(),
    ];
    for (i, extra) in cases.iter().enumerate() {
        let here = followed(dir, Device::Cpu, false, &format!("cpu-{i}"), extra);
        // The emulator takes its time.
        let bf16 = i == 1;
        let there = followed(dir, device, bf16, &format!("emulator-{i}-{bf16}"), extra);
        // f32 by the order of sums; bf16 as `half::BOUNDS` has it, and more for the smaller loss of a soft target.
        let most = if bf16 { 3e-2 } else { 2e-4 };
        assert_eq!(here.len(), there.len());
        for (step, (want, got)) in here.iter().zip(&there).enumerate() {
            for (k, what) in ["loss", "grad_norm", "divergence", "entropy"].iter().enumerate() {
                let off = (want[k] - got[k]).abs() / want[k].abs();
                assert!(off <= most, "{extra:?}, bf16 {bf16}, step {step}: {what} {} for {}", got[k], want[k]);
            }
            let agreement = if bf16 { 0.1 } else { 0.0 };
            assert!((want[4] - got[4]).abs() <= agreement, "{extra:?}, step {step}: {} for {}", got[4], want[4]);
        }
    }
}
