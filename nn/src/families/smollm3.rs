//! SmolLM3: Llama whose every fourth layer has no positions (NoPE).

use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let mut config = base(f, source, 32_768, 2_000_000.0)?;
    config.tie_word_embeddings = f.bool("tie_word_embeddings", true)?;
    let attention_bias = f.bool("attention_bias", false)?;
    config.qkv_bias = attention_bias;
    config.o_bias = attention_bias;
    config.mlp_bias = f.bool("mlp_bias", false)?;
    qwen2::upper_windows(&mut config, f)?;
    // Despite its name, 1 in `no_rope_layers` means that the layer does rotate.
    let listed = f.opt_f64s("no_rope_layers")?;
    if let Some(listed) = listed.as_ref().filter(|l| l.len() != config.layers.len()) {
        return Err(ConfigError::Contradiction {
            what: format!("no_rope_layers has {} entries for {} layers", listed.len(), config.layers.len()),
        });
    }
    let interval = f.opt_usize("no_rope_layer_interval")?.unwrap_or(4).max(1);
    for (i, layer) in config.layers.iter_mut().enumerate() {
        let rotates = listed.as_ref().map_or(!(i + 1).is_multiple_of(interval), |l| l[i] != 0.0);
        layer.rope = rotates.then_some(0);
    }
    Ok(config)
}
