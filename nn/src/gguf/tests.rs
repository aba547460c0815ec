use std::path::PathBuf;
use std::sync::Arc;

use half::{bf16, f16};
use planish_tensor::{DType, Mmap};
use proptest::prelude::*;
use serde_json::json;

use super::names::{Arch, to_hf};
use super::*;
use crate::weights::WeightsReader;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures")).join(name)
}

fn bits(xs: &[f32]) -> Vec<u32> {
    xs.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_type_is_dequantised_to_the_bits_of_the_reference() {
    let file = GgufFile::open(fixture("gguf/quants.gguf")).unwrap();
    let expected = WeightsReader::open(fixture("gguf/quants.safetensors")).unwrap();
    assert_eq!(file.tensors().count(), GgmlType::ALL.len());
    for tensor in file.tensors() {
        let ours = file.tensor(&tensor.name).unwrap();
        let theirs = expected.get(&tensor.name).unwrap();
        assert_eq!(tensor.name, format!("{:?}", tensor.kind));
        assert_eq!(ours.dims(), theirs.dims());
        assert_eq!(bits(ours.as_slice().unwrap()), bits(theirs.as_slice().unwrap()), "{}", tensor.name);
        assert_eq!(ours.is_mapped(), tensor.kind == GgmlType::F32);
    }
}

#[test]
fn metadata_of_every_type_is_read() {
    let file = GgufFile::open(fixture("gguf/quants.gguf")).unwrap();
    let md = file.metadata();
    for (key, value) in [("a.u8", 255), ("a.u16", 65535), ("a.u32", u32::MAX.into()), ("a.u64", u64::MAX)] {
        assert_eq!(md.u64(key), Some(value));
    }
    assert_eq!(md.get("a.i8"), Some(&Value::I8(i8::MIN)));
    assert_eq!(md.get("a.i16"), Some(&Value::I16(i16::MIN)));
    assert_eq!(md.get("a.i32"), Some(&Value::I32(i32::MIN)));
    assert_eq!(md.get("a.i64"), Some(&Value::I64(i64::MIN)));
    assert_eq!(md.u64("a.i64"), None, "negative");
    assert_eq!(md.get("a.f32"), Some(&Value::F32(1e-5)));
    assert_eq!(md.f64("a.f32"), Some(1e-5), "by way of the shortest decimal");
    assert_eq!(md.f64("a.f64"), Some(1e-300));
    assert_eq!(md.bool("a.bool"), Some(true));
    assert_eq!(md.string("a.string"), Some("Ġhé\n\0x"));
    assert_eq!(md.strings("a.strings").unwrap(), ["", "Ġ t", "日本"]);
    assert_eq!(md.i32s("a.i32s").unwrap(), [1, -2, 3]);
    assert_eq!(md.f32s("a.f32s").unwrap(), [0.5, -1.25]);
    assert_eq!(md.get("a.bools"), Some(&Value::Array(Array::Bool(vec![true, false]))));
    let nested = Array::Array(vec![Array::I32(vec![1, 2]), Array::I32(vec![3])]);
    assert_eq!(md.get("a.nested"), Some(&Value::Array(nested)));
    assert_eq!(md.get("absent"), None);
    assert!(md.iter().any(|(key, _)| key == "a.u8"));
}

#[test]
fn names_are_those_of_the_reference() {
    let tables: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("gguf/names.json")).unwrap()).unwrap();
    for arch in Arch::ALL {
        let pairs = tables[arch.name()].as_array().unwrap();
        assert!(pairs.len() > 10);
        for pair in pairs {
            let (gguf, hf) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
            assert_eq!(to_hf(arch, gguf).map(|(name, _)| name).as_deref(), Some(hf), "{}: {gguf}", arch.name());
        }
        for unknown in
            ["", "weight", "blk.0.weight", "blk.00.attn_q.weight", "blk.-1.attn_q.weight", "blk.0.attn_q.scale"]
        {
            assert_eq!(to_hf(arch, unknown), None, "{unknown}");
        }
    }
    assert_eq!(to_hf(Arch::Llama, "blk.0.ffn_gate_inp.weight"), None, "mixtures of experts are not known");
    assert_eq!(to_hf(Arch::Qwen2, "blk.3.attn_q.bias").unwrap().0, "model.layers.3.self_attn.q_proj.bias");
}

