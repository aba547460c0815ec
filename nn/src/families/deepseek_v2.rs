//! DeepSeek-V2: latent attention; experts chosen greedily, in V2 itself from a few groups of them.

use super::deepseek::{Defaults, only};
use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let defaults = Defaults { max_positions: 2048, shared_experts: 2, first_dense: 0, scale: 1.0, interleaved: true };
    let mut config = deepseek::read(f, source, &defaults)?;
    only(f, "scoring_func", "softmax")?;
    // The model's own code then leaves the scale out, and transformers does not look at it.
    if f.bool("norm_topk_prob", false)? {
        return Err(ConfigError::Unsupported { what: "`norm_topk_prob` in a model of type deepseek_v2".into() });
    }
    let chosen = match f.opt_str("topk_method")?.unwrap_or("greedy") {
        "greedy" => None,
        "group_limited_greedy" => {
            Some(Groups { count: f.usize("n_group")?, kept: f.usize("topk_group")?, judged_by: 1 })
        }
        other => return Err(ConfigError::Unsupported { what: format!("`topk_method` {other:?}") }),
    };
    if let Some(moe) = &mut config.moe {
        moe.groups = chosen;
    }
    Ok(config)
}
