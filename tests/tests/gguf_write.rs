//! GGUF as it is written: ggml's bytes, and models of every family that read back as themselves.

use std::path::{Path, PathBuf};

use planish_nn::Ctx;
use planish_nn::decoder::{LoadOptions, Model, Packed};
use planish_nn::gguf::{ExportError, GgmlType, GgufFile, Quant, dequantize, export, quantize};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::tokenizer::Tokenizer;
use planish_nn::weights::WeightsReader;
use planish_tensor::{DType, bf16, f16};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures")).join(name)
}

#[test]
fn every_type_is_quantised_to_the_bytes_of_ggml() {
    let reader = WeightsReader::open(fixture("gguf/encoded.safetensors")).unwrap();
    let x = reader.get("x").unwrap().to_vec::<f32>().unwrap();
    for kind in GgmlType::ALL {
        let want = reader.get(&format!("{kind:?}")).unwrap().to_vec::<u8>().unwrap();
        let mut got = vec![0u8; want.len()];
        quantize(kind, &x, &mut got);
        let wrong = got.chunks(kind.block_bytes()).zip(want.chunks(kind.block_bytes())).position(|(a, b)| a != b);
        assert_eq!(wrong, None, "{kind:?}: the first block that differs");
        let mut back = vec![0f32; x.len()];
        dequantize(kind, &got, &mut back);
        assert!(back.iter().all(|x| x.is_finite()), "{kind:?}");
    }
}

/// Tiny models of every family that has an architecture: written in f32 they read back as themselves, and score so.
#[test]
fn every_family_reads_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (mut seen, mut wrong) = (0, Vec::new());
    for entry in std::fs::read_dir(fixture("models")).unwrap() {
        let place = entry.unwrap().path();
        let name = place.file_name().unwrap().to_string_lossy().into_owned();
        if !place.join("config.json").exists() {
            continue;
        }
        let opened = Pretrained::open(&ordinary(&place, &dir.path().join(&name))).unwrap();
        let model = opened.load(LoadOptions { dtype: Some(DType::F32), trainable: false }).unwrap();
        // The fixtures' vocabularies are smaller than any tokenizer here: of their own, made of bytes.
        let tokenizer = small(model.config.vocab_size);
        for quant in [Quant::F32, Quant::F16, Quant::BF16] {
            let path = dir.path().join(format!("{name}-{quant:?}.gguf"));
            let done = export(&model, &tokenizer, quant, &path, false);
            let refused = matches!(
                &done,
                Err(planish_nn::Error::Gguf(_)
                    | planish_nn::Error::Export(ExportError::Inexpressible { .. } | ExportError::Architecture { .. }))
            );
            if refused {
                // What GGUF has no words for is refused, and nothing is left behind.
                if !REFUSED.contains(&name.as_str()) {
                    wrong.push(format!("{name}: {}", done.as_ref().unwrap_err()));
                }
                assert!(!path.exists());
                continue;
            }
            let done = done.unwrap_or_else(|e| panic!("{name}: {e}"));
            if REFUSED.contains(&name.as_str()) {
                wrong.push(format!("{name} is not refused"));
            }
            assert_eq!(done.bytes, std::fs::metadata(&path).unwrap().len());
            let file = GgufFile::open(&path).unwrap();
            for param in model.base_params() {
                let read = file.tensor_hf(param.name()).unwrap().to_vec::<f32>().unwrap();
                let want = param.value().to_vec::<f32>().unwrap();
                let rounded = |x: f32| match quant {
                    Quant::F16 if param.value().rank() > 1 => f16::from_f32(x).to_f32(),
                    Quant::BF16 if param.value().rank() > 1 => bf16::from_f32(x).to_f32(),
                    _ => x,
                };
                // Gemma's norms lose the last bits to the 1 that is added to them.
                let plus_one = model.config.norm_offset != 0.0 && param.name().contains("norm");
                for (got, want) in read.iter().zip(&want) {
                    let want = if plus_one { (want + 1.0) - 1.0 } else { rounded(*want) };
                    assert_eq!(got.to_bits(), want.to_bits(), "{name}, {quant:?}, {}", param.name());
                }
            }
            let again = Pretrained::open(&path).unwrap();
            let as_f32 = again.load(LoadOptions { dtype: Some(DType::F32), trainable: false }).unwrap();
            let ids: Vec<Vec<u32>> = vec![(0..30u32).map(|i| (i * 7 + 3) % model.config.vocab_size as u32).collect()];
            let logits = |m: &Model| {
                let ctx = Ctx::inference();
                let hidden = m.forward(&ctx, &Packed::new(&ids), false).unwrap();
                m.logits(&ctx, hidden.value()).unwrap().to_vec::<f32>().unwrap()
            };
            if quant == Quant::F32 && model.config.norm_offset == 0.0 {
                let (a, b) = (logits(&model), logits(&as_f32));
                // Settings are f32 in the file.
                assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-4 * a.abs().max(1.0)), "{name}");
            }
            // Unless asked for another dtype, weights stay what the file has, and compute the same.
            let as_it_is = again.load(LoadOptions::default()).unwrap();
            let half = match quant {
                Quant::F16 => DType::F16,
                Quant::BF16 => DType::BF16,
                _ => DType::F32,
            };
            for param in as_it_is.base_params().iter().filter(|param| param.name().ends_with("_proj.weight")) {
                assert_eq!(param.value().dtype(), half, "{name}, {quant:?}: {}", param.name());
            }
            let bits = |m: &Model| logits(m).into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert!(bits(&as_it_is) == bits(&as_f32), "{name}, {quant:?}");
        }
        seen += 1;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 15, "{seen}");
}

