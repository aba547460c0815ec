//! Gemma 2: norms around every block, soft-caps, a window in every other layer, a scaled embedding.

use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let mut config = gemma(f, source)?;
    config.attention_softcap = optional(f, "attn_logit_softcapping", Some(50.0))?;
    config.final_softcap = optional(f, "final_logit_softcapping", Some(30.0))?;
    let window = f.opt_usize("sliding_window")?.or(Some(4096).filter(|_| !f.has("sliding_window")));
    windows(&mut config, f, window, |i| i % 2 == 0)?;
    Ok(config)
}

/// What Gemma 2 and 3 share.
pub(super) fn gemma(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let mut config = base(f, source, 8192, 10_000.0)?;
    if !f.has("head_dim") {
        config.head_dim = 256;
        config.ropes[0].rotary_dim = 256;
    }
    let scalar = f.f64("query_pre_attn_scalar", 256.0)?;
    config.attention_scale = 1.0 / scalar.sqrt();
    config.norm_offset = 1.0;
    config.norm_placement = NormPlacement::PreAndPost;
    config.activation =
        if f.get("hidden_activation").is_some() { activation(f, "hidden_activation")? } else { Activation::GeluTanh };
    config.embedding_scale = (config.hidden_size as f64).sqrt();
    config.tie_word_embeddings = f.bool("tie_word_embeddings", true)?;
    let attention_bias = f.bool("attention_bias", false)?;
    config.qkv_bias = attention_bias;
    config.o_bias = attention_bias;
    Ok(config)
}

/// A number whose absence means the default and whose null means none.
pub(super) fn optional(f: &Fields<'_>, key: &str, default: Option<f64>) -> Result<Option<f64>> {
    if f.has(key) { f.opt_f64(key) } else { Ok(default) }
}
