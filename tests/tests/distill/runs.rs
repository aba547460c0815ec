//! Whole runs on the builtin model.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use planish_tests::program::{planish, refused};
use planish_tests::runs::{self, Listener, files, metrics, settings, stopped_or_not};
use planish_train::config::DistillConfig;
use planish_train::recipes::distill;
use planish_train::run::Outcome;

fn write_data(dir: &Path) -> PathBuf {
    let mut text = String::new();
    for i in 0..20 {
        writeln!(text, r#"{{"prompt":"What is {i} and 2?","completion":" {} pens, and a fish in the river."}}"#, i + 2)
            .unwrap();
    }
    std::fs::write(dir.join("rows.jsonl"), text).unwrap();
    dir.join("rows.jsonl")
}

fn run(dir: &Path, out: &str, extra: &[(&str, &str)], stop: u64) -> Result<Outcome, String> {
    let config = settings::<DistillConfig>(&dir.join("rows.jsonl"), &dir.join(out), extra);
    distill::run(&config, &mut Listener::stopping_after(stop)).map_err(|e| e.to_string())
}

fn result(outcome: Result<Outcome, String>) -> PathBuf {
    runs::result(outcome.unwrap())
}

/// The program's scores of the rows, with predictions.
fn scored(dir: &Path, model: &str, k: &str, extra: &[&str]) -> String {
    let text = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (data, out) = (text("rows.jsonl"), text(&format!("scores-{k}-{}.jsonl", extra.len())));
    let mut arguments = vec!["score", "--model", model, "--dataset", &data, "--output", &out, "--top-k", k];
    arguments.extend(extra);
    let done = planish(&arguments);
    assert_eq!(done.code, 0, "{done:?}");
    out
}

/// Law 6, with dropout, held-out rows, and a teacher in either form.
#[test]
fn a_resumed_run_is_the_one_that_never_stopped() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let stored = scored(dir, "builtin", "8", &[]);
    let held = [("validation_split", "0.2"), ("eval_strategy", "steps"), ("eval_steps", "2")];
    let lora = [("use_peft", "true"), ("lora_r", "4"), ("lora_dropout", "0.1"), ("beta", "0.2")];
    let runs: [Vec<(&str, &str)>; 3] = [
        [&held[..], &lora, &[("teacher_model", "builtin"), ("feature_layers", "0=1,1=0")]].concat(),
        [&held[..], &lora, &[("teacher_model", "builtin")]].concat(),
        [&held[..], &[("teacher_scores", &stored), ("hard_weight", "0.5"), ("tokens_per_pass", "40")]].concat(),
    ];
    for (i, extra) in runs.iter().enumerate() {
        let end = stopped_or_not(&i.to_string(), 3, |out, more, stop| {
            run(dir, &format!("{out}{i}"), &[&extra[..], more].concat(), stop).unwrap()
        });
        let lines = metrics(end.parent().unwrap());
        for name in ["divergence", "teacher_agreement", "entropy", "eval_divergence"] {
            assert!(lines[1][name].as_f64().is_some_and(f64::is_finite), "{name}: {:?}", lines[1]);
        }
    }
}

/// The projections learn along, and are no part of the result.
#[test]
fn layers_come_to_the_teachers() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let extra =
        [("teacher_model", "builtin"), ("feature_layers", "0=1"), ("learning_rate", "5e-3"), ("max_steps", "12")];
    let end = result(run(dir, "out", &extra, u64::MAX));
    let lines = metrics(&dir.join("out"));
    let of = |step: usize, name: &str| lines[step][name].as_f64().unwrap();
    assert!(of(11, "feature_loss") < 0.7 * of(0, "feature_loss"), "{lines:?}");
    assert!((of(0, "loss") - of(0, "divergence") - of(0, "feature_loss")).abs() <= 1e-6, "{:?}", lines[0]);
    let names = |dir: &Path| files(dir).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert!(names(&dir.join("out/checkpoint-4")).contains(&"projections.safetensors".to_string()));
    assert!(!names(&end).contains(&"projections.safetensors".to_string()));
    let text = run(dir, "none", &[("teacher_model", "builtin"), ("feature_layers", "0=99")], u64::MAX).unwrap_err();
    assert!(text.contains("must be STUDENT=TEACHER"), "{text}");
}

