//! Mistral 7B and its kin: Llama with a sliding window in every layer.

use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let mut config = base(f, source, 131_072, 10_000.0)?;
    // Absent means the first release's 4096; later releases say null.
    let window = if f.has("sliding_window") { f.opt_usize("sliding_window")? } else { Some(4096) };
    windows(&mut config, f, window, |_| true)?;
    Ok(config)
}
