//! Reward models that judge steps: the trajectories of transformers' loop, tokens, whole runs, and what is refused.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use planish_nn::adapters::load_adapter;
use planish_nn::decoder::LoadOptions;
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::reward::RewardKind;
use planish_nn::tokenizer::Tokenizer;
use planish_nn::weights::WeightsReader;
use planish_tensor::DType;
use planish_tests::program::{planish, refused};
use planish_train::config::RewardConfig;
use planish_train::data::{
    Batch, Columns, Dataset, DatasetSpec, DatasetType, EncodeOptions, Encoder, Example, Source, StepOptions,
};
use planish_train::preference::StepRewards;
use planish_train::recipes::reward;
use planish_train::run::Silent;
use serde_json::{Value, json};

use crate::trajectory::{Feed, Trajectory, WHOLE, differ_by_rounding, follow, ids};
use crate::{Listener, fixture, metrics, repo, result, settings, stopped_or_not};

/// A row of the fixture with its labels.
fn answer(row: &Value, last_only: bool) -> (Example, Vec<bool>) {
    let mut all = ids(&row["prompt_ids"]);
    let n_prompt = all.len();
    let (mut mask, mut labels) = (vec![false; n_prompt], Vec::new());
    let steps = row["steps"].as_array().unwrap();
    for (i, step) in steps.iter().enumerate() {
        all.extend(ids(step));
        mask.resize(all.len(), false);
        if !last_only || i + 1 == steps.len() {
            *mask.last_mut().unwrap() = true;
            labels.push(row["labels"][i].as_bool().unwrap());
        }
    }
    let source = Source { file: Path::new("made").into(), line: 1, row: 0 };
    (Example { ids: all, mask, n_prompt, source }, labels)
}

fn train(spec: &Value, rows: &[Value], feed: Feed) -> Trajectory {
    let lora = spec["lora"].as_bool().unwrap();
    let options = LoadOptions { dtype: Some(feed.dtype), trainable: !lora };
    let opened = Pretrained::open(&fixture("process/model")).unwrap();
    assert_eq!(opened.reward_head().unwrap(), Some(RewardKind::Process));
    let mut model = opened.load_reward(options, RewardKind::Process, 0).unwrap();
    if lora {
        load_adapter(&mut model, &fixture("process/adapter")).unwrap();
    }
    let mut objective = StepRewards::new(false).sharing(feed.share);
    let answers: Vec<_> = rows.iter().map(|row| answer(row, spec["last"].as_bool().unwrap())).collect();
    let per_step = spec["training"]["per_device_train_batch_size"].as_u64().unwrap() as usize;
    let micro = per_step / feed.cut;
    let micro_batches = |step: &[(Example, Vec<bool>)]| -> Vec<Batch> {
        let batch = |(k, part): (usize, &[(Example, Vec<bool>)])| {
            Batch::from_steps(part.iter().enumerate().map(|(i, (e, l))| (k * micro + i, e, &l[..])))
        };
        step.chunks(micro).enumerate().map(batch).collect()
    };
    let found = follow(&model, &spec["training"], feed, &mut objective, answers.chunks(per_step).map(micro_batches));
    for (found, step) in found.iter().zip(answers.chunks(per_step)) {
        assert_eq!(found[2], ("count".to_owned(), step.iter().map(|(_, labels)| labels.len()).sum::<usize>() as f64));
    }
    found
}

fn runs() -> (Value, Vec<Value>) {
    let read = |name: &str| read_json(&fixture(&format!("process/{name}.json"))).unwrap();
    (read("runs"), read("rows").as_array().unwrap().clone())
}

