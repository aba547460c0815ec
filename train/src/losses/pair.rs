//! What a loss of preference pairs is: from the log-probabilities of the two sides to a number and its slopes.

/// One side of a pair: a completion under the model and under the reference.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Side {
    /// Σ of the completion's token log-probabilities, nats; with LD-DPO the tokens beyond the length of the
    /// shorter side count [`PairLoss::verbose_weight`] each.
    pub logp: f64,
    /// The same under the reference; 0 without one.
    pub reference: f64,
    /// Tokens of the completion.
    pub tokens: f64,
    /// Mean of log p - log Σ_v p(v)² over the completion, nats: how sure the model is of it compared with what
    /// it would write itself. Used by WPO, else 0.
    pub alignment: f64,
}

impl Side {
    /// log π/π_ref, nats.
    pub fn logratio(&self) -> f64 {
        self.logp - self.reference
    }

    /// Log-probability of a token, nats.
    pub fn mean(&self) -> f64 {
        self.logp / self.tokens.max(1.0)
    }
}

/// A pair.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pair {
    /// The better completion.
    pub chosen: Side,
    /// The worse one.
    pub rejected: Side,
}

/// A pair's part in the loss, and the slopes of the whole loss by its two log-probabilities.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PairSlope {
    /// Loss.
    pub loss: f64,
    /// ∂L/∂(chosen.logp).
    pub chosen: f64,
    /// ∂L/∂(rejected.logp).
    pub rejected: f64,
}

/// A term of cross-entropy on the chosen completions, besides the pairs' loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Nll {
    /// Its weight.
    pub weight: f64,
    /// Whether the prompt's tokens count too.
    pub prompt: bool,
}

/// A loss of preference pairs. The loss of a step is
///
/// ```text
/// L = Σ_pairs ℓ / pairs + nll.weight · Σ_tokens -log p / tokens
/// ```
///
/// over all pairs, and all chosen tokens, of the step.
pub trait PairLoss: Send + Sync {
    /// ℓ of each pair, with the slopes of Σ ℓ. Losses that couple pairs get a micro-batch at a time.
    fn losses(&self, pairs: &[Pair]) -> Vec<PairSlope>;

    /// Whether a pair's loss depends on the other pairs of its micro-batch.
    fn couples(&self) -> bool {
        false
    }

    /// Whether there is a reference to compare with.
    fn has_reference(&self) -> bool;

    /// The term of cross-entropy.
    fn nll(&self) -> Option<Nll> {
        None
    }

    /// What a token beyond the length of the shorter side counts (LD-DPO).
    fn verbose_weight(&self) -> f64 {
        1.0
    }

    /// Whether [`Side::alignment`] is needed.
    fn weighs(&self) -> bool {
        false
    }

    /// Whether a pair's whole loss is -log σ of its margin (of [`PairLoss::reward`], but for a constant).
    fn is_of_bradley_and_terry(&self) -> bool {
        false
    }

    /// The implicit reward of a side, for the metrics `rewards/…`.
    fn reward(&self, side: &Side) -> f64;

    /// The number of a side that `logps/…` shows.
    fn shown(&self, side: &Side) -> f64 {
        side.logp
    }

    /// More metrics of a pair.
    fn extra(&self, _pair: &Pair) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
}
