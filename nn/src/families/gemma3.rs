//! Gemma 3 (text): Gemma 2 without soft-caps, with QK-norm, and five sliding layers, which rotate by
//! a base of their own, to each full one.

use super::gemma2::{gemma, optional};
use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let mut config = gemma(f, source)?;
    config.qk_norm = QkNorm::PerHead;
    config.attention_softcap = optional(f, "attn_logit_softcapping", None)?;
    config.final_softcap = optional(f, "final_logit_softcapping", None)?;
    let (dim, positions) = (config.head_dim, config.max_positions);
    let global = Rope::read(f, Some("full_attention"), 1_000_000.0, dim, positions)?;
    let local = match f.opt_object("rope_parameters")? {
        Some(_) => Rope::read(f, Some("sliding_attention"), 10_000.0, dim, positions)?,
        None => Rope::plain(f.f64("rope_local_base_freq", 10_000.0)?, dim, positions),
    };
    config.ropes = vec![global, local];
    let pattern = match f.opt_usize("sliding_window_pattern")? {
        Some(p) => p,
        None => f.opt_usize("_sliding_window_pattern")?.unwrap_or(6),
    };
    if pattern == 0 {
        let (key, value) = ("sliding_window_pattern", "0".into());
        return Err(ConfigError::Value { key, value, expected: "at least 1".into() });
    }
    let window = f.opt_usize("sliding_window")?.unwrap_or(4096);
    windows(&mut config, f, Some(window), |i| !(i + 1).is_multiple_of(pattern))?;
    for layer in &mut config.layers {
        layer.rope = Some(if layer.window.is_some() { 1 } else { 0 });
    }
    Ok(config)
}