#[test]
fn trajectories_are_those_of_transformers() {
    let (runs, rows) = runs();
    let mut compared = 0;
    for (name, spec) in runs.as_object().unwrap() {
        let found = train(spec, &rows, WHOLE);
        for (s, (found, step)) in found.iter().zip(spec["steps"].as_array().unwrap()).enumerate() {
            for (what, got) in found {
                let Some(want) = step[what.as_str()].as_f64() else { continue };
                // f32 there and here, over six updates.
                assert!((got - want).abs() <= 1e-3 * want, "{name} step {}: {what} {got}, not {want}", s + 1);
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 3 * 6 * 3);
}

/// Law 3, with steps of different numbers of labels in each micro-batch.
#[test]
fn splitting_a_step_of_answers_changes_rounding_only() {
    let (runs, rows) = runs();
    for (name, spec) in runs.as_object().unwrap() {
        let feed = |tokens_per_pass, cut, recompute, share| {
            train(spec, &rows, Feed { tokens_per_pass, cut, recompute, share, dtype: DType::F64 })
        };
        let want = feed(0, 1, false, false);
        for found in [feed(1, 1, true, true), feed(40, 2, false, true), feed(0, 4, false, false)] {
            differ_by_rounding(name, &found, &want, &[]);
        }
    }
}

#[test]
fn rows_in_steps_become_the_tokens_of_trl() {
    let tokenizer = Arc::new(Tokenizer::from_dir(repo("train/builtin")).unwrap());
    let place = tempfile::tempdir().unwrap();
    let cases = read_json(&fixture("process/tokens.json")).unwrap();
    for (i, case) in cases.as_array().unwrap().iter().enumerate() {
        let file = place.path().join(format!("{i}.jsonl"));
        std::fs::write(&file, format!("{}\n", case["row"])).unwrap();
        let data = Dataset::open(&[DatasetSpec::new(&file)], &Columns::default(), &DatasetType::STEPS).unwrap();
        let o = &case["options"];
        let number = |name: &str| o[name].as_u64().map(|n| n as usize);
        let usual = StepOptions::default();
        let steps = StepOptions {
            step_separator: o["step_separator"].as_str().unwrap_or(&usual.step_separator).to_owned(),
            max_prompt_length: number("max_prompt_length").or(usual.max_prompt_length),
            max_completion_length: number("max_completion_length"),
            train_on_last_step_only: o["train_on_last_step_only"] == true,
            ..usual
        };
        let max_length = number("max_length").or(Some(1024));
        let options = EncodeOptions { max_length, steps, ..EncodeOptions::default() };
        let (row, source) = data.read(0).unwrap();
        let encoded = Encoder::new(tokenizer.clone(), options).unwrap().encode(&row, source).unwrap();
        let (example, labels) = encoded.answers().remove(0);
        let at: Vec<usize> = example.mask.iter().enumerate().filter(|(_, m)| **m).map(|(i, _)| i).collect();
        assert_eq!(
            (json!(example.ids), json!(at), json!(labels)),
            (case["ids"].clone(), case["at"].clone(), case["labels"].clone()),
            "{case}"
        );
    }
    assert!(cases.as_array().unwrap().len() >= 14);
}

/// Answers whose right steps say the next number.
fn write_steps(dir: &Path) -> std::path::PathBuf {
    let mut rows = String::new();
    for i in 0..16 {
        let wrong = i % 3;
        let steps: Vec<String> =
            (0..3).map(|k| if k == wrong { "a fish".into() } else { format!("{} pens", i + k) }).collect();
        let labels: Vec<bool> = (0..3).map(|k| k != wrong).collect();
        writeln!(rows, "{}", json!({ "prompt": format!("Count from {i}."), "completions": steps, "labels": labels }))
            .unwrap();
    }
    let path = dir.join("steps.jsonl");
    std::fs::write(&path, rows).unwrap();
    path
}

const LORA: [(&str, &str); 4] =
    [("use_peft", "true"), ("lora_r", "4"), ("lora_dropout", "0.1"), ("lora_target_modules", "all-linear")];

/// Law 6, all weights and LoRA; what is written is what transformers and PEFT call a token classifier.
#[test]
fn a_model_of_steps_is_trained_resumed_and_scored() {
    let place = tempfile::tempdir().unwrap();
    let (dir, data) = (place.path(), write_steps(place.path()));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let held =
        [("validation_split", "0.2"), ("eval_strategy", "steps"), ("eval_steps", "2"), ("disable_dropout", "false")];
    let run = |out: &str, extra: &[(&str, &str)], stop: u64| {
        let config = settings::<RewardConfig>(&data, &dir.join(out), extra);
        reward::run(&config, &mut Listener::stopping_after(stop)).unwrap()
    };
    for (name, extra) in [("full", held.to_vec()), ("lora", [&LORA[..], &held].concat())] {
        let end = stopped_or_not(name, 3, |out, more, stop| {
            run(&format!("{name}-{out}"), &[&extra[..], more].concat(), stop)
        });
        for line in metrics(end.parent().unwrap()) {
            for key in ["accuracy", "accuracy/right", "accuracy/wrong", "accuracy/first_error"] {
                assert!(line[key].as_f64().is_some_and(|a| (0.0..=1.0).contains(&a)), "{key}: {line:?}");
            }
        }
    }
    let full = dir.join("full-whole/final");
    let config = read_json(&full.join("config.json")).unwrap();
    assert_eq!(config["architectures"][0], "LlamaForTokenClassification");
    assert_eq!(config["id2label"], json!({ "0": "LABEL_0", "1": "LABEL_1" }));
    let weights = WeightsReader::open(&full).unwrap();
    assert_eq!(weights.get("score.weight").unwrap().dims()[0], 2);
    assert!(weights.contains("score.bias") && !weights.contains("lm_head.weight"));
    let config = read_json(&dir.join("lora-whole/final/adapter_config.json")).unwrap();
    assert_eq!((&config["task_type"], &config["modules_to_save"]), (&"TOKEN_CLS".into(), &json!(["score"])));
    // PEFT would take `all-linear` for the head too.
    assert!(
        config["target_modules"].as_array().is_some_and(|t| t.len() == 7 && t.contains(&"q_proj".into())),
        "{config}"
    );
    let adapter = WeightsReader::open(dir.join("lora-whole/final/adapter_model.safetensors")).unwrap();
    assert!(adapter.contains("base_model.model.score.weight") && adapter.contains("base_model.model.score.bias"));

    // Learnt by heart, and said so by the program.
    let learnt = result(run("learnt", &[("max_steps", "24"), ("learning_rate", "3e-3")], u64::MAX));
    let out = text(&dir.join("scores.jsonl"));
    let score = |more: &[&str]| {
        let own = ["score", "--reward", "--dataset", &text(&data), "--output", &out, "--json"];
        let done = planish(&[&own[..], more].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let lines = std::fs::read_to_string(&out).unwrap();
        let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        (serde_json::from_str::<Value>(&done.stdout).unwrap(), lines)
    };
    let (said, lines) = score(&["--model", &text(&learnt)]);
    assert!(said["steps"]["accuracy"].as_f64().unwrap() >= 0.9 && said["pairs"].is_null(), "{said}");
    assert_eq!(lines.len(), 16);
    for line in &lines {
        let steps: Vec<f64> = line["steps"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect();
        assert_eq!(steps.len(), 3);
        assert_eq!(line["min"].as_f64(), steps.iter().copied().reduce(f64::min));
        assert_eq!((line["product"].as_f64(), line["last"].as_f64()), (Some(steps.iter().product()), Some(steps[2])));
    }
    // Two adapters and a model: an ensemble of two, of one base.
    let (a, b) = (text(&dir.join("lora-whole/final")), text(&dir.join("lora-whole/checkpoint-2")));
    let (said, both) = score(&["--model", "builtin", "--adapter", &a, "--adapter", &b]);
    let singles = [&a, &b].map(|adapter| score(&["--model", "builtin", "--adapter", adapter]).1);
    assert_eq!(said["members"], 2);
    for (i, line) in both.iter().enumerate() {
        let of = |k: usize, s: usize| singles[k][i]["steps"][s].as_f64().unwrap();
        for s in 0..3 {
            let mean = (of(0, s) + of(1, s)) / 2.0;
            assert_eq!(line["steps"][s].as_f64(), Some(mean));
            let std = ((of(0, s) - mean).powi(2) / 2.0 + (of(1, s) - mean).powi(2) / 2.0).sqrt();
            assert!((line["steps_std"][s].as_f64().unwrap() - std).abs() <= 1e-15);
            assert_eq!(line["steps_min"][s].as_f64(), Some(of(0, s).min(of(1, s))));
            assert_eq!(line["members"][1][s].as_f64(), Some(of(1, s)));
        }
    }
    // Without labels there are probabilities only.
    let rows = std::fs::read_to_string(&data).unwrap().replace(r#""labels":"#, r#""notes":"#);
    std::fs::write(&data, rows).unwrap();
    let (said, again) = score(&["--model", &text(&learnt)]);
    assert!(said["steps"].is_null() && again[0]["labels"].is_null());
    assert_eq!(
        again.iter().map(|l| &l["steps"]).collect::<Vec<_>>(),
        lines.iter().map(|l| &l["steps"]).collect::<Vec<_>>()
    );

    // A head judges what it was trained for.
    crate::write_data(dir);
    let pairs = settings::<RewardConfig>(&dir.join("pairs.jsonl"), &dir.join("no"), &[("model", &text(&learnt))]);
    let error = reward::run(&pairs, &mut Silent).unwrap_err().to_string();
    assert!(
        error.contains("LlamaForTokenClassification") && error.contains("not a reward model of whole answers"),
        "{error}"
    );
    refused(
        &[
            "score",
            "--reward",
            "--model",
            &text(&learnt),
            "--dataset",
            &text(&dir.join("pairs.jsonl")),
            "--output",
            &out,
        ],
        "make rows of type chosen+rejected",
    );
}

/// Rows as the files of PRM800K have them: every completion that was not gone on from ends an answer.
#[test]
fn prm800k_is_read_as_it_is() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let step = |completions: &[(&str, Value)], chosen: Value, human: Value| {
        let all: Vec<Value> =
            completions.iter().map(|(t, r)| json!({ "text": t, "rating": r, "flagged": null })).collect();
        json!({ "completions": all, "human_completion": human, "chosen_completion": chosen })
    };
    let row = |steps: Vec<Value>| json!({ "labeler": "x", "question": { "problem": "1 + 1?" }, "label": { "steps": steps, "finish_reason": "solution" } });
    let rows = [
        row(vec![
            step(&[("a", json!(1)), ("b", json!(-1))], json!(0), Value::Null),
            step(&[("c", json!(-1))], Value::Null, json!({ "text": "d", "rating": null })),
            step(&[("e", json!(0))], json!(0), Value::Null),
        ]),
        // An error was found and nobody went on.
        row(vec![step(&[("a", json!(1))], json!(0), Value::Null), step(&[("z", json!(-1))], Value::Null, Value::Null)]),
    ];
    let path = dir.join("prm.jsonl");
    std::fs::write(&path, rows.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
    let data = Dataset::open(&[DatasetSpec::new(&path)], &Columns::default(), reward::ACCEPTED).unwrap();
    assert_eq!(data.files()[0].kind, DatasetType::Prm800k);
    let tokenizer = Arc::new(Tokenizer::from_dir(repo("train/builtin")).unwrap());
    let encoder = Encoder::new(tokenizer.clone(), EncodeOptions::default()).unwrap();
    let mut found = Vec::new();
    for i in 0..2 {
        let (row, source) = data.read(i).unwrap();
        for (example, labels) in encoder.encode(&row, source).unwrap().answers() {
            found.push((tokenizer.decode(&example.ids[example.n_prompt..], false).unwrap(), labels));
        }
    }
    let want: [(&str, &[bool]); 4] = [
        ("b\n", &[false]),
        ("a\nc\n", &[true, false]),
        ("a\nd\ne\n", &[true, true, false]),
        ("a\nz\n", &[true, false]),
    ];
    assert_eq!(found, want.map(|(text, labels)| (text.to_owned(), labels.to_vec())));
    // The answers of a row are segments of one batch, two of them no pair; some share their beginning.
    let extra = [("max_steps", "2"), ("per_device_train_batch_size", "2"), ("gradient_accumulation_steps", "1")];
    let run = |out: &str, share: &str| {
        let extra = [&extra[..], &[("share_prompts", share)]].concat();
        result(
            reward::run(&settings::<RewardConfig>(&path, &dir.join(out), &extra), &mut Listener::default()).unwrap(),
        );
        metrics(&dir.join(out))
    };
    let (together, apart) = (run("together", "true"), run("apart", "false"));
    assert_eq!(together[0]["tokens"], 8);
    assert_eq!(together[0]["loss"], apart[0]["loss"]);
    let norm = |lines: &[serde_json::Map<String, Value>]| lines[0]["grad_norm"].as_f64().unwrap();
    assert!((norm(&together) / norm(&apart) - 1.0).abs() <= 1e-5);
}

/// Bad rows and settings: one sentence that says where, and nothing written.
#[test]
fn bad_steps_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let good = r#"{"prompt": "a", "completions": ["b"], "labels": [true]}"#;
    let sentence = |row: &str, extra: &[(&str, &str)]| {
        let (data, out) = (dir.join("data.jsonl"), dir.join("out"));
        std::fs::write(&data, format!("{good}\n{row}\n")).unwrap();
        let error = reward::run(&settings::<RewardConfig>(&data, &out, extra), &mut Silent).unwrap_err();
        let text = error.to_string().replace(&dir.to_string_lossy().into_owned(), "DIR");
        assert!(error.is_usage() && !out.exists() && text.lines().count() == 1, "{text}");
        text
    };
    for (row, words) in [
        (r#"{"prompt": "a", "completions": "b", "labels": [true]}"#, "`completions` must be an array of steps"),
        (
            r#"{"prompt": "a", "completions": ["b", 3], "labels": [true, true]}"#,
            "completions[1] must be a string, found 3",
        ),
        (
            r#"{"prompt": "a", "completions": ["b", "c"], "labels": [true]}"#,
            "`labels` must be as long as `completions`",
        ),
        (r#"{"prompt": "a", "completions": ["b"], "labels": ["x"]}"#, "labels[0] must be true or false"),
        (r#"{"prompt": "a", "completions": ["b"], "labels": true}"#, "`labels` must be an array"),
        (r#"{"prompt": "a", "completions": ["b"]}"#, "\"labels\" is missing"),
        (r#"{"prompt": "a", "completions": [], "labels": []}"#, "the list of steps is empty"),
        (r#"{"prompt": "a", "completions": ["b", " "], "labels": [true, true]}"#, "a step is empty"),
        (r#"{"prompt": " ", "completions": ["b"], "labels": [true]}"#, "prompt is empty"),
        (r#"{"prompt": [], "completions": ["b"], "labels": [true]}"#, "`prompt` must be a string"),
    ] {
        let text = sentence(row, &[]);
        assert!(text.starts_with("DIR/data.jsonl:2: ") && text.contains(words), "{words}: {text}");
    }
    let text = sentence(good, &[("center_rewards_coefficient", "0.01")]);
    assert!(text.contains("`center_rewards_coefficient` is for pairs"), "{text}");
    crate::write_data(dir);
    let pairs = dir.join("pairs.jsonl").to_string_lossy().into_owned();
    let text = sentence(good, &[("eval_dataset", &pairs)]);
    assert!(text.contains("both pairs and answers in steps"), "{text}");
    // PRM800K's own.
    for (label, words) in [
        (json!({}), "`label` must be an object with the array `steps`"),
        (
            json!({ "steps": [{ "completions": [{ "rating": 1 }], "chosen_completion": 0 }] }),
            "label.steps[0].completions[0] must be",
        ),
        (
            json!({ "steps": [{ "completions": [], "chosen_completion": 0 }] }),
            "label.steps[0].chosen_completion must be null, or",
        ),
        (json!({ "steps": [] }), "the list of steps is empty"),
    ] {
        let file = dir.join("prm.jsonl");
        std::fs::write(&file, format!("{}\n", json!({ "question": { "problem": "p" }, "label": label }))).unwrap();
        let config = settings::<RewardConfig>(&file, &dir.join("out"), &[]);
        let text = reward::run(&config, &mut Silent).unwrap_err().to_string();
        assert!(text.contains("prm.jsonl:1: ") && text.contains(words), "{words}: {text}");
    }
    // Rows without steps to learn from can be left out.
    std::fs::write(
        dir.join("some.jsonl"),
        format!("{good}\n{}\n", r#"{"prompt": "a", "completions": [], "labels": []}"#),
    )
    .unwrap();
    let mut seen = Listener::default();
    let extra = [("drop_unsupervised", "true"), ("max_steps", "1")];
    reward::run(&settings::<RewardConfig>(&dir.join("some.jsonl"), &dir.join("some"), &extra), &mut seen).unwrap();
    assert!(seen.notes.iter().any(|n| n.contains("1 of 2 examples are dropped")), "{:?}", seen.notes);
    assert!(seen.notes.iter().any(|n| n.contains("every step is labelled right")), "{:?}", seen.notes);
    let out = dir.join("x").to_string_lossy().into_owned();
    let score = ["score", "--dataset", &pairs, "--output", &out, "--model", "builtin"];
    refused(&[&score[..], &["--model", "builtin"]].concat(), "are an ensemble of rewards");
    let odd = ["--reward", "--model", "builtin", "--adapter", "a", "--adapter", "b", "--adapter", "c"];
    refused(&[&score[..], &odd].concat(), "2 --model and 3 --adapter do not go together");
}
