//! What DeepSeek-V2 and V3 have in common: latent attention, and experts behind a few dense layers.

use super::*;

/// The defaults of a version, as transformers has them.
pub(super) struct Defaults {
    pub(super) max_positions: usize,
    pub(super) shared_experts: usize,
    pub(super) first_dense: usize,
    pub(super) scale: f64,
    /// Whether `rope_interleave` can say otherwise.
    pub(super) interleaved: bool,
}

/// Everything but how experts are chosen, for which `moe` stands as greedy.
pub(super) fn read(f: &Fields<'_>, source: &Value, defaults: &Defaults) -> Result<ModelConfig> {
    let latent = Latent {
        q_rank: if f.has("q_lora_rank") { f.opt_usize("q_lora_rank")? } else { Some(1536) },
        kv_rank: f.usize("kv_lora_rank")?,
        nope: f.usize("qk_nope_head_dim")?,
        rope: f.usize("qk_rope_head_dim")?,
        value: f.usize("v_head_dim")?,
        interleaved: defaults.interleaved,
        bias: f.bool("attention_bias", false)?,
    };
    for (key, value) in [("qk_nope_head_dim", latent.nope), ("qk_rope_head_dim", latent.rope)] {
        if value > 2048 {
            return Err(ConfigError::Value { key, value: value.to_string(), expected: "from 1 to 2048".into() });
        }
    }
    let mut config = with_heads(f, source, defaults.max_positions, 10_000.0, latent.head_dim())?;
    if config.num_kv_heads != config.num_heads {
        return Err(ConfigError::Contradiction {
            what: format!(
                "num_key_value_heads ({}) is not num_attention_heads ({}), as latent attention has it",
                config.num_kv_heads, config.num_heads
            ),
        });
    }
    if f.bool("mlp_bias", false)? {
        return Err(ConfigError::Unsupported { what: "`mlp_bias` with experts".into() });
    }
    if f.opt_usize("moe_layer_freq")?.is_some_and(|every| every != 1) {
        return Err(ConfigError::Unsupported { what: "`moe_layer_freq` other than 1".into() });
    }
    // transformers turns all of the rotated part, whatever the factor of other models says.
    config.ropes = vec![Rope::read(f, None, 10_000.0, latent.rope, config.max_positions)?];
    config.attention_scale = 1.0 / (latent.query_size() as f64).sqrt();
    if let RopeScaling::Yarn { factor, mscale_all_dim: Some(all), .. } = config.ropes[0].scaling
        && all != 0.0
        && factor > 1.0
    {
        let m = 0.1 * all * factor.ln() + 1.0;
        config.attention_scale *= m * m;
    }
    (config.latent, config.o_bias) = (Some(latent), latent.bias);
    let width = f.usize("moe_intermediate_size")?;
    let shared = match f.has("n_shared_experts") {
        true => f.opt_usize("n_shared_experts")?.unwrap_or(0),
        false => defaults.shared_experts,
    };
    let experts = match f.opt_usize("n_routed_experts")? {
        Some(experts) => experts,
        // Under transformers 5's names.
        None => f.opt_usize("num_experts")?.or(f.opt_usize("num_local_experts")?).ok_or(missing("n_routed_experts"))?,
    };
    config.moe = Some(Moe {
        experts,
        per_token: f.usize("num_experts_per_tok")?,
        width,
        shared_width: (shared > 0).then(|| width.saturating_mul(shared)),
        shared_gate: false,
        scoring: Scoring::Softmax,
        groups: None,
        bias: false,
        normalises: false,
        scale: f.f64("routed_scaling_factor", defaults.scale)?,
        aux_coefficient: f.f64("router_aux_loss_coef", 0.0)?,
        names: ExpertNames::DeepSeek,
    });
    let first = f.opt_usize("first_k_dense_replace")?.unwrap_or(defaults.first_dense);
    config.layers.iter_mut().enumerate().for_each(|(i, layer)| layer.sparse = i >= first);
    Ok(config)
}

fn missing(key: &'static str) -> ConfigError {
    ConfigError::Missing { key }
}

/// Refuses a `key` that says otherwise than the family.
pub(super) fn only(f: &Fields<'_>, key: &'static str, known: &str) -> Result<()> {
    match f.opt_str(key)? {
        Some(other) if other != known => Err(ConfigError::Unsupported { what: format!("`{key}` {other:?}") }),
        _ => Ok(()),
    }
}