#[test]
fn a_llama_is_what_it_was_before_conversion() {
    let file = GgufFile::open(fixture("gguf/llama.gguf")).unwrap();
    let original = WeightsReader::open(fixture("models/llama3")).unwrap();
    let mut names = file.tensor_names_hf().unwrap();
    let mut expected = original.names().to_vec();
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
    for name in &names {
        let theirs = original.get(name).unwrap();
        let ours = file.tensor_hf(name).unwrap();
        assert_eq!(file.shape_hf(name), Some(theirs.dims()));
        assert_eq!(
            (ours.dims(), ours.to_vec::<f32>().unwrap()),
            (theirs.dims(), theirs.to_vec::<f32>().unwrap()),
            "{name}"
        );
        for dtype in [DType::BF16, DType::F16] {
            let narrow = file.tensor_hf_as(name, dtype).unwrap().to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap();
            let rounded =
                |x: &f32| if dtype == DType::F16 { f16::from_f32(*x).to_f32() } else { bf16::from_f32(*x).to_f32() };
            assert_eq!(narrow, theirs.as_slice::<f32>().unwrap().iter().map(rounded).collect::<Vec<_>>());
        }
    }
    let config = file.hf_config().unwrap();
    let theirs: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("models/llama3/config.json")).unwrap()).unwrap();
    for key in [
        "architectures",
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "vocab_size",
        "tie_word_embeddings",
        "hidden_act",
        "attention_bias",
        "mlp_bias",
    ] {
        assert_eq!(config[key], theirs[key], "{key}");
    }
    assert!(config.get("rope_scaling").is_none());

    let error = file.tensor_hf("model.layers.9.self_attn.q_proj.weight").unwrap_err().to_string();
    assert!(error.contains("no tensor stands for \"model.layers.9"), "{error}");
    assert!(matches!(file.tensor_hf_as(&names[0], DType::I64), Err(GgufError::Tensor(_))));
}

/// Builds files by hand.
#[derive(Clone, Default)]
struct Builder {
    pairs: Vec<u8>,
    n_pairs: u64,
    infos: Vec<u8>,
    n_infos: u64,
}

impl Builder {
    fn arch(name: &str) -> Self {
        Builder::default().string("general.architecture", name)
    }
    fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.pairs.extend_from_slice(&text(key));
        self.pairs.extend_from_slice(&kind.to_le_bytes());
        self.pairs.extend_from_slice(value);
        self.n_pairs += 1;
        self
    }
    fn string(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &text(value))
    }
    fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }
    fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }
    /// `dims` innermost first, as in the file.
    fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        self.infos.extend_from_slice(&text(name));
        self.infos.extend_from_slice(&(dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| self.infos.extend_from_slice(&d.to_le_bytes()));
        self.infos.extend_from_slice(&kind.to_le_bytes());
        self.infos.extend_from_slice(&offset.to_le_bytes());
        self.n_infos += 1;
        self
    }
    fn bytes(&self, data: &[u8]) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend_from_slice(&self.n_infos.to_le_bytes());
        out.extend_from_slice(&self.n_pairs.to_le_bytes());
        out.extend_from_slice(&self.pairs);
        out.extend_from_slice(&self.infos);
        if !data.is_empty() {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend_from_slice(data);
        }
        out
    }
    fn open(&self, data: &[u8]) -> Result<GgufFile> {
        open(&self.bytes(data))
    }
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat()
}

fn open(bytes: &[u8]) -> Result<GgufFile> {
    let mut map = memmap2::MmapMut::map_anon(bytes.len().max(1)).unwrap();
    map[..bytes.len()].copy_from_slice(bytes);
    let map: Arc<Mmap> = Arc::new(map.make_read_only().unwrap());
    GgufFile::from_mmap(map, "x.gguf")
}

