//! Several objectives in one batch: the gradient of each by itself, whole runs, and what is refused.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use planish_nn::decoder::{LoadOptions, Model};
use planish_nn::pretrained::Pretrained;
use planish_nn::tokenizer::Tokenizer;
use planish_tensor::DType;
use planish_tensor::ops::elementwise;
use planish_tests::program::{planish, refused};
use planish_train::config::{IngredientLoss, MixConfig, OptimSettings, Recipe, resolve};
use planish_train::data::{
    Batch, Columns, Cursor, Dataset, DatasetSpec, DatasetType, EncodeOptions, Encoder, Sampler, SamplerOptions, Step,
};
use planish_train::losses::RouterTerms;
use planish_train::preference::{Member, MemberLoss, Mixed, Origins, Pairs, Reference, Unpaired};
use planish_train::recipes::{dpo, kto, mix, orpo, sft};
use planish_train::trainer::{CrossEntropy, Objective, Sums};

use crate::{Listener, metrics, repo, stopped_or_not, write_data};

/// The data of the other recipes, and rows to imitate.
fn write_all(dir: &Path) {
    write_data(dir);
    let mut rows = String::new();
    for i in 0..20 {
        writeln!(rows, r#"{{"prompt":"Say {i}.","completion":" It is {i}, {i}."}}"#).unwrap();
    }
    std::fs::write(dir.join("sft.jsonl"), rows).unwrap();
}

fn open(offset: f64) -> Model {
    let options = LoadOptions { dtype: Some(DType::F64), trainable: offset == 0.0 };
    let model = Pretrained::open(&repo("train/builtin")).unwrap().load(options).unwrap();
    if offset != 0.0 {
        let weight = &model.layers[0].linears()[0].weight.base;
        weight.update(|t| elementwise::scale(t, 1.0 + offset).map(|new| *t = new)).unwrap();
    }
    model
}

/// A reference that is another model.
fn reference() -> Reference {
    Reference::Model { model: Box::new(open(0.2)), follow: None }
}

fn objectives(text: &str) -> Vec<(f64, IngredientLoss)> {
    let flag = |key: &str, value: &str| (key.to_owned(), vec![value.to_owned()]);
    let flags = [flag("model", "m"), flag("dataset", "a,b,c,d"), flag("output_dir", "o"), flag("objectives", text)];
    let config = resolve::<MixConfig>(None, &flags).unwrap().config;
    config.mix.objectives.0.into_iter().map(|one| (one.weight, one.loss)).collect()
}

/// Gradients of all parameters, which are then cleared.
fn gradients(model: &Model) -> Vec<Vec<f64>> {
    let take = |p: &planish_autograd::Param| {
        let grad = p.grad().map(|g| g.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap());
        p.clear_grad();
        grad.unwrap_or_else(|| vec![0.0; p.value().numel()])
    };
    model.params().iter().map(take).collect()
}

#[test]
fn a_mixed_gradient_is_the_weighted_sum_of_the_others() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_all(dir);
    let text = "{objective: sft, weight: 0.7}, {objective: dpo, weight: 0.5, loss_type: [sigmoid, sft], beta: 0.3, \
                ld_alpha: 0.5}, {objective: kto, beta: 0.2}, {objective: orpo, weight: 0.3}";
    let ingredients = objectives(text);
    let kinds: [(&str, &[DatasetType]); 4] = [
        ("sft.jsonl", sft::ACCEPTED),
        ("pairs.jsonl", dpo::ACCEPTED),
        ("labelled.jsonl", kto::ACCEPTED),
        ("pairs.jsonl", orpo::ACCEPTED),
    ];
    let specs = kinds.map(|(file, accepted)| (DatasetSpec::new(dir.join(file)), accepted));
    let data = Arc::new(Dataset::open_each(&specs, &Columns::default()).unwrap());
    let tokenizer = Arc::new(Tokenizer::from_dir(repo("train/builtin")).unwrap());
    let encoder = Encoder::new(tokenizer, EncodeOptions::default()).unwrap();
    let options = SamplerOptions { micro_batch: 6, accumulation: 2, ..SamplerOptions::default() };
    let sampler = Arc::new(Sampler::new(data.all(), encoder, options).unwrap());
    let step = sampler.steps(Cursor::default()).unwrap().next().unwrap().unwrap();
    let spec = |batch: &Batch, s: usize| data.spec_of(batch.example_indices[s] as u64);
    // Kinds as they were drawn: several in each micro-batch, all of them in the step.
    let kinds_of = |b: &Batch| (0..b.segments()).map(|s| spec(b, s)).collect::<std::collections::BTreeSet<_>>();
    let all: Vec<_> = step.micro_batches.iter().map(kinds_of).collect();
    assert!(all.iter().all(|kinds| kinds.len() >= 2) && all.iter().flatten().count() >= 5, "{all:?}");
    for batch in &step.micro_batches {
        assert_eq!(batch.sizes.iter().sum::<usize>(), batch.segments());
        assert_eq!(batch.examples().len(), 6);
        for part in batch.split(60) {
            assert!(part.examples().iter().all(|e| e.len() == if spec(&part, e.start) % 2 == 1 { 2 } else { 1 }));
        }
    }
    let model = open(0.0);
    let optim = |tokens_per_pass| OptimSettings { tokens_per_pass: Some(tokens_per_pass), ..OptimSettings::default() };
    let mixed = |tokens_per_pass, share| {
        let member = |(i, (weight, loss)): (usize, &(f64, IngredientLoss))| Member {
            name: format!("{i}"),
            weight: *weight,
            loss: mix::loss(loss, false),
        };
        let members = ingredients.iter().enumerate().map(member).collect();
        let origins = Origins::new(data.clone(), vec![0, 1, 2, 3]);
        let mut mixed = Mixed::new(members, reference(), false, Some(64), origins, None).sharing(share);
        let sums = mixed.accumulate(&model, &optim(tokens_per_pass), &step, 0).unwrap();
        assert_eq!(sums.count, 1.0);
        (sums, gradients(&model))
    };
    // Each objective over its own rows, by the recipe's own objective.
    let (mut want, mut loss, mut measured) = (Vec::<Vec<f64>>::new(), 0.0, Vec::new());
    for (k, (weight, ingredient)) in ingredients.iter().enumerate() {
        let own = |batch: &Batch| batch.select(batch.examples().into_iter().filter(|e| spec(batch, e.start) == k));
        let micro_batches = step.micro_batches.iter().map(own).filter(|b| b.segments() > 0).collect();
        let step = Step { micro_batches, ..step.clone() };
        let mut objective: Box<dyn Objective> = match mix::loss(ingredient, false) {
            MemberLoss::CrossEntropy => Box::new(CrossEntropy::new(false, RouterTerms::default())),
            MemberLoss::Pairs(loss) => {
                let reference = if loss.has_reference() { reference() } else { Reference::Free };
                Box::new(Pairs::new(loss, reference, false))
            }
            MemberLoss::Labelled(kto) => Box::new(Unpaired::new(kto, reference(), false, Some(64))),
        };
        let sums: Sums = objective.accumulate(&model, &optim(0), &step, 0).unwrap();
        loss += weight * sums.mean();
        for name in ["kl_per_token", "rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/rejected"] {
            measured.extend(sums.get(name).map(|value| (format!("{k}/{name}"), value)));
        }
        let scaled = gradients(&model).into_iter().map(|g| g.into_iter().map(|x| x * weight / sums.count).collect());
        let scaled: Vec<Vec<f64>> = scaled.collect();
        match want.is_empty() {
            true => want = scaled,
            false => want.iter_mut().zip(scaled).for_each(|(w, g)| w.iter_mut().zip(g).for_each(|(w, g)| *w += g)),
        }
    }
    assert!(measured.iter().filter(|(name, _)| name.contains("kl_per_token")).count() >= 2, "{measured:?}");
    let largest = want.iter().flatten().fold(0.0f64, |m, x| m.max(x.abs()));
    assert!(largest > 1e-2, "{largest}");
    for (tokens_per_pass, share) in [(0, true), (60, false)] {
        let (sums, found) = mixed(tokens_per_pass, share);
        assert!((sums.mean() - loss).abs() <= 1e-12 * loss.abs(), "{} and {loss}", sums.mean());
        for (name, want) in &measured {
            let found = sums.get(name).unwrap_or_else(|| panic!("{name}"));
            assert!((found - want).abs() <= 1e-12 * want.abs().max(1.0), "{name}: {found}, not {want}");
        }
        for (found, want) in found.iter().zip(&want) {
            for (a, b) in found.iter().zip(want) {
                // Sums of f64 in another order.
                assert!((a - b).abs() <= 1e-11 * largest, "{tokens_per_pass} {share}: {a}, not {b}");
            }
        }
    }
}

