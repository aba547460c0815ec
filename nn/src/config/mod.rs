//! What a decoder is made of, in terms that no model family owns.
//!
//! Each family maps its `config.json` to a [`ModelConfig`] (see [`crate::families`]); the decoder
//! reads nothing else, so a new family is a mapping, not a model.

mod declared;
mod experts;
mod fields;
mod latent;
mod rope;

pub use experts::{ExpertNames, Groups, Moe, Scoring};
pub use fields::{ConfigError, Fields};
pub use latent::Latent;
pub use rope::{Rope, RopeScaling};

/// Where the norms of a layer stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// x + f(norm(x)): Llama and most others.
    Pre,
    /// x + norm(f(norm(x))): Gemma 2 and 3.
    PreAndPost,
    /// x + norm(f(x)): OLMo 2.
    Post,
}

/// Normalisation of queries and keys before RoPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Over each head: Qwen 3, Gemma 3.
    PerHead,
    /// Over the whole projection: OLMo 2.
    Whole,
}

/// The gate's nonlinearity in the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU by the error function.
    Gelu,
    /// GELU by the tanh approximation.
    GeluTanh,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerConfig {
    /// Positions a query sees, itself included; all if `None`.
    pub window: Option<usize>,
    /// Which of [`ModelConfig::ropes`] rotates queries and keys; none (NoPE) if `None`.
    pub rope: Option<usize>,
    /// Whether [`ModelConfig::moe`] stands in the MLP's place.
    pub sparse: bool,
}

/// Shape and constants of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `model_type` of config.json.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// ε of every RMSNorm.
    pub norm_eps: f64,
    /// Added to every norm weight (1 for Gemma, which stores w - 1).
    pub norm_offset: f64,
    /// Where the norms stand.
    pub norm_placement: NormPlacement,
    /// Normalisation of queries and keys.
    pub qk_norm: QkNorm,
    /// The gate's nonlinearity.
    pub activation: Activation,
    /// Whether q, k and v projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub o_bias: bool,
    /// Whether the MLP's projections have a bias.
    pub mlp_bias: bool,
    /// Whether q, k, v are one weight, and gate and up another: Phi-3.
    pub fused_projections: bool,
    /// Factor on q·k.
    pub attention_scale: f64,
    /// Soft-cap on attention scores.
    pub attention_softcap: Option<f64>,
    /// Soft-cap on the logits.
    pub final_softcap: Option<f64>,
    /// Factor on the embedding.
    pub embedding_scale: f64,
    /// Whether that factor is also on inputs that are no tokens' embeddings (an adapter's virtual tokens).
    pub scales_all_inputs: bool,
    /// Factor on what a block adds to the residual stream.
    pub residual_scale: f64,
    /// Factor on the logits.
    pub logit_scale: f64,
    /// The rotations that layers choose from.
    pub ropes: Vec<Rope>,
    /// Positions the model was made for.
    pub max_positions: usize,
    /// Whether the LM head is the embedding.
    pub tie_word_embeddings: bool,
    /// Latent attention in place of plain; [`ModelConfig::head_dim`] is then the width that heads are padded to.
    pub latent: Option<Latent>,
    /// Experts, where layers have them.
    pub moe: Option<Moe>,
    /// One entry a layer.
    pub layers: Vec<LayerConfig>,
    /// config.json as it was read, to be written back.
    pub source: serde_json::Value,
}

/// Sizes past these are refused: no model has them, but a hostile file might.
const MAX_LAYERS: usize = 1_000;
const MAX_WIDTH: usize = 1 << 20;
const MAX_VOCABULARY: usize = 1 << 24;

impl ModelConfig {
    /// Tokens of the longest sequence that it was made for.
    pub fn window(&self) -> usize {
        self.ropes.iter().map(Rope::window).max().unwrap_or(self.max_positions)
    }

    /// Reads config.json.
    ///
    /// # Errors
    /// [`ConfigError`] that names the key: an unknown architecture, a missing key, a wrong type, a
    /// value that no model can have or that contradicts another.
    pub fn from_json(config: &serde_json::Value) -> Result<ModelConfig, ConfigError> {
        let source = config;
        let config = crate::families::read(source)?;
        config.validate()?;
        declared::check(source, &config)?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_VOCABULARY),
            ("hidden_size", self.hidden_size, MAX_WIDTH),
            ("intermediate_size", self.intermediate_size, MAX_WIDTH),
            ("num_attention_heads", self.num_heads, MAX_WIDTH),
            ("num_key_value_heads", self.num_kv_heads, MAX_WIDTH),
            ("head_dim", self.head_dim, 4096),
            ("num_hidden_layers", self.layers.len(), MAX_LAYERS),
            ("max_position_embeddings", self.max_positions, u32::MAX as usize),
        ];
        for (key, value, most) in sizes {
            if value == 0 || value > most {
                return Err(ConfigError::Value {
                    key,
                    value: value.to_string(),
                    expected: format!("from 1 to {most}"),
                });
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(ConfigError::Contradiction {
                what: format!(
                    "num_attention_heads ({}) is not a multiple of num_key_value_heads ({})",
                    self.num_heads, self.num_kv_heads
                ),
            });
        }
        for (key, value) in [
            ("attention scale", self.attention_scale),
            ("embedding scale", self.embedding_scale),
            ("residual scale", self.residual_scale),
            ("logits scale", self.logit_scale),
            ("rms_norm_eps", self.norm_eps),
        ] {
            if !value.is_finite() || value < 0.0 {
                return Err(ConfigError::Value {
                    key,
                    value: value.to_string(),
                    expected: "finite and not negative".into(),
                });
            }
        }
        for (key, value) in
            [("attn_logit_softcapping", self.attention_softcap), ("final_logit_softcapping", self.final_softcap)]
        {
            if let Some(v) = value.filter(|v| !(*v > 0.0 && v.is_finite())) {
                return Err(ConfigError::Value { key, value: v.to_string(), expected: "positive or null".into() });
            }
        }
        if self.layers.iter().any(|l| l.window == Some(0)) {
            return Err(ConfigError::Value { key: "sliding_window", value: "0".into(), expected: "at least 1".into() });
        }
        if let Some(moe) = &self.moe {
            moe.validate(MAX_WIDTH)?;
        }
        if let Some(latent) = &self.latent {
            latent.validate(MAX_WIDTH)?;
        }
        for rope in &self.ropes {
            if rope.rotary_dim == 0 || !rope.rotary_dim.is_multiple_of(2) || rope.rotary_dim > self.head_dim {
                return Err(ConfigError::Contradiction {
                    what: format!("RoPE turns {} of the {} dimensions of a head", rope.rotary_dim, self.head_dim),
                });
            }
            for length in [1, self.max_positions] {
                let (frequencies, factor) = rope.frequencies(length);
                if !factor.is_finite() || frequencies.iter().any(|f| !f.is_finite()) {
                    return Err(ConfigError::Contradiction {
                        what: format!("rope_scaling gives frequencies for {length} tokens that are not finite"),
                    });
                }
            }
        }
        Ok(())
    }

    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// `eos_token_id` of config.json: none, one or several.
    pub fn eos_token_ids(&self) -> Vec<u32> {
        let id = |v: &serde_json::Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
        match &self.source["eos_token_id"] {
            serde_json::Value::Array(ids) => ids.iter().filter_map(id).collect(),
            one => id(one).into_iter().collect(),
        }
    }
}
