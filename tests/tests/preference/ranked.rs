//! RRHF of several answers: the paper's equations in torch, pairs as the case of two, whole runs, and what is refused.

use std::fmt::Write as _;
use std::path::Path;

use planish_nn::adapters::load_adapter;
use planish_nn::pretrained::read_json;
use planish_tensor::DType;
use planish_train::config::{CpoConfig, CpoLossType, CpoSettings};
use planish_train::data::{Batch, Example};
use planish_train::losses::{AllPairs, Cpo};
use planish_train::preference::{Pairs, Ranked, Reference};
use planish_train::recipes::cpo;
use planish_train::run::Silent;
use planish_train::trainer::Objective;
use serde_json::{Value, json};

use crate::parity::open;
use crate::trajectory::{Feed, Trajectory, WHOLE, differ_by_rounding, example, follow};
use crate::{Listener, fixture, metrics, settings, stopped_or_not, write_data};

fn rrhf(cpo_alpha: f64) -> Box<Cpo> {
    let settings = CpoSettings { loss_type: CpoLossType::Rrhf, cpo_alpha, ..CpoSettings::default() };
    Box::new(cpo::loss(&settings))
}

fn ranked(cpo_alpha: f64) -> Ranked {
    Ranked::new(Box::new(AllPairs::new(rrhf(cpo_alpha))), Reference::Free, false)
}

/// The batch of some rows of the fixture.
pub(crate) fn batch(rows: &[Value], first: usize) -> Batch {
    let of = |(i, row): (usize, &Value)| -> Vec<(usize, Example, f64)> {
        let answers = row["responses"].as_array().unwrap().iter().zip(row["scores"].as_array().unwrap());
        answers.map(|(a, s)| (first + i, example(&row["prompt_ids"], a, i), s.as_f64().unwrap())).collect()
    };
    let all: Vec<Vec<(usize, Example, f64)>> = rows.iter().enumerate().map(of).collect();
    let mut batch = Batch::from_examples(all.iter().flatten().map(|(i, e, _)| (*i, e)));
    batch.sizes = all.iter().map(Vec::len).collect();
    batch.scores = all.iter().flatten().map(|(_, _, score)| *score).collect();
    batch
}

fn train(spec: &Value, rows: &[Value], feed: Feed) -> Trajectory {
    let lora = spec["lora"].as_bool().unwrap();
    let mut model = open("smollm2", feed.dtype, !lora);
    if lora {
        load_adapter(&mut model, &fixture("preference/adapter")).unwrap();
    }
    let mut objective = ranked(spec["cpo_alpha"].as_f64().unwrap()).sharing(feed.share);
    let per_step = spec["rows"].as_u64().unwrap() as usize;
    let micro = per_step / feed.cut;
    let steps = rows.chunks(per_step).enumerate().map(|(s, step)| {
        step.chunks(micro).enumerate().map(|(k, rows)| batch(rows, s * per_step + k * micro)).collect()
    });
    let found = follow(&model, &spec["training"], feed, &mut objective, steps);
    assert!(found.iter().all(|step| step[2] == ("count".to_owned(), per_step as f64)));
    found
}

#[test]
fn trajectories_are_those_of_the_paper() {
    let read = |name: &str| read_json(&fixture(&format!("rrhf/{name}.json"))).unwrap();
    let (runs, rows) = (read("runs"), read("rows"));
    let rows = rows.as_array().unwrap();
    let mut compared = 0;
    for (name, spec) in runs.as_object().unwrap() {
        let found = train(spec, rows, WHOLE);
        for (s, (found, step)) in found.iter().zip(spec["steps"].as_array().unwrap()).enumerate() {
            for (what, got) in found {
                let key = if what == "rewards/accuracies" { "accuracy" } else { what };
                let Some(want) = step[key].as_f64() else { continue };
                // f32 there and here, over six updates.
                assert!((got - want).abs() <= 1e-3 * want, "{name} step {}: {what} {got}, not {want}", s + 1);
                compared += 1;
            }
        }
        // Law 3: passes, micro-batches, recomputation and shared prompts.
        let feed = |tokens_per_pass, cut, recompute, share| {
            train(spec, rows, Feed { tokens_per_pass, cut, recompute, share, dtype: DType::F64 })
        };
        let want = feed(0, 1, false, false);
        for found in [feed(1, 1, true, true), feed(60, 2, false, true), feed(0, 4, false, false)] {
            differ_by_rounding(name, &found, &want, &[]);
        }
    }
    // Loss, norm and order; cross-entropy of two runs.
    assert_eq!(compared, 6 * (3 * 3 + 2));
}

