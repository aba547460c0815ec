//! Runs of mixtures of experts: from nothing, with adapters, on chosen experts alone.

use std::path::{Path, PathBuf};

use planish_nn::weights::WeightsReader;
use planish_train::config::{DistillConfig, DpoConfig, MixConfig, RewardConfig, SftConfig};
use planish_train::recipes::{distill, dpo, mix, pretrain, reward, sft};
use planish_train::run::{Silent, read_metrics};
use serde_json::{Value, json};

use crate::resume::{prepare, pretrain_settings};
use crate::{Listener, files, result, settings, stopped_or_not};

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
            pretrain::run(&pretrain_settings(dir, out, extra), &mut Listener::stopping_after(stop)).unwrap()
        };
        stopped_or_not(name, 5, run);
        let loss = numbers(&dir.join("whole"), "loss");
        assert!(loss.len() == 9 && loss[8] < loss[0] - 0.5, "{name}: {loss:?}");
        assert_eq!(numbers(&dir.join("whole"), "aux_loss").len(), if balanced { 9 } else { 0 }, "{name}");
        for key in ["router/entropy", "router/load_max_over_mean", "router/dead_experts"] {
            assert_eq!(numbers(&dir.join("whole"), key).len(), 9, "{name}: {key}");
        }
        assert!(numbers(&dir.join("whole"), "router/entropy").iter().all(|h| *h > 0.0 && *h <= 6f64.ln() + 1e-9));
        let report = std::fs::read_to_string(dir.join("whole/report.html")).unwrap();
        assert!(report.contains("Entropy of the mean routing distribution"), "{name}");
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

/// Losses of the routers stand beside those of preferences: with the model's own weight, in one pass or in several, and
/// in a mixture of objectives; what resumes has the same bits.
#[test]
fn preferences_keep_the_routers_balanced() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    prepare_experts(dir, qwen3());
    let base = result(pretrain::run(&pretrain_settings(dir, "base", &[]), &mut Silent).unwrap());
    let pair =
        |i: usize| json!({ "prompt": format!("{i} and"), "chosen": format!(" {}.", i + 1), "rejected": " no, a fish" });
    let rows: String = (0..16).map(|i| format!("{}\n", pair(i))).collect();
    std::fs::write(dir.join("preferred.jsonl"), rows).unwrap();
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (base, pairs, imitated) = (base.to_string_lossy().into_owned(), path("preferred.jsonl"), path("pairs.jsonl"));
    let flags = |out: &str, extra: &[(&str, &str)]| -> Vec<(String, String)> {
        let own = [
            ("model", &base[..]),
            ("dataset", &pairs),
            ("output_dir", out),
            ("per_device_train_batch_size", "4"),
            ("learning_rate", "1e-2"),
            ("max_steps", "4"),
            ("save_steps", "2"),
            ("router_z_loss_coef", "0.02"),
        ];
        let own = own.into_iter().filter(|(k, _)| !extra.iter().any(|(e, _)| e == k));
        own.chain(extra.iter().copied()).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    };
    let dpo = |out: &str, extra: &[(&str, &str)], stop: u64| {
        let flags = flags(&path(out), extra);
        let flags: Vec<_> = flags.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        dpo::run(&settings::<DpoConfig>(&flags), &mut Listener::stopping_after(stop)).unwrap()
    };
    let of = |run: &str, key: &str| numbers(&dir.join(run), key);
    stopped_or_not("dpo", 3, dpo);
    // At the reference a pair's loss is log 2.
    let routers = 0.01 * of("whole", "aux_loss")[0] + 0.02 * of("whole", "router_z_loss")[0];
    assert!((of("whole", "loss")[0] - 2f64.ln() - routers).abs() <= 1e-9, "{:?} and {routers}", of("whole", "loss"));
    for key in ["aux_loss", "router_z_loss", "router/entropy", "router/dead_experts"] {
        assert_eq!(of("whole", key).len(), 4, "{key}");
    }
    // A loss that couples pairs goes through the model twice in passes.
    for loss in ["sigmoid", "aot"] {
        let (one, several) = (format!("one-{loss}"), format!("several-{loss}"));
        dpo(&one, &[("loss_type", loss), ("tokens_per_pass", "0")], u64::MAX);
        dpo(&several, &[("loss_type", loss), ("tokens_per_pass", "30")], u64::MAX);
        for key in ["loss", "grad_norm", "aux_loss", "router_z_loss"] {
            for (a, b) in of(&one, key).iter().zip(of(&several, key)) {
                // f32 sums in another order, over four steps.
                assert!((a - b).abs() <= 1e-3 * a.abs(), "{loss} {key}: {a} and {b}");
            }
        }
    }
    let both = format!("{imitated},{pairs}");
    let mixed = [("dataset", &both[..]), ("objectives", "sft,{objective: dpo, weight: 0.5}")];
    let mixed = flags(&path("mixed"), &mixed);
    let mixed: Vec<_> = mixed.iter().map(|(k, v)| (&k[..], &v[..])).collect();
    result(mix::run(&settings::<MixConfig>(&mixed), &mut Silent).unwrap());
    for row in read_metrics(&dir.join("mixed/metrics.jsonl")).unwrap() {
        let of = |key: &str| row.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        let want = of("sft/loss") + 0.5 * of("dpo/loss") + 0.01 * of("aux_loss") + 0.02 * of("router_z_loss");
        assert!(of("aux_loss") > 0.0 && (of("loss") - want).abs() <= 1e-9 * want, "{row:?}");
    }
}

