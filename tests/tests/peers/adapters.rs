//! Adapters, beside their base and merged into it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use planish_nn::adapters::{LoraConfig, Targets, adapter_params, attach_lora, load_adapter, save_adapter};
use planish_nn::weights::{WeightsReader, save_safetensors};
use planish_tensor::Tensor;
use serde_json::Value;

use crate::{check, check_adapter, expect, expect_of, open, prepare, repo, run, text};

/// Trains an adapter for four steps and compares its logits with PEFT's, beside the base: where it is, and where ours are.
fn adapter_loads(dir: &Path, base: &Path, data: &Path, name: &str, flags: &[&str]) -> (PathBuf, PathBuf) {
    let out = dir.join(name);
    let fixed = ["sft", "--model", text(base), "--dataset", text(data), "--output-dir", text(&out)];
    let more = ["--use-peft", "--max-steps", "4", "--learning-rate", "1e-2"];
    let drops_out = !flags.contains(&"--peft-type") || flags.contains(&"ADALORA") || flags.contains(&"VERA");
    let dropout: &[&str] = if drops_out { &["--lora-dropout", "0.1"] } else { &[] };
    run(&[&fixed[..], &more, dropout, flags].concat());
    let adapter = out.join("final");
    let mut model = open(base);
    let expected = dir.join(format!("{name}.safetensors"));
    expect(&model, &expected);
    let before = std::fs::read(&expected).unwrap();
    load_adapter(&mut model, &adapter).unwrap();
    expect(&model, &expected);
    assert!(before != std::fs::read(&expected).unwrap(), "{name} changes nothing");
    check_adapter(base, &adapter, &expected);
    (adapter, expected)
}

#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn adapters_and_merged_models_load_in_the_peers() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (base, data) = prepare(dir);
    let kinds: [(&str, &[&str]); 14] = [
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
        ("adalora", &["--peft-type", "ADALORA", "--init-r", "4", "--target-r", "2", "--tinit", "1", "--tfinal", "1"]),
        (
            "patterns",
            &["--lora-target-modules", "all-linear", "--rank-pattern", "q_proj=3", "--exclude-modules", "k_proj"],
        ),
    ];
    for (name, flags) in kinds {
        let (adapter, expected) = adapter_loads(dir, &base, &data, name, flags);
        let merged = dir.join(format!("{name}-merged"));
        let fixed = ["merge", "--model", text(&base), "--adapter", text(&adapter), "--output-dir"];
        run(&[&fixed[..], &[text(&merged), "--dtype", "float32"]].concat());
        check(&merged, &expected);
        // In the base's bfloat16 the sum is rounded: still the same model to both.
        let narrow = dir.join(format!("{name}-narrow"));
        run(&[&fixed[..], &[text(&narrow), "--dtype", "auto"]].concat());
        expect(&open(&narrow), &expected);
        check(&narrow, &expected);
    }
}

