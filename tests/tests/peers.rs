//! transformers and PEFT load what the program writes, and compute the same.
//!
//! Needs a Python with torch, transformers and PEFT, named by `PLANISH_PEER_PYTHON`, so it is left out of an
//! ordinary run: `scripts/check-peers` runs it. The way back, from their files to ours and out again, needs
//! no Python and is in `parity/`.

// What the peers found is what such a run is for.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use planish_nn::Ctx;
use planish_nn::adapters::load_adapter;
use planish_nn::decoder::{LoadOptions, Model, Packed};
use planish_nn::pretrained::Pretrained;
use planish_nn::reward::RewardKind;
use planish_nn::weights::save_safetensors;
use planish_tensor::{DType, Tensor};
use planish_tests::program::planish;

fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs the program; it must succeed.
fn run(arguments: &[&str]) {
    let done = planish(arguments);
    assert_eq!(done.code, 0, "{arguments:?}: {}", done.stderr);
}

/// Our logits for some sequences, in the form that `check_model.py` reads.
fn expect(model: &Model, path: &Path) {
    expect_of(model, path, [vec![1], (3..60).collect(), (0..200).map(|i| i * 37 % 1400).collect()]);
}

/// Those for these sequences.
fn expect_of(model: &Model, path: &Path, sequences: [Vec<u32>; 3]) {
    let ctx = Ctx::inference();
    let mut tensors = Vec::new();
    for (i, ids) in sequences.iter().enumerate() {
        let hidden = model.forward(&ctx, &Packed::new(&[ids]), false).unwrap();
        tensors.push((format!("logits.{i}"), model.logits(&ctx, hidden.value()).unwrap()));
        let wide: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
        tensors.push((format!("ids.{i}"), Tensor::from_vec(wide, [ids.len()]).unwrap()));
    }
    save_safetensors(path, tensors, &BTreeMap::new()).unwrap();
}

fn open(dir: &Path) -> Model {
    Pretrained::open(dir).unwrap().load(LoadOptions { dtype: Some(DType::F32), trainable: false }).unwrap()
}

fn open_reward(dir: &Path, kind: RewardKind) -> Model {
    let options = LoadOptions { dtype: Some(DType::F32), trainable: false };
    Pretrained::open(dir).unwrap().load_reward(options, kind, 0).unwrap()
}

/// Our rewards of some sequences, or the logits of wrong and right at each of their tokens, in the same form.
fn expect_rewards(model: &Model, path: &Path) {
    let of_steps = model.reward_kind() == Some(RewardKind::Process);
    let ctx = Ctx::inference();
    let mut tensors = Vec::new();
    for (i, ids) in [vec![1u32], (3..60).collect(), (1..200).map(|i| i * 37 % 1400).collect()].iter().enumerate() {
        let batch = Packed::new(&[ids]);
        let hidden = model.forward(&ctx, &batch, false).unwrap();
        let n = ids.len() as u32;
        let at: Vec<u32> = if of_steps { (0..n).collect() } else { vec![n - 1] };
        let rewards = model.rewards(&ctx, &hidden, &at).unwrap().into_value();
        let shape = if of_steps { vec![ids.len(), 2] } else { vec![1] };
        tensors.push((format!("logits.{i}"), rewards.reshape(shape).unwrap()));
        let wide: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
        tensors.push((format!("ids.{i}"), Tensor::from_vec(wide, [ids.len()]).unwrap()));
    }
    save_safetensors(path, tensors, &BTreeMap::new()).unwrap();
}

/// Their f32 against ours: logits of up to about 20, over four layers of sums in another order.
const TOLERANCE: [&str; 2] = ["--tolerance", "2e-4"];

/// Runs a script of `fixtures/generate`, which compares logits.
fn check(script: &str, arguments: &[&Path]) {
    check_with(script, arguments, &TOLERANCE);
}

