//! What is worth a word while a preference run goes on. Each is said once.

use crate::trainer::Sums;

/// Steps that are looked at together: a step's batch alone says little.
const WINDOW: u32 = 10;

/// Nats a token from which on a model has left what it could do; half of the square of a log-ratio of ±0.7, a
/// factor of two for every token.
const FAR: f64 = 0.25;

/// Means over windows of steps.
#[derive(Debug, Default)]
pub(super) struct Watch {
    has_reference: bool,
    steps: u32,
    chosen: f64,
    rejected: f64,
    kl: f64,
    said_fall: bool,
    said_far: bool,
}

impl Watch {
    pub(super) fn new(has_reference: bool) -> Watch {
        Watch { has_reference, ..Watch::default() }
    }

    /// Looks at a step; what is to be said.
    pub(super) fn look(&mut self, sums: &Sums) -> Vec<String> {
        let mut said = Vec::new();
        let reward = |name| sums.get(name).unwrap_or(0.0);
        self.chosen += reward("rewards/chosen");
        self.rejected += reward("rewards/rejected");
        self.kl += sums.get("kl").unwrap_or(0.0);
        self.steps += 1;
        if self.steps < WINDOW {
            return said;
        }
        let n = f64::from(WINDOW);
        let (chosen, rejected, kl) = (self.chosen / n, self.rejected / n, self.kl / n);
        (self.steps, self.chosen, self.rejected, self.kl) = (0, 0.0, 0.0, 0.0);
        if self.has_reference && !self.said_fall && chosen < 0.0 && rejected < chosen {
            self.said_fall = true;
            said.push(format!(
                "the chosen completions have become less likely than under the reference, along with the rejected ones (rewards {chosen:.3} and {rejected:.3} over {WINDOW} steps): the margin grows by unlearning both; cross-entropy on the chosen ones (--rpo-alpha 1) or the loss apo_zero holds them up"
            ));
        }
        if !self.said_far && kl > FAR {
            self.said_far = true;
            said.push(format!(
                "the model has moved about {kl:.2} nats a token from the reference: a higher beta or a lower learning rate keeps it nearer"
            ));
        }
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(chosen: f64, rejected: f64, kl: f64) -> Sums {
        let mut sums = Sums::new(1.0, 1.0);
        sums.measure("rewards/chosen", chosen, 1.0);
        sums.measure("rewards/rejected", rejected, 1.0);
        sums.measure("kl", kl, 1.0);
        sums
    }

    #[test]
    fn what_deserves_a_word_gets_one() {
        let said = |has_reference, sums: Sums| {
            let mut watch = Watch::new(has_reference);
            (0..35).flat_map(|_| watch.look(&sums)).collect::<Vec<_>>()
        };
        assert!(said(true, step(0.1, -0.2, 0.01)).is_empty());
        let fall = said(true, step(-0.1, -0.2, 0.01));
        assert!(fall.len() == 1 && fall[0].contains("less likely than under the reference"), "{fall:?}");
        let far = said(true, step(0.1, -0.2, 0.4));
        assert!(far.len() == 1 && far[0].contains("0.40 nats a token"), "{far:?}");
        // Without a reference rewards are log-probabilities, which are always negative.
        assert!(said(false, step(-0.1, -0.2, 0.0)).is_empty());
    }
}
