//! OLMoE: experts in every layer, norms over all queries and all keys.

use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let mut config = base(f, source, 4096, 10_000.0)?;
    config.norm_eps = f.f64("rms_norm_eps", 1e-5)?;
    if f.get("clip_qkv").is_some() {
        return Err(ConfigError::Unsupported { what: "`clip_qkv`".into() });
    }
    let attention_bias = f.bool("attention_bias", false)?;
    config.qkv_bias = attention_bias;
    config.o_bias = attention_bias;
    config.qk_norm = QkNorm::Whole;
    config.moe = Some(moe(f, config.intermediate_size, ExpertNames::Mlp, f.bool("norm_topk_prob", false)?, 0.01)?);
    config.layers.iter_mut().for_each(|layer| layer.sparse = true);
    Ok(config)
}
