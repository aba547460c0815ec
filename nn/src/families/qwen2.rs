//! Qwen 2 and 2.5: Llama with a bias on q, k and v, and an optional window in the upper layers.

use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let mut config = base(f, source, 32_768, 10_000.0)?;
    config.qkv_bias = true;
    upper_windows(&mut config, f)?;
    Ok(config)
}

/// Layers from `max_window_layers` on slide, if `use_sliding_window` says so.
pub(super) fn upper_windows(config: &mut ModelConfig, f: &Fields<'_>) -> Result<()> {
    let window = if f.has("sliding_window") { f.opt_usize("sliding_window")? } else { Some(4096) };
    let window = window.filter(|_| f.bool("use_sliding_window", false) == Ok(true));
    let first = f.opt_usize("max_window_layers")?.unwrap_or(28);
    windows(config, f, window, |i| i >= first)
}
