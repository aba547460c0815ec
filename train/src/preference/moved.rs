//! How far a model has moved from its reference, token by token.

use crate::trainer::Sums;

/// The metric of it, nats a token: the mean of e^-|r| - 1 + |r| over tokens of the data, r = log π/π_ref.
///
/// For small r this is ½ r², which over tokens that either model draws is the divergence between them to second order;
/// where all r have one sign it is Schulman's k3 of KL(π ‖ π_ref) (r > 0) or of KL(π_ref ‖ π) (r < 0), in the direction
/// that no token makes explode; and it is never more than |r|, the nats by which a token's log-probability has changed.
/// But the tokens are those of the data, which neither model has drawn: it says how far the data's own tokens have moved,
/// and is no estimate of a divergence from afar.
///
/// # Source
/// Schulman, "Approximating KL divergence", 2020. Deviation: the sign of r chooses the direction.
pub(super) const MOVED: &str = "kl_per_token";

/// Adds the tokens of a completion, or of several, to [`MOVED`] or what it is called.
pub(super) fn measure_moved(to: &mut Sums, name: &str, logratios: impl Iterator<Item = f64>) {
    let (mut sum, mut tokens) = (0.0, 0.0);
    for r in logratios {
        let r = r.abs();
        sum += (-r).exp_m1() + r;
        tokens += 1.0;
    }
    to.measure(name, sum, tokens);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(logratios: &[f64]) -> f64 {
        let mut sums = Sums::default();
        measure_moved(&mut sums, MOVED, logratios.iter().copied());
        sums.get(MOVED).unwrap()
    }

    #[test]
    fn it_is_half_a_square_nearby_and_less_than_the_way_far_out() {
        for r in [1e-3, 1e-2, 0.1] {
            // The next term is r³/6.
            assert!((moved(&[r]) - 0.5 * r * r).abs() <= r * r * r / 6.0, "{r}");
        }
        for r in [0.5, 3.0, 9.2, 40.0, 900.0] {
            let found = moved(&[r]);
            assert!(found < r && found >= r - 1.0 && found < 0.5 * r * r, "{r}: {found}");
            assert_eq!(found, moved(&[-r]));
            assert!((moved(&[r, -r, 0.0]) - 2.0 / 3.0 * found).abs() <= 1e-12 * found);
        }
    }

    /// Two distributions, a token of each kind as often as one of them has it.
    #[test]
    fn nearby_it_is_the_divergence_of_tokens_that_a_model_draws() {
        let (p, q) = ([0.5f64, 0.3, 0.2], [0.52f64, 0.29, 0.19]);
        let kl: f64 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
        let drawn: f64 = p.iter().zip(q).map(|(p, q)| p * moved(&[(p / q).ln()])).sum();
        assert!((drawn / kl - 1.0).abs() <= 0.03, "{drawn} and {kl}");
    }
}