/// What the routers of a judge or a student do is in the metrics; a student's stay balanced, in one pass or in several.
#[test]
fn judges_and_students_watch_their_routers() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    prepare_experts(dir, qwen3());
    let base = result(pretrain::run(&pretrain_settings(dir, "base", &[]), &mut Silent).unwrap());
    let pairs: String = (0..16)
        .map(|i| format!("{}\n", json!({ "prompt": format!("{i} and"), "chosen": " yes.", "rejected": " no, a fish" })))
        .collect();
    let steps: String = (0..16)
        .map(|i| {
            format!("{}\n", json!({ "prompt": "Go", "completions": [" on", " and"], "labels": [i % 2 == 0, true] }))
        })
        .collect();
    std::fs::write(dir.join("preferred.jsonl"), pairs).unwrap();
    std::fs::write(dir.join("steps.jsonl"), steps).unwrap();
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let base = base.to_string_lossy().into_owned();
    let flags = |data: &str, out: &str, extra: &[(&str, &str)]| -> Vec<(String, String)> {
        let (data, out) = (path(data), path(out));
        let own = [
            ("model", &base[..]),
            ("dataset", &data),
            ("output_dir", &out),
            ("per_device_train_batch_size", "8"),
            ("learning_rate", "1e-2"),
            ("max_steps", "2"),
        ];
        own.iter().chain(extra).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    fn read<C: planish_train::config::Recipe>(flags: &[(String, String)]) -> C {
        settings(&flags.iter().map(|(k, v)| (&k[..], &v[..])).collect::<Vec<_>>())
    }
    for (data, kind) in [("preferred.jsonl", "outcome"), ("steps.jsonl", "process")] {
        let config: RewardConfig = read(&flags(data, kind, &[]));
        result(reward::run(&config, &mut Silent).unwrap());
    }
    let student = [("teacher_model", &base[..]), ("router_z_loss_coef", "0.02")];
    for (out, tokens) in [("whole", "0"), ("passes", "40")] {
        let config: DistillConfig =
            read(&flags("pairs.jsonl", out, &[&student[..], &[("tokens_per_pass", tokens)]].concat()));
        result(distill::run(&config, &mut Silent).unwrap());
    }
    let of = |run: &str, key: &str| numbers(&dir.join(run), key);
    for run in ["outcome", "process", "whole", "passes"] {
        for key in ["router/entropy", "router/load_max_over_mean", "router/dead_experts"] {
            assert_eq!(of(run, key).len(), 2, "{run}: {key}");
        }
        assert!(of(run, "router/entropy").iter().all(|h| *h > 0.0 && *h <= 6f64.ln() + 1e-9), "{run}");
    }
    assert!(of("outcome", "aux_loss").is_empty());
    for (s, loss) in of("whole", "loss").iter().enumerate() {
        let want =
            of("whole", "divergence")[s] + 0.01 * of("whole", "aux_loss")[s] + 0.02 * of("whole", "router_z_loss")[s];
        assert!((loss - want).abs() <= 1e-9 * want, "{loss} is not {want}");
    }
    // A student that is its teacher has the routers' gradient alone.
    assert!(of("whole", "divergence")[0].abs() <= 1e-6 && of("whole", "grad_norm")[0] > 1e-3);
    for key in ["grad_norm", "aux_loss", "router_z_loss"] {
        for (a, b) in of("whole", key).iter().zip(of("passes", key)) {
            // f32 sums in another order, over two steps.
            assert!((a - b).abs() <= 1e-3 * a.abs(), "{key}: {a} and {b}");
        }
    }
}