fn f32_bytes(xs: impl IntoIterator<Item = f32>) -> Vec<u8> {
    xs.into_iter().flat_map(f32::to_le_bytes).collect()
}

#[test]
fn hostile_files_are_refused_by_name() {
    let b = Builder::default;
    let one = |name: &str, dims: &[u64], kind, offset| b().tensor(name, dims, kind, offset);
    let with = |at: usize, value: &[u8]| {
        let mut bytes = b().u32("a", 1).tensor("t", &[4], 0, 0).bytes(&[0; 16]);
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    let mut deep = vec![];
    for _ in 0..5 {
        deep.extend_from_slice(&9u32.to_le_bytes());
        deep.extend_from_slice(&1u64.to_le_bytes());
    }
    let array = |kind: u32, n: u64| [&kind.to_le_bytes()[..], &n.to_le_bytes()].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "not a GGUF file"),
        (b"GGU".to_vec(), "not a GGUF file"),
        (with(0, b"GGML"), "not a GGUF file"),
        (with(4, &[0, 0, 0, 3]), "big-endian"),
        (with(4, &[1, 0, 0, 0]), "version 1 is not supported"),
        (with(4, &[4, 0, 0, 0]), "version 4 is not supported"),
        (with(8, &u64::MAX.to_le_bytes()), "the number of tensors at byte 16"),
        (with(16, &(1u64 << 40).to_le_bytes()), "the number of metadata at byte 24"),
        (with(24, &u64::MAX.to_le_bytes()), "a metadata key at byte 32 needs 18446744073709551615 bytes"),
        (with(32, b"\xff"), "is not UTF-8"),
        (with(33, &[13, 0, 0, 0]), "value type 13"),
        (b().raw("k", 7, &[2]).bytes(&[]), "\"k\" holds the truth value 2"),
        (b().raw("k", 9, &array(8, 1 << 60)).bytes(&[]), "a metadata array at byte"),
        (b().raw("k", 9, &array(4, 1 << 62)).bytes(&[]), "a metadata array at byte"),
        (b().raw("k", 9, &array(99, 0)).bytes(&[]), "value type 99"),
        (b().raw("k", 9, &deep).bytes(&[0; 64]), "nests arrays deeper than 4"),
        (b().u32("k", 1).u32("k", 1).bytes(&[]), "\"k\" is given twice"),
        (b().u32("split.count", 3).bytes(&[]), "split over 3 files"),
        (b().u32("general.alignment", 0).bytes(&[]), "power of two"),
        (b().u32("general.alignment", 24).bytes(&[]), "power of two"),
        (b().string("general.alignment", "32").bytes(&[]), "power of two"),
        (one("t", &[1, 1, 1, 1, 1], 0, 0).bytes(&[0; 4]), "5 dimensions"),
        (one("t", &[32], 10, 0).bytes(&[0; 64]), "type Q2_K, which is not supported"),
        (one("t", &[32], 999, 0).bytes(&[0; 64]), "type number 999"),
        (one("t", &[33], 2, 0).bytes(&[0; 64]), "rows of 33 elements"),
        (one("t", &[1 << 32, 1 << 32], 2, 0).bytes(&[0; 64]), "cannot be addressed"),
        (one("t", &[1 << 32, 0, 1 << 32], 2, 0).bytes(&[0; 64]), "cannot be addressed"),
        (one("t", &[1 << 40], 12, 0).bytes(&[0; 64]), "the file is truncated"),
        (one("t", &[4], 0, 16).bytes(&[0; 64]), "not a multiple of the alignment 32"),
        (one("t", &[4], 0, 64).bytes(&[0; 64]), "the file is truncated"),
        (one("t", &[4], 0, 1 << 63).bytes(&[0; 64]), "the file is truncated"),
        (one("t", &[4], 0, u64::MAX - 31).bytes(&[0; 64]), "the file is truncated"),
        (one("t", &[4], 0, 0).tensor("t", &[4], 0, 32).bytes(&[0; 64]), "\"t\" is declared twice"),
        (one("t", &[4], 0, 0).tensor("u", &[4], 0, 0).bytes(&[0; 64]), "\"u\" overlaps tensor \"t\""),
        (one("t", &[9], 0, 0).tensor("u", &[4], 0, 32).bytes(&[0; 64]), "\"u\" overlaps tensor \"t\""),
        (b().u32("general.alignment", 1 << 31).tensor("t", &[1], 0, 0).bytes(&[0; 64]), "of which the file has 0"),
    ];
    for (bytes, expected) in cases {
        let error = open(&bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        assert!(error.starts_with("x.gguf"), "{error:?} does not name the file");
    }
    assert!(open(&with(4, &[2, 0, 0, 0])).is_ok(), "version 2 is the same");
    assert!(b().open(&[]).is_ok());
    // Empty tensors take no place.
    let file = one("t", &[0], 0, 0).tensor("u", &[4], 0, 0).open(&f32_bytes([1.0, 2.0, 3.0, 4.0])).unwrap();
    assert_eq!(file.tensor("u").unwrap().to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(file.tensor("t").unwrap().numel(), 0);
}

fn model(arch: &str) -> Builder {
    let key = |k: &str| format!("{arch}.{k}");
    Builder::arch(arch)
        .u32(&key("block_count"), 1)
        .u32(&key("context_length"), 131072)
        .u32(&key("embedding_length"), 8)
        .u32(&key("feed_forward_length"), 16)
        .u32(&key("attention.head_count"), 2)
        .u32(&key("attention.head_count_kv"), 1)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-6)
        .tensor("token_embd.weight", &[8, 3], 0, 0)
}

