//! What a layer of experts is made of.

use super::fields::ConfigError;

/// How files name the parts of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertNames {
    /// `block_sparse_moe.experts.0.w1`, `w3`, `w2`: Mixtral.
    Mixtral,
    /// `mlp.experts.0.gate_proj`, `up_proj`, `down_proj`, and `mlp.shared_expert`: Qwen, OLMoE.
    Mlp,
    /// The same with `mlp.shared_experts`: DeepSeek.
    DeepSeek,
}

/// What a router makes of its logits: each expert's score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over the experts.
    Softmax,
    /// A sigmoid of each: DeepSeek-V3.
    Sigmoid,
}

/// Experts in groups, of which a token uses only some: routing that is limited to few devices (DeepSeek-V2,
/// arXiv:2405.04434, section 2.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// How many; experts follow each other in them.
    pub count: usize,
    /// Groups of a token.
    pub kept: usize,
    /// A group is as good as the sum of so many of its best experts: 1 in V2, 2 in V3.
    pub judged_by: usize,
}

/// Experts in the MLP's place: a router chooses a few for each token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moe {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts of a token.
    pub per_token: usize,
    /// Width of an expert's MLP.
    pub width: usize,
    /// Width of the MLP that all tokens share, if there is one.
    pub shared_width: Option<usize>,
    /// Whether that stands behind a gate of its own.
    pub shared_gate: bool,
    /// What the router's logits become.
    pub scoring: Scoring,
    /// Groups that a token's experts come from.
    pub groups: Option<Groups>,
    /// Whether a bias, which balances the load, is added to the scores for the choice alone (arXiv:2408.15664).
    pub bias: bool,
    /// Whether a token's weights are made to sum to 1.
    pub normalises: bool,
    /// Factor on a token's weights.
    pub scale: f64,
    /// The model's own weight of the load-balancing loss.
    pub aux_coefficient: f64,
    /// How files name them.
    pub names: ExpertNames,
}

impl Moe {
    /// Refuses what no layer of experts can be. `max_width` bounds the widths.
    pub(super) fn validate(&self, max_width: usize) -> Result<(), ConfigError> {
        let sizes = [("num_experts", self.experts, 1 << 16), ("moe_intermediate_size", self.width, max_width)];
        let shared = self.shared_width.map(|w| ("shared_expert_intermediate_size", w, max_width));
        let chosen = ("num_experts_per_tok", self.per_token, self.experts);
        for (key, value, most) in sizes.into_iter().chain(shared).chain([chosen]) {
            between(key, value, most)?;
        }
        for (key, value) in [("routed_scaling_factor", self.scale), ("router_aux_loss_coef", self.aux_coefficient)] {
            if !(value.is_finite() && value >= 0.0) {
                let (value, expected) = (value.to_string(), "finite and not negative".to_string());
                return Err(ConfigError::Value { key, value, expected });
            }
        }
        let Some(groups) = &self.groups else { return Ok(()) };
        between("n_group", groups.count, self.experts)?;
        between("topk_group", groups.kept, groups.count)?;
        let size = self.experts / groups.count;
        let what = if !self.experts.is_multiple_of(groups.count) {
            format!("n_routed_experts ({}) is not a multiple of n_group ({})", self.experts, groups.count)
        } else if size < groups.judged_by {
            format!(
                "n_group ({}) leaves {size} expert(s) in a group, which is judged by {}",
                groups.count, groups.judged_by
            )
        } else if size * groups.kept < self.per_token {
            let (kept, per_token) = (groups.kept, self.per_token);
            format!("topk_group ({kept}) groups of {size} have fewer experts than num_experts_per_tok ({per_token})")
        } else {
            return Ok(());
        };
        Err(ConfigError::Contradiction { what })
    }
}

fn between(key: &'static str, value: usize, most: usize) -> Result<(), ConfigError> {
    if value == 0 || value > most {
        return Err(ConfigError::Value { key, value: value.to_string(), expected: format!("from 1 to {most}") });
    }
    Ok(())
}
