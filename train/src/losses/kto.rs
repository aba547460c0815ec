//! KTO: completions that are each good or bad, without pairs.

use super::dual::Dual;
use crate::config::KtoLossType;

/// With r = log π/π_ref of a completion and z ≥ 0 an estimate of KL(π ‖ π_ref):
///
/// | type | good | bad |
/// | --- | --- | --- |
/// | `kto` | 1 - σ(β (r - z)) | 1 - σ(β (z - r)) |
/// | `apo_zero_unpaired` | 1 - σ(β r) | σ(β r) |
///
/// each times its weight. z is a number, not differentiated.
///
/// # Source
/// Ethayarajh et al., "KTO", arXiv 2402.01306, equations 7 and 8; D'Oosterlinck et al., "Anchored preference
/// optimization", arXiv 2408.06266, equation 7.
#[derive(Debug, Clone, PartialEq)]
pub struct Kto {
    /// Which loss.
    pub loss_type: KtoLossType,
    /// β.
    pub beta: f64,
    /// Weight of good completions.
    pub desirable_weight: f64,
    /// Weight of bad ones.
    pub undesirable_weight: f64,
}

/// A completion's part in the loss, and its slope by the completion's log-probability.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LabelSlope {
    /// Loss.
    pub loss: f64,
    /// ∂L/∂(log π).
    pub slope: f64,
}

impl Kto {
    /// Whether z is used.
    pub fn needs_kl(&self) -> bool {
        self.loss_type == KtoLossType::Kto
    }

    /// Loss of a completion with this log π/π_ref, nats.
    pub fn loss(&self, logratio: f64, label: bool, kl: f64) -> LabelSlope {
        let r = Dual::variable(logratio, 0);
        let weight = if label { self.desirable_weight } else { self.undesirable_weight };
        let value = match (self.loss_type, label) {
            (KtoLossType::Kto, true) => (r - kl) * self.beta,
            (KtoLossType::Kto, false) => -(r - kl) * self.beta,
            (KtoLossType::ApoZeroUnpaired, true) => r * self.beta,
            (KtoLossType::ApoZeroUnpaired, false) => -r * self.beta,
        };
        // 1 - σ(v) = σ(-v), and so σ(β r) for bad completions of `apo_zero_unpaired`.
        let l = (-value).sigmoid() * weight;
        LabelSlope { loss: l.value, slope: l.slope[0] }
    }
}
