//! Losses that no library has a trainer of, against a page of torch each: NCA of answers with scores, BCO without pairs.

use planish_nn::adapters::load_adapter;
use planish_nn::decoder::Model;
use planish_nn::pretrained::read_json;
use planish_tensor::DType;
use planish_train::config::{DpoConfig, DpoLossType, DpoSettings, KtoLossType, KtoSettings};
use planish_train::data::Batch;
use planish_train::preference::{Pairs, Ranked, Reference, Unpaired};
use planish_train::recipes::{dpo, kto};
use planish_train::run::Silent;
use planish_train::trainer::Objective;
use serde_json::{Value, json};

use crate::parity::{batch as rows_of, open};
use crate::ranked::{batch as answers_of, write_ranked};
use crate::trajectory::{Feed, Trajectory, WHOLE, differ_by_rounding, follow};
use crate::{Listener, fixture, metrics, settings, stopped_or_not, write_data};

fn read(name: &str) -> Value {
    read_json(&fixture(name)).unwrap()
}

/// The model of a run and what it is compared with: itself as it starts, with LoRA the base.
fn start(spec: &Value, dtype: DType) -> (Model, Reference) {
    let lora = spec["lora"].as_bool().unwrap();
    let mut model = open("smollm2", dtype, !lora);
    if lora {
        load_adapter(&mut model, &fixture("preference/adapter")).unwrap();
        return (model, Reference::Base);
    }
    (model, Reference::Model { model: Box::new(open("smollm2", dtype, false)), follow: None })
}

fn number(spec: &Value, key: &str) -> f64 {
    spec[key].as_f64().unwrap()
}

fn of_nca(spec: &Value, all: &[Value], feed: Feed) -> Trajectory {
    let (model, reference) = start(spec, feed.dtype);
    let loss_type = DpoLossType::ALL.iter().find(|t| t.to_string() == spec["loss_type"].as_str().unwrap());
    let settings = DpoSettings {
        loss_type: vec![*loss_type.unwrap()],
        beta: number(spec, "beta"),
        nca_alpha: number(spec, "alpha"),
        rpo_alpha: Some(number(spec, "sft")),
        ..DpoSettings::default()
    };
    let nca = dpo::nca(&settings, false).unwrap();
    let mut objective = Ranked::new(Box::new(nca), reference, false).sharing(feed.share);
    let per_step = spec["rows"].as_u64().unwrap() as usize;
    let micro = per_step / feed.cut;
    let steps = all.chunks(per_step).enumerate().map(|(s, step)| {
        step.chunks(micro).enumerate().map(|(k, rows)| answers_of(rows, s * per_step + k * micro)).collect()
    });
    follow(&model, &spec["training"], feed, &mut objective, steps)
}

fn of_bco(spec: &Value, all: &[Value], feed: Feed) -> Trajectory {
    let (model, reference) = start(spec, feed.dtype);
    let settings = KtoSettings { loss_type: KtoLossType::Bco, beta: number(spec, "beta"), ..KtoSettings::default() };
    let mut objective = Unpaired::new(kto::loss(&settings), reference, false, None);
    let rows = spec["rows"].as_u64().unwrap() as usize;
    let per_step = rows * spec["accumulation"].as_u64().unwrap() as usize;
    let steps = all.chunks(per_step).take(spec["steps"].as_array().unwrap().len()).enumerate().map(|(s, step)| {
        step.chunks(rows).enumerate().map(|(k, some)| rows_of("kto", some, s * per_step + k * rows)).collect()
    });
    follow(&model, &spec["training"], feed, &mut objective, steps)
}

/// Compares what the page has, within what f32 makes of six updates; gives how many numbers.
fn is_that_of(name: &str, spec: &Value, found: &Trajectory) -> usize {
    let mut compared = 0;
    for (s, (found, step)) in found.iter().zip(spec["steps"].as_array().unwrap()).enumerate() {
        for (what, got) in found {
            let key = if what == "rewards/accuracies" { "accuracy" } else { what };
            let Some(want) = step[key].as_f64() else { continue };
            assert!(
                (got - want).abs() <= 1e-3 * want.abs().max(0.05),
                "{name} step {}: {what} {got}, not {want}",
                s + 1
            );
            compared += 1;
        }
    }
    compared
}

#[test]
fn nca_is_that_of_the_paper() {
    let (runs, rows) = (read("nca/runs.json"), read("rrhf/rows.json"));
    let rows = rows.as_array().unwrap();
    let mut compared = 0;
    for (name, spec) in runs.as_object().unwrap() {
        compared += is_that_of(name, spec, &of_nca(spec, rows, WHOLE));
        // Law 3: passes, micro-batches, recomputation and shared prompts, the reference's too.
        let feed = |tokens_per_pass, cut, recompute, share| {
            of_nca(spec, rows, Feed { tokens_per_pass, cut, recompute, share, dtype: DType::F64 })
        };
        let want = feed(0, 1, false, false);
        for found in [feed(1, 1, true, true), feed(60, 2, false, true), feed(0, 4, false, false)] {
            differ_by_rounding(name, &found, &want, &[]);
        }
    }
    // Loss, norm, order and distance of four runs of six steps.
    assert_eq!(compared, 4 * 6 * 4);
}