/// A student that is its teacher has nothing to learn; one that is not comes nearer.
#[test]
fn a_student_comes_to_its_teacher() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    for beta in ["0", "0.5", "1"] {
        let out = format!("same{beta}");
        result(run(dir, &out, &[("teacher_model", "builtin"), ("beta", beta), ("max_steps", "1")], u64::MAX));
        let line = &metrics(&dir.join(&out))[0];
        let loss = line["loss"].as_f64().unwrap();
        assert!(loss.abs() <= 1e-6 && line["teacher_agreement"] == 1.0, "{line:?}");
    }
    // A teacher that has learnt the rows.
    let sft = dir.join("teacher").to_string_lossy().into_owned();
    let data = dir.join("rows.jsonl").to_string_lossy().into_owned();
    let done = planish(&[
        "sft",
        "--model",
        "builtin",
        "--dataset",
        &data,
        "--output-dir",
        &sft,
        "--max-steps",
        "12",
        "--learning-rate",
        "1e-3",
    ]);
    assert_eq!(done.code, 0, "{done:?}");
    let teacher = format!("{sft}/final");
    let common = [("max_steps", "12"), ("beta", "0"), ("shuffle", "false")];
    let losses = |out: &str, extra: &[(&str, &str)]| {
        result(run(dir, out, &[&common[..], extra].concat(), u64::MAX));
        metrics(&dir.join(out)).iter().map(|line| line["loss"].as_f64().unwrap()).collect::<Vec<f64>>()
    };
    let model = losses("model", &[("teacher_model", &teacher)]);
    assert!(model[11] < 0.3 * model[0], "{model:?}");
    // Its 32 most probable tokens say nearly all of it, and never more.
    let stored = losses("stored", &[("teacher_scores", &scored(dir, &teacher, "32", &[]))]);
    assert!(stored[0] <= model[0] + 1e-6 && stored[0] >= 0.9 * model[0], "{} of {}", stored[0], model[0]);
    assert!(stored[11] < 0.3 * stored[0], "{stored:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let error = |extra: &[(&str, &str)]| run(dir, "out", extra, u64::MAX).unwrap_err();
    // A teacher to whom two tokens mean each other.
    let other = dir.join("other");
    std::fs::create_dir(&other).unwrap();
    let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("train/builtin");
    for file in std::fs::read_dir(builtin).unwrap().map(|e| e.unwrap()) {
        std::fs::copy(file.path(), other.join(file.file_name())).unwrap();
    }
    let path = other.join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let [a, b] = [700u64, 701].map(|id| vocabulary.iter().find(|(_, v)| v.as_u64() == Some(id)).unwrap().0.clone());
    (vocabulary[&a], vocabulary[&b]) = (701.into(), 700.into());
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let text = error(&[("teacher_model", &other.to_string_lossy())]);
    assert!(text.contains("another vocabulary than the student (token 700 is"), "{text}");

    let stored = scored(dir, "builtin", "4", &["--temperature", "2"]);
    let text = error(&[("teacher_scores", &stored)]);
    assert!(text.contains("`temperature` is not that of `teacher_scores`"), "{text}");
    let lines = std::fs::read_to_string(&stored).unwrap();
    let warm = [("temperature", "2"), ("teacher_scores", stored.as_str())];
    for (change, words) in [
        (lines.replacen("\"ids\":[", "\"ids\":[7,", 1), "its tokens are not those of the data set's row"),
        (lines.replacen("\"index\":3", "\"index\":4", 1), "its index is that of another row"),
        (lines.lines().take(9).collect::<Vec<_>>().join("\n"), "it has 9 lines"),
        (
            lines.replacen("\"temperature\":2.0", "\"temperature\":1.0", 20).replacen(
                "\"temperature\":1.0",
                "\"temperature\":2.0",
                1,
            ),
            "is not that of line 1",
        ),
        ("{\"index\":0".to_owned(), "line 1: EOF"),
        (String::new(), "it is empty"),
    ] {
        std::fs::write(&stored, change).unwrap();
        std::fs::remove_dir_all(dir.join("out")).ok();
        let text = error(&warm);
        assert!(text.contains(words), "{words}: {text}");
    }
    let text = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (data, out) = (text("rows.jsonl"), text("never"));
    let program = |extra: &[&str], words: &str| {
        let own = ["distill", "--model", "builtin", "--dataset", &data, "--output-dir", &out];
        refused(&[&own[..], extra].concat(), words);
        assert!(!Path::new(&out).exists());
    };
    program(&[], "teacher_model");
    program(&["--teacher-model", "builtin", "--teacher-scores", "x"], "keep one");
    program(&["--teacher-model", "builtin", "--lmbda", "0.5"], "must be 0");
    program(&["--teacher-scores", "x", "--packing", "--packing-strategy", "wrapped"], "use bfd");
    program(&["--teacher-scores", &text("nothing.jsonl")], "nothing.jsonl");
    program(&["--teacher-model", "builtin", "--beta", "1.5"], "beta");
}
