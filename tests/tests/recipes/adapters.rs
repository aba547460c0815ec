//! Every method through `planish sft`'s recipe: it trains, resumes bit for bit, and loads again. (That it learns what it
//! should is for the parity tests.)

use std::path::{Path, PathBuf};

use planish_nn::Ctx;
use planish_nn::adapters::load_adapter;
use planish_nn::decoder::{LoadOptions, Model, Packed};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::quantize::QuantizeAs;
use planish_tensor::quant::FourBitKind;
use planish_tests::methods;
use planish_train::config::SftConfig;
use planish_train::recipes::sft;
use planish_train::run::Silent;

use crate::resume::{base, prepare};
use crate::{Listener, result, settings, stopped_or_not};

fn flags<'a>(model: &'a str, data: &'a str, out: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("model", model),
        ("dataset", data),
        ("output_dir", out),
        ("per_device_train_batch_size", "4"),
        ("learning_rate", "3e-2"),
        ("max_steps", "8"),
        ("save_steps", "3"),
    ]
}

fn text(dir: &Path, name: &str) -> String {
    dir.join(name).to_string_lossy().into_owned()
}

fn logits(model: &Model) -> Vec<f32> {
    let ids: Vec<u32> = (3..40).collect();
    let hidden = model.forward(&Ctx::inference(), &Packed::new(&[ids]), false).unwrap();
    model.logits(&Ctx::inference(), hidden.value()).unwrap().to_vec().unwrap()
}

fn open(dir: &Path) -> Model {
    Pretrained::open(dir).unwrap().load(LoadOptions::default()).unwrap()
}

#[test]
fn every_method_trains_and_resumes_bit_for_bit() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    prepare(dir);
    let base: PathBuf = base(dir);
    for (name, method) in methods::METHODS {
        let run = |out: &str, extra: &[(&str, &str)], stop: u64| {
            let (model, data, out) =
                (base.to_string_lossy(), text(dir, "pairs.jsonl"), text(dir, &format!("{name}-{out}")));
            let mut all = flags(&model, &data, &out);
            all.extend(methods::flags(method));
            all.extend(extra);
            sft::run(&settings::<SftConfig>(&all), &mut Listener::stopping_after(stop)).unwrap()
        };
        let whole = stopped_or_not(name, 5, run);
        let plain = logits(&open(&base));
        let mut model = open(&base);
        let config = load_adapter(&mut model, &whole).unwrap();
        assert_ne!(logits(&model), plain, "{name}: the adapter does something");
        assert!(!whole.join("adapter_training.safetensors").exists(), "{name}: final is what PEFT has");
        if name == "ranks" {
            let ranks = read_json(&whole.join("adapter_config.json")).unwrap()["rank_pattern"].clone();
            let ranks = ranks.as_object().unwrap();
            let kept: usize =
                ranks.values().flat_map(|v| v.as_array().unwrap()).filter(|k| k.as_bool().unwrap()).count();
            assert!(kept <= 2 * ranks.len() && kept > 0, "{kept} of {}", ranks.len());
        }
        // Further from what was saved, also where that is less than was trained.
        if config.is_mergeable() || name == "encoder" {
            let (model, data, out) =
                (base.to_string_lossy(), text(dir, "pairs.jsonl"), text(dir, &format!("{name}-on")));
            let adapter = whole.to_string_lossy();
            let mut all = flags(&model, &data, &out);
            all.push(("adapter", &adapter));
            let further = result(sft::run(&settings::<SftConfig>(&all), &mut Silent).unwrap());
            let mut again = open(&base);
            load_adapter(&mut again, &further).unwrap();
        }
    }
}

