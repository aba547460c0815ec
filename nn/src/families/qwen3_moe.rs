//! Qwen 3 with experts.

use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let mut config = base(f, source, 32_768, 10_000.0)?;
    no_windows(f)?;
    let attention_bias = f.bool("attention_bias", false)?;
    config.qkv_bias = attention_bias;
    config.o_bias = attention_bias;
    config.qk_norm = QkNorm::PerHead;
    let width = f.usize("moe_intermediate_size")?;
    config.moe = Some(moe(f, width, ExpertNames::Mlp, f.bool("norm_topk_prob", false)?, 0.001)?);
    sparse_layers(&mut config, f)?;
    Ok(config)
}
