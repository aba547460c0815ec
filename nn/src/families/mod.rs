//! Model families: how each one's config.json maps to a [`ModelConfig`].
//!
//! To add one, write a file like its neighbours and list it in `FAMILIES`.

mod deepseek;
mod deepseek_v2;
mod deepseek_v3;
mod gemma2;
mod gemma3;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod olmoe;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod smollm3;

use serde_json::Value;

use crate::config::{
    Activation, ConfigError, ExpertNames, Fields, Groups, Latent, LayerConfig, ModelConfig, Moe, NormPlacement, QkNorm,
    Rope, RopeScaling, Scoring,
};

type Result<T> = std::result::Result<T, ConfigError>;

/// Reads a family's config.json, given as entries and as it is.
type Reader = fn(&Fields<'_>, &Value) -> Result<ModelConfig>;

/// `model_type` and the reader of its config.json.
const FAMILIES: &[(&str, Reader)] = &[
    ("llama", llama::read),
    ("mistral", mistral::read),
    ("qwen2", qwen2::read),
    ("qwen3", qwen3::read),
    ("gemma2", gemma2::read),
    ("gemma3_text", gemma3::read),
    ("phi3", phi3::read),
    ("olmo2", olmo2::read),
    ("smollm3", smollm3::read),
    ("granite", granite::read),
    ("mixtral", mixtral::read),
    ("qwen2_moe", qwen2_moe::read),
    ("qwen3_moe", qwen3_moe::read),
    ("olmoe", olmoe::read),
    ("deepseek_v2", deepseek_v2::read),
    ("deepseek_v3", deepseek_v3::read),
];

pub(crate) fn read(source: &Value) -> Result<ModelConfig> {
    let fields = Fields::new(source)?;
    let model_type = fields.opt_str("model_type")?.ok_or(ConfigError::Missing { key: "model_type" })?;
    match FAMILIES.iter().find(|(name, _)| *name == model_type) {
        Some((_, read)) => read(&fields, source),
        None => Err(ConfigError::UnknownModelType {
            model_type: model_type.to_string(),
            known: FAMILIES.iter().map(|(name, _)| *name).collect(),
        }),
    }
}

/// What Llama has: where the other families start from. `max_positions` is the default of the family.
fn base(f: &Fields<'_>, source: &Value, max_positions: usize, rope_theta: f64) -> Result<ModelConfig> {
    let hidden_size = f.usize("hidden_size")?;
    let num_heads = f.usize("num_attention_heads")?;
    let head_dim = match f.opt_usize("head_dim")? {
        Some(d) => d,
        None if num_heads > 0 && hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            return Err(ConfigError::Contradiction {
                what: format!("hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({num_heads})"),
            });
        }
    };
    with_heads(f, source, max_positions, rope_theta, head_dim)
}

/// As [`base`], with heads of this width.
fn with_heads(
    f: &Fields<'_>,
    source: &Value,
    max_positions: usize,
    rope_theta: f64,
    head_dim: usize,
) -> Result<ModelConfig> {
    let hidden_size = f.usize("hidden_size")?;
    let num_heads = f.usize("num_attention_heads")?;
    let num_layers = f.usize("num_hidden_layers")?;
    // Before anything of that length is made.
    if num_layers > 1_000 {
        let (key, value) = ("num_hidden_layers", num_layers.to_string());
        return Err(ConfigError::Value { key, value, expected: "from 1 to 1000".into() });
    }
    let max_positions = f.opt_usize("max_position_embeddings")?.unwrap_or(max_positions);
    let rotary_dim = partial(head_dim, f)?;
    Ok(ModelConfig {
        model_type: f.opt_str("model_type")?.unwrap_or_default().to_string(),
        vocab_size: f.usize("vocab_size")?,
        hidden_size,
        intermediate_size: f.usize("intermediate_size")?,
        num_heads,
        num_kv_heads: f.opt_usize("num_key_value_heads")?.unwrap_or(num_heads),
        head_dim,
        norm_eps: f.f64("rms_norm_eps", 1e-6)?,
        norm_offset: 0.0,
        norm_placement: NormPlacement::Pre,
        qk_norm: QkNorm::None,
        activation: activation(f, "hidden_act")?,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        fused_projections: false,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
        attention_softcap: None,
        final_softcap: None,
        embedding_scale: 1.0,
        scales_all_inputs: false,
        residual_scale: 1.0,
        logit_scale: 1.0,
        ropes: vec![Rope::read(f, None, rope_theta, rotary_dim, max_positions)?],
        max_positions,
        tie_word_embeddings: f.bool("tie_word_embeddings", false)?,
        latent: None,
        moe: None,
        layers: vec![LayerConfig { window: None, rope: Some(0), sparse: false }; num_layers],
        source: source.clone(),
    })
}

