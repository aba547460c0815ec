//! Whole runs on the builtin model.

use std::path::Path;

use planish_train::config::{CpoConfig, DpoConfig, KtoConfig, OrpoConfig, RewardConfig, SimpoConfig};
use planish_train::recipes::{cpo, dpo, kto, orpo, reward, simpo};
use planish_train::run::{Outcome, Silent};

use crate::{Listener, files, metrics, result, settings, stopped_or_not, write_data};

/// A run of a recipe by name, and what it said.
fn run(recipe: &str, dir: &Path, out: &str, extra: &[(&str, &str)], stop: u64) -> (Outcome, Vec<String>) {
    let mut seen = Listener::stopping_after(stop);
    let (pairs, labelled, out) = (dir.join("pairs.jsonl"), dir.join("labelled.jsonl"), dir.join(out));
    let outcome = match recipe {
        "dpo" => dpo::run(&settings::<DpoConfig>(&pairs, &out, extra), &mut seen),
        "kto" => kto::run(&settings::<KtoConfig>(&labelled, &out, extra), &mut seen),
        "orpo" => orpo::run(&settings::<OrpoConfig>(&pairs, &out, extra), &mut seen),
        "cpo" => cpo::run(&settings::<CpoConfig>(&pairs, &out, extra), &mut seen),
        "reward" => reward::run(&settings::<RewardConfig>(&pairs, &out, extra), &mut seen),
        "simpo" => simpo::run(&settings::<SimpoConfig>(&pairs, &out, extra), &mut seen),
        other => panic!("{other}"),
    };
    (outcome.unwrap_or_else(|e| panic!("{recipe} {extra:?}: {e}")), seen.notes)
}

const LORA: [(&str, &str); 3] = [("use_peft", "true"), ("lora_r", "4"), ("lora_dropout", "0.1")];

