//! Law 5 of the design: the sampler and the trainer are one engine. The log-probability of a token is the
//! same bits in training, scoring, reading a prompt in chunks and decoding step by step, whatever else is
//! in the batch and however many threads there are.

use std::path::PathBuf;

use planish_autograd::{Param, Tape};
use planish_nn::Ctx;
use planish_nn::adapters::{adapter_params, load_adapter, merge_adapter};
use planish_nn::config::ModelConfig;
use planish_nn::decoder::{LoadOptions, Model, Packed, TensorSource};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::quantize::{QuantizeAs, lay_out};
use planish_tensor::quant::{FourBitKind, GgmlKind, Layout, Quantized};
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor};
use planish_tests::law5::{bits, check, context, on_threads, packed, sequences, with_lora};
use proptest::prelude::*;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn load(path: &str, dtype: Option<DType>) -> Model {
    Pretrained::open(&fixture(path)).unwrap().load(LoadOptions { dtype, trainable: false }).unwrap()
}

/// With weights that are trained, so that a training pass records.
fn trained(path: &str, dtype: Option<DType>) -> Model {
    Pretrained::open(&fixture(path)).unwrap().load(LoadOptions { dtype, trainable: true }).unwrap()
}

/// Every family's fixture but those whose RoPE frequencies change with the length of the sequence (kinds
/// `dynamic` and `longrope`): there a token's log-probability depends by definition on how much of the
/// sequence is known, and a cache holds keys turned by what was known then.
fn families() -> Vec<String> {
    let metadata = read_json(&fixture("models/metadata.json")).unwrap();
    let all = metadata["families"].as_array().unwrap().iter().map(|f| f.as_str().unwrap().to_string());
    let fixed = |f: &String| {
        let config = Pretrained::open(&fixture(&format!("models/{f}"))).unwrap().config;
        config.ropes.iter().all(|rope| !rope.depends_on_length())
    };
    let kept: Vec<String> = all.filter(fixed).collect();
    assert!(kept.len() >= 18, "only {kept:?}");
    kept
}

#[test]
fn every_family_in_its_own_dtype_and_in_bf16() {
    for (i, family) in families().iter().enumerate() {
        for (j, dtype) in [None, Some(DType::BF16)].into_iter().enumerate() {
            let model = trained(&format!("models/{family}"), dtype);
            let sequences = sequences(&model, &[2, 41, 1, 17, 66], i as u64);
            check(&format!("{family} {dtype:?}"), &model, true, &sequences, 7 * i + 31 * j);
        }
    }
}

#[test]
fn with_adapters_on_and_off() {
    let families = ["smollm2", "phi3", "gemma2", "llama_bf16", "qwen3", "qwen2_moe", "deepseek_v3"];
    for (i, family) in families.iter().enumerate() {
        for dtype in [None, Some(DType::BF16), Some(DType::F16)] {
            let base = load(&format!("models/{family}"), dtype);
            let model = with_lora(base.clone(), 3 + i as u64);
            let sequences = sequences(&model, &[33, 5, 70], i as u64);
            let (on, off) = (Ctx::inference(), Ctx::inference().without_adapters());
            check(&format!("{family} {dtype:?} with LoRA"), &model, true, &sequences, 5 + 13 * i);
            check(&format!("{family} {dtype:?} with LoRA off"), &model, false, &sequences, 6 + 13 * i);
            let plain = packed(&base, &on, &sequences, false);
            assert_eq!(packed(&model, &off, &sequences, false), plain, "off is the base model");
            assert_ne!(packed(&model, &on, &sequences, false), plain, "on is not");
            let mut laid_out = model.clone();
            lay_out(&mut laid_out).unwrap();
            let panels = laid_out.base_params().iter().filter(|p| p.value().dtype() == DType::Packed).count();
            assert!(panels > 0);
            assert_eq!(packed(&laid_out, &off, &sequences, false), plain, "{family} {dtype:?} in panels");
            check(&format!("{family} {dtype:?} in panels"), &laid_out, true, &sequences, 8 + 13 * i);
        }
    }
}

/// Products of several blocks of depth, a head of several tiles, and work enough that threads share each product, which the
/// fixtures' models are too small for.
#[test]
fn in_a_model_of_several_blocks() {
    let mut config = read_json(&fixture("models/smollm2/config.json")).unwrap();
    for (key, value) in [("hidden_size", 128), ("intermediate_size", 1600), ("head_dim", 32), ("vocab_size", 6500)] {
        config[key] = serde_json::json!(value);
    }
    for (i, dtype) in [DType::F32, DType::BF16].into_iter().enumerate() {
        for trainable in [true, false] {
            let config = ModelConfig::from_json(&config).unwrap();
            assert!(config.intermediate_size > planish_tensor::gemm::KC && config.vocab_size > 2 * 3072);
            let options = LoadOptions { dtype: Some(dtype), trainable };
            let base = Model::load(config, &Random, options).unwrap();
            let sequences = sequences(&base, &[150, 3, 90, 1], i as u64);
            let model = if trainable { base } else { with_lora(base, 9) };
            for salt in 0..4 {
                check(&format!("{dtype:?}, all weights {trainable}"), &model, true, &sequences, 4 * i + salt);
            }
            let mut laid_out = model.clone();
            lay_out(&mut laid_out).unwrap();
            let on = Ctx::inference();
            assert_eq!(packed(&laid_out, &on, &sequences, false), packed(&model, &on, &sequences, false));
            check(&format!("{dtype:?} in panels"), &laid_out, true, &sequences, 4 * i);
        }
    }
}

