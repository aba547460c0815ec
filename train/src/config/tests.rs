//! Walks over the table, and the mistakes that users make.

use std::path::Path;

use serde_json::Value as Json;

use super::*;

fn flags(pairs: &[(&str, &str)]) -> Vec<Flag> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), vec![(*value).to_owned()])).collect()
}

/// Flags that make a complete configuration, with `extra` after them.
fn sft(extra: &[(&str, &str)]) -> Result<SftConfig, ConfigError> {
    let needed = [("model", "builtin"), ("dataset", "a.jsonl"), ("output-dir", "run")];
    let all: Vec<(&str, &str)> = needed
        .into_iter()
        .filter(|(name, _)| extra.iter().all(|(other, _)| canonical(other) != canonical(name)))
        .chain(extra.iter().copied())
        .collect();
    resolve::<SftConfig>(None, &flags(&all)).map(|loaded| loaded.config)
}

fn yaml(text: &str) -> Result<SftConfig, ConfigError> {
    from_yaml(text, Path::new("train.yaml"))
}

/// A value of each row that is accepted and is not its default.
fn other_value(key: &Key) -> String {
    if key.accepts.contains("one of ") {
        let choices = key.accepts.split("one of ").nth(1).unwrap().trim_end_matches(", or null");
        let other = choices.split(", ").find(|choice| key.default != **choice);
        return other.unwrap_or(choices).to_owned();
    }
    match &key.default {
        Json::Bool(value) => (!value).to_string(),
        _ if key.accepts.contains("true or false") => "true".into(),
        _ if key.accepts.contains("map") => "{num_cycles: 2}".into(),
        _ if key.accepts.contains("whole number") => "7".into(),
        _ if key.accepts.contains("number") => "0.25".into(),
        _ => "word".into(),
    }
}

fn value_of<C: Settings>(config: &C, name: &str) -> Json {
    config.to_json()[name].clone()
}

fn walk<C: Recipe + Clone + PartialEq + std::fmt::Debug>() {
    let keys = C::default().keys();
    assert!(keys.len() > 40);
    for key in &keys {
        let value = other_value(key);
        let only_choice = key.default == value.as_str();
        let dashed = key.name.replace('_', "-");

        let mut by_flag = C::default();
        assert!(by_flag.set(key.name, &Raw::flag(&dashed, &value)).unwrap(), "{}", key.name);
        assert!(only_choice || value_of(&by_flag, key.name) != key.default, "{}", key.name);

        for name in [key.name, &dashed] {
            let by_file: C = from_yaml(&format!("{name}: {value}\n"), Path::new("t.yaml")).unwrap();
            assert_eq!(by_file, by_flag, "{name}: {value}");
        }
        let back: C = from_yaml(&to_yaml(&by_flag), Path::new("config.yaml")).unwrap();
        assert_eq!(back, by_flag, "{} through config.yaml", key.name);
        by_flag.check_ranges().unwrap();

        assert!(key.help.ends_with(['.', ']']) || key.help.ends_with(")."), "{}", key.help);
        assert!(keys.iter().filter(|other| other.name == key.name).count() == 1, "{}", key.name);
        assert_eq!(canonical(key.name), key.name, "an alias hides {}", key.name);
    }
    C::default().check_ranges().unwrap();
    for (alias, own) in aliases() {
        if keys.iter().any(|key| key.name == *own) {
            assert!(keys.iter().all(|key| key.name != *alias), "{alias} is also a setting");
        }
    }
}

#[test]
fn every_setting_of_sft_parses_and_round_trips() {
    walk::<SftConfig>();
}

#[test]
fn every_setting_of_pretrain_parses_and_round_trips() {
    walk::<PretrainConfig>();
}

#[test]
fn every_number_refuses_nan_infinity_and_words() {
    let mut numbers = 0;
    for key in SftConfig::default().keys() {
        if !key.accepts.contains("number") {
            continue;
        }
        numbers += 1;
        for bad in ["nan", ".nan", "inf", "-inf", "-0.5", "fast", "1 2", "0x10"] {
            let mut config = SftConfig::default();
            let error = config.set(key.name, &Raw::flag("--x", bad)).unwrap_err().to_string();
            assert!(error.contains(key.name) && error.contains(bad), "{error}");
        }
    }
    assert!(numbers > 25);
}

