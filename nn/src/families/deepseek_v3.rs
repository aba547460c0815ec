//! DeepSeek-V3 and R1, Moonlight: latent attention; experts scored by sigmoids, chosen with a bias that balances them.

use super::deepseek::{Defaults, only};
use super::*;

pub(super) fn read(f: &Fields<'_>, source: &Value) -> Result<ModelConfig> {
    let interleaved = f.bool("rope_interleave", true)?;
    let defaults = Defaults { max_positions: 4096, shared_experts: 1, first_dense: 3, scale: 2.5, interleaved };
    let mut config = deepseek::read(f, source, &defaults)?;
    only(f, "scoring_func", "sigmoid")?;
    only(f, "topk_method", "noaux_tc")?;
    let (count, kept) = (f.opt_usize("n_group")?.unwrap_or(8), f.opt_usize("topk_group")?.unwrap_or(4));
    let normalises = f.bool("norm_topk_prob", true)?;
    if let Some(moe) = &mut config.moe {
        (moe.scoring, moe.bias, moe.normalises) = (Scoring::Sigmoid, true, normalises);
        moe.groups = Some(Groups { count, kept, judged_by: 2 });
    }
    Ok(config)
}
