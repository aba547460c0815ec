//! LoRA adapters against PEFT.

use std::path::PathBuf;

use planish_nn::Ctx;
use planish_nn::adapters::{load_adapter, merge_adapter, save_adapter};
use planish_nn::decoder::{LoadOptions, Model};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::weights::WeightsReader;
use planish_tensor::{DType, Tensor};

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

/// What PEFT wrote, read and written again, is the same: every key of the settings, and every tensor by
/// name, shape and bits.
#[test]
fn an_adapter_of_peft_saved_again_is_what_it_was() {
    let mut compared = 0;
    for dir in adapters().iter().filter(|d| !d.ends_with("llama3_embed")) {
        let mut model = base_of(dir);
        let config = load_adapter(&mut model, dir).unwrap();
        let out = tempfile::tempdir().unwrap();
        save_adapter(&model, &config, out.path()).unwrap();
        let json = |dir: &std::path::Path| read_json(&dir.join("adapter_config.json")).unwrap();
        assert_eq!(json(out.path()), json(dir), "{}", dir.display());
        let read = |dir: &std::path::Path| WeightsReader::open(dir.join("adapter_model.safetensors")).unwrap();
        let (ours, theirs) = (read(out.path()), read(dir));
        let sorted = |reader: &WeightsReader| {
            let mut names = reader.names().to_vec();
            names.sort();
            names
        };
        assert_eq!(sorted(&ours), sorted(&theirs), "{}", dir.display());
        for name in theirs.names() {
            let (got, want) = (ours.get(name).unwrap(), theirs.get(name).unwrap());
            // Narrower adapters are held, and saved, in f32, as PEFT does with one that it has read: every
            // value is exact there.
            let want = if want.dtype() == DType::BF16 { want.to_dtype(DType::F32).unwrap() } else { want };
            assert_eq!((got.dtype(), got.dims()), (want.dtype(), want.dims()), "{name}");
            let bits = |t: &Tensor| t.to_vec::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(&got), bits(&want), "{}: {name}", dir.display());
            compared += 1;
        }
    }
    assert!(compared > 100, "{compared} tensors");
}

#[test]
fn an_adapter_of_another_model_is_refused() {
    let mut model = Pretrained::open(&fixture("models/qwen3")).unwrap().load(LoadOptions::default()).unwrap();
    let error = load_adapter(&mut model, &fixture("adapters/qwen2_saved_head")).unwrap_err().to_string();
    assert!(error.contains("made for another one"), "{error}");
}