#[test]
fn defaults_are_those_of_trl() {
    let config = SftConfig::default();
    let json = config.to_json();
    let trl = serde_json::json!({
        "learning_rate": 2e-5, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
        "num_train_epochs": 3, "max_steps": -1, "lr_scheduler_type": "linear", "warmup_steps": 0,
        "weight_decay": 0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8,
        "max_grad_norm": 1, "max_length": 1024, "truncation_mode": "keep_start", "packing": false,
        "packing_strategy": "bfd", "completion_only_loss": null, "assistant_only_loss": false,
        "neftune_noise_alpha": null, "eval_strategy": "no", "eval_steps": null,
        "per_device_eval_batch_size": 8, "save_strategy": "steps", "save_steps": 500,
        "save_total_limit": null, "load_best_model_at_end": false, "metric_for_best_model": null,
        "greater_is_better": null, "logging_steps": 10, "seed": 42, "data_seed": null,
        "gradient_checkpointing": true, "dtype": "float32", "use_peft": false, "lora_r": 16,
        "lora_alpha": 32, "lora_dropout": 0.05, "use_rslora": false, "eval_on_start": false,
    });
    for (key, value) in trl.as_object().unwrap() {
        assert_eq!(&json[key], value, "{key}");
    }
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("train.yaml");
    let text = "model_name_or_path: builtin\ndataset: [a.jsonl, 'b,c.jsonl']\noutput-dir: run\n\
                learning-rate: 1e-5\npacking: yes\nseed: 7\n";
    std::fs::write(&file, text).unwrap();
    let flags = flags(&[("seed", "8"), ("learning_rate", "3e-4")]);
    let loaded = resolve::<SftConfig>(Some(&file), &flags).unwrap();
    assert_eq!(loaded.config.optim.seed, 8);
    assert_eq!(loaded.config.optim.learning_rate, 3e-4);
    assert!(loaded.config.data.packing);
    assert_eq!(loaded.config.data.dataset, ["a.jsonl", "b,c.jsonl"]);
    assert_eq!(loaded.config.model.model, "builtin");
    assert!(loaded.chosen.contains("packing") && !loaded.chosen.contains("dtype"));
}

#[test]
fn lists_accept_repeats_and_commas() {
    let repeated = ("dataset".to_owned(), vec!["a".to_owned(), "b,c".to_owned()]);
    let all = [vec![repeated], flags(&[("model", "m"), ("output_dir", "o")])].concat();
    let config = resolve::<SftConfig>(None, &all).unwrap().config;
    assert_eq!(config.data.dataset, ["a", "b", "c"]);
    let config = sft(&[("lora-target-modules", "q_proj, v_proj")]).unwrap();
    assert_eq!(config.lora.lora_target_modules, ["q_proj", "v_proj"]);
}

#[test]
fn mistakes_in_a_file_name_its_line() {
    for (text, expected) in [
        (
            "seed: 1\nlearnin_rate: 1\n",
            "train.yaml:2: there is no setting `learnin_rate`; did you mean `learning_rate`?",
        ),
        ("zzz: 1\n", "train.yaml:1: there is no setting `zzz`"),
        (
            "seed: 1\n\nlearning_rate: fast\n",
            "train.yaml:3: `learning_rate` must be a number of at least 0, found `fast`",
        ),
        (
            "per_device_train_batch_size: 0\n",
            "train.yaml:1: `per_device_train_batch_size` must be a whole number of at least 1, \
             found `0`",
        ),
        ("learning_rate: [1, 2]\n", "train.yaml:1: `learning_rate` must be a number of at least 0, found a list"),
        ("seed:\n", "train.yaml:1: `seed` must be a whole number of at least 0, found nothing"),
        ("seed: 1\nseed: 2\n", "train.yaml:2: `seed` is set twice; keep one of the two"),
        ("lr: 1\n", "train.yaml:1: there is no setting `lr`; did you mean `learning_rate`?"),
        (
            "batch-size: 1\n",
            "train.yaml:1: there is no setting `batch-size`; did you mean `per_device_train_batch_size`?",
        ),
        ("epochs: 1\n", "train.yaml:1: there is no setting `epochs`; did you mean `num_train_epochs`?"),
        ("optim: adamw_tourch\n", "train.yaml:1: `optim` must be one of"),
        ("max_steps: 1\nmax-steps: 2\n", "train.yaml:2: `max_steps` is set twice"),
        (
            "lr_scheduler_type: cosin\n",
            "train.yaml:1: `lr_scheduler_type` must be one of constant, constant_with_warmup, ",
        ),
        ("padding_free: true\n", "train.yaml:1: `padding_free` is not a setting of planish: no"),
        (
            "lr_scheduler_kwargs:\n  min_lrr: 1\n",
            "train.yaml:2: there is no setting `lr_scheduler_kwargs.min_lrr`; did you mean \
             `lr_scheduler_kwargs.min_lr`?",
        ),
        ("dataset:\n  - a\n  - {b: 1}\n", "train.yaml:3: `dataset` must be"),
    ] {
        let error = yaml(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text:?}:\n{error}\n{expected}");
    }
}

