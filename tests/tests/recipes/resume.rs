//! Law 6: a resumed run is bitwise the run that was never stopped.

use std::fmt::Write as _;
use std::path::Path;

use planish_train::config::{PretrainConfig, SftConfig};
use planish_train::recipes::{pretrain, sft};
use planish_train::run::{Outcome, Silent};

use crate::{Listener, files, metrics, repo, result, settings, stopped_or_not};

/// A tiny architecture over the builtin model's tokenizer, and a few rows of each kind.
pub(crate) fn prepare(dir: &Path) {
    let text = std::fs::read_to_string(repo("train/builtin/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [
        ("hidden_size", 16),
        ("intermediate_size", 24),
        ("num_hidden_layers", 2),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("head_dim", 8),
    ] {
        config[key] = value.into();
    }
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let (mut texts, mut pairs) = (String::new(), String::new());
    for i in 0..40 {
        let words = ["one", "two", "three", "red fish", "blue fish"][i % 5].repeat(i % 7 + 1);
        writeln!(texts, r#"{{"text": "row {i}: {words}"}}"#).unwrap();
        writeln!(pairs, r#"{{"prompt": "say {i}", "completion": "{words}"}}"#).unwrap();
    }
    std::fs::write(dir.join("texts.jsonl"), texts).unwrap();
    std::fs::write(dir.join("pairs.jsonl"), pairs).unwrap();
}

pub(crate) fn pretrain_settings(dir: &Path, out: &str, extra: &[(&str, &str)]) -> PretrainConfig {
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (config, tokenizer) = (path("config.json"), repo("train/builtin").to_string_lossy().into_owned());
    let (data, out) = (path("texts.jsonl"), path(out));
    let mut flags = vec![
        ("config_name", config.as_str()),
        ("tokenizer_name", &tokenizer),
        ("dataset", &data),
        ("output_dir", &out),
        ("max_length", "32"),
        ("per_device_train_batch_size", "2"),
        ("gradient_accumulation_steps", "2"),
        ("learning_rate", "1e-2"),
        ("max_steps", "9"),
        ("validation_split", "0.2"),
        ("eval_strategy", "steps"),
        ("eval_steps", "2"),
        ("save_steps", "4"),
    ];
    flags.extend(extra);
    settings(&flags)
}

/// A trained model of that architecture.
pub(crate) fn base(dir: &Path) -> std::path::PathBuf {
    result(pretrain::run(&pretrain_settings(dir, "base", &[]), &mut Silent).unwrap())
}

#[test]
fn a_resumed_pretraining_run_is_the_one_that_never_stopped() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    prepare(dir);
    for dtype in ["float32", "bfloat16"] {
        let run = |out: &str, extra: &[(&str, &str)], stop: u64| {
            let mut flags = vec![("dtype", dtype)];
            flags.extend(extra);
            let config = pretrain_settings(dir, &format!("{dtype}-{out}"), &flags);
            pretrain::run(&config, &mut Listener::stopping_after(stop)).unwrap()
        };
        let whole = result(run("whole", &[], u64::MAX));
        let Outcome::Interrupted { checkpoint } = run("cut", &[], 5) else { panic!("it should stop after step 5") };
        assert!(checkpoint.ends_with("checkpoint-5"));
        let resumed = result(run("cut", &[("resume_from_checkpoint", "latest")], u64::MAX));
        assert_eq!(files(&whole), files(&resumed), "{dtype}: the results");
        let of = |result: &Path| metrics(result.parent().unwrap());
        assert_eq!(of(&whole), of(&resumed), "{dtype}: the metrics");
        // From an older checkpoint, into another directory.
        let from = dir.join(format!("{dtype}-whole/checkpoint-4"));
        let elsewhere = result(run("other", &[("resume_from_checkpoint", from.to_str().unwrap())], u64::MAX));
        assert_eq!(files(&whole), files(&elsewhere), "{dtype}: resumed elsewhere");
        assert_eq!(of(&whole), of(&elsewhere), "{dtype}: metrics elsewhere");
    }
}

#[test]
fn a_resumed_lora_run_is_the_one_that_never_stopped() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    prepare(dir);
    let base = base(dir);
    let run = |out: &str, extra: &[(&str, &str)], stop: u64| {
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let (base, data, out) = (base.to_string_lossy().into_owned(), path("pairs.jsonl"), path(out));
        let mut flags = vec![
            ("model", base.as_str()),
            ("dataset", &data),
            ("output_dir", &out),
            ("use_peft", "true"),
            ("lora_r", "4"),
            ("lora_dropout", "0.2"),
            ("lora_target_modules", "all-linear"),
            ("neftune_noise_alpha", "5"),
            ("per_device_train_batch_size", "3"),
            ("learning_rate", "1e-2"),
            ("max_steps", "8"),
            ("save_steps", "3"),
        ];
        flags.extend(extra);
        sft::run(&settings::<SftConfig>(&flags), &mut Listener::stopping_after(stop)).unwrap()
    };
    let whole = stopped_or_not("lora", 4, run);
    // Recomputing activations and the number of threads change no bit either.
    let plain = result(run("plain", &[("gradient_checkpointing", "false")], u64::MAX));
    assert_eq!(files(&whole), files(&plain), "gradient_checkpointing");
    let lean = result(run("lean", &[("recompute_granularity", "selective")], u64::MAX));
    assert_eq!(files(&whole), files(&lean), "recompute_granularity");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let threaded = pool.install(|| result(run("threads", &[], u64::MAX)));
    assert_eq!(files(&whole), files(&threaded), "three threads");
}

/// A template that asks for the date gets the start of the run, also when it goes on another day.
#[test]
fn a_resumed_run_sees_the_date_at_which_it_began() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    prepare(dir);
    let base = base(dir);
    let template = std::fs::read_to_string(base.join("chat_template.jinja")).unwrap();
    let dated = format!("{{{{ strftime_now('%d %B %Y, %H:%M:%S') }}}}\n{template}");
    std::fs::write(base.join("chat_template.jinja"), dated).unwrap();
    let chats: String = (0..12)
        .map(|i| {
            let [user, assistant] = [("user", "say"), ("assistant", "one")]
                .map(|(role, word)| serde_json::json!({"role": role, "content": format!("{word} {i}")}));
            serde_json::json!({ "messages": [user, assistant] }).to_string() + "\n"
        })
        .collect();
    std::fs::write(dir.join("chats.jsonl"), chats).unwrap();
    let run = |out: &str, extra: &[(&str, &str)], stop: u64| {
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let (base, data, out) = (base.to_string_lossy().into_owned(), path("chats.jsonl"), path(out));
        let mut flags = vec![
            ("model", base.as_str()),
            ("dataset", &data),
            ("output_dir", &out),
            ("per_device_train_batch_size", "2"),
            ("learning_rate", "1e-2"),
            ("max_steps", "6"),
            ("validation_split", "0.2"),
            ("eval_strategy", "steps"),
            ("eval_steps", "2"),
        ];
        flags.extend(extra);
        sft::run(&settings::<SftConfig>(&flags), &mut Listener::stopping_after(stop)).unwrap()
    };
    // Both begin on 1 March 2001; the second goes on when this test is run.
    let then = [("template_time", "983404800")];
    let whole = result(run("whole", &then, u64::MAX));
    assert!(matches!(run("cut", &then, 3), Outcome::Interrupted { .. }));
    let resumed = result(run("cut", &[("resume_from_checkpoint", "latest")], u64::MAX));
    assert_eq!(files(&whole), files(&resumed));
    assert_eq!(metrics(&dir.join("whole")), metrics(&dir.join("cut")));
    let kept = |out: &str| std::fs::read_to_string(dir.join(out).join("config.yaml")).unwrap();
    assert!(kept("cut").contains("template_time: 983404800\n"), "{}", kept("cut"));

    // Unset it is the clock, read once and written down; the date does change what is learnt.
    let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let before = clock();
    let Outcome::Interrupted { checkpoint } = run("now", &[], 3) else { panic!("it should stop after step 3") };
    let began = planish_train::trainer::TrainerState::read(&checkpoint).unwrap().template_time.unwrap();
    assert!((before..=clock()).contains(&began), "{began} is not now");
    assert!(kept("now").contains(&format!("template_time: {began}\n")), "{}", kept("now"));
    assert_ne!(metrics(&dir.join("now"))[0], metrics(&dir.join("whole"))[0]);
    // A flag beats the checkpoint.
    assert!(matches!(run("now", &[("resume_from_checkpoint", "latest"), then[0]], 1), Outcome::Interrupted { .. }));
    assert!(kept("now").contains("template_time: 983404800\n"), "{}", kept("now"));
}