/// Law 6, with what each recipe keeps of its own: a reference that moves, dropout, held-out data.
#[test]
fn a_resumed_run_is_the_one_that_never_stopped() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let follow = [("sync_ref_model", "true"), ("ref_model_sync_steps", "2"), ("tokens_per_pass", "60")];
    let held = [("validation_split", "0.2"), ("eval_strategy", "steps"), ("eval_steps", "2")];
    let drop = [("disable_dropout", "false"), ("loss_type", "aot"), ("tokens_per_pass", "60")];
    let runs: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("dpo", follow.to_vec()),
        ("dpo", [&LORA[..], &drop].concat()),
        ("kto", [&LORA[..], &held].concat()),
        ("kto", [&LORA[..], &held, &[("loss_type", "bco"), ("tokens_per_pass", "60")]].concat()),
        // What it says after ten steps, of which three are before it is stopped.
        ("dpo", vec![("learning_rate", "3e-2"), ("max_steps", "12"), ("loss_type", "sigmoid,sft")]),
        ("orpo", held.to_vec()),
        ("cpo", LORA.to_vec()),
        ("simpo", LORA.to_vec()),
        ("reward", held.to_vec()),
        ("reward", [&LORA[..], &held].concat()),
    ];
    for (i, (recipe, extra)) in runs.iter().enumerate() {
        stopped_or_not(&format!("{recipe} {i}"), 3, |out, more, stop| {
            run(recipe, dir, &format!("{out}{i}"), &[&extra[..], more].concat(), stop).0
        });
    }
    let said = std::fs::read_to_string(dir.join("cut4/advice.jsonl")).unwrap();
    assert!(said.contains(r#"{"step":10,"advice":"on the tokens of the data the model has moved"#), "{said}");
    // The reference that follows the model is state, and no part of the result.
    let names = |dir: &Path| files(dir).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert!(names(&dir.join("whole0/checkpoint-4")).contains(&"reference.safetensors".to_string()));
    assert!(names(&dir.join("whole0/checkpoint-4")).contains(&"objective.json".to_string()));
    for state in ["reference.safetensors", "objective.json"] {
        assert!(!names(&dir.join("whole0/final")).contains(&state.to_string()));
    }
    // A loss with a mean of its own does not go on from one without.
    let seen = &mut Listener::default();
    let from = dir.join("whole2/checkpoint-4").to_string_lossy().into_owned();
    let extra = [&LORA[..], &held, &[("loss_type", "bco"), ("resume_from_checkpoint", &from)]].concat();
    let config = settings::<KtoConfig>(&dir.join("labelled.jsonl"), &dir.join("other"), &extra);
    let error = kto::run(&config, seen).unwrap_err().to_string();
    assert!(error.contains("objective.json is of a run with another loss"), "{error}");
}

#[test]
fn metrics_have_the_names_of_trl() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let held = [("validation_split", "0.2"), ("eval_strategy", "steps"), ("eval_steps", "2")];
    let rewards = ["rewards/chosen", "rewards/rejected", "rewards/margins"];
    let logps = ["logps/chosen", "logps/rejected", "entropy"];
    for (recipe, own) in [
        ("dpo", &["rewards/accuracies", "mean_token_accuracy", "kl_per_token"][..]),
        ("kto", &["kl", "kl_per_token", "rewards/accuracies"]),
        ("orpo", &["rewards/accuracies", "nll_loss", "log_odds_ratio", "log_odds_chosen"]),
        ("cpo", &["rewards/accuracies", "nll_loss"]),
        ("bco", &["delta", "kl_per_token", "rewards/accuracies"]),
    ] {
        let (bco, kto) = ([&held[..], &[("loss_type", "bco")]].concat(), ["bco", "kto"].contains(&recipe));
        match recipe {
            "bco" => result(run("kto", dir, recipe, &bco, u64::MAX).0),
            _ => result(run(recipe, dir, recipe, &held, u64::MAX).0),
        };
        let lines = metrics(&dir.join(recipe));
        assert_eq!(lines.len(), 5);
        for name in rewards.iter().chain(&logps).chain(own) {
            for line in &lines {
                // A step of KTO may have drawn one kind of label only.
                let value = line.get(*name).and_then(|v| v.as_f64());
                assert!(value.is_some_and(f64::is_finite) || kto, "{recipe}: {name} in {line:?}");
            }
            let held = lines[1].get(&format!("eval_{name}")).and_then(|v| v.as_f64());
            assert!(held.is_some_and(f64::is_finite), "{recipe}: eval_{name}");
        }
        // Learnt by heart: five steps of one epoch and a half.
        let loss = |i: usize| lines[i]["loss"].as_f64().unwrap();
        assert!(loss(4) < loss(0), "{recipe}: {} then {}", loss(0), loss(4));
    }
}

/// A reference may be the base under the adapter, a model of its own, or numbers from a file: the same bits.
#[test]
fn the_ways_to_a_reference_agree() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let held = [("validation_split", "0.2"), ("eval_strategy", "steps"), ("eval_steps", "2")];
    let cache = dir.join("cache").to_string_lossy().into_owned();
    let computed = [("precompute_ref_log_probs", "true"), ("ref_cache_dir", &cache)];
    let with = |out: &str, more: &[(&str, &str)]| {
        let extra = [&LORA[..], &held, &[("ld_alpha", "0.5")], more].concat();
        let (outcome, notes) = run("dpo", dir, out, &extra, u64::MAX);
        let mut lines = metrics(&dir.join(out));
        // Numbers from a file are sums over completions, so how far single tokens moved is not known.
        lines.iter_mut().for_each(|line| drop((line.remove("kl_per_token"), line.remove("eval_kl_per_token"))));
        (files(&result(outcome)), lines, notes)
    };
    let base = with("base", &[]);
    let model = with("model", &[("ref_model", "builtin")]);
    assert_eq!((&base.0, &base.1), (&model.0, &model.1));
    assert!(!model.2.iter().any(|n| n.contains("is not the model")), "{:?}", model.2);
    for (out, words) in [("first", "log-probabilities are in"), ("second", "are taken from")] {
        let found = with(out, &computed);
        assert_eq!((&base.0, &base.1), (&found.0, &found.1));
        assert_eq!(found.2.iter().filter(|n| n.contains(words)).count(), 2, "{:?}", found.2);
    }
    // Another weight of verbose tokens makes other sums, and so another file.
    let other = [("ld_alpha", "0.25")];
    let extra = [&LORA[..], &computed, &other].concat();
    let (_, notes) = run("dpo", dir, "other", &extra, u64::MAX);
    assert!(notes.iter().any(|n| n.contains("log-probabilities are in")), "{notes:?}");
    // Without a reference the rewards are log-probabilities.
    let extra = [&LORA[..], &[("reference_free", "true")]].concat();
    result(run("dpo", dir, "free", &extra, u64::MAX).0);
    for line in metrics(&dir.join("free")) {
        let of = |name: &str| line[name].as_f64().unwrap();
        assert!((of("rewards/chosen") - 0.1 * of("logps/chosen")).abs() <= 1e-9, "{line:?}");
    }
}

