//! LoRA adapters against PEFT.

use std::path::PathBuf;

use planish_nn::Ctx;
use planish_nn::adapters::{load_adapter, merge_adapter, save_adapter};
use planish_nn::decoder::{LoadOptions, Model};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::weights::WeightsReader;

use crate::{difference, fixture, floats, ids, packed_logits};

/// As for the models themselves.
const LOGITS: f32 = 1e-4;

fn adapters() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(fixture("adapters")).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|p| p.is_dir());
    all.sort();
    assert!(all.len() >= 11);
    all
}

fn base_of(adapter: &std::path::Path) -> Model {
    let config = read_json(&adapter.join("adapter_config.json")).unwrap();
    let base = fixture(config["base_model_name_or_path"].as_str().unwrap());
    Pretrained::open(&base).unwrap().load(LoadOptions::default()).unwrap()
}

/// With the adapter on, off, merged, and written and read again: the logits are PEFT's.
#[test]
fn adapters_of_peft_give_their_logits() {
    for dir in adapters() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let mut model = base_of(&dir);
        if name == "llama3_embed" {
            let error = load_adapter(&mut model, &dir).unwrap_err().to_string();
            assert!(error.contains("embed_tokens") && error.contains("not supported"), "{error}");
            continue;
        }
        let expected = WeightsReader::open(dir.join("expected.safetensors")).unwrap();
        let sequences: Vec<Vec<u32>> = (0..)
            .map_while(|i| expected.contains(&format!("ids.{i}")).then(|| ids(&expected, &format!("ids.{i}"))))
            .collect();
        let on = Ctx::inference();
        let check = |model: &Model, key: &str, what: &str| {
            for (i, got) in packed_logits(model, &on, &sequences).iter().enumerate() {
                let worst = difference(got, &floats(&expected, &format!("{key}.{i}")));
                assert!(worst <= LOGITS, "{name} {what}, sequence {i}: {worst}");
            }
        };
        let plain = packed_logits(&model, &on, &sequences);
        let config = load_adapter(&mut model, &dir).unwrap();
        check(&model, "logits", "loaded");
        let off = packed_logits(&model, &Ctx::inference().without_adapters(), &sequences);
        assert_eq!(off, plain, "{name}: switched off, the adapter changes no bit");
        let out = tempfile::tempdir().unwrap();
        save_adapter(&model, &config, out.path()).unwrap();
        let mut again = base_of(&dir);
        load_adapter(&mut again, out.path()).unwrap();
        assert_eq!(packed_logits(&again, &on, &sequences), packed_logits(&model, &on, &sequences), "{name}: saved");
        merge_adapter(&mut model).unwrap();
        check(&model, "merged", "merged");
        // Merged, saved as a model and opened as one.
        let out = tempfile::tempdir().unwrap();
        model.save(out.path()).unwrap();
        let opened = Pretrained::open(out.path()).unwrap().load(LoadOptions::default()).unwrap();
        check(&opened, "merged", "merged, saved and opened");
    }
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let mut model = Pretrained::open(&fixture("models/qwen3")).unwrap().load(LoadOptions::default()).unwrap();
    let error = load_adapter(&mut model, &fixture("adapters/qwen2_saved_head")).unwrap_err().to_string();
    assert!(error.contains("made for another one"), "{error}");
}