/// Of two answers it is what pairs are trained with, whichever of them comes first.
#[test]
fn two_answers_are_a_pair() {
    let pairs = read_json(&fixture("preference/pairs.json")).unwrap();
    let pairs: Vec<[Example; 2]> = pairs.as_array().unwrap()[..8]
        .iter()
        .enumerate()
        .map(|(i, row)| ["chosen_ids", "rejected_ids"].map(|side| example(&row["prompt_ids"], &row[side], i)))
        .collect();
    let training = json!({
        "learning_rate": 5e-3, "adam_epsilon": 1e-5, "weight_decay": 0.1, "max_grad_norm": 1.0,
    });
    let run = |objective: &mut dyn Objective, batch: Batch| {
        let feed = Feed { dtype: DType::F64, ..WHOLE };
        follow(&open("smollm2", DType::F64, true), &training, feed, objective, std::iter::repeat_n(vec![batch], 3))
    };
    let chosen_first = Batch::from_pairs(pairs.iter().enumerate().map(|(i, [c, r])| (i, c, r)));
    let mut rejected_first = Batch::from_pairs(pairs.iter().enumerate().map(|(i, [c, r])| (i, r, c)));
    rejected_first.scores = [-2.0, 0.5].repeat(pairs.len());
    let mut want = run(&mut Pairs::new(rrhf(0.7), Reference::Free, false), chosen_first.clone());
    for batch in [chosen_first, rejected_first] {
        let mut found = run(&mut ranked(0.7).sharing(true), batch);
        for step in found.iter_mut().chain(&mut want) {
            step.retain(|(name, _)| !name.starts_with("logits/"));
            step.sort_by(|a, b| a.0.cmp(&b.0));
        }
        differ_by_rounding("a pair", &found, &want, &[]);
    }
}

/// Rows of two to four answers, plain or as conversations.
pub(crate) fn write_ranked(dir: &Path, chat: bool) -> std::path::PathBuf {
    let mut rows = String::new();
    for i in 0..18 {
        let answers: Vec<String> = (0..2 + i % 3).map(|k| format!(" {} pens{}", i + k, "!".repeat(k))).collect();
        let scores: Vec<f64> = (0..answers.len()).map(|k| ((i + k) % 3) as f64 - 0.5).collect();
        let turn = |role: &str, text: &str| json!([{ "role": role, "content": text }]);
        let prompt = format!("How many pens are {i} and some more, all of them counted?");
        let row = match chat {
            true => json!({
                "prompt": turn("user", &prompt), "scores": scores,
                "responses": answers.iter().map(|a| turn("assistant", a)).collect::<Vec<_>>(),
            }),
            false => json!({ "prompt": prompt, "responses": answers, "scores": scores }),
        };
        writeln!(rows, "{row}").unwrap();
    }
    let path = dir.join(format!("ranked-{chat}.jsonl"));
    std::fs::write(&path, rows).unwrap();
    path
}

/// Law 6, with rows of both kinds, and pairs beside them.
#[test]
fn answers_with_scores_are_learnt_from() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let all = [write_ranked(dir, false), write_ranked(dir, true), dir.join("pairs.jsonl")].map(|path| text(&path));
    let (all, alone) = (all.join(","), all[0].clone());
    let held = [("loss_type", "rrhf"), ("validation_split", "0.2"), ("eval_strategy", "steps"), ("eval_steps", "2")];
    let lora = [("use_peft", "true"), ("lora_r", "4"), ("lora_dropout", "0.1"), ("disable_dropout", "false")];
    for (name, data, extra) in [("all", &all, &lora[..]), ("alone", &alone, &[("tokens_per_pass", "90")])] {
        let end = stopped_or_not(name, 3, |out, more, stop| {
            let extra = [&held[..], &[("dataset", data)], extra, more].concat();
            let config = settings::<CpoConfig>(Path::new("unused"), &dir.join(format!("{name}-{out}")), &extra);
            cpo::run(&config, &mut Listener::stopping_after(stop)).unwrap()
        });
        let lines = metrics(end.parent().unwrap());
        for line in &lines {
            let of = |key: &str| line[key].as_f64().unwrap();
            assert!((0.0..=1.0).contains(&of("rewards/accuracies")), "{line:?}");
            assert!((of("rewards/margins") - of("rewards/chosen") + of("rewards/rejected")).abs() <= 1e-12, "{line:?}");
            assert!(of("loss") >= of("nll_loss") && of("logps/chosen").is_finite(), "{line:?}");
        }
        assert!(lines[1]["eval_rewards/accuracies"].as_f64().is_some_and(f64::is_finite), "{:?}", lines[1]);
    }
    // Other losses are of pairs.
    let config = settings::<CpoConfig>(Path::new(&alone), &dir.join("out"), &[]);
    let error = cpo::run(&config, &mut Silent).unwrap_err().to_string();
    assert!(error.contains("rows of type prompt+responses+scores, which are not read here"), "{error}");
}

