//! Bradley and Terry's loss of reward models.

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
