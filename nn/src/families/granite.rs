//! Granite 3: Llama with four multipliers.

use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let mut config = llama::read(f, source)?;
    config.attention_scale = f.f64("attention_multiplier", 1.0)?;
    config.embedding_scale = f.f64("embedding_multiplier", 1.0)?;
    config.scales_all_inputs = true;
    config.residual_scale = f.f64("residual_multiplier", 1.0)?;
    config.logit_scale = 1.0 / f.f64("logits_scaling", 1.0)?;
    Ok(config)
}
