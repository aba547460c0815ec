//! OLMo 2: norms after the blocks instead of before, and on the whole of queries and of keys.

use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let mut config = base(f, source, 2048, 10_000.0)?;
    config.norm_eps = f.f64("rms_norm_eps", 1e-5)?;
    config.norm_placement = NormPlacement::Post;
    config.qk_norm = QkNorm::Whole;
    let attention_bias = f.bool("attention_bias", false)?;
    config.qkv_bias = attention_bias;
    config.o_bias = attention_bias;
    Ok(config)
}
