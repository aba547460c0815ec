//! KTO, APO and BCO: completions that are each good or bad, without pairs.

use serde::{Deserialize, Serialize};

use super::dual::Dual;
use crate::config::KtoLossType;

/// With r = log π/π_ref of a completion, z ≥ 0 an estimate of KL(π ‖ π_ref), and δ the mean of all rewards β r so far:
///
/// | type | good | bad |
/// | --- | --- | --- |
/// | `kto` | 1 - σ(β (r - z)) | 1 - σ(β (z - r)) |
/// | `apo_zero_unpaired` | 1 - σ(β r) | σ(β r) |
/// | `bco` | -log σ(β r - δ) | -log σ(δ - β r) |
///
/// each times its weight. z and δ are numbers, not differentiated.
///
/// # Source
/// Ethayarajh et al., "KTO", arXiv 2402.01306, equations 7 and 8; D'Oosterlinck et al., "Anchored preference
/// optimization", arXiv 2408.06266, equation 7; Jung et al., "Binary classifier optimization for large language model
/// alignment", arXiv 2404.04656, with the mean over all completions where the paper has that of both labels'
/// means, as TRL's `BCOTrainer` had (without its matching of underlying distributions).
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

    /// Whether δ is used.
    pub fn is_running(&self) -> bool {
        self.loss_type == KtoLossType::Bco
    }

    /// Whether a completion's loss is -log σ of how far it is on the side of its label.
    pub fn is_of_a_classifier(&self) -> bool {
        self.is_running() && self.desirable_weight == 1.0 && self.undesirable_weight == 1.0
    }

    /// Whether a completion with this reward is on the side of its label: of δ for `bco`, else of 0.
    pub fn is_right(&self, reward: f64, label: bool, anchor: f64) -> bool {
        let middle = if self.is_running() { anchor } else { 0.0 };
        if label { reward > middle } else { reward < middle }
    }

    /// Loss of a completion with this log π/π_ref, nats. `anchor` is z (nats) or δ, where the loss has one.
    pub fn loss(&self, logratio: f64, label: bool, anchor: f64) -> LabelSlope {
        let r = Dual::variable(logratio, 0);
        let weight = if label { self.desirable_weight } else { self.undesirable_weight };
        let value = match (self.loss_type, label) {
            (KtoLossType::Kto, true) => (r - anchor) * self.beta,
            (KtoLossType::Kto, false) => -(r - anchor) * self.beta,
            (KtoLossType::Bco, true) => r * self.beta - anchor,
            (KtoLossType::Bco, false) => -(r * self.beta - anchor),
            (KtoLossType::ApoZeroUnpaired, true) => r * self.beta,
            (KtoLossType::ApoZeroUnpaired, false) => -r * self.beta,
        };
        // 1 - σ(v) = σ(-v), and so σ(β r) for bad completions of `apo_zero_unpaired`.
        let l = match self.loss_type {
            KtoLossType::Bco => -value.log_sigmoid(),
            KtoLossType::Kto | KtoLossType::ApoZeroUnpaired => (-value).sigmoid(),
        } * weight;
        LabelSlope { loss: l.value, slope: l.slope[0] }
    }
}

/// The mean of all numbers so far: BCO's δ, of rewards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Running {
    /// It; 0 of none.
    pub mean: f64,
    /// How many.
    pub count: u64,
}

impl Running {
    /// Takes in these.
    pub fn add(&mut self, numbers: &[f64]) {
        if numbers.is_empty() {
            return;
        }
        self.count += numbers.len() as u64;
        let sum: f64 = numbers.iter().map(|x| x - self.mean).sum();
        self.mean += sum / self.count as f64;
    }
}
