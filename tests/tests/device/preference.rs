//! Learning from preferences on the emulator: the losses, gradients and measurements of the processor, and law 6.

use std::fmt::Write as _;
use std::path::Path;

use planish_nn::decoder::{LoadOptions, Model};
use planish_nn::pretrained::Pretrained;
use planish_nn::reward::RewardKind;
use planish_tensor::DType;
use planish_tests::law5::sequences;
use planish_tests::program::planish;
use planish_tests::runs::{Listener, metrics, result, settings, stopped_or_not};
use planish_tests::tiny::tiny_model;
use planish_train::config::{
    CpoConfig, CpoSettings, DpoConfig, DpoLossType, DpoSettings, KtoConfig, KtoSettings, MixConfig, OptimSettings,
    OrpoConfig, OrpoSettings, RewardConfig, RewardSettings, SimpoConfig, SimpoSettings,
};
use planish_train::data::{Batch, Cursor, Example, Source, Step};
use planish_train::device::beside;
use planish_train::losses::PairLoss;
use planish_train::optim::{Rates, Update, grad_norm, optimizer};
use planish_train::preference::{Follow, Pairs, Reference, Rewards, StepRewards, Unpaired};
use planish_train::recipes::{cpo, dpo, kto, mix, orpo, reward, simpo};
use planish_train::run::Outcome;
use planish_train::trainer::Objective;

use crate::half::{self, in_bf16, tiny};
use crate::training::STEPS;
use crate::{emulator, fixture, load, stir, with_lora};

/// Prompts of three tokens, each with two answers.
fn examples(model: &Model, number: usize) -> Vec<[Example; 2]> {
    let all = sequences(model, &[8, 5, 6, 9, 4, 12, 7, 7], number as u64);
    let example = |prompt: &[u32], answer: &[u32]| Example {
        ids: [prompt, answer].concat(),
        mask: (0..3 + answer.len()).map(|i| i >= 3).collect(),
        n_prompt: 3,
        source: Source { file: Path::new("made").into(), line: 0, row: 0 },
    };
    all.chunks(2).map(|pair| [0, 1].map(|side| example(&pair[0][..3], &pair[side][3..]))).collect()
}

/// Two micro-batches of two pairs.
fn pairs(model: &Model, number: usize) -> Vec<Batch> {
    let all = examples(model, number);
    let batch = |two: &[[Example; 2]]| Batch::from_pairs(two.iter().enumerate().map(|(i, [c, r])| (i, c, r)));
    all.chunks(2).map(batch).collect()
}

/// Two micro-batches of two labelled completions.
fn labelled(model: &Model, number: usize) -> Vec<Batch> {
    let all = examples(model, number);
    let batch = |two: &[[Example; 2]]| {
        Batch::from_labelled(two.iter().enumerate().map(|(i, sides)| (i, &sides[0], (i + number).is_multiple_of(2))))
    };
    all.chunks(2).map(batch).collect()
}

/// A micro-batch of four answers whose second half is judged.
fn judged(model: &Model, number: usize) -> Vec<Batch> {
    let mut all: Vec<Example> = examples(model, number).into_iter().map(|[chosen, _]| chosen).collect();
    let mut labels = Vec::new();
    for (i, one) in all.iter_mut().enumerate() {
        let half = one.ids.len() / 2;
        one.mask.iter_mut().enumerate().for_each(|(k, m)| *m = k > half);
        labels.push((half + 1..one.ids.len()).map(|k| !(k + i + number).is_multiple_of(3)).collect::<Vec<_>>());
    }
    vec![Batch::from_steps(all.iter().zip(&labels).enumerate().map(|(i, (e, l))| (i, e, &l[..])))]
}

/// As `training::BOUNDS`, and why; but a loss here is a function of the difference of log-probabilities of some tens of nats
/// each, summed over a completion, which IPO squares: a few times as far off.
const BOUNDS: [f64; 2] = [2e-5, 2e-4];

/// (loss, norm of the gradient) of each step, and what was measured.
type Followed = (Vec<[f64; 2]>, Vec<Vec<(String, f64)>>);

