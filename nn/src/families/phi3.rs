//! Phi-3, Phi-3.5 and Phi-4-mini: Llama with q, k, v in one weight and gate, up in another.

use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let mut config = base(f, source, 4096, 10_000.0)?;
    config.norm_eps = f.f64("rms_norm_eps", 1e-5)?;
    config.fused_projections = true;
    let window = f.opt_usize("sliding_window")?;
    windows(&mut config, f, window, |_| true)?;
    Ok(config)
}
