//! Mixtral: Mistral with experts in every layer.

use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let mut config = base(f, source, 131_072, 1_000_000.0)?;
    config.norm_eps = f.f64("rms_norm_eps", 1e-5)?;
    if f.opt_f64("router_jitter_noise")?.is_some_and(|noise| noise != 0.0) {
        return Err(ConfigError::Unsupported { what: "`router_jitter_noise` above 0".into() });
    }
    let window = f.opt_usize("sliding_window")?;
    windows(&mut config, f, window, |_| true)?;
    config.moe = Some(moe(f, config.intermediate_size, ExpertNames::Mixtral, true, 0.001)?);
    config.layers.iter_mut().for_each(|layer| layer.sparse = true);
    Ok(config)
}