/// All methods but those that would have to change the base; LoftQ begins with what quantising lost.
#[test]
fn every_method_trains_on_four_bits_and_resumes_bit_for_bit() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    prepare(dir);
    let base: PathBuf = base(dir);
    let mut trained = 0;
    for (name, method) in methods::METHODS {
        let run = |out: &str, extra: &[(&str, &str)], stop: u64| {
            let (model, data, out) =
                (base.to_string_lossy(), text(dir, "pairs.jsonl"), text(dir, &format!("{name}-{out}")));
            let mut all = flags(&model, &data, &out);
            all.extend(methods::flags(method).into_iter().filter(|(key, _)| *key != "loftq_iter"));
            all.push(("load_in_4bit", "true"));
            all.extend(extra);
            sft::run(&settings::<SftConfig>(&all), &mut Listener::stopping_after(stop)).map_err(|e| e.to_string())
        };
        if ["pissa", "olora"].contains(&name) {
            let said = run("refused", &[], u64::MAX).unwrap_err();
            assert!(said.contains(&format!("init_lora_weights is {name}, which ")), "{said}");
            continue;
        }
        let whole = stopped_or_not(name, 5, |out, extra, stop| run(out, extra, stop).unwrap());
        let opened = || {
            let four = QuantizeAs::FourBit { kind: FourBitKind::Nf4, block: 64, double: false };
            Pretrained::open(&base).unwrap().quantized(Some(four)).load(LoadOptions::default()).unwrap()
        };
        let (plain, mut model) = (opened(), opened());
        assert!(model.layers[0].linears()[0].weight.base.value().quantized().is_some());
        load_adapter(&mut model, &whole).unwrap();
        assert_ne!(logits(&model), logits(&plain), "{name}: the adapter does something");
        trained += 1;
    }
    assert_eq!(trained, methods::METHODS.len() - 2);
}

#[test]
fn a_part_of_the_weights_trains_and_resumes() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    prepare(dir);
    let base: PathBuf = base(dir);
    let freeze = [("finetuning_type", "freeze"), ("freeze_trainable_layers", "1"), ("freeze_trainable_modules", "mlp")];
    let run = |out: &str, extra: &[(&str, &str)], stop: u64| {
        let (model, data, out) = (base.to_string_lossy(), text(dir, "pairs.jsonl"), text(dir, out));
        let mut all = flags(&model, &data, &out);
        all.extend(freeze);
        all.extend(extra);
        sft::run(&settings::<SftConfig>(&all), &mut Listener::stopping_after(stop)).unwrap()
    };
    let whole = stopped_or_not("freeze", 4, run);
    let values = |dir: &Path| -> Vec<(String, Vec<u8>)> {
        let all = open(dir).base_params().into_iter();
        all.map(|p| {
            (p.name().to_string(), p.value().to_vec::<f32>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect())
        })
        .collect()
    };
    for ((name, before), (_, after)) in values(&base).into_iter().zip(values(&whole)) {
        assert_eq!(before != after, name.starts_with("model.layers.1.mlp"), "{name}");
    }
    // This model has no bias to train.
    let (model, data, out) = (base.to_string_lossy(), text(dir, "pairs.jsonl"), text(dir, "bitfit"));
    let mut all = flags(&model, &data, &out);
    all.push(("finetuning_type", "bitfit"));
    let error = sft::run(&settings::<SftConfig>(&all), &mut Silent).unwrap_err().to_string();
    assert!(error.contains("finetuning_type bitfit, which trains biases"), "{error}");
}

#[test]
fn every_optimizer_trains_and_resumes_bit_for_bit() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    prepare(dir);
    let base: PathBuf = base(dir);
    for optim in ["sgd", "lion_32bit", "adafactor", "muon", "schedule_free_adamw"] {
        for dtype in ["float32", "bfloat16"] {
            let run = |out: &str, extra: &[(&str, &str)], stop: u64| {
                let name = format!("{optim}-{dtype}-{out}");
                let (model, data, out) = (base.to_string_lossy(), text(dir, "pairs.jsonl"), text(dir, &name));
                let mut all = flags(&model, &data, &out);
                all.extend([("optim", optim), ("dtype", dtype), ("sgd_momentum", "0.9")]);
                all.extend([("validation_split", "0.2"), ("eval_strategy", "steps"), ("eval_steps", "2")]);
                all.extend(extra);
                sft::run(&settings::<SftConfig>(&all), &mut Listener::stopping_after(stop)).unwrap()
            };
            stopped_or_not(&format!("{optim} {dtype}"), 5, run);
        }
    }
}
