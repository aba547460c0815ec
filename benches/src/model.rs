//! SmolLM2-135M with random weights: its speed is that of the real one, and nothing need be downloaded.

use planish_nn::Result;
use planish_nn::config::ModelConfig;
use planish_nn::decoder::{LoadOptions, Model, TensorSource};
use planish_tensor::{DType, Tensor};
use serde_json::json;

use crate::normal;
use crate::smollm2::*;

/// SmolLM2-135M's shapes with `layers` layers, weights normal with 0.02 and held in `dtype`.
///
/// # Errors
/// No memory.
pub fn model(layers: usize, dtype: DType, trainable: bool) -> Result<Model> {
    let config = json!({
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "eos_token_id": 2,
    });
    let config = ModelConfig::from_json(&config)?;
    Model::load(config, &Random, LoadOptions { dtype: Some(dtype), trainable })
}

/// Any tensor that is asked for but a head of its own.
struct Random;

impl TensorSource for Random {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        if name.ends_with("norm.weight") {
            return Ok(Some(Tensor::full(1.0_f32, shape)?));
        }
        let seed = name.bytes().fold(7_u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        Ok(Some(planish_tensor::ops::elementwise::scale(&normal(seed, shape)?, 0.02)?))
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}