fn follow(
    model: &Model,
    objective: &mut dyn Objective,
    batches: fn(&Model, usize) -> Vec<Batch>,
    steps: usize,
) -> Followed {
    let optim = OptimSettings { learning_rate: 1e-3, ..OptimSettings::default() };
    let mut adamw = optimizer(&model.params(), &optim, &Rates::default(), &std::env::temp_dir()).unwrap();
    let (mut numbers, mut measured) = (Vec::new(), Vec::new());
    for number in 0..steps {
        let micro_batches = batches(model, number);
        let tokens = micro_batches.iter().map(Batch::tokens).sum();
        let step = Step { micro_batches, supervised: 1, tokens, dropped: 0, cursor: Cursor::default(), epoch: 0.0 };
        let sums = objective.accumulate(model, &optim, &step, number as u64).unwrap();
        let scale = 1.0 / sums.count;
        let norm = grad_norm(&adamw.params(), scale).unwrap();
        let clip = (1.0 / (norm + 1e-6)).min(1.0);
        adamw.step(Update { learning_rate: 1e-3, grad_scale: scale * clip }).unwrap();
        objective.updated(model, number as u64 + 1).unwrap();
        numbers.push([sums.mean(), norm]);
        measured.push(sums.means());
    }
    (numbers, measured)
}

/// A model, put where the argument puts it, and what it minimises.
type Made<'a> = &'a dyn Fn(&dyn Fn(&mut Model)) -> (Model, Box<dyn Objective>);

fn compare(
    what: &str,
    made: Made<'_>,
    batches: fn(&Model, usize) -> Vec<Batch>,
    place: &dyn Fn(&mut Model),
    steps: usize,
    bounds: Option<[f64; 2]>,
) {
    let (here, mut objective) = made(&|_| ());
    let want = follow(&here, &mut *objective, batches, steps);
    let (there, mut objective) = made(place);
    assert!(there.params().iter().all(|p| !p.value().device().is_cpu()));
    let got = follow(&there, &mut *objective, batches, steps);
    if let Some(bounds) = bounds {
        half::close(what, &want.0, &got.0, bounds);
        return;
    }
    for (step, (want, got)) in want.0.iter().zip(&got.0).enumerate() {
        for (i, name) in ["loss", "norm"].iter().enumerate() {
            let off = (want[i] - got[i]).abs() / want[i].abs();
            assert!(off <= BOUNDS[i], "{what}, step {step}: {name} {} for {}, off by {off:.1e}", got[i], want[i]);
        }
    }
    // Differences of sums of log-probabilities, of some tens of nats with an error of 1e-6 of themselves.
    for (step, (want, got)) in want.1.iter().zip(&got.1).enumerate() {
        assert_eq!(want.len(), got.len(), "{what}");
        for ((name, want), (_, got)) in want.iter().zip(got) {
            assert!((want - got).abs() <= 2e-4 * want.abs().max(1.0), "{what}, step {step}: {name} {got} for {want}");
        }
    }
    assert!(want.0[steps - 1] != want.0[0], "{what}: nothing was trained");
}

fn of_pairs(loss: impl PairLoss + 'static, reference: Reference) -> Box<dyn Objective> {
    Box::new(Pairs::new(Box::new(loss), reference, false).sharing(true))
}

fn lora(family: &str) -> Model {
    let model = with_lora(load(family, None, false), 0.0);
    stir(&model);
    model
}

/// A reference of its own, beside the model.
fn own_reference(model: &Model, follow: Option<Follow>) -> Reference {
    let mut reference = load("smollm2", None, false);
    beside(&mut reference, model).unwrap();
    Reference::Model { model: Box::new(reference), follow }
}

#[test]
fn ten_steps_of_each_objective() {
    let Some(device) = emulator(60) else { return };
    let place = |model: &mut Model| model.to_device(device).unwrap();
    let dpo = |losses: &[DpoLossType]| {
        dpo::loss(&DpoSettings { loss_type: losses.to_vec(), ..DpoSettings::default() }, false)
    };
    let every = Follow { alpha: 0.6, every: 3 };
    let full = |place: &dyn Fn(&mut Model)| {
        let mut model = load("smollm2", None, true);
        place(&mut model);
        model
    };
    let adapted = |place: &dyn Fn(&mut Model)| {
        let mut model = lora("llama3");
        place(&mut model);
        model
    };
    let check = |what: &str, made: Made<'_>| compare(what, made, pairs, &place, STEPS, None);
    // What differs from these in arithmetic on the processor alone.
    let glance = |what: &str, made: Made<'_>| compare(what, made, pairs, &place, 3, None);
    check("dpo with LoRA", &|p| (adapted(p), of_pairs(dpo(&[DpoLossType::Sigmoid]), Reference::Base)));
    check("dpo of all weights", &|p| {
        let model = full(p);
        let reference = own_reference(&model, Some(every));
        (model, of_pairs(dpo(&[DpoLossType::Ipo, DpoLossType::Sft]), reference))
    });
    glance("weighted dpo", &|p| {
        let settings = DpoSettings { use_weighting: true, ..DpoSettings::default() };
        (adapted(p), of_pairs(dpo::loss(&settings, false), Reference::Base))
    });
    glance("aot", &|p| (adapted(p), of_pairs(dpo(&[DpoLossType::Aot]), Reference::Base)));
    check("orpo", &|p| (full(p), of_pairs(orpo::loss(&OrpoSettings::default()), Reference::Free)));
    check("simpo", &|p| (full(p), of_pairs(simpo::loss(&SimpoSettings::default()), Reference::Free)));
    glance("cpo", &|p| (adapted(p), of_pairs(cpo::loss(&CpoSettings::default()), Reference::Free)));
    let kto: Made<'_> = &|p| {
        let loss = kto::loss(&KtoSettings::default());
        (adapted(p), Box::new(Unpaired::new(loss, Reference::Base, false, None)) as Box<dyn Objective>)
    };
    compare("kto", kto, labelled, &place, STEPS, None);
    let rewards = |kind: RewardKind, p: &dyn Fn(&mut Model)| {
        let files = Pretrained::open(&fixture("models/smollm2")).unwrap();
        let mut model = files.load_reward(LoadOptions { dtype: None, trainable: true }, kind, 5).unwrap();
        p(&mut model);
        model
    };
    check("rewards", &|p| {
        let loss = reward::loss(&RewardSettings::default());
        (rewards(RewardKind::Outcome, p), Box::new(Rewards::new(loss, false).sharing(true)) as Box<dyn Objective>)
    });
    let steps: Made<'_> =
        &|p| (rewards(RewardKind::Process, p), Box::new(StepRewards::new(false).sharing(true)) as Box<dyn Objective>);
    compare("rewards of steps", steps, judged, &place, 3, None);
}

