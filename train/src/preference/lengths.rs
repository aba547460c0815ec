//! What length is worth to rewards.

use std::ops::AddAssign;

use crate::trainer::Sums;

/// The metric of what length is worth: the longer side's reward less the shorter one's, of pairs of unequal lengths.
pub(super) const LENGTH_MARGIN: &str = "rewards/length_margin";

/// Measures [`LENGTH_MARGIN`], or what it is called, of a pair's rewards and tokens.
pub(super) fn measure_length(to: &mut Sums, name: &str, [chosen, rejected]: [f64; 2], tokens: [f64; 2]) {
    // Equal lengths count nothing, but have a place: metrics are in one order whatever pair comes first.
    let (sign, is) =
        if tokens[0] > tokens[1] { (1.0, 1.0) } else { (-1.0, f64::from(u8::from(tokens[0] < tokens[1]))) };
    to.measure(name, is * sign * (chosen - rejected), is);
}

/// Lengths and rewards of labelled completions, whose [`LENGTH_MARGIN`] is the mean over all pairs of completions of
/// one label and unequal lengths: between labels, length and preference could not be told apart.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Lengths {
    /// Tokens and reward of each bad completion, and of each good one.
    labels: [Vec<(usize, f64)>; 2],
}

impl Lengths {
    /// Takes in a completion.
    pub(super) fn push(&mut self, label: bool, tokens: usize, reward: f64) {
        self.labels[usize::from(label)].push((tokens, reward));
    }

    /// Measures [`LENGTH_MARGIN`], or what it is called.
    pub(super) fn measure(self, to: &mut Sums, name: &str) {
        for mut all in self.labels {
            all.sort_by_key(|of| of.0);
            // Over all pairs, what a completion's reward is counted with: 1 for each that is shorter, -1 for each longer one.
            let mut shorter = 0;
            for equal in all.chunk_by(|a, b| a.0 == b.0) {
                let longer = all.len() - shorter - equal.len();
                let sum: f64 = equal.iter().map(|of| of.1).sum();
                to.measure(name, (shorter as f64 - longer as f64) * sum, (shorter * equal.len()) as f64);
                shorter += equal.len();
            }
        }
    }
}

impl AddAssign for Lengths {
    fn add_assign(&mut self, other: Lengths) {
        self.labels.iter_mut().zip(other.labels).for_each(|(to, from)| to.extend(from));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn of_labelled_completions_it_is_that_of_all_their_pairs(
            all in proptest::collection::vec((any::<bool>(), 1..6usize, -2.0..2.0f64), 0..12),
            cut in 0..12usize,
        ) {
            let mut pairs = Sums::default();
            for (i, a) in all.iter().enumerate() {
                for b in all[i + 1..].iter().filter(|b| a.0 == b.0) {
                    measure_length(&mut pairs, LENGTH_MARGIN, [a.2, b.2], [a.1 as f64, b.1 as f64]);
                }
            }
            let of = |part: &[(bool, usize, f64)]| {
                let mut lengths = Lengths::default();
                part.iter().for_each(|&(label, tokens, reward)| lengths.push(label, tokens, reward));
                lengths
            };
            // However they are cut into parts.
            let (head, tail) = all.split_at(cut.min(all.len()));
            let (mut lengths, mut found) = (of(head), Sums::default());
            lengths += of(tail);
            lengths.measure(&mut found, LENGTH_MARGIN);
            match (found.get(LENGTH_MARGIN), pairs.get(LENGTH_MARGIN)) {
                (Some(found), Some(want)) => prop_assert!((found - want).abs() <= 1e-12, "{} {}", found, want),
                (found, want) => prop_assert_eq!(found, want),
            }
        }
    }
}