const EMBEDDING: [u8; 96] = [0; 96];

#[test]
fn configs_carry_what_each_family_needs() {
    let config = |b: Builder| b.open(&[0; 1024]).unwrap().hf_config().unwrap();
    let llama = config(model("llama"));
    assert_eq!(llama["num_key_value_heads"], 1);
    assert_eq!(llama["vocab_size"], 3);
    assert_eq!(llama["head_dim"], 4);
    assert_eq!(llama["rms_norm_eps"], json!(1e-6));
    assert_eq!(llama["rope_theta"], json!(10000.0));
    assert_eq!(llama["tie_word_embeddings"], true);
    let untied = config(model("llama").tensor("output.weight", &[8, 3], 0, 96));
    assert_eq!(untied["tie_word_embeddings"], false);
    let mistral = config(model("llama").u32("llama.attention.sliding_window", 4096));
    assert_eq!((&mistral["model_type"], &mistral["sliding_window"]), (&json!("mistral"), &json!(4096)));
    let biased = config(model("llama").tensor("blk.0.attn_q.bias", &[8], 0, 96));
    assert_eq!(biased["attention_bias"], true);
    let qwen = config(model("qwen3").u32("qwen3.attention.key_length", 6).u32("tokenizer.ggml.eos_token_id", 7));
    assert_eq!((&qwen["head_dim"], &qwen["eos_token_id"]), (&json!(6), &json!(7)));
    let gemma = config(model("gemma2"));
    assert_eq!(gemma["attn_logit_softcapping"], json!(50.0));
    assert_eq!(gemma["query_pre_attn_scalar"], 4);
    let gemma = config(model("gemma3").u32("gemma3.attention.sliding_window", 512));
    assert_eq!((&gemma["sliding_window"], &gemma["rope_local_base_freq"]), (&json!(512), &json!(10000.0)));
    assert_eq!(gemma["final_logit_softcapping"], json!(null));
    let granite = ["attention.scale", "embedding_scale", "residual_scale", "logit_scale"];
    let granite = granite.iter().fold(model("granite"), |b, k| b.f32(&format!("granite.{k}"), 0.5));
    assert_eq!(config(granite)["logits_scaling"], json!(0.5));
    assert_eq!(config(model("smollm3"))["no_rope_layer_interval"], 4);
    assert_eq!(config(model("olmo2"))["model_type"], "olmo2");
    let linear = model("llama").string("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(config(linear)["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
    let yarn = model("qwen2").string("qwen2.rope.scaling.type", "yarn").f32("qwen2.rope.scaling.factor", 4.0);
    let yarn = yarn.u32("qwen2.rope.scaling.original_context_length", 32768);
    assert_eq!(config(yarn)["rope_scaling"]["original_max_position_embeddings"], 32768);
}

#[test]
fn rope_factors_become_settings() {
    // Llama 3.2's, as the converter computes them: head of 64, base 500000, factor 32.
    let divisors: Vec<f32> = (0..32)
        .map(|i| {
            let wavelength = std::f32::consts::TAU * 500000f32.powf(i as f32 / 32.0);
            match wavelength {
                w if w < 2048.0 => 1.0,
                w if w > 8192.0 => 32.0,
                w => 1.0 / ((1.0 - (8192.0 / w - 1.0) / 3.0) / 32.0 + (8192.0 / w - 1.0) / 3.0),
            }
        })
        .collect();
    let build = model("llama").u32("llama.attention.key_length", 64).f32("llama.rope.freq_base", 5e5);
    let build = build.tensor("rope_freqs.weight", &[32], 0, 96);
    let data = [&EMBEDDING[..], &f32_bytes(divisors.clone())].concat();
    let file = build.open(&data).unwrap();
    let expected = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    assert_eq!(file.hf_config().unwrap()["rope_scaling"], expected);
    assert_eq!(file.tensor_names_hf().unwrap(), ["model.embed_tokens.weight"]);

    let mut other = divisors;
    other[20] *= 1.01;
    let error = build.open(&[&EMBEDDING[..], &f32_bytes(other)].concat()).unwrap().hf_config().unwrap_err().to_string();
    assert!(error.contains("rope_freqs.weight") && error.contains("Llama 3"), "{error}");

    let phi =
        model("phi3").tensor("rope_factors_long.weight", &[2], 0, 96).tensor("rope_factors_short.weight", &[2], 0, 128);
    let phi = phi.u32("phi3.rope.scaling.original_context_length", 4096);
    let data = [&EMBEDDING[..], &f32_bytes([1.5, 2.1, 0., 0., 0., 0., 0., 0., 1.0, 1.1])].concat();
    let config = phi.open(&data).unwrap().hf_config().unwrap();
    assert_eq!(
        config["rope_scaling"],
        json!({"rope_type": "longrope", "long_factor": [1.5, 2.1], "short_factor": [1.0, 1.1]})
    );
    assert_eq!(config["original_max_position_embeddings"], 4096);
}

#[test]
fn contradictory_models_are_refused() {
    let refused = |b: Builder, expected: &str| {
        let error = b.open(&[0; 1024]).unwrap().hf_config().unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    };
    refused(Builder::arch("llama"), "\"llama.embedding_length\" is missing");
    refused(Builder::arch("bert"), "architecture \"bert\" is not supported (supported: llama, qwen2");
    refused(Builder::default(), "metadata key \"general.architecture\" is missing");
    let llama = || Builder::arch("llama").u32("llama.embedding_length", 8);
    refused(llama().u32("llama.attention.head_count", 0), "\"llama.attention.head_count\" is 0");
    refused(llama().u32("llama.attention.head_count", 3), "does not divide");
    refused(
        llama().raw("llama.attention.head_count", 9, &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        "is not a single integer",
    );
    refused(model("llama").u32("llama.attention.key_length", 4).u32("llama.attention.value_length", 5), "differs");
    refused(model("llama").u32("llama.attention.key_length", 0), "is 0");
    refused(model("llama").u32("llama.rope.dimension_count", 2), "differs from the head's size");
    refused(model("llama").string("llama.rope.scaling.type", "magic"), "rope.scaling.type");
    refused(model("olmo2").u32("olmo2.attention.sliding_window", 8), "OLMo 3");
    refused(model("granite").f32("granite.attention.scale", f32::NAN), "is not finite");

    let experts = model("llama").tensor("blk.0.ffn_gate_inp.weight", &[8], 0, 96).open(&[0; 1024]).unwrap();
    let error = experts.tensor_names_hf().unwrap_err().to_string();
    assert!(error.contains("\"blk.0.ffn_gate_inp.weight\" is not known"), "{error}");
    let odd = model("llama").tensor("blk.0.attn_q.weight", &[8, 3], 0, 96).open(&[0; 1024]).unwrap();
    let error = odd.tensor_hf("model.layers.0.self_attn.q_proj.weight").unwrap_err().to_string();
    assert!(error.contains("2 heads need a multiple of 4 rows"), "{error}");
    assert!(odd.contains_hf("model.embed_tokens.weight"));
    let raw = Builder::arch("bert").tensor("x", &[1], 0, 0).open(&f32_bytes([3.5])).unwrap();
    assert_eq!(raw.tensor("x").unwrap().item::<f32>().unwrap(), 3.5);
    assert!(raw.tensor_hf("x").is_err() && raw.tensor("y").is_err());
}

#[test]
fn gemma_norms_lose_the_one_that_was_added() {
    let file = model("gemma3").tensor("blk.0.attn_norm.weight", &[2], 0, 96);
    let file = file.open(&[&EMBEDDING[..], &f32_bytes([1.25, 0.0])].concat()).unwrap();
    let norm = file.tensor_hf("model.layers.0.input_layernorm.weight").unwrap();
    assert_eq!(norm.to_vec::<f32>().unwrap(), [0.25, -1.0]);
}

#[test]
fn permuted_biases_and_quantised_rows_come_back() {
    // Two heads of four: rows 0 2 1 3 | 4 6 5 7 in the file.
    let bias = model("llama").tensor("blk.0.attn_q.bias", &[8], 0, 96);
    let bias = bias.open(&[&EMBEDDING[..], &f32_bytes([0., 2., 1., 3., 4., 6., 5., 7.])].concat()).unwrap();
    let bias = bias.tensor_hf("model.layers.0.self_attn.q_proj.bias").unwrap();
    assert_eq!(bias.to_vec::<f32>().unwrap(), [0., 1., 2., 3., 4., 5., 6., 7.]);

    let rows: Vec<u8> = [0u8, 2, 1, 3].iter().flat_map(|&q| [vec![0x00, 0x3c], vec![q; 32]].concat()).collect();
    let keys = model("llama").tensor("blk.0.attn_k.weight", &[32, 4], 8, 96);
    let keys = keys.open(&[&EMBEDDING[..], &rows].concat()).unwrap();
    let keys = keys.tensor_hf_as("model.layers.0.self_attn.k_proj.weight", DType::BF16).unwrap();
    let expected: Vec<bf16> = (0..4).flat_map(|q| vec![bf16::from_f32(q as f32); 32]).collect();
    assert_eq!(keys.to_vec::<bf16>().unwrap(), expected);
}

proptest! {
    /// No damage to a file makes its reader panic, and what is accepted can be read whole.
    #[test]
    fn damaged_files_are_refused_or_read(at in 0usize..700, byte: u8, cut in 0usize..4000, insert: bool) {
        let mut bytes = model("llama").tensor("blk.0.attn_q.weight", &[8, 8], 0, 96).tensor("q", &[256, 2], 12, 352)
            .raw("k", 9, &[8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'x']).bytes(&[1; 640]);
        let at = at % bytes.len();
        if insert { bytes.insert(at, byte) } else { bytes[at] = byte }
        if cut < 1000 { bytes.truncate(bytes.len().saturating_sub(cut)) }
        if let Ok(file) = open(&bytes) {
            for tensor in file.tensors() {
                let read = file.tensor(&tensor.name).unwrap();
                prop_assert_eq!(read.dims(), &tensor.shape[..]);
            }
            for name in file.tensor_names_hf().unwrap_or_default() {
                let _ = file.tensor_hf(&name);
            }
            let _ = file.hf_config();
        }
    }
}