/// Runs a script with flags of its own.
fn check_with(script: &str, arguments: &[&Path], flags: &[&str]) {
    let python = std::env::var_os("PLANISH_PEER_PYTHON").expect("PLANISH_PEER_PYTHON names a Python with the peers");
    let mut command = Command::new(python);
    command.arg(repo("tests/fixtures/generate").join(script)).args(arguments).args(flags);
    let done = command.output().expect("the Python starts");
    let said = String::from_utf8_lossy(&done.stdout);
    println!("{script}: {said}");
    assert!(
        done.status.success() && said.contains("\"ok\": true"),
        "{script} {arguments:?}: {said}{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// A copy of the builtin model as a directory, and a few examples.
fn prepare(dir: &Path) -> (PathBuf, PathBuf) {
    let base = dir.join("base");
    std::fs::create_dir(&base).unwrap();
    for file in std::fs::read_dir(repo("train/builtin")).unwrap().map(|e| e.unwrap()) {
        std::fs::copy(file.path(), base.join(file.file_name())).unwrap();
    }
    let mut rows = String::new();
    for i in 0..16 {
        writeln!(rows, r#"{{"prompt": "What comes after {i}?", "completion": " It is {}."}}"#, i + 1).unwrap();
    }
    let data = dir.join("data.jsonl");
    std::fs::write(&data, rows).unwrap();
    (base, data)
}

#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn quantised_models_load_in_the_peers() {
    let place = tempfile::tempdir().unwrap();
    let (base, _) = prepare(place.path());
    let formats: [(&str, &[&str], &str); 4] = [
        ("nf4", &["--double-quant"], "2e-4"),
        ("nf4", &["--blocksize", "128"], "2e-4"),
        ("fp4", &[], "2e-4"),
        ("int8", &[], "2e-4"),
    ];
    for (i, (kind, more, tolerance)) in formats.into_iter().enumerate() {
        let (out, expected) = (place.path().join(format!("q{i}")), place.path().join(format!("q{i}.safetensors")));
        let own = ["quantize", "--model", text(&base), "--output-dir", text(&out), "--quant-type", kind];
        run(&[&own[..], more].concat());
        expect(&open(&out), &expected);
        check_with("check_model.py", &[&out, &expected], &["--tolerance", tolerance]);
    }
}

/// Adapters trained on a quantised base, which the peers load beside that base; LoftQ's is of what this very base lost.
#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn adapters_of_quantised_bases_load_in_the_peers() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (base, data) = prepare(dir);
    let quantised = |name: &str, more: &[&str]| {
        let out = dir.join(name);
        run(&[&["quantize", "--model", text(&base), "--output-dir", text(&out), "--quant-type"], more].concat());
        out
    };
    let (nf4, double) = (quantised("nf4", &["nf4"]), quantised("double", &["nf4", "--double-quant"]));
    let (fp4, int8) = (quantised("fp4", &["fp4"]), quantised("int8", &["int8"]));
    let loaded = |more: &'static [&'static str]| [&["--load-in-4bit"], more].concat();
    let cases: [(&str, &Path, &Path, Vec<&str>, &str); 6] = [
        ("on-nf4", &nf4, &nf4, vec![], "2e-4"),
        ("on-double", &double, &double, vec!["--use-dora"], "2e-4"),
        ("on-fp4", &fp4, &fp4, vec![], "2e-4"),
        ("on-int8", &int8, &int8, vec![], "2e-4"),
        ("as-loaded", &base, &nf4, loaded(&[]), "2e-4"),
        ("loftq", &base, &nf4, loaded(&["--init-lora-weights", "loftq"]), "2e-4"),
    ];
    for (name, trained_on, loads_on, more, tolerance) in cases {
        let out = dir.join(name);
        let fixed = ["sft", "--model", text(trained_on), "--dataset", text(&data), "--output-dir", text(&out)];
        let own = ["--use-peft", "--lora-target-modules", "all-linear", "--max-steps", "4", "--learning-rate", "1e-2"];
        run(&[&fixed[..], &own, &more].concat());
        let adapter = out.join("final");
        let mut model = open(loads_on);
        load_adapter(&mut model, &adapter).unwrap();
        let expected = dir.join(format!("{name}.safetensors"));
        expect(&model, &expected);
        check_with("check_adapter.py", &[loads_on, &adapter, &expected], &["--tolerance", tolerance]);
    }
}

