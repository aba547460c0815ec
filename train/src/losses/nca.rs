//! InfoNCA and NCA: several answers to a prompt, each with a number that says how good it is.

use super::dual::{Dual, sigmoid};
use super::list::{ListLoss, ListSlope};
use super::pair::{Nll, Side};

/// With ρ_i = β log π/π_ref of answer i of K, s_i its score, w = softmax(s / α):
///
/// | | ℓ |
/// | --- | --- |
/// | InfoNCA | -Σ_i w_i log softmax(ρ)_i |
/// | NCA | -Σ_i (w_i log σ(ρ_i) + log σ(-ρ_i) / K) |
///
/// Small α leave the best answer alone in w, where InfoNCA of two answers is DPO and NCA is `nca_pair`. InfoNCA looks at
/// differences of rewards only; NCA also holds each ρ_i where it belongs, so that good answers do not become less likely.
///
/// # Source
/// Chen et al., "Noise contrastive alignment of language models with explicit rewards", arXiv 2402.05369.
#[derive(Debug, Clone, PartialEq)]
pub struct Nca {
    /// Whether it is InfoNCA.
    pub info: bool,
    /// β.
    pub beta: f64,
    /// α, in units of the scores.
    pub alpha: f64,
    /// Weight of ℓ.
    pub weight: f64,
    /// Weight of cross-entropy on the best answers.
    pub nll: f64,
    /// Without: π_ref is 1 everywhere.
    pub reference_free: bool,
}

impl ListLoss for Nca {
    fn loss(&self, answers: &[Side], scores: &[f64]) -> ListSlope {
        let rewards: Vec<f64> = answers.iter().map(|side| self.reward(side)).collect();
        let found = contrast(self.info, &rewards, scores, self.alpha);
        let slopes = found.slopes.into_iter().map(|slope| self.weight * self.beta * slope).collect();
        ListSlope { loss: self.weight * found.loss, slopes }
    }

    fn has_reference(&self) -> bool {
        !self.reference_free
    }

    fn nll(&self) -> Option<Nll> {
        (self.nll != 0.0).then_some(Nll { weight: self.nll, prompt: false })
    }

    fn reward(&self, side: &Side) -> f64 {
        self.beta * side.logratio()
    }
}

/// ℓ of rewards ρ, with its slopes by them.
pub(super) fn contrast(info: bool, rewards: &[f64], scores: &[f64], alpha: f64) -> ListSlope {
    let scaled: Vec<f64> = scores.iter().map(|s| s / alpha).collect();
    let w = log_softmax(&scaled).into_iter().map(f64::exp);
    let k = rewards.len() as f64;
    let mut out = ListSlope::default();
    let p = log_softmax(rewards);
    for ((w, &reward), log_p) in w.zip(rewards).zip(p) {
        let (loss, slope) = match info {
            true => (-w * log_p, log_p.exp() - w),
            false => {
                let reward = Dual::constant(reward);
                let (up, down) = (reward.log_sigmoid().value, (-reward).log_sigmoid().value);
                (-w * up - down / k, sigmoid(reward.value) / k - w * sigmoid(-reward.value))
            }
        };
        out.loss += loss;
        out.slopes.push(slope);
    }
    out
}

/// x - log Σ e^x.
fn log_softmax(x: &[f64]) -> Vec<f64> {
    let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = x.iter().map(|x| (x - most).exp()).sum();
    x.iter().map(|x| x - most - sum.ln()).collect()
}