/// Random weights, as a model begins.
struct Random;

impl TensorSource for Random {
    fn tensor(&self, name: &str, shape: &[usize]) -> planish_nn::Result<Option<Tensor>> {
        let s = Stream::new(name.bytes().map(u64::from).sum(), Purpose::Data, name.len() as u64);
        let (mean, deviation) = if shape.len() == 1 { (1.0, 0.2) } else { (0.0, 0.05) };
        let n = shape.iter().product::<usize>() as u64;
        let values: Vec<f32> = (0..n).map(|i| (mean + deviation * s.normal(i)) as f32).collect();
        Ok(Some(Tensor::from_vec(values, shape)?))
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Adapters as PEFT saves them, with trained copies of the head.
#[test]
fn with_adapters_of_peft() {
    for (i, adapter) in ["qwen2_saved_both", "smollm2_saved_tied", "llama3_bf16"].iter().enumerate() {
        let dir = fixture(&format!("adapters/{adapter}"));
        let config = read_json(&dir.join("adapter_config.json")).unwrap();
        let mut model = load(config["base_model_name_or_path"].as_str().unwrap(), None);
        load_adapter(&mut model, &dir).unwrap();
        let sequences = sequences(&model, &[19, 44], i as u64);
        check(adapter, &model, true, &sequences, 3 + 11 * i);
    }
}

/// Every method as PEFT saves it, on and off; in bf16 as well.
#[test]
fn with_every_method() {
    let mut seen = 0;
    let names = std::fs::read_dir(fixture("adapters")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir());
    let mut names: Vec<PathBuf> = names.collect();
    names.sort();
    for (i, dir) in names.iter().enumerate() {
        let config = read_json(&dir.join("adapter_config.json")).unwrap();
        for dtype in [None, Some(DType::BF16)] {
            let base = load(config["base_model_name_or_path"].as_str().unwrap(), dtype);
            let mut model = base.clone();
            load_adapter(&mut model, dir).unwrap();
            let sequences = sequences(&model, &[19, 1, 44], i as u64);
            let what = format!("{} {dtype:?}", dir.display());
            check(&what, &model, true, &sequences, 3 + 11 * i);
            check(&format!("{what} off"), &model, false, &sequences, 4 + 7 * i);
            let off = packed(&model, &Ctx::inference().without_adapters(), &sequences, false);
            assert_eq!(off, packed(&base, &Ctx::inference(), &sequences, false), "{what}: off is the base model");
        }
        seen += 1;
    }
    assert!(seen >= 33, "{seen} adapters");
}

/// Bases that bitsandbytes' formats hold, made as they are loaded, with adapters on and off; and the same model with
/// the values in f32 in their place computes the same bits.
#[test]
fn on_quantised_bases() {
    let four = |kind, block, double| QuantizeAs::FourBit { kind, block, double };
    let formats = [
        four(FourBitKind::Nf4, 64, true),
        four(FourBitKind::Nf4, 32, false),
        four(FourBitKind::Fp4, 64, false),
        QuantizeAs::Int8,
    ];
    for (i, family) in ["smollm2", "phi3", "gemma2", "qwen3"].iter().enumerate() {
        let how = formats[i];
        let opened = Pretrained::open(&fixture(&format!("models/{family}"))).unwrap().quantized(Some(how));
        let base = opened.load(LoadOptions::default()).unwrap();
        quantised(&format!("{family} {how:?}"), base, i);
    }
}

/// GGUF's blocks, of random bytes: every type, in a model whose rows they divide.
#[test]
fn on_blocks_of_gguf() {
    for (i, kind) in GgmlKind::ALL.into_iter().enumerate() {
        let base = planish_tests::blocks::model(kind);
        assert_eq!(base.embed_tokens.base.value().dtype(), DType::Packed);
        quantised(kind.name(), base, i);
    }
}

fn quantised(what: &str, base: Model, i: usize) {
    let mut dense = base.clone();
    planish_nn::quantize::unpack(&mut dense, DType::F32).unwrap();
    let (model, dense) = (with_lora(base, 3 + i as u64), with_lora(dense, 3 + i as u64));
    let mut laid_out = model.clone();
    lay_out(&mut laid_out).unwrap();
    let in_panels = |p: &Param| matches!(p.value().quantized().map(Quantized::layout), Some(Layout::Panels(_)));
    assert!(laid_out.base_params().into_iter().filter(|p| in_panels(p)).count() >= 7, "{what}");
    let sequences = sequences(&model, &[33, 5, 70], i as u64);
    for adapters in [true, false] {
        check(&format!("{what}, LoRA {adapters}"), &model, adapters, &sequences, 5 + 13 * i);
        check(&format!("{what} in panels, LoRA {adapters}"), &laid_out, adapters, &sequences, 6 + 13 * i);
        let ctx = context(adapters);
        let want = packed(&dense, &ctx, &sequences, false);
        assert_eq!(packed(&model, &ctx, &sequences, false), want, "{what}");
        assert_eq!(packed(&laid_out, &ctx, &sequences, false), want, "{what} in panels");
    }
    // And so do gradients.
    let gradients = |model: &Model| -> Vec<Vec<u64>> {
        let (tape, batch) = (Tape::new(), Packed::new(&sequences));
        let mask = vec![true; batch.len()];
        planish_train::losses::cross_entropy(model, &Ctx::training(&tape, None), &batch, &mask, true).unwrap();
        adapter_params(model, 0).iter().map(|p| bits(&p.take_grad().unwrap())).collect()
    };
    let want = on_threads(1, || gradients(&dense));
    for threads in 1..=4 {
        assert!(on_threads(threads, || gradients(&model)) == want, "{what}: gradients on {threads} threads");
    }
}

/// Every method as PEFT saves it, on a base in 4 bits: with the values in f32 in their place log-probabilities and
/// gradients have the same bits, and merged it is the same model, before anything is quantised again.
#[test]
fn every_method_on_a_quantised_base() {
    let mut seen = (0, 0);
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(fixture("adapters")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    names.sort();
    for (i, dir) in names.iter().enumerate() {
        let config = read_json(&dir.join("adapter_config.json")).unwrap();
        let base = fixture(config["base_model_name_or_path"].as_str().unwrap());
        let how = QuantizeAs::FourBit { kind: FourBitKind::Nf4, block: 32, double: i % 2 == 0 };
        let opened = Pretrained::open(&base).unwrap().quantized(Some(how));
        let mut model = opened.load(LoadOptions { dtype: Some(DType::F32), trainable: false }).unwrap();
        let mut dense = model.clone();
        planish_nn::quantize::unpack(&mut dense, DType::F32).unwrap();
        if ["pissa", "olora"].contains(&config["init_lora_weights"].as_str().unwrap_or_default()) {
            let refused = load_adapter(&mut model, dir).unwrap_err().to_string();
            assert!(refused.contains("init_lora_weights is "), "{refused}");
            continue;
        }
        let what = dir.file_name().unwrap().to_string_lossy().into_owned();
        let method = load_adapter(&mut model, dir).unwrap();
        load_adapter(&mut dense, dir).unwrap();
        let sequences = sequences(&model, &[19, 1, 44], i as u64);
        check(&what, &model, true, &sequences, 3 + 11 * i);
        let scores = |model: &Model| packed(model, &Ctx::inference(), &sequences, false);
        let apart = scores(&model);
        assert_eq!(apart, scores(&dense), "{what}");
        let gradients = |model: &Model| -> Vec<(String, Vec<u64>)> {
            let (tape, batch) = (Tape::new(), Packed::new(&sequences));
            let mask = vec![true; batch.len()];
            planish_train::losses::cross_entropy(model, &Ctx::training(&tape, None), &batch, &mask, true).unwrap();
            let trained = adapter_params(model, 0).into_iter().filter(|p| p.is_trainable());
            trained.filter_map(|p| Some((p.name().to_owned(), bits(&p.take_grad()?)))).collect()
        };
        let want = gradients(&dense);
        assert!(!want.is_empty() && gradients(&model) == want, "{what}: gradients");
        seen.0 += 1;
        if !method.is_mergeable() {
            continue;
        }
        merge_adapter(&mut model).unwrap();
        merge_adapter(&mut dense).unwrap();
        let merged = scores(&model);
        assert_eq!(merged, scores(&dense), "{what}: merged");
        for (a, b) in merged.iter().flatten().zip(apart.iter().flatten()) {
            let (a, b) = (f64::from_bits(*a), f64::from_bits(*b));
            // A sum of two products, or one product with the sum: some roundings of f32 of values up to 10.
            assert!((a - b).abs() <= 1e-4, "{what}: {a} merged, {b} apart");
        }
        seen.1 += 1;
    }
    assert!(seen.0 >= 31 && seen.1 >= 24, "{seen:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Random packings, chunks and threads on a few shapes of model, one of them in f64.
    #[test]
    fn random_batches(
        family in prop::sample::select(vec!["smollm2", "mistral", "gemma3", "olmo2", "qwen2_window"]),
        lengths in prop::collection::vec(1usize..150, 1..7),
        dtype in prop::sample::select(vec![None, Some(DType::BF16), Some(DType::F64)]),
        lora: bool,
        salt in 0usize..10_000,
    ) {
        let path = format!("models/{family}");
        let model = if lora { with_lora(load(&path, dtype), salt as u64) } else { trained(&path, dtype) };
        let sequences = sequences(&model, &lengths, salt as u64);
        let what = format!("{family} {dtype:?}, LoRA {lora}, {lengths:?}, salt {salt}");
        check(&what, &model, true, &sequences, salt);
    }
}