#[test]
fn bad_answers_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let good = r#"{"prompt": "a", "responses": [" b", " c"], "scores": [1, 0.5]}"#;
    let long = "word ".repeat(80);
    let row = |prompt: Value, responses: Value, scores: Value| {
        json!({ "prompt": prompt, "responses": responses, "scores": scores }).to_string()
    };
    let run = |row: &str, extra: &[(&str, &str)], seen: &mut Listener| {
        let (data, out) = (dir.join("data.jsonl"), dir.join("out"));
        std::fs::write(&data, format!("{good}\n{row}\n")).unwrap();
        let extra = [&[("loss_type", "rrhf")], extra].concat();
        cpo::run(&settings::<CpoConfig>(&data, &out, &extra), seen).map_err(|e| (e.is_usage(), e.to_string()))
    };
    for (row, words) in [
        (row(json!("a"), json!([" b", " c"]), json!([1])), "`scores` must be as long as `responses`, found \"1 of 2"),
        (row(json!("a"), json!([" b"]), json!([1])), "`responses` must be an array of at least two answers, found 1"),
        (row(json!("a"), json!(" b"), json!([1])), "`responses` must be an array of answers"),
        (row(json!("a"), json!([" b", 3]), json!([1, 2])), "responses[1] must be a string, as the prompt is, found 3"),
        (
            row(
                json!([{ "role": "user", "content": "a" }]),
                json!([[{ "role": "assistant", "content": "b" }], "c"]),
                json!([1, 2]),
            ),
            "responses[1] must be an array of messages, as the prompt is",
        ),
        (
            row(json!([{ "role": "user", "content": "a" }]), json!([[], []]), json!([1, 2])),
            "`responses[0]` must be an array of at least one message",
        ),
        (row(json!("a"), json!([" b", " c"]), json!(2)), "`scores` must be an array of numbers"),
        (row(json!("a"), json!([" b", " c"]), json!([1, "NaN"])), "scores[1] must be a finite number, found \"NaN\""),
        (row(json!("a"), json!([" b", " c"]), json!([1, null])), "scores[1] must be a finite number, found null"),
        (good.replace("0.5", "NaN"), "malformed JSON"),
        (good.replace("0.5", "1e999"), "malformed JSON"),
        (row(json!("a"), json!([" b", " c", " b"]), json!([1, 2, 3])), "responses[0] and responses[2] are equal, so"),
        (row(json!("a"), json!([" b", " c"]), json!([2, 2])), "all scores are equal, so no response is better"),
        (row(json!("a"), json!([" b", "  "]), json!([1, 2])), "a response is empty"),
        (row(json!(long), json!([" b", " c"]), json!([1, 2])), "no room for a completion"),
        (
            row(json!("a"), json!([format!(" {long} x"), format!(" {long} y")]), json!([1, 2])),
            "responses[0] and responses[1] are equal once they are cut to max_length",
        ),
        (r#"{"prompt": "a", "responses": [" b", " c"]}"#.to_owned(), "\"scores\" is missing"),
    ] {
        let (is_usage, text) = run(&row, &[], &mut Listener::default()).unwrap_err();
        let text = text.replace(&dir.to_string_lossy().into_owned(), "DIR");
        assert!(is_usage && !dir.join("out").exists() && text.lines().count() == 1, "{text}");
        assert!(text.starts_with("DIR/data.jsonl:2: ") && text.contains(words), "{words}: {text}");
    }
    // Rows that rank nothing can be left out.
    let mut seen = Listener::default();
    let extra = [("drop_unsupervised", "true"), ("max_steps", "1")];
    run(&row(json!("a"), json!([" b", " c"]), json!([2, 2])), &extra, &mut seen).unwrap();
    assert!(seen.notes.iter().any(|n| n.contains("1 of 2 examples are dropped")), "{:?}", seen.notes);
}