/// What families with experts have in common. `num_local_experts` is transformers 5's name for `num_experts`;
/// `aux` is the family's default of `router_aux_loss_coef`.
fn moe(f: &Fields<'_>, width: usize, names: ExpertNames, normalises: bool, aux: f64) -> Result<Moe> {
    let experts = match f.opt_usize("num_experts")? {
        Some(experts) => experts,
        None => f.usize("num_local_experts")?,
    };
    Ok(Moe {
        experts,
        per_token: f.usize("num_experts_per_tok")?,
        width,
        shared_width: None,
        shared_gate: false,
        scoring: Scoring::Softmax,
        groups: None,
        bias: false,
        normalises,
        scale: 1.0,
        aux_coefficient: f.f64("router_aux_loss_coef", aux)?,
        names,
    })
}

/// Refuses windows, which no published model of Qwen's with experts has.
fn no_windows(f: &Fields<'_>) -> Result<()> {
    match f.bool("use_sliding_window", false)? {
        true => Err(ConfigError::Unsupported { what: "`use_sliding_window` with experts".into() }),
        false => Ok(()),
    }
}

/// Gives the layers experts that Qwen's keys pick: every `decoder_sparse_step`th, but for `mlp_only_layers`.
fn sparse_layers(config: &mut ModelConfig, f: &Fields<'_>) -> Result<()> {
    let step = f.opt_usize("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        let (key, value) = ("decoder_sparse_step", "0".to_string());
        return Err(ConfigError::Value { key, value, expected: "at least 1".into() });
    }
    let (dense, layers) = (f.opt_f64s("mlp_only_layers")?.unwrap_or_default(), config.layers.len());
    if let Some(wrong) = dense.iter().find(|d| !(d.fract() == 0.0 && (0.0..layers as f64).contains(*d))) {
        let expected = format!("numbers of the {layers} layers, from 0");
        return Err(ConfigError::Value { key: "mlp_only_layers", value: format!("a list with {wrong}"), expected });
    }
    for (i, layer) in config.layers.iter_mut().enumerate() {
        layer.sparse = (i + 1).is_multiple_of(step) && !dense.contains(&(i as f64));
    }
    if config.layers.iter().any(|layer| layer.sparse) {
        return Ok(());
    }
    let what = format!(
        "num_experts asks for experts, but decoder_sparse_step ({step}) and mlp_only_layers leave none of the {layers} \
         layers with them"
    );
    Err(ConfigError::Contradiction { what })
}

/// Dimensions of a head that RoPE turns.
fn partial(head_dim: usize, f: &Fields<'_>) -> Result<usize> {
    let nested = f.opt_object("rope_parameters")?.map(|r| r.opt_f64("partial_rotary_factor")).transpose()?.flatten();
    let factor = match nested {
        Some(factor) => factor,
        None => f.f64("partial_rotary_factor", 1.0)?,
    };
    if !(factor > 0.0 && factor <= 1.0) {
        let (key, value) = ("partial_rotary_factor", factor.to_string());
        return Err(ConfigError::Value { key, value, expected: "above 0 and at most 1".into() });
    }
    Ok((head_dim as f64 * factor) as usize)
}

fn activation(f: &Fields<'_>, key: &str) -> Result<Activation> {
    match f.opt_str(key)?.unwrap_or("silu") {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        other => Err(ConfigError::Unsupported { what: format!("`{key}` {other:?}") }),
    }
}

/// Gives the layers that `sliding(i)` picks, or that `layer_types` names, a window.
fn windows(
    config: &mut ModelConfig,
    f: &Fields<'_>,
    window: Option<usize>,
    sliding: impl Fn(usize) -> bool,
) -> Result<()> {
    let types = f.opt_strs("layer_types")?;
    if let Some(types) = types.as_ref().filter(|t| t.len() != config.layers.len()) {
        return Err(ConfigError::Contradiction {
            what: format!("layer_types has {} entries for {} layers", types.len(), config.layers.len()),
        });
    }
    for (i, layer) in config.layers.iter_mut().enumerate() {
        let slides = match types.as_ref().map(|t| t[i]) {
            Some("sliding_attention") => true,
            Some("full_attention") => false,
            Some(other) => return Err(ConfigError::Unsupported { what: format!("layer type {other:?}") }),
            None => sliding(i),
        };
        layer.window = window.filter(|_| slides);
    }
    Ok(())
}