/// KTO takes a pair as two completions of one prompt.
#[test]
fn kto_learns_from_pairs_too() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let (mut seen, out) = (Listener::default(), dir.join("kto"));
    let config = settings::<KtoConfig>(&dir.join("pairs.jsonl"), &out, &[("tokens_per_pass", "100")]);
    result(kto::run(&config, &mut seen).unwrap());
    let lines = metrics(&out);
    let of = |step: usize, name: &str| lines[step][name].as_f64().unwrap();
    // At the reference every answer is as good as the next: 1 - σ(0).
    assert!(of(0, "loss") == 0.5 && of(0, "rewards/margins") == 0.0, "{:?}", lines[0]);
    assert!(of(4, "rewards/margins") > 0.0 && of(4, "loss") < 0.5, "{:?}", lines[4]);
}

/// A loss that couples pairs is computed twice where a micro-batch takes several passes: with the same dropout.
#[test]
fn passes_change_no_dropout() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let first = |out: &str, more: &[(&str, &str)]| {
        let extra = [&[("loss_type", "aot"), ("adapter", "from"), ("max_steps", "2")], more].concat();
        let adapter = dir.join("start/final").to_string_lossy().into_owned();
        let extra: Vec<_> =
            extra.iter().map(|&(k, v)| (k, if k == "adapter" { adapter.as_str() } else { v })).collect();
        result(run("dpo", dir, out, &extra, u64::MAX).0);
        let of = |step: usize, name: &str| metrics(&dir.join(out))[step][name].as_f64().unwrap();
        [of(0, "loss"), of(0, "grad_norm"), of(1, "loss")]
    };
    // An adapter whose B is not zero, or dropout changes nothing in the first step.
    result(run("simpo", dir, "start", &LORA, u64::MAX).0);
    let whole = first("whole", &[("disable_dropout", "false"), ("tokens_per_pass", "0")]);
    let cut = first("cut", &[("disable_dropout", "false"), ("tokens_per_pass", "60")]);
    assert!((whole[0] - cut[0]).abs() <= 1e-14, "{whole:?} and {cut:?}");
    // Sums of f32 gradients in another order.
    assert!((whole[1] / cut[1] - 1.0).abs() <= 1e-5 && (whole[2] - cut[2]).abs() <= 1e-5, "{whole:?} and {cut:?}");
    let none = first("none", &[("tokens_per_pass", "0")]);
    assert!((whole[0] - none[0]).abs() > 1e-6, "dropout did nothing: {whole:?} and {none:?}");
}

/// A run that starts from an adapter is compared with that adapter, not with the base.
#[test]
fn an_adapter_to_start_from_is_the_reference() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let first = result(run("simpo", dir, "first", &LORA, u64::MAX).0).to_string_lossy().into_owned();
    result(run("dpo", dir, "then", &[("adapter", &first)], u64::MAX).0);
    let lines = metrics(&dir.join("then"));
    assert_eq!(lines[0]["rewards/margins"].as_f64(), Some(0.0), "{:?}", lines[0]);
    assert_eq!(lines[0]["loss"].as_f64(), Some(2f64.ln()));
    assert!(lines[1]["rewards/margins"].as_f64().unwrap() != 0.0);
    // Against the base it would have moved already, and that deserves a word.
    let (_, notes) = run("dpo", dir, "base", &[("adapter", &first), ("ref_model", "builtin")], u64::MAX);
    assert!(notes.iter().any(|n| n.contains("the reference builtin is not the model that the run starts from")));
    assert!(metrics(&dir.join("base"))[0]["rewards/margins"].as_f64().unwrap() != 0.0);
}