#[test]
fn bco_is_that_of_the_paper() {
    let (runs, rows) = (read("bco/runs.json"), read("preference/labelled.json"));
    let rows = rows.as_array().unwrap();
    let mut compared = 0;
    for (name, spec) in runs.as_object().unwrap() {
        compared += is_that_of(name, spec, &of_bco(spec, rows, WHOLE));
        // Micro-batches are part of what is computed; passes and recomputation are not.
        let feed = |tokens_per_pass, recompute| {
            of_bco(spec, rows, Feed { tokens_per_pass, cut: 1, recompute, share: false, dtype: DType::F64 })
        };
        let want = feed(0, false);
        for found in [feed(1, true), feed(40, false)] {
            differ_by_rounding(name, &found, &want, &[]);
        }
    }
    assert_eq!(compared, 2 * 6 * 4);
}

/// Rows of two answers whose scores are 1 apart are pairs.
#[test]
fn nca_of_two_answers_is_that_of_a_pair() {
    let pairs = read("preference/pairs.json");
    let chosen_first = rows_of("dpo", &pairs.as_array().unwrap()[..8], 0);
    let mut scored: Batch = chosen_first.clone();
    scored.scores = [-1.5, -2.5].repeat(8);
    let settings = DpoSettings { loss_type: vec![DpoLossType::Nca], beta: 0.4, nca_alpha: 0.7, ..Default::default() };
    let training = json!({ "learning_rate": 5e-3, "adam_epsilon": 1e-5, "weight_decay": 0.1, "max_grad_norm": 1.0 });
    let spec = json!({ "lora": true });
    let run = |ranked: bool, batch: &Batch| {
        let (model, reference) = start(&spec, DType::F64);
        let mut objective: Box<dyn Objective> = match ranked {
            true => Box::new(Ranked::new(Box::new(dpo::nca(&settings, false).unwrap()), reference, false)),
            false => Box::new(Pairs::new(Box::new(dpo::loss(&settings, false)), reference, false)),
        };
        let feed = Feed { dtype: DType::F64, ..WHOLE };
        let mut found = follow(&model, &training, feed, &mut *objective, std::iter::repeat_n(vec![batch.clone()], 3));
        for step in &mut found {
            step.retain(|(name, _)| !name.starts_with("logits/"));
            step.sort_by(|a, b| a.0.cmp(&b.0));
        }
        found
    };
    let want = run(false, &chosen_first);
    for batch in [&chosen_first, &scored] {
        differ_by_rounding("a pair", &run(true, batch), &want, &[]);
    }
}

/// Law 6 on rows of several answers beside pairs, and what such rows cannot have.
#[test]
fn answers_with_scores_go_with_dpo() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let ranked = write_ranked(dir, true);
    let both = format!("{},{}", text(&ranked), text(&dir.join("pairs.jsonl")));
    let own = [("loss_type", "nca,sft"), ("loss_weights", "1,0.2"), ("nca_alpha", "0.5"), ("dataset", &both)];
    let held = [("validation_split", "0.2"), ("eval_strategy", "steps"), ("eval_steps", "2")];
    let lora = [("use_peft", "true"), ("lora_r", "4"), ("lora_dropout", "0.1"), ("disable_dropout", "false")];
    for (name, extra) in [("lora", &lora[..]), ("full", &[("tokens_per_pass", "90")])] {
        let end = stopped_or_not(name, 3, |out, more, stop| {
            let extra = [&own[..], &held, extra, more].concat();
            let config = settings::<DpoConfig>(&ranked, &dir.join(format!("{name}-{out}")), &extra);
            dpo::run(&config, &mut Listener::stopping_after(stop)).unwrap()
        });
        for line in metrics(end.parent().unwrap()) {
            let of = |key: &str| line[key].as_f64().unwrap();
            assert!((0.0..=1.0).contains(&of("rewards/accuracies")) && of("kl_per_token") >= 0.0, "{line:?}");
            assert!((of("rewards/margins") - of("rewards/chosen") + of("rewards/rejected")).abs() <= 1e-12, "{line:?}");
        }
    }
    for (extra, words) in [
        (&[("loss_type", "sigmoid")][..], "rows of type prompt+responses+scores, which are not read here"),
        (&[("loss_type", "nca,sigmoid")], "rows of type prompt+responses+scores, which are not read here"),
        (&[("loss_type", "nca"), ("precompute_ref_log_probs", "true")], "`precompute_ref_log_probs` is for pairs"),
        (&[("loss_type", "info_nca"), ("ld_alpha", "0.5")], "`ld_alpha` compares the two sides of pairs"),
        (&[("loss_type", "nca"), ("use_weighting", "true")], "`use_weighting` weighs pairs"),
    ] {
        let out = dir.join("refused");
        let error = dpo::run(&settings::<DpoConfig>(&ranked, &out, extra), &mut Silent).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(words) && !out.exists(), "{words}: {error}");
    }
}