#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn adapters_and_merged_models_load_in_the_peers() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (base, data) = prepare(dir);
    let kinds: [(&str, &[&str]); 17] = [
        ("plain", &["--lora-target-modules", "q_proj,v_proj"]),
        ("all", &["--lora-target-modules", "all-linear", "--use-rslora", "--lora-r", "3", "--lora-alpha", "5"]),
        ("saved", &["--lora-target-modules", "down_proj", "--lora-modules-to-save", "lm_head"]),
        ("dora", &["--lora-target-modules", "all-linear", "--use-dora"]),
        ("pissa", &["--lora-target-modules", "q_proj,up_proj", "--init-lora-weights", "pissa", "--lora-r", "4"]),
        ("olora", &["--lora-target-modules", "q_proj,up_proj", "--init-lora-weights", "olora", "--lora-r", "4"]),
        ("ends", &["--lora-target-modules", "embed_tokens,lm_head,q_proj", "--lora-r", "4"]),
        ("ia3", &["--peft-type", "IA3"]),
        ("norms", &["--peft-type", "LN_TUNING"]),
        ("vera", &["--peft-type", "VERA", "--vera-r", "32"]),
        ("oft", &["--peft-type", "OFT"]),
        ("boft", &["--peft-type", "BOFT"]),
        ("prompt", &["--peft-type", "PROMPT_TUNING"]),
        ("prefix", &["--peft-type", "PREFIX_TUNING", "--prefix-projection"]),
        ("p-tuning", &["--peft-type", "P_TUNING"]),
        ("adalora", &["--peft-type", "ADALORA", "--init-r", "4", "--target-r", "2", "--tinit", "1", "--tfinal", "1"]),
        (
            "patterns",
            &["--lora-target-modules", "all-linear", "--rank-pattern", "q_proj=3", "--exclude-modules", "k_proj"],
        ),
    ];
    for (name, flags) in kinds {
        let out = dir.join(name);
        let fixed = ["sft", "--model", text(&base), "--dataset", text(&data), "--output-dir", text(&out)];
        let more = ["--use-peft", "--max-steps", "4", "--learning-rate", "1e-2"];
        let drops_out = !flags.contains(&"--peft-type") || flags.contains(&"ADALORA") || flags.contains(&"VERA");
        let dropout: &[&str] = if drops_out { &["--lora-dropout", "0.1"] } else { &[] };
        run(&[&fixed[..], &more, dropout, flags].concat());
        let adapter = out.join("final");
        let mut model = open(&base);
        load_adapter(&mut model, &adapter).unwrap();
        let expected = dir.join(format!("{name}.safetensors"));
        expect(&model, &expected);
        check("check_adapter.py", &[&base, &adapter, &expected]);
        if ["prompt", "prefix", "p-tuning"].contains(&name) {
            continue;
        }
        let merged = dir.join(format!("{name}-merged"));
        let fixed = ["merge", "--model", text(&base), "--adapter", text(&adapter), "--output-dir"];
        run(&[&fixed[..], &[text(&merged), "--dtype", "float32"]].concat());
        check("check_model.py", &[&merged, &expected]);
        // In the base's bfloat16 the sum is rounded: still the same model to both.
        let narrow = dir.join(format!("{name}-narrow"));
        run(&[&fixed[..], &[text(&narrow), "--dtype", "auto"]].concat());
        expect(&open(&narrow), &expected);
        check("check_model.py", &[&narrow, &expected]);
    }
}

#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn fine_tuned_models_load_in_the_peers() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (base, data) = prepare(dir);
    for dtype in ["float32", "bfloat16"] {
        let out = dir.join(dtype);
        let fixed = ["sft", "--model", text(&base), "--dataset", text(&data), "--output-dir", text(&out)];
        run(&[&fixed[..], &["--dtype", dtype, "--max-steps", "4", "--learning-rate", "1e-3"]].concat());
        let result = out.join("final");
        let expected = dir.join(format!("{dtype}.safetensors"));
        expect(&open(&result), &expected);
        check("check_model.py", &[&result, &expected]);
    }
}

#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn reward_models_load_in_the_peers() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (base, data) = prepare(dir);
    let pair =
        |i: usize| format!("{{\"prompt\": \"{i}\", \"chosen\": \" It is {}.\", \"rejected\": \" no\"}}\n", i + 1);
    let steps = |i: usize| {
        format!("{{\"prompt\": \"{i}\", \"completions\": [\"It is {}.\", \"no\"], \"labels\": [true, false]}}\n", i + 1)
    };
    let kinds = [
        (RewardKind::Outcome, "--reward", (0..16).map(pair).collect::<String>()),
        (RewardKind::Process, "--steps", (0..16).map(steps).collect()),
    ];
    for (kind, flag, rows) in kinds {
        std::fs::write(&data, rows).unwrap();
        let out = dir.join(&flag[2..]);
        let fixed = ["reward", "--model", text(&base), "--dataset", text(&data), "--output-dir", text(&out)];
        run(&[&fixed[..], &["--max-steps", "4"]].concat());
        let result = out.join("final");
        let expected = dir.join(format!("{kind:?}.safetensors"));
        expect_rewards(&open_reward(&result, kind), &expected);
        check_with("check_model.py", &[&result, &expected], &[&TOLERANCE[..], &[flag]].concat());
        // An adapter on it, which has a head of its own.
        let out = dir.join(format!("adapter{flag}"));
        let fixed = ["reward", "--model", text(&result), "--dataset", text(&data), "--output-dir", text(&out)];
        run(&[&fixed[..], &["--max-steps", "4", "--use-peft", "--lora-target-modules", "all-linear"]].concat());
        let mut model = open_reward(&result, kind);
        load_adapter(&mut model, &out.join("final")).unwrap();
        expect_rewards(&model, &expected);
        let adapter = out.join("final");
        let flags = [&TOLERANCE[..], &[flag, "--adapter", text(&adapter)]].concat();
        check_with("check_model.py", &[&result, &expected], &flags);
    }
}

