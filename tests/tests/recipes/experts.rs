//! Runs of mixtures of experts: from nothing, with adapters, on chosen experts alone.

use std::path::{Path, PathBuf};

use planish_nn::weights::WeightsReader;
use planish_train::config::SftConfig;
use planish_train::recipes::{pretrain, sft};
use planish_train::run::{Outcome, Silent, read_metrics};
use serde_json::{Value, json};

use crate::resume::{prepare, pretrain_settings};
use crate::{StopAfter, files, metrics, result, settings};

/// [`prepare`] with experts in place of the MLPs.
fn prepare_experts(dir: &Path, changes: Value) {
    prepare(dir);
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(path, config.to_string()).unwrap();
}

fn qwen3() -> Value {
    json!({
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 6, "num_experts_per_tok": 2,
        "moe_intermediate_size": 8, "norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "router_aux_loss_coef": 0.01,
    })
}

fn deepseek() -> Value {
    json!({
        "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "n_routed_experts": 6,
        "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "n_group": 2, "topk_group": 1, "num_key_value_heads": 2, "q_lora_rank": 6, "kv_lora_rank": 6,
        "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 8, "head_dim": null,
    })
}

fn numbers(run: &Path, key: &str) -> Vec<f64> {
    read_metrics(&run.join("metrics.jsonl")).unwrap().iter().filter_map(|row| row.get(key)?.as_f64()).collect()
}

/// Each family is made from nothing and learns; what its routers do is in the metrics; a resumed run is the same to the
/// bit.
#[test]
fn experts_are_pretrained_and_resumed() {
    for (name, changes, balanced) in [("qwen3", qwen3(), true), ("deepseek", deepseek(), false)] {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path();
        prepare_experts(dir, changes);
        let run = |out: &str, extra: &[(&str, &str)], stop: u64| {
            pretrain::run(&pretrain_settings(dir, out, extra), &mut StopAfter(stop, 0)).unwrap()
        };
        let whole = result(run("whole", &[], u64::MAX));
        let loss = numbers(&dir.join("whole"), "loss");
        assert!(loss.len() == 9 && loss[8] < loss[0] - 0.5, "{name}: {loss:?}");
        assert_eq!(numbers(&dir.join("whole"), "aux_loss").len(), if balanced { 9 } else { 0 }, "{name}");
        for key in ["router/entropy", "router/load_max_over_mean", "router/dead_experts"] {
            assert_eq!(numbers(&dir.join("whole"), key).len(), 9, "{name}: {key}");
        }
        assert!(numbers(&dir.join("whole"), "router/entropy").iter().all(|h| *h > 0.0 && *h <= 6f64.ln() + 1e-9));
        let report = std::fs::read_to_string(dir.join("whole/report.html")).unwrap();
        assert!(report.contains("Entropy of the mean routing distribution"), "{name}");
        let Outcome::Interrupted { .. } = run("cut", &[], 5) else { panic!("it should stop after step 5") };
        let resumed = result(run("cut", &[("resume_from_checkpoint", "latest")], u64::MAX));
        assert_eq!(files(&whole), files(&resumed), "{name}: the results");
        assert_eq!(metrics(&dir.join("whole")), metrics(&dir.join("cut")), "{name}: the metrics");
    }
}

/// Adapters on routers and experts with dropout and noise; experts alone; and both losses of the router.
#[test]
fn experts_are_fine_tuned_in_part() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    prepare_experts(dir, qwen3());
    let base = result(pretrain::run(&pretrain_settings(dir, "base", &[]), &mut Silent).unwrap());
    let run = |out: &str, extra: &[(&str, &str)]| -> PathBuf {
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let (base, data, out) = (base.to_string_lossy().into_owned(), path("pairs.jsonl"), path(out));
        let mut flags = vec![
            ("model", base.as_str()),
            ("dataset", &data),
            ("output_dir", &out),
            ("per_device_train_batch_size", "4"),
            ("learning_rate", "1e-2"),
            ("max_steps", "4"),
            ("router_z_loss_coef", "0.01"),
        ];
        flags.extend(extra);
        result(sft::run(&settings::<SftConfig>(&flags), &mut Silent).unwrap())
    };
    let lora = [("use_peft", "true"), ("lora_r", "2"), ("lora_target_modules", "all-linear"), ("lora_dropout", "0.2")];
    let whole = run("lora", &[&lora[..], &[("neftune_noise_alpha", "5")]].concat());
    // Recomputing changes no bit; losses of routers in passes of few tokens change rounding only.
    let plain = [("neftune_noise_alpha", "5"), ("gradient_checkpointing", "false")];
    let plain = run("plain", &[&lora[..], &plain].concat());
    assert_eq!(files(&whole), files(&plain));
    let short = [("neftune_noise_alpha", "5"), ("tokens_per_pass", "40")];
    run("short", &[&lora[..], &short].concat());
    for key in ["loss", "grad_norm", "aux_loss", "router_z_loss"] {
        let (a, b) = (numbers(&dir.join("lora"), key), numbers(&dir.join("short"), key));
        assert_eq!((a.len(), b.len()), (4, 4), "{key}");
        for (a, b) in a.iter().zip(&b) {
            // f32 sums in another order, over four steps.
            assert!((a - b).abs() <= 1e-3 * a.abs(), "{key}: {a} and {b}");
        }
    }
    // One expert of the last layer, and nothing else.
    let freeze =
        [("finetuning_type", "freeze"), ("freeze_trainable_layers", "1"), ("freeze_trainable_modules", "experts.2")];
    let tuned = run("freeze", &freeze);
    let (before, after) = (WeightsReader::open(&base).unwrap(), WeightsReader::open(&tuned).unwrap());
    let value = |reader: &WeightsReader, name: &str| reader.get(name).unwrap().to_vec::<f32>().unwrap();
    let mut changed: Vec<&String> = before.names().iter().filter(|n| value(&before, n) != value(&after, n)).collect();
    changed.sort();
    let part = |part: &str| format!("model.layers.1.mlp.experts.2.{part}_proj.weight");
    assert_eq!(changed, [&part("down"), &part("gate"), &part("up")]);
    // Of fused parameters.
    let fused = [
        ("use_peft", "true"),
        ("lora_dropout", "0"),
        ("lora_target_parameters", "mlp.experts.gate_up_proj"),
        ("lora_r", "2"),
    ];
    let adapter = run("fused", &fused);
    let names = WeightsReader::open(adapter.join("adapter_model.safetensors")).unwrap().names().to_vec();
    assert!(names.iter().any(|n| n.ends_with("layers.1.mlp.experts.lora_B.weight")), "{names:?}");
}