#[test]
fn a_memory_budget_and_a_moved_model_are_no_trouble() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let budget = [("memory_budget", "4"), ("learning_rate", "3e-2"), ("max_steps", "12"), ("loss_type", "sigmoid,sft")];
    let (_, notes) = run("dpo", dir, "far", &budget, u64::MAX);
    // Steps of that size leave the reference far behind.
    assert!(notes.iter().any(|n| n.contains("nats a token from the reference")), "{notes:?}");
    let page = std::fs::read_to_string(dir.join("far/report.html")).unwrap();
    assert!(page.contains("nats a token from the reference") && page.contains("Loss (per pair)"), "{page}");
    // Cross-entropy is part of that loss; without, there is a line.
    assert!(!page.contains("learnt by heart</span>"), "{page}");
    let (_, _) = run("dpo", dir, "near", &[("max_steps", "2")], u64::MAX);
    let page = std::fs::read_to_string(dir.join("near/report.html")).unwrap();
    assert!(page.contains("learnt by heart</span>"), "{page}");
    let config = std::fs::read_to_string(dir.join("far/config.yaml")).unwrap();
    assert!(config.contains("loss_type: [sigmoid, sft]\n"), "{config}");
    let pairs = settings::<DpoConfig>(&dir.join("pairs.jsonl"), &dir.join("far"), &[]);
    let refused = dpo::run(&pairs, &mut Silent).unwrap_err();
    assert!(refused.is_usage() && refused.to_string().contains("far"), "{refused}");
}

/// A reward model is a classifier of one label to transformers, and is taken up again with its head.
#[test]
fn a_reward_model_is_written_as_a_classifier() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let first = result(run("reward", dir, "first", &[("center_rewards_coefficient", "0.01")], u64::MAX).0);
    let config = planish_nn::pretrained::read_json(&first.join("config.json")).unwrap();
    assert_eq!(config["architectures"][0], "LlamaForSequenceClassification");
    assert!(config["id2label"].as_object().unwrap().len() == 1 && config["pad_token_id"].is_u64(), "{config}");
    let reader = planish_nn::weights::WeightsReader::open(&first).unwrap();
    assert!(reader.contains("score.weight") && !reader.contains("lm_head.weight"));
    for name in ["accuracy", "margin", "min_reward", "mean_reward", "max_reward"] {
        let lines = metrics(&dir.join("first"));
        assert!(lines.iter().all(|l| l[name].as_f64().is_some_and(f64::is_finite)), "{name}: {lines:?}");
    }
    // Trained further from where it stands, rewards begin where they ended.
    let path = first.to_string_lossy().into_owned();
    run("reward", dir, "then", &[("model", &path)], u64::MAX);
    let of = |out: &str, line: usize| metrics(&dir.join(out))[line]["loss"].as_f64().unwrap();
    assert!(of("then", 0) < of("first", 0), "{} and {}", of("first", 0), of("then", 0));
    // It is no language model any more.
    let again = settings::<DpoConfig>(&dir.join("pairs.jsonl"), &dir.join("dpo"), &[("model", &path)]);
    let error = dpo::run(&again, &mut Silent).unwrap_err().to_string();
    assert!(error.contains("score.weight"), "{error}");
}