/// With activations in bf16, of the reference too.
#[test]
fn ten_steps_in_bf16() {
    let Some(device) = emulator(61) else { return };
    let place = |model: &mut Model| {
        let placed = in_bf16(model.clone(), device);
        *model = placed;
    };
    let lora: Made<'_> = &|place| {
        let mut model = with_lora(tiny(DType::BF16, false), 0.0);
        stir(&model);
        place(&mut model);
        (model, of_pairs(dpo::loss(&DpoSettings::default(), false), Reference::Base))
    };
    compare("dpo with LoRA", lora, pairs, &place, STEPS, Some(half::BOUNDS));
    let orpo: Made<'_> = &|place| {
        let mut model = tiny(DType::F32, true);
        place(&mut model);
        (model, of_pairs(orpo::loss(&OrpoSettings::default()), Reference::Free))
    };
    compare("orpo", orpo, pairs, &place, STEPS, Some(half::BOUNDS));
}

/// Pairs and labelled rows.
fn write_data(dir: &Path) {
    let (mut pairs, mut labelled) = (String::new(), String::new());
    for i in 0..12 {
        let (good, bad) = (["ab", "bab", "b"][i % 3], ["ca", "a"][i % 2]);
        writeln!(pairs, r#"{{"prompt":"q{i}:","chosen":"{good}","rejected":"{bad}"}}"#).unwrap();
        let (completion, label) = if i % 3 > 0 { (good, true) } else { (bad, false) };
        writeln!(labelled, r#"{{"prompt":"q{i}:","completion":"{completion}","label":{label}}}"#).unwrap();
    }
    std::fs::write(dir.join("pairs.jsonl"), pairs).unwrap();
    std::fs::write(dir.join("labelled.jsonl"), labelled).unwrap();
    tiny_model("smollm2", &dir.join("model"));
}

/// A run of a recipe by name.
fn run(recipe: &str, dir: &Path, out: &str, extra: &[(&str, &str)], seen: &mut Listener) -> Outcome {
    let (pairs, labelled, out) = (dir.join("pairs.jsonl"), dir.join("labelled.jsonl"), dir.join(out));
    let model = dir.join("model").to_string_lossy().into_owned();
    let fixed = [("model", &model[..]), ("per_device_train_batch_size", "2"), ("gradient_accumulation_steps", "1")];
    let extra = &[&fixed[..], &[("max_length", "12"), ("max_steps", "4"), ("learning_rate", "1e-2")], extra].concat();
    let outcome = match recipe {
        "dpo" => dpo::run(&settings::<DpoConfig>(&pairs, &out, extra), seen),
        "kto" => kto::run(&settings::<KtoConfig>(&labelled, &out, extra), seen),
        "orpo" => orpo::run(&settings::<OrpoConfig>(&pairs, &out, extra), seen),
        "cpo" => cpo::run(&settings::<CpoConfig>(&pairs, &out, extra), seen),
        "reward" => reward::run(&settings::<RewardConfig>(&pairs, &out, extra), seen),
        "simpo" => simpo::run(&settings::<SimpoConfig>(&pairs, &out, extra), seen),
        "mix" => mix::run(&settings::<MixConfig>(&pairs, &out, extra), seen),
        other => panic!("{other}"),
    };
    outcome.unwrap_or_else(|e| panic!("{recipe} {extra:?}: {e}"))
}

const LORA: [(&str, &str); 3] = [("use_peft", "true"), ("lora_r", "4"), ("lora_target_modules", "all-linear")];

/// Whole runs, in f32: the losses of the processor's; with what each recipe needs besides.
#[test]
fn runs_have_the_losses_of_the_processor() {
    if emulator(62).is_none() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let known = [("precompute_ref_log_probs", "true")];
    let held = [("validation_split", "0.2"), ("eval_strategy", "steps"), ("eval_steps", "2")];
    let runs: [(&str, &[(&str, &str)]); 7] = [
        ("dpo", &known),
        ("dpo", &[LORA[0], LORA[1], LORA[2], held[0], held[1], held[2]]),
        ("kto", &LORA),
        ("orpo", &held),
        ("simpo", &[]),
        ("cpo", &LORA),
        ("reward", &held),
    ];
    for (i, (recipe, extra)) in runs.iter().enumerate() {
        let rows = |device: &str, bf16: &[(&str, &str)]| {
            let mut seen = Listener::default();
            let out = format!("{i}-{device}");
            let all = [extra, &[("device", device)][..], bf16].concat();
            result(run(recipe, dir, &out, &all, &mut seen));
            (metrics(&dir.join(out)), seen.notes)
        };
        let (want, _) = rows("cpu", &[]);
        let (got, said) = rows("emulator:62", &[("bf16", "false")]);
        assert_eq!(want.len(), got.len());
        let wants_share = !matches!(*recipe, "kto");
        assert_eq!(said.iter().any(|s| s.starts_with("share_prompts has no effect on emulator:62")), wants_share);
        for (want, got) in want.iter().zip(&got) {
            assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>(), "{recipe}");
            for key in ["loss", "eval_loss"].iter().filter(|key| want.contains_key(**key)) {
                let [want, got] = [want, got].map(|row| row[*key].as_f64().unwrap());
                // As in `ten_steps_of_each_objective`, with ten times its learning rate.
                assert!((want - got).abs() <= 5e-5 * want.abs().max(0.1), "{recipe}: {key} {got} for {want}");
            }
        }
    }
    // The head of rewards reads rows there too.
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (model, pairs) = (text(&dir.join("6-cpu/final")), text(&dir.join("pairs.jsonl")));
    let rewards = |device: &[&str]| {
        let out = text(&dir.join(format!("rewards{}.jsonl", device.len())));
        let own = ["score", "--reward", "--model", &model, "--dataset", &pairs, "--output", &out];
        let done = planish(&[&own[..], device].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let lines = std::fs::read_to_string(&out).unwrap();
        let line = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            ["chosen", "rejected"].map(|side| line[side].as_f64().unwrap())
        };
        lines.lines().flat_map(line).collect::<Vec<f64>>()
    };
    let (here, there) = (rewards(&[]), rewards(&["--device", "emulator", "--bf16", "false"]));
    assert!(here.len() == there.len() && here.len() > 10);
    // Twice the bound of the losses above: a loss is made of the difference of two.
    for (a, b) in here.iter().zip(&there) {
        assert!((a - b).abs() <= 1e-4 * a.abs().max(1.0), "{b} for {a}");
    }
    // What one kind of device precomputed is not another's.
    assert_eq!(std::fs::read_dir(dir.join("reference-cache")).unwrap().count(), 2);
}

/// Law 6, in bf16: with a reference that moves, held-out data and a head of rewards.
#[test]
fn runs_resume_bitwise() {
    if emulator(63).is_none() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    write_data(dir);
    let moving = [("sync_ref_model", "true"), ("ref_model_sync_steps", "2")];
    let held = [("validation_split", "0.2"), ("eval_strategy", "steps"), ("eval_steps", "2")];
    let both = format!("{},{}", dir.join("pairs.jsonl").display(), dir.join("labelled.jsonl").display());
    let several = [LORA[0], LORA[1], LORA[2], ("dataset", &both), ("objectives", "dpo,kto")];
    let dropout = [LORA[0], LORA[1], ("disable_dropout", "false"), ("lora_dropout", "0.2")];
    let runs: [(&str, &[(&str, &str)]); 5] =
        [("dpo", &moving), ("dpo", &dropout), ("kto", &held), ("reward", &LORA), ("mix", &several)];
    for (i, (recipe, extra)) in runs.iter().enumerate() {
        stopped_or_not(&format!("{recipe} {i}"), 3, |out, more, stop| {
            let all = [extra, &[("device", "emulator:63")][..], more].concat();
            run(recipe, dir, &format!("{out}{i}"), &all, &mut Listener::stopping_after(stop))
        });
    }
}