#[test]
fn what_is_missing_or_contradicts_is_named() {
    let missing = |error: ConfigError| match error {
        ConfigError::Missing { key } => key,
        other => panic!("{other}"),
    };
    assert_eq!(missing(resolve::<SftConfig>(None, &[]).unwrap_err()), "model");
    assert_eq!(missing(sft(&[("dataset", "")]).unwrap_err()), "dataset");
    assert_eq!(missing(sft(&[("output_dir", "")]).unwrap_err()), "output_dir");
    assert_eq!(missing(resolve::<PretrainConfig>(None, &[]).unwrap_err()), "config_name");

    let clashes: &[&[(&str, &str)]] = &[
        &[("eval_strategy", "steps")],
        &[("eval_on_start", "true")],
        &[("early_stopping_patience", "3")],
        &[("packing", "true"), ("max_length", "none")],
        &[("warmup_steps", "3"), ("warmup_ratio", "0.1")],
        &[("warmup_steps", "3.5")],
        &[("lr_scheduler_type", "cosine_with_min_lr")],
        &[("lr_scheduler_type", "wsd")],
        &[("lr_scheduler_kwargs", "timescale=5")],
        &[("dataset_weights", "1,2")],
        &[("validation_split", "0.1"), ("eval_dataset", "e.jsonl")],
        &[("load_best_model_at_end", "true")],
        &[
            ("load_best_model_at_end", "true"),
            ("validation_split", "0.1"),
            ("eval_strategy", "steps"),
            ("eval_steps", "7"),
            ("save_steps", "10"),
        ],
        &[("overwrite_output_dir", "yes"), ("resume_from_checkpoint", "latest")],
    ];
    for clash in clashes {
        let error = sft(clash).unwrap_err();
        assert!(matches!(error, ConfigError::Conflict { .. }), "{clash:?}: {error}");
        let named = clash.iter().any(|(key, _)| error.to_string().contains(key));
        assert!(named || error.to_string().contains("lr_scheduler_kwargs"), "{clash:?}: {error}");
    }
    sft(&[
        ("load_best_model_at_end", "true"),
        ("validation_split", "0.1"),
        ("eval_strategy", "steps"),
        ("eval_steps", "5"),
        ("save_steps", "10"),
    ])
    .unwrap();
}

#[test]
fn ranges_are_checked_without_flags_too() {
    let mut config = sft(&[]).unwrap();
    config.optim.learning_rate = f64::NAN;
    let error = config.check_ranges().unwrap_err().to_string();
    assert_eq!(error, "`learning_rate` must be a number of at least 0, found NaN");
}

#[test]
fn schedule_arguments_come_as_map_json_or_pairs() {
    for text in ["{min_lr: 1e-6, num_cycles: 1}", "min_lr=1e-6, num_cycles=1", r#"{"min_lr": 1e-6, "num_cycles": 1}"#] {
        let config = sft(&[("lr_scheduler_type", "cosine_with_min_lr"), ("lr_scheduler_kwargs", text)]).unwrap();
        assert_eq!(config.optim.lr_scheduler_kwargs.min_lr, Some(1e-6), "{text}");
        assert_eq!(config.optim.lr_scheduler_kwargs.num_cycles, Some(1.0), "{text}");
    }
    for text in ["min_lr", "[1]", "{min_lr: -1}", "{min_lr", "min_lr=nan"] {
        assert!(sft(&[("lr_scheduler_kwargs", text)]).is_err(), "{text}");
    }
}

#[test]
fn warm_up_counts_like_transformers() {
    let steps = |warmup_steps, warmup_ratio, total| {
        OptimSettings { warmup_steps, warmup_ratio, ..OptimSettings::default() }.warmup(total)
    };
    assert_eq!(steps(0.0, 0.0, 100), 0);
    assert_eq!(steps(10.0, 0.0, 100), 10);
    assert_eq!(steps(0.03, 0.0, 101), 4);
    assert_eq!(steps(0.0, 0.1, 95), 10);
}

#[test]
fn texts_that_look_like_something_else_survive_config_yaml() {
    for text in ["1e-5", "yes", "null", "12", "a: b", "# c", "\"q\"", "é\n", "- x", "~", "0755"] {
        let mut config = sft(&[]).unwrap();
        config.model.model_revision = text.to_owned();
        let back: SftConfig = yaml(&to_yaml(&config)).unwrap();
        assert_eq!(back.model.model_revision, text);
    }
}

#[test]
fn only_what_is_like_a_name_is_taken_for_it() {
    let near = |name: &str| nearest(name, SftConfig::default().keys().iter().map(|key| key.name));
    for (name, meant) in [
        ("learnin_rate", "learning_rate"),
        ("--learning-rat", "learning_rate"),
        ("lora_rank", "lora_r"),
        ("gradient_accumulation", "gradient_accumulation_steps"),
        ("num_train_epoch", "num_train_epochs"),
        ("warmup_step", "warmup_steps"),
        ("output", "output_dir"),
    ] {
        assert_eq!(near(name).as_deref(), Some(meant), "{name}");
    }
    for name in ["foo", "--foo", "x", "zzz", "teh", "frobnicate"] {
        assert_eq!(near(name), None, "{name}");
    }
}
