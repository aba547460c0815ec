//! Losses of reward models: Bradley and Terry's of pairs, cross-entropy of steps.

use super::dual::Dual;
use super::pair::PairSlope;

/// ℓ = -log σ(r(chosen) - r(rejected) - m) + c (r(chosen) + r(rejected))², with the pair's margin m.
///
/// # Source
/// Bradley and Terry, "Rank analysis of incomplete block designs", 1952; the margin of Touvron et al., "Llama 2",
/// arXiv 2307.09288, equation 2; the centring of Eisenstein et al., "Helping or herding?", arXiv 2312.09244.
#[derive(Debug, Clone, PartialEq)]
pub struct BradleyTerry {
    /// c.
    pub center: f64,
}

impl BradleyTerry {
    /// The loss of a pair with these rewards, and its slopes by them.
    pub fn loss(&self, chosen: f64, rejected: f64, margin: f64) -> PairSlope {
        let (c, r) = (Dual::variable(chosen, 0), Dual::variable(rejected, 1));
        let l = -(c - r - margin).log_sigmoid() + (c + r).squared() * self.center;
        PairSlope { loss: l.value, chosen: l.slope[0], rejected: l.slope[1] }
    }
}

/// A step's part in the loss, and its slopes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSlope {
    /// Loss, nats.
    pub loss: f64,
    /// ∂ℓ/∂z₀ and ∂ℓ/∂z₁.
    pub slopes: [f64; 2],
    /// p = σ(z₁ - z₀), how probable it is that the step is right.
    pub right: f64,
}

/// Cross-entropy of a step with the logits z₀ of wrong and z₁ of right: ℓ = -log softmax(z)_y with y = 1 for a right step,
/// which is -log σ(z₁ - z₀) for a right and -log σ(z₀ - z₁) for a wrong one.
///
/// # Source
/// Uesato et al., "Solving math word problems with process- and outcome-based feedback", arXiv 2211.14275, section 2;
/// Lightman et al., "Let's verify step by step", arXiv 2305.20050, whose third label is not read.
pub fn step_loss(logits: [f64; 2], is_right: bool) -> StepSlope {
    let (wrong, right) = (Dual::variable(logits[0], 0), Dual::variable(logits[1], 1));
    let margin = right - wrong;
    let loss = -(if is_right { margin } else { -margin }).log_sigmoid();
    StepSlope { loss: loss.value, slopes: loss.slope, right: margin.sigmoid().value }
}
