//! CPO, SimPO, AlphaPO, RRHF and SLiC: losses of pairs without a reference.

use super::dual::Dual;
use super::pair::{Nll, Pair, PairLoss, PairSlope, Side};
use crate::config::CpoLossType;

/// With r = log p of a completion, the mean of its tokens for `ipo`, `simpo`, `alphapo` and `rrhf` and their sum otherwise, and with
/// α ≠ 0 AlphaPO's r = (1 - p^-α) / α in its place; Δ = r(chosen) - r(rejected), ε the label smoothing:
///
/// | type | ℓ |
/// | --- | --- |
/// | `sigmoid` | -(1 - ε) log σ(β Δ) - ε log σ(-β Δ) |
/// | `hinge` | max(0, 1 - β Δ) |
/// | `ipo` | (Δ - 1 / 2β)² |
/// | `simpo` | `sigmoid` of Δ - γ / β |
/// | `alphapo` | `simpo`, always without cross-entropy |
/// | `rrhf` | max(0, -Δ) |
///
/// and cross-entropy of weight `cpo_alpha` on the chosen completions.
///
/// # Source
/// Xu et al., "Contrastive preference optimization", arXiv 2401.08417, equation 3; Meng, Xia, Chen, "SimPO", arXiv
/// 2405.14734, equation 6; Gupta et al., "AlphaPO", arXiv 2501.03884, equation 8; Yuan et al., "RRHF", arXiv
/// 2304.05302, equations 2 to 4, its cross-entropy of the best answer as a mean over tokens, and of more than two answers
/// by [`Ranked`](crate::preference::Ranked). `hinge` is β
/// times the loss of Zhao et al., "SLiC-HF", arXiv 2305.10425, equation 2, with δ = 1/β, λ = `cpo_alpha`/β and the
/// chosen answer to stay near. Deviation from TRL: p^-α is
/// e^(-α log p), which long completions do not drive to infinity by way of p = 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Cpo {
    /// Which loss.
    pub loss_type: CpoLossType,
    /// β.
    pub beta: f64,
    /// ε.
    pub label_smoothing: f64,
    /// Weight of the cross-entropy.
    pub cpo_alpha: f64,
    /// γ, SimPO's margin.
    pub simpo_gamma: f64,
    /// AlphaPO's α.
    pub alpha: f64,
}

impl Cpo {
    fn is_by_token(&self) -> bool {
        !matches!(self.loss_type, CpoLossType::Sigmoid | CpoLossType::Hinge)
    }

    fn r(&self, side: &Side, which: usize) -> Dual {
        let tokens = if self.is_by_token() { side.tokens.max(1.0) } else { 1.0 };
        let log_p = Dual::variable(side.logp, which) / tokens;
        if self.alpha == 0.0 { log_p } else { (-((log_p * -self.alpha).exp()) + 1.0) / self.alpha }
    }

    fn loss(&self, pair: &Pair) -> Dual {
        let delta = self.r(&pair.chosen, 0) - self.r(&pair.rejected, 1);
        let beta = self.beta;
        let smoothed = |x: Dual| {
            let (kept, flipped) = (1.0 - self.label_smoothing, self.label_smoothing);
            -(x.log_sigmoid() * kept) - (-x).log_sigmoid() * flipped
        };
        match self.loss_type {
            CpoLossType::Sigmoid => smoothed(delta * beta),
            CpoLossType::Simpo | CpoLossType::Alphapo => smoothed(delta * beta - self.simpo_gamma),
            CpoLossType::Hinge => (-(delta * beta) + 1.0).relu(),
            CpoLossType::Rrhf => (-delta).relu(),
            CpoLossType::Ipo => (delta - 1.0 / (2.0 * beta)).squared(),
        }
    }
}

impl PairLoss for Cpo {
    fn losses(&self, pairs: &[Pair]) -> Vec<PairSlope> {
        let one = |pair| {
            let l = self.loss(pair);
            PairSlope { loss: l.value, chosen: l.slope[0], rejected: l.slope[1] }
        };
        pairs.iter().map(one).collect()
    }

    fn is_of_bradley_and_terry(&self) -> bool {
        let sigmoid = matches!(self.loss_type, CpoLossType::Sigmoid | CpoLossType::Simpo | CpoLossType::Alphapo);
        sigmoid && self.label_smoothing == 0.0 && self.nll().is_none()
    }

    fn has_reference(&self) -> bool {
        false
    }

    fn nll(&self) -> Option<Nll> {
        (self.cpo_alpha != 0.0 && self.loss_type != CpoLossType::Alphapo)
            .then_some(Nll { weight: self.cpo_alpha, prompt: false })
    }

    fn reward(&self, side: &Side) -> f64 {
        self.beta * self.r(side, 0).value
    }

    fn shown(&self, side: &Side) -> f64 {
        if self.is_by_token() { side.mean() } else { side.logp }
    }
}