const OBJECTIVES: &str = "sft,{objective: dpo, weight: 0.5, beta: 0.2},{objective: kto, weight: 0.3}";

/// Settings of a run on the builtin model.
fn config(dir: &Path, out: &str, extra: &[(&str, &str)]) -> MixConfig {
    let text = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (data, out) = (["sft.jsonl", "pairs.jsonl", "labelled.jsonl"].map(&text).join(","), text(out));
    let own = [("dataset", &data[..]), ("objectives", OBJECTIVES), ("per_device_train_batch_size", "8")];
    let own: Vec<_> = own.into_iter().filter(|(k, _)| !extra.iter().any(|(e, _)| e == k)).collect();
    crate::settings(Path::new("unused"), Path::new(&out), &[&own[..], extra].concat())
}

/// Law 6: dropout, a reference that is the base, held-out rows.
#[test]
fn a_mixed_run_is_resumed_to_the_bit() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_all(dir);
    let lora = [("use_peft", "true"), ("lora_r", "4"), ("lora_dropout", "0.1"), ("disable_dropout", "false")];
    let held = [("validation_split", "0.2"), ("eval_strategy", "steps"), ("eval_steps", "2")];
    let files_apart = dir.join("held.jsonl");
    std::fs::copy(dir.join("sft.jsonl"), &files_apart).unwrap();
    let apart = ["held.jsonl", "pairs.jsonl", "labelled.jsonl"].map(|n| dir.join(n).to_string_lossy().into_owned());
    let apart = apart.join(",");
    let apart =
        [("eval_dataset", &apart[..]), ("eval_strategy", "steps"), ("eval_steps", "2"), ("tokens_per_pass", "90")];
    for (name, extra) in [("lora", [&lora[..], &held].concat()), ("full", apart.to_vec())] {
        let end = stopped_or_not(name, 3, |out, more, stop| {
            let config = config(dir, &format!("{name}-{out}"), &[&extra[..], more].concat());
            mix::run(&config, &mut Listener::stopping_after(stop)).unwrap()
        });
        let lines = metrics(end.parent().unwrap());
        for line in &lines {
            let of = |key: &str| line[key].as_f64().unwrap();
            let want = of("sft/loss") + 0.5 * of("dpo/loss") + 0.3 * of("kto/loss");
            assert!((of("loss") - want).abs() <= 1e-12 * want, "{line:?}");
            for key in ["sft/entropy", "sft/mean_token_accuracy", "dpo/rewards/margins", "kto/kl"] {
                assert!(of(key).is_finite(), "{key}");
            }
        }
        for key in ["eval_loss", "eval_sft/loss", "eval_dpo/loss", "eval_kto/loss", "eval_dpo/rewards/accuracies"] {
            assert!(lines[1][key].as_f64().is_some_and(f64::is_finite), "{key}: {:?}", lines[1]);
        }
        // At the start the model is its reference.
        assert!(
            (lines[0]["dpo/loss"].as_f64().unwrap() - 2f64.ln()).abs() <= if name == "full" { 1e-12 } else { 1e-2 }
        );
    }
    let yaml = std::fs::read_to_string(dir.join("full-whole/config.yaml")).unwrap();
    assert!(yaml.contains("objectives: [{objective: sft, name: sft, weight: 1}, {objective: dpo"), "{yaml}");
    let again: MixConfig = planish_train::config::from_yaml(&yaml, Path::new("config.yaml")).unwrap();
    assert_eq!(again.mix, config(dir, "full", &[]).mix);
}

