//! Qwen 1.5 and 2 with experts, and one more that all tokens share.

use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let mut config = base(f, source, 32_768, 10_000.0)?;
    config.qkv_bias = f.bool("qkv_bias", true)?;
    no_windows(f)?;
    let width = f.usize("moe_intermediate_size")?;
    config.moe = Some(Moe {
        shared_width: Some(f.usize("shared_expert_intermediate_size")?),
        shared_gate: true,
        ..moe(f, width, ExpertNames::Mlp, f.bool("norm_topk_prob", false)?, 0.001)?
    });
    sparse_layers(&mut config, f)?;
    Ok(config)
}
