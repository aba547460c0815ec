//! What a loss of several answers to one prompt is.

use super::pair::{Nll, Pair, PairLoss, Side};

/// A row's loss, and its slopes by the log-probability of each answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ListSlope {
    /// Loss.
    pub loss: f64,
    /// ∂ℓ/∂(log π) of each answer.
    pub slopes: Vec<f64>,
}

/// A loss of answers to one prompt, each with a score. The loss of a step is
///
/// ```text
/// L = Σ_rows ℓ / rows + nll.weight · Σ_tokens -log p / tokens
/// ```
///
/// over all rows, and all tokens of their best answers, of the step.
pub trait ListLoss: Send + Sync {
    /// ℓ of a row.
    fn loss(&self, answers: &[Side], scores: &[f64]) -> ListSlope;

    /// Whether there is a reference to compare with.
    fn has_reference(&self) -> bool;

    /// The term of cross-entropy, which takes in no prompt.
    fn nll(&self) -> Option<Nll>;

    /// The implicit reward of an answer, for the metrics `rewards/…`.
    fn reward(&self, side: &Side) -> f64;

    /// The number of an answer that `logps/…` shows.
    fn shown(&self, side: &Side) -> f64 {
        side.logp
    }
}

/// ℓ = Σ_{s_i > s_j} of a loss of pairs: all pairs of answers whose scores differ.
pub struct AllPairs(Box<dyn PairLoss>);

impl AllPairs {
    /// Of this loss.
    ///
    /// # Panics
    /// If it couples pairs, weighs them, or takes in prompts.
    pub fn new(loss: Box<dyn PairLoss>) -> AllPairs {
        assert!(!loss.couples() && !loss.weighs() && loss.nll().is_none_or(|nll| !nll.prompt), "of two answers alone");
        AllPairs(loss)
    }
}

impl ListLoss for AllPairs {
    fn loss(&self, answers: &[Side], scores: &[f64]) -> ListSlope {
        let mut out = ListSlope { loss: 0.0, slopes: vec![0.0; answers.len()] };
        let order = ordered(scores);
        let pairs = order.iter().map(|&(i, j)| Pair { chosen: answers[i], rejected: answers[j] });
        let found = self.0.losses(&pairs.collect::<Vec<_>>());
        for (&(i, j), found) in order.iter().zip(&found) {
            out.loss += found.loss;
            out.slopes[i] += found.chosen;
            out.slopes[j] += found.rejected;
        }
        out
    }

    fn has_reference(&self) -> bool {
        self.0.has_reference()
    }

    fn nll(&self) -> Option<Nll> {
        self.0.nll()
    }

    fn reward(&self, side: &Side) -> f64 {
        self.0.reward(side)
    }

    fn shown(&self, side: &Side) -> f64 {
        self.0.shown(side)
    }
}

/// The pairs (i, j) of places with the score of i above that of j.
pub fn ordered(scores: &[f64]) -> Vec<(usize, usize)> {
    let n = scores.len();
    (0..n).flat_map(|i| (0..n).map(move |j| (i, j))).filter(|&(i, j)| scores[i] > scores[j]).collect()
}
