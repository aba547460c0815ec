//! ORPO: cross-entropy on the chosen answer, and the odds of the chosen over the rejected one.

use super::dual::Dual;
use super::pair::{Nll, Pair, PairLoss, PairSlope, Side};

/// ```text
/// ℓ = -λ log σ(log odds(chosen) - log odds(rejected)),   odds = p / (1 - p),   p = exp(mean token log p)
/// ```
///
/// with cross-entropy of weight 1 on prompt and chosen completion. λ is `beta`.
///
/// # Source
/// Hong, Lee, Thorne, "ORPO", arXiv 2403.07691, equations 3 to 7; cross-entropy on the prompt too, as the
/// authors' program and TRL do.
#[derive(Debug, Clone, PartialEq)]
pub struct Orpo {
    /// λ.
    pub beta: f64,
}

/// Mean log-probabilities above this are 1 to an f32, and 1 has no odds: such a side is at its end.
const SURE: f64 = -1e-7;

fn log_odds(pair: &Pair) -> Dual {
    let side = |s: &Side, which| (Dual::variable(s.logp, which) / s.tokens.max(1.0)).at_most(SURE);
    let (chosen, rejected) = (side(&pair.chosen, 0), side(&pair.rejected, 1));
    (chosen - rejected) - (chosen.log1mexp() - rejected.log1mexp())
}

impl PairLoss for Orpo {
    fn losses(&self, pairs: &[Pair]) -> Vec<PairSlope> {
        let one = |pair| {
            let l = -(log_odds(pair).log_sigmoid() * self.beta);
            PairSlope { loss: l.value, chosen: l.slope[0], rejected: l.slope[1] }
        };
        pairs.iter().map(one).collect()
    }

    fn has_reference(&self) -> bool {
        false
    }

    fn nll(&self) -> Option<Nll> {
        Some(Nll { weight: 1.0, prompt: true })
    }

    fn reward(&self, side: &Side) -> f64 {
        self.beta * side.mean()
    }

    fn shown(&self, side: &Side) -> f64 {
        side.mean()
    }

    fn extra(&self, pair: &Pair) -> Vec<(&'static str, f64)> {
        let odds = log_odds(pair);
        vec![("log_odds_ratio", odds.log_sigmoid().value), ("log_odds_chosen", odds.value)]
    }
}
