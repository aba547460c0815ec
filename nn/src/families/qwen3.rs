//! Qwen 3 (dense): Qwen 2 without the bias, with RMSNorm on each head's queries and keys.

use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let mut config = base(f, source, 32_768, 10_000.0)?;
    if !f.has("head_dim") {
        config.head_dim = 128;
        config.attention_scale = 1.0 / 128f64.sqrt();
        config.ropes[0].rotary_dim = 128;
    }
    let attention_bias = f.bool("attention_bias", false)?;
    config.qkv_bias = attention_bias;
    config.o_bias = attention_bias;
    config.qk_norm = QkNorm::PerHead;
    qwen2::upper_windows(&mut config, f)?;
    Ok(config)
}