/// The comparison itself can fail.
#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn a_wrong_weight_is_seen_by_the_peers() {
    let place = tempfile::tempdir().unwrap();
    let (base, _) = prepare(place.path());
    let model = open(&base);
    let expected = place.path().join("expected.safetensors");
    expect(&model, &expected);
    check("check_model.py", &[&base, &expected]);
    let weight = &model.layers[2].linears()[0].weight.base;
    weight.update(|t| planish_tensor::ops::elementwise::scale(t, 1.01).map(|new| *t = new)).unwrap();
    expect(&model, &expected);
    let seen = std::panic::catch_unwind(|| check("check_model.py", &[&base, &expected]));
    assert!(seen.is_err(), "a weight that is off by 1% went unnoticed");
}

/// llama.cpp goes on from prompts as planish does, greedily, each from the same exported file.
#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn exports_go_on_alike_in_llama_cpp() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (_, data) = prepare(dir);
    let model = repo("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(model.exists(), "scripts/fetch-smollm2 gets the model");
    let (adapter, out) = (dir.join("run/final"), dir.join("run"));
    let fixed = ["sft", "--model", text(&model), "--dataset", text(&data), "--output-dir", text(&out), "--use-peft"];
    let more = ["--lora-target-modules", "all-linear", "--max-steps", "2", "--learning-rate", "1e-3"];
    run(&[&fixed[..], &more].concat());
    // Beside quantised weights llama.cpp rounds activations to 8 bits, so that answers may part early: 50% to 87% of
    // the tokens were the same, where chance gives none. From the same values in f32 it must give them all.
    let files: [(&str, &[&str], &str); 9] = [
        ("f32", &[], "1"),
        ("f16", &[], "1"),
        ("bf16", &[], "1"),
        ("q8_0", &[], "0.5"),
        ("q6_k", &[], "0.3"),
        ("q5_k_m", &[], "0.3"),
        ("q4_k_m", &[], "0.3"),
        ("q4_0", &[], "0.3"),
        ("f16", &["--adapter", text(&adapter)], "1"),
    ];
    for (quant, more, least) in files {
        let (gguf, expected) = (dir.join("model.gguf"), dir.join("expected.json"));
        let own = ["export", "--model", text(&model), "--quant", quant, "--output", text(&gguf), "--overwrite"];
        run(&[&own[..], more].concat());
        let own = ["generate", "--model", text(&gguf), "--raw", "--json", "--max-new-tokens", "24"];
        let prompts = [
            "The capital of France is",
            "Water boils at",
            "def fibonacci(n):",
            "Once upon a time, there was a little girl who",
        ];
        let done = planish(&[&own[..], &prompts.map(|prompt| ["--prompt", prompt]).concat()].concat());
        assert_eq!(done.code, 0, "{quant}: {}", done.stderr);
        std::fs::write(&expected, done.stdout).unwrap();
        println!("{quant} {more:?}");
        check_with("check_gguf.py", &[&gguf, &expected], &["--least", least]);
        if least != "1" {
            let values = dir.join("values.gguf");
            run(&["export", "--model", text(&gguf), "--quant", "f32", "--output", text(&values), "--overwrite"]);
            println!("the values of {quant} in f32");
            check_with("check_gguf.py", &[&values, &expected], &["--least", "1"]);
        }
    }
}

#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn experts_load_in_the_peers() {
    let place = tempfile::tempdir().unwrap();
    for family in ["mixtral", "mixtral_fused", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"] {
        let model = open(&repo("tests/fixtures/models").join(family));
        let (out, expected) = (place.path().join(family), place.path().join(format!("{family}.safetensors")));
        model.save(&out).unwrap();
        expect_of(&model, &expected, [vec![1], (3..60).collect(), (0..60).map(|i| i * 37 % 99).collect()]);
        check("check_model.py", &[&out, &expected]);
    }
}