/// The other ways to begin, and to choose what is adapted.
#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn variants_of_adapters_load_in_the_peers() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (base, data) = prepare(dir);
    let kinds: [(&str, &[&str]); 16] = [
        ("layers", &["--layers-to-transform", "1,3"]),
        ("layers-vera", &["--peft-type", "VERA", "--vera-r", "16", "--layers-to-transform", "0,2"]),
        ("layers-oft", &["--peft-type", "OFT", "--layers-to-transform", "3"]),
        ("alphas", &["--lora-target-modules", "all-linear", "--alpha-pattern", "layers.1.mlp.down_proj=3"]),
        ("gaussian", &["--init-lora-weights", "gaussian"]),
        ("orthogonal", &["--init-lora-weights", "orthogonal"]),
        ("random", &["--init-lora-weights", "false"]),
        ("pissa-niter", &["--init-lora-weights", "pissa_niter_4", "--lora-r", "4"]),
        ("loftq", &["--init-lora-weights", "loftq", "--lora-target-modules", "all-linear"]),
        ("loftq-8", &["--init-lora-weights", "loftq", "--loftq-bits", "8"]),
        ("plus", &["--loraplus-lr-ratio", "4", "--lora-target-modules", "embed_tokens,v_proj"]),
        ("saved-embedding", &["--lora-modules-to-save", "embed_tokens,norm"]),
        (
            "ia3-mlp",
            &["--peft-type", "IA3", "--lora-target-modules", "o_proj,up_proj", "--feedforward-modules", "o_proj"],
        ),
        (
            "oft-exact",
            &["--peft-type", "OFT", "--oft-r", "4", "--oft-block-size", "0", "--use-cayley-neumann", "false"],
        ),
        ("boft-blocks", &["--peft-type", "BOFT", "--boft-block-size", "0", "--boft-block-num", "8"]),
        ("expression", &["--lora-target-modules", r".*\.[02]\.mlp\.(up|gate)_proj"]),
    ];
    for (name, flags) in kinds {
        adapter_loads(dir, &base, &data, name, flags);
    }
    // Two of them as one.
    let both = [dir.join("layers/final"), dir.join("gaussian/final")];
    let (joined, expected) = (dir.join("joined"), dir.join("joined.safetensors"));
    let adapters = both.each_ref().map(|p| text(p)).join(",");
    let own = ["combine", "--adapters", &adapters, "--weights", "0.7,-0.4", "--combination-type", "cat"];
    run(&[&own[..], &["-o", text(&joined)]].concat());
    let mut model = open(&base);
    load_adapter(&mut model, &joined).unwrap();
    expect(&model, &expected);
    check_adapter(&base, &joined, &expected);
}

/// Biases are trained too, of a model that has some.
#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn biases_load_in_the_peers() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (base, data) = prepare(dir);
    with_biases(&base);
    for (name, flags) in [
        ("all", &["--bias", "all", "--lora-target-modules", "q_proj,up_proj"]),
        ("own", &["--bias", "lora_only", "--lora-target-modules", "v_proj,up_proj"]),
    ] {
        adapter_loads(dir, &base, &data, name, flags);
    }
    let out = dir.join("bitfit");
    let fixed = ["sft", "--model", text(&base), "--dataset", text(&data), "--output-dir", text(&out)];
    run(&[&fixed[..], &["--finetuning-type", "bitfit", "--max-steps", "4", "--learning-rate", "1e-2"]].concat());
    let (result, expected) = (out.join("final"), dir.join("bitfit.safetensors"));
    expect(&open(&result), &expected);
    check(&result, &expected);
}

/// Makes a Qwen2 of a Llama in a directory: the same with biases on queries, keys and values.
fn with_biases(dir: &Path) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["model_type"] = "qwen2".into();
    config["architectures"] = serde_json::json!(["Qwen2ForCausalLM"]);
    std::fs::write(path, config.to_string()).unwrap();
    let path = dir.join("model.safetensors");
    let reader = WeightsReader::open(&path).unwrap();
    let mut all: Vec<_> =
        reader.names().iter().map(|n| (n.clone(), reader.get(n).unwrap().copied().unwrap())).collect();
    drop(reader);
    let weights = all.clone().into_iter().filter(|(name, _)| name.contains("self_attn"));
    for (name, weight) in weights.filter(|(name, _)| !name.contains("o_proj")) {
        let values: Vec<f32> = (0..weight.dims()[0]).map(|i| (i * 37 % 11) as f32 / 32.0 - 0.15).collect();
        let bias = Tensor::from_vec(values, [weight.dims()[0]]).unwrap().to_dtype(weight.dtype()).unwrap();
        all.push((name.replace("weight", "bias"), bias));
    }
    save_safetensors(&path, all, &BTreeMap::new()).unwrap();
}