#[test]
fn what_cannot_be_mixed_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_all(dir);
    let text = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (sft, pairs, out) = (text("sft.jsonl"), text("pairs.jsonl"), text("out"));
    let run = |extra: &[&str], words: &str| {
        let own = ["mix", "--model", "builtin", "--output-dir", &out, "--dataset", &sft, "--dataset", &pairs];
        refused(&[&own[..], extra].concat(), words);
        assert!(!Path::new(&out).exists());
    };
    run(&[], "objectives");
    run(&["--objectives", "sft,dpo,kto"], "`objectives` must be one for each `dataset`");
    run(&["--objectives", "sft,nonsense"], "`objectives` must be sft, dpo, kto, orpo, cpo or simpo, or a map");
    run(&["--objectives", "sft,{weight: 1}"], "or a map with one of them as `objective`");
    run(&["--objectives", "sft,{objective: dop}"], "`objectives.objective` must be one of sft, dpo");
    run(&["--objectives", "sft,{objective: dpo, betta: 1}"], "did you mean `objectives.beta`?");
    run(&["--objectives", "sft,{objective: dpo, beta: 0}"], "`beta` must be a number above 0");
    run(&["--objectives", "sft,{objective: dpo, weight: -1}"], "`objectives.weight` must be a number of at least 0");
    run(&["--objectives", "sft,{objective: dpo, beta: 1, beta: 2}"], "objectives");
    run(&["--objectives", "{objective: sft, weight: 0},{objective: dpo, weight: 0}"], "a weight above 0");
    run(&["--objectives", "sft,{objective: dpo, loss_type: aot}"], "cannot have aot");
    run(&["--objectives", "sft,{objective: kto, loss_type: bco}"], "cannot have bco");
    run(&["--objectives", "sft,{objective: dpo, use_weighting: true}"], "cannot have use_weighting");
    run(&["--objectives", "sft,{objective: dpo, loss_type: exo_pair}"], "`label_smoothing` must be above 0");
    run(&["--objectives", "dpo,{objective: dpo, beta: 0.3}"], "must differ in `name`");
    run(&["--objectives", "sft,dpo", "--precompute-ref-log-probs"], "for recipes of pairs alone");
    run(&["--objectives", "sft,orpo", "--ref-model", "builtin"], "`ref_model` is for dpo and kto");
    run(&["--objectives", "sft,{objective: dpo, name: ' '}"], "`objectives.name` must be a name that is not empty");
    run(&["--objectives", "sft,dpo", "--eval-dataset", &pairs], "`eval_dataset` must be one for each");
    run(&["--objectives", "sft,kto", "--per-device-train-batch-size", "1"], "must be at least 2");
    // The rows of each file are those of its own objective.
    run(
        &["--objectives", "dpo,sft"],
        "sft.jsonl: the columns `prompt`, `completion` make rows of type prompt+completion",
    );
    let own = ["config", "mix", "--model", "builtin", "--output-dir", &out, "--dataset", &sft, "--dataset", &pairs];
    let done =
        planish(&[&own[..], &["--objectives", "sft", "--objectives", "{objective: cpo, loss_type: rrhf}"]].concat());
    assert!(
        done.code == 0 && done.stdout.contains("{objective: cpo, name: cpo, weight: 1, loss_type: rrhf"),
        "{done:?}"
    );
    assert_eq!(MixConfig::NAME, "mix");
}
