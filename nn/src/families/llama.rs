//! Llama 1 to 3.3, SmolLM2, and the many models that share their architecture.

use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let mut config = base(f, source, 2048, 10_000.0)?;
    let attention_bias = f.bool("attention_bias", false)?;
    config.qkv_bias = attention_bias;
    config.o_bias = attention_bias;
    config.mlp_bias = f.bool("mlp_bias", false)?;
    Ok(config)
}
