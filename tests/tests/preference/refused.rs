//! Bad preference data and settings: one sentence that says where, and nothing written.

use std::path::Path;

use planish_tests::program::{planish, refused};
use planish_train::config::{DpoConfig, KtoConfig};
use planish_train::recipes::{dpo, kto};

use crate::{Listener, settings, write_data};

/// The sentence with which a data set is refused.
fn sentence(recipe: &str, rows: &str, extra: &[(&str, &str)]) -> String {
    let place = tempfile::tempdir().unwrap();
    let (data, out) = (place.path().join("data.jsonl"), place.path().join("out"));
    std::fs::write(&data, rows).unwrap();
    let mut seen = Listener::default();
    let error = match recipe {
        "dpo" => dpo::run(&settings::<DpoConfig>(&data, &out, extra), &mut seen).unwrap_err(),
        _ => kto::run(&settings::<KtoConfig>(&data, &out, extra), &mut seen).unwrap_err(),
    };
    assert!(error.is_usage() && !out.exists(), "{error}");
    let text = error.to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    text.replace(&place.path().to_string_lossy().into_owned(), "DIR")
}

const GOOD: &str = r#"{"prompt": "a", "chosen": " b", "rejected": " c"}"#;

#[test]
fn rows_that_teach_nothing_name_their_line() {
    let long = "word ".repeat(80);
    for (recipe, row, words) in [
        ("dpo", r#"{"prompt": "a", "chosen": " b", "rejected": " b"}"#.to_owned(), "chosen and rejected are equal"),
        ("dpo", r#"{"prompt": "a", "chosen": "  ", "rejected": " b"}"#.to_owned(), "chosen is empty"),
        ("dpo", r#"{"prompt": "a", "chosen": " b", "rejected": ""}"#.to_owned(), "rejected is empty"),
        ("dpo", format!(r#"{{"prompt": "{long}", "chosen": "b", "rejected": "c"}}"#), "no room for a completion"),
        (
            "dpo",
            format!(r#"{{"prompt": "a", "chosen": " {long} x", "rejected": " {long} y"}}"#),
            "equal once they are cut to max_length",
        ),
        ("dpo", r#"{"prompt": "a", "chosen": [], "rejected": " b"}"#.to_owned(), "`chosen` must be"),
        ("dpo", r#"{"prompt": "a", "chosen": " b"}"#.to_owned(), "\"rejected\" is missing"),
        (
            "dpo",
            r#"{"prompt": "a", "chosen": " b", "rejected": " c", "margin": "NaN"}"#.to_owned(),
            "`margin` must be a finite number",
        ),
        ("dpo", r#"{"prompt": "a", "chosen": " b", "rejected": " c", "margin": NaN}"#.to_owned(), "malformed JSON"),
        ("kto", r#"{"prompt": "a", "completion": "", "label": true}"#.to_owned(), "completion is empty"),
        ("kto", r#"{"prompt": "a", "completion": " b", "label": "maybe"}"#.to_owned(), "`label` must be true or false"),
        ("kto", r#"{"prompt": "a", "completion": " b", "label": 0.5}"#.to_owned(), "`label` must be true or false"),
        ("kto", format!(r#"{{"prompt": "{long}", "completion": "b", "label": false}}"#), "no room for a completion"),
    ] {
        let good = if recipe == "dpo" { GOOD } else { r#"{"prompt": "a", "completion": " b", "label": true}"# };
        let text = sentence(recipe, &format!("{good}\n{row}\n"), &[]);
        assert!(text.starts_with("DIR/data.jsonl:2: ") && text.contains(words), "{words}: {text}");
    }
}

#[test]
fn rows_that_teach_nothing_can_be_left_out() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let bad = concat!(
        r#"{"prompt": "a", "chosen": " b", "rejected": " b"}"#,
        "\n",
        r#"{"prompt": "a", "chosen": "", "rejected": " b"}"#,
        "\n"
    );
    let rows = std::fs::read_to_string(dir.join("pairs.jsonl")).unwrap();
    std::fs::write(dir.join("bad.jsonl"), bad.to_owned() + &rows).unwrap();
    let extra = [("drop_unsupervised", "true"), ("max_steps", "2")];
    let mut seen = Listener::default();
    dpo::run(&settings::<DpoConfig>(&dir.join("bad.jsonl"), &dir.join("out"), &extra), &mut seen).unwrap();
    assert!(seen.notes.iter().any(|n| n.contains("2 of 22 examples are dropped")), "{:?}", seen.notes);
}

#[test]
fn one_sided_labels_and_lengths_are_remarked() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let labelled: String =
        (0..6).map(|i| format!("{{\"prompt\": \"{i}\", \"completion\": \" b\", \"label\": true}}\n")).collect();
    std::fs::write(dir.join("labelled.jsonl"), labelled).unwrap();
    let mut seen = Listener::default();
    let extra = [("max_steps", "1")];
    kto::run(&settings::<KtoConfig>(&dir.join("labelled.jsonl"), &dir.join("kto"), &extra), &mut seen).unwrap();
    assert!(seen.notes.iter().any(|n| n.contains("every label is true")), "{:?}", seen.notes);
    let pairs: String = (0..6)
        .map(|i| format!("{{\"prompt\": \"{i}\", \"chosen\": \" a long and winding answer\", \"rejected\": \" b\"}}\n"))
        .collect();
    std::fs::write(dir.join("pairs.jsonl"), pairs).unwrap();
    let mut seen = Listener::default();
    dpo::run(&settings::<DpoConfig>(&dir.join("pairs.jsonl"), &dir.join("dpo"), &extra), &mut seen).unwrap();
    assert!(seen.notes.iter().any(|n| n.contains("will learn to write more")), "{:?}", seen.notes);
}

#[test]
fn a_reference_of_another_vocabulary_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let other = place.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for file in std::fs::read_dir(crate::repo("train/builtin")).unwrap().map(|e| e.unwrap()) {
        std::fs::copy(file.path(), other.join(file.file_name())).unwrap();
    }
    let path = other.join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_str(&text).unwrap();
    // Two tokens trade places.
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let [a, b] = [700u64, 701].map(|id| vocabulary.iter().find(|(_, v)| v.as_u64() == Some(id)).unwrap().0.clone());
    (vocabulary[&a], vocabulary[&b]) = (701.into(), 700.into());
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let extra = [("ref_model", &*other.to_string_lossy().into_owned())];
    let text = sentence("dpo", &format!("{GOOD}\n"), &extra);
    assert!(text.contains("has another vocabulary than the model (token 700 is"), "{text}");
}

#[test]
fn the_program_refuses_what_contradicts_itself() {
    let place = tempfile::tempdir().unwrap();
    write_data(place.path());
    let text = |name: &str| place.path().join(name).to_string_lossy().into_owned();
    let (pairs, labelled, out) = (text("pairs.jsonl"), text("labelled.jsonl"), text("out"));
    let run = |recipe: &str, extra: &[&str], words: &str| {
        let data = if recipe == "kto" { &labelled } else { &pairs };
        let mut arguments = vec![recipe, "--model", "builtin", "--dataset", data, "--output-dir", &out];
        arguments.extend(extra);
        refused(&arguments, words);
        assert!(!Path::new(&out).exists());
    };
    run("dpo", &["--loss-type", "exo_pair"], "`label_smoothing` must be above 0");
    run("dpo", &["--loss-type", "sigmoid,nonsense"], "`loss_type` must be one of sigmoid, hinge");
    run("dpo", &["--loss-type", "sigmoid,sft", "--loss-weights", "1"], "one number for each `loss_type`");
    run("dpo", &["--label-smoothing", "0.5"], "a number from 0 to below 0.5");
    run("dpo", &["--loss-type", "aot", "--use-weighting"], "weighs pairs");
    run("dpo", &["--f-divergence-type", "js_divergence", "--loss-type", "bco_pair"], "other than reverse_kl");
    run("dpo", &["--reference-free", "--ref-model", "builtin"], "`reference_free` compares with no model");
    run("dpo", &["--sync-ref-model", "--use-peft"], "needs a reference of its own weights");
    run("dpo", &["--sync-ref-model", "--precompute-ref-log-probs"], "keep one of the two");
    run("kto", &["--per-device-train-batch-size", "1"], "must be at least 2");
    run("kto", &["--precompute-ref-log-probs"], "cannot be used with kto");
    run("simpo", &["--loss-type", "ipo"], "there is no flag `--loss-type`");
    run("reward", &["--use-peft", "--peft-type", "PREFIX_TUNING"], "cannot be PREFIX_TUNING for reward models");
    run("orpo", &["--router-aux-loss-coef", "0.1"], "`router_aux_loss_coef` is for mixtures of experts");
    run("cpo", &["--beta", "0"], "`beta` must be a number above 0");

    let done = planish(&["config", "dpo", "--model", "builtin", "--dataset", &pairs, "--output-dir", &out]);
    assert!(done.code == 0 && done.stdout.contains("loss_type: [sigmoid]") && done.stdout.contains("beta: 0.1"));
    let arguments =
        ["orpo", "--model", "builtin", "--dataset", &pairs, "--output-dir", &out, "--max-steps", "1", "--json"];
    let done = planish(&arguments);
    assert!(done.code == 0 && Path::new(&out).join("final/model.safetensors").exists(), "{done:?}");
}