#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn virtual_tokens_load_in_the_peers() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let (base, data) = prepare(dir);
    let (kind, text) = ("--peft-type", "--prompt-tuning-init-text");
    let kinds: [(&str, &[&str]); 8] = [
        ("prompt", &[kind, "PROMPT_TUNING"]),
        ("prompt-sampled", &[kind, "PROMPT_TUNING", "--prompt-tuning-init", "SAMPLE_VOCAB"]),
        ("prompt-text", &[kind, "PROMPT_TUNING", "--prompt-tuning-init", "TEXT", text, "What comes next?"]),
        ("prefix", &[kind, "PREFIX_TUNING", "--num-virtual-tokens", "7"]),
        ("prefix-projection", &[kind, "PREFIX_TUNING", "--prefix-projection"]),
        ("p-tuning", &[kind, "P_TUNING"]),
        ("p-tuning-lstm", &[kind, "P_TUNING", "--encoder-reparameterization-type", "LSTM"]),
        (
            "p-tuning-lstm-one",
            &[kind, "P_TUNING", "--encoder-reparameterization-type", "LSTM", "--encoder-num-layers", "1"],
        ),
    ];
    for (name, flags) in kinds {
        adapter_loads(dir, &base, &data, name, flags);
    }
}

/// Low-rank updates of parameters that hold all experts: PEFT's `target_parameters`.
#[test]
#[ignore = "needs PLANISH_PEER_PYTHON: scripts/check-peers"]
fn adapters_of_experts_load_in_the_peers() {
    let place = tempfile::tempdir().unwrap();
    for family in ["qwen3_moe", "mixtral"] {
        let base = repo("tests/fixtures/models").join(family);
        let mut model = open(&base);
        let config = LoraConfig {
            r: 3,
            lora_alpha: 5.0,
            target_modules: Targets::Names(vec!["q_proj".into()]),
            target_parameters: ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]
                .map(str::to_owned)
                .to_vec(),
            ..LoraConfig::default()
        };
        attach_lora(&mut model, &config, 3).unwrap();
        // Half of the matrices begin with zeros.
        for param in adapter_params(&model, 0).iter().filter(|p| p.name().contains("lora_B")) {
            let values = (0..param.value().numel()).map(|i| (i * 37 % 101) as f32 / 101.0 - 0.5).collect();
            param.update(|value| Tensor::from_vec(values, value.dims()).map(|new| *value = new)).unwrap();
        }
        let (adapter, expected) = (place.path().join(family), place.path().join(format!("{family}.safetensors")));
        save_adapter(&model, &config, &adapter).unwrap();
        expect_of(&model, &expected, [vec![1], (3..60).collect(), (0..60).map(|i| i * 37 % 99).collect()]);
        check_adapter(&base, &adapter, &expected);
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
    let cases: [(&str, &Path, &Path, Vec<&str>); 6] = [
        ("on-nf4", &nf4, &nf4, vec![]),
        ("on-double", &double, &double, vec!["--use-dora"]),
        ("on-fp4", &fp4, &fp4, vec![]),
        ("on-int8", &int8, &int8, vec![]),
        ("as-loaded", &base, &nf4, loaded(&[])),
        ("loftq", &base, &nf4, loaded(&["--init-lora-weights", "loftq"])),
    ];
    for (name, trained_on, loads_on, more) in cases {
        let out = dir.join(name);
        let fixed = ["sft", "--model", text(trained_on), "--dataset", text(&data), "--output-dir", text(&out)];
        let own = ["--use-peft", "--lora-target-modules", "all-linear", "--max-steps", "4", "--learning-rate", "1e-2"];
        run(&[&fixed[..], &own, &more].concat());
        let adapter = out.join("final");
        let mut model = open(loads_on);
        load_adapter(&mut model, &adapter).unwrap();
        let expected = dir.join(format!("{name}.safetensors"));
        expect(&model, &expected);
        check_adapter(loads_on, &adapter, &expected);
    }
}
