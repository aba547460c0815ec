//! A small model of GGUF's blocks: random bytes, of one type, in a shape whose rows they divide.

use planish_nn::config::ModelConfig;
use planish_nn::decoder::{LoadOptions, Model, TensorSource};
use planish_tensor::quant::{Ggml, GgmlKind};
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor, f16};
use serde_json::{Value, json};

/// A Llama of one layer, all of whose matrices are in such blocks, the embedding among them.
///
/// # Panics
/// If the fixture is not there.
pub fn model(kind: GgmlKind) -> Model {
    let text = include_str!("../fixtures/models/smollm2/config.json");
    let mut config: Value = serde_json::from_str(text).expect("a config");
    for (key, value) in [("hidden_size", 256), ("intermediate_size", 512), ("num_hidden_layers", 1), ("head_dim", 64)] {
        config[key] = json!(value);
    }
    config["num_attention_heads"] = json!(4);
    let config = ModelConfig::from_json(&config).expect("a config");
    Model::load(config, &Blocks(kind), LoadOptions::default()).expect("a model")
}

/// Random blocks for matrices, random values for the rest.
struct Blocks(GgmlKind);

impl TensorSource for Blocks {
    fn tensor(&self, name: &str, shape: &[usize]) -> planish_nn::Result<Option<Tensor>> {
        let s = Stream::new(name.bytes().map(u64::from).sum(), Purpose::Data, name.len() as u64);
        let &[rows, cols] = shape else {
            let values: Vec<f64> = (0..shape[0]).map(|i| 1.0 + 0.2 * s.normal(i as u64)).collect();
            return Ok(Some(Tensor::from_vec(values, shape)?.to_dtype(DType::F32)?));
        };
        let size = self.0.block_bytes();
        let n = rows * cols / self.0.block_len() * size;
        let mut bytes: Vec<u8> = (0..n).map(|i| s.below(i as u64, 256) as u8).collect();
        for block in bytes.chunks_exact_mut(size) {
            let at: &[usize] = match self.0 {
                GgmlKind::Q6_K => &[208],
                GgmlKind::Q4_0 | GgmlKind::Q5_0 | GgmlKind::Q8_0 => &[0],
                _ => &[0, 2],
            };
            // Scales with which values are of ordinary size.
            let scale =
                if self.0 == GgmlKind::Q8_0 { 1e-3 } else { 1e-2 } / if self.0.block_len() > 32 { 32.0 } else { 1.0 };
            at.iter().for_each(|&at| block[at..at + 2].copy_from_slice(&f16::from_f64(scale).to_le_bytes()));
        }
        Ok(Some(Tensor::packed(Ggml::from_blocks([rows, cols], self.0, &Tensor::from_vec(bytes, [n])?)?)))
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}