/// A copy with numbers that llama.cpp has in its code, where the fixtures have others so that they show.
fn ordinary(model: &Path, copy: &Path) -> PathBuf {
    std::fs::create_dir(copy).unwrap();
    for entry in std::fs::read_dir(model).unwrap().map(|e| e.unwrap()) {
        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let mut config = read_json(&copy.join("config.json")).unwrap();
    if config.get("query_pre_attn_scalar").is_some() {
        config["query_pre_attn_scalar"] = config["head_dim"].clone();
    }
    for key in ["rope_scaling", "rope_parameters"] {
        if config[key]["rope_type"] == "llama3" {
            config[key]["original_max_position_embeddings"] = 8192.into();
        }
    }
    if config["model_type"] == "smollm3" {
        config["no_rope_layer_interval"] = 4.into();
        config.as_object_mut().unwrap().remove("no_rope_layers");
    }
    std::fs::write(copy.join("config.json"), config.to_string()).unwrap();
    copy.to_owned()
}

/// Variants that the files have no words for: of RoPE, and windows of some layers only.
const REFUSED: [&str; 12] = [
    "llama_dynamic",
    "llama_longrope",
    "qwen2_window",
    "mixtral",
    "mixtral_fused",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "deepseek_v2",
    "deepseek_v2_groups",
    "deepseek_v3",
    "deepseek_v3_halves",
];

/// A byte-level tokenizer of up to `rows` tokens.
fn small(rows: usize) -> Tokenizer {
    let mut json = read_json(&fixture("../../train/builtin/tokenizer.json")).unwrap();
    let keep = |id: &serde_json::Value| id.as_u64().is_some_and(|id| (id as usize) < rows);
    if let Some(vocab) = json["model"]["vocab"].as_object_mut() {
        vocab.retain(|_, id| keep(id));
    }
    let known: std::collections::HashSet<String> =
        json["model"]["vocab"].as_object().unwrap().keys().cloned().collect();
    if let Some(merges) = json["model"]["merges"].as_array_mut() {
        merges.retain(|m| {
            let pair: Vec<&str> = m.as_array().unwrap().iter().map(|x| x.as_str().unwrap()).collect();
            pair.iter().all(|p| known.contains(*p)) && known.contains(&pair.concat())
        });
    }
    if let Some(added) = json["added_tokens"].as_array_mut() {
        added.retain(|t| keep(&t["id"]));
    }
    json["post_processor"] = serde_json::Value::Null;
    Tokenizer::from_json_bytes(json.to_string().as_bytes(), None, None).unwrap()
}