/// The head is part of a reward model's adapter; the program reads what it wrote, and says how good it is.
#[test]
fn rewards_of_an_adapter_are_scored() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let held = [("validation_split", "0.3"), ("eval_strategy", "steps"), ("eval_steps", "1"), ("max_steps", "8")];
    let end = result(run("reward", dir, "lora", &[&LORA[..], &held].concat(), u64::MAX).0);
    let config = planish_nn::pretrained::read_json(&end.join("adapter_config.json")).unwrap();
    assert_eq!((&config["task_type"], &config["modules_to_save"]), (&"SEQ_CLS".into(), &["score"][..].into()));
    let weights = planish_nn::weights::WeightsReader::open(end.join("adapter_model.safetensors")).unwrap();
    assert!(weights.contains("base_model.model.score.weight"), "{:?}", weights.names());
    let last = metrics(&dir.join("lora")).pop().unwrap();
    let of = |name: &str| last[name].as_f64().unwrap();
    assert!(of("eval_confidence") >= 0.5 && of("eval_accuracy/chosen_longer") <= 1.0, "{last:?}");

    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (data, out, end) = (text(&dir.join("pairs.jsonl")), text(&dir.join("rewards.jsonl")), text(&end));
    let own = ["score", "--reward", "--model", "builtin", "--dataset", &data, "--output", &out, "--json"];
    planish_tests::program::refused(&own, "neither the model nor an adapter has a head of rewards");
    let done = planish_tests::program::planish(&[&own[..], &["--adapter", &end]].concat());
    assert_eq!(done.code, 0, "{done:?}");
    let said: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let lines: Vec<serde_json::Value> =
        std::fs::read_to_string(&out).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 20);
    let right = lines.iter().filter(|l| l["chosen"].as_f64() > l["rejected"].as_f64()).count() as f64 / 20.0;
    assert!((said["pairs"]["accuracy"].as_f64().unwrap() - right).abs() <= 1e-12, "{said}");
    // Learnt by heart: before, it is a coin's.
    assert!(right >= 0.8, "{right}");
    let bins = said["pairs"]["calibration"].as_array().unwrap();
    assert_eq!(bins.iter().map(|b| b["pairs"].as_u64().unwrap()).sum::<u64>(), 20);
    // An ensemble of two: the final adapter and one of before, in either order.
    let before = text(&dir.join("lora/checkpoint-2"));
    let score = |adapters: &[&str]| {
        let adapters: Vec<&str> = adapters.iter().flat_map(|a| ["--adapter", *a]).collect();
        let done = planish_tests::program::planish(&[&own[..], &adapters].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let lines = std::fs::read_to_string(&out).unwrap();
        let lines: Vec<serde_json::Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        (serde_json::from_str::<serde_json::Value>(&done.stdout).unwrap(), lines)
    };
    let (alone, both) = ([score(&[&end]), score(&[&before])], score(&[&end, &before]));
    assert_eq!(both.0["member_accuracy"][0], alone[0].0["pairs"]["accuracy"]);
    assert_eq!(both.0["member_accuracy"][1], alone[1].0["pairs"]["accuracy"]);
    for (i, line) in both.1.iter().enumerate() {
        for (s, side) in ["chosen", "rejected"].into_iter().enumerate() {
            let [a, b] = [0, 1].map(|k| alone[k].1[i][side].as_f64().unwrap());
            assert_eq!(line[side].as_f64(), Some((a + b) / 2.0));
            assert_eq!(line[format!("{side}_min")].as_f64(), Some(a.min(b)));
            assert!((line[format!("{side}_std")].as_f64().unwrap() - (a - b).abs() / 2.0).abs() <= 1e-12);
            assert_eq!(line["members"][1][s].as_f64(), Some(b));
        }
        let [a, b] = [0, 1].map(|k| alone[k].1[i]["margin"].as_f64().unwrap());
        assert!((line["margin"].as_f64().unwrap() - (a + b) / 2.0).abs() <= 1e-12);
        assert!((line["margin_std"].as_f64().unwrap() - (a - b).abs() / 2.0).abs() <= 1e-12);
    }
    // Rows that are no pairs get a reward each.
    let plain = dir.join("plain.jsonl");
    let labelled = std::fs::read_to_string(dir.join("labelled.jsonl")).unwrap();
    std::fs::write(&plain, labelled.replace(r#","label":true"#, "").replace(r#","label":false"#, "")).unwrap();
    let plain = text(&plain);
    let own = ["score", "--reward", "--model", "builtin", "--adapter", &end, "--dataset", &plain, "--output", &out];
    let done = planish_tests::program::planish(&own);
    assert!(done.code == 0 && done.stdout.starts_with("20 rows, 0 left out"), "{done:?}");
    assert!(std::fs::read_to_string(&out).unwrap().lines().all(|l| l.contains(r#""reward":"#)));
}
