//! How well rewards tell the sides of pairs apart: accuracy, by length too, and calibration.

use serde::Serialize;

/// A pair with the rewards of its sides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judged {
    /// Reward of the chosen side, less that of the rejected one.
    pub margin: f64,
    /// Which side is longer, if one is.
    pub length: Option<Length>,
}

/// Which side is longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// The chosen one.
    ChosenLonger,
    /// The rejected one.
    ChosenShorter,
}

impl Length {
    /// The metric of the accuracy over such pairs.
    pub fn metric(self) -> &'static str {
        match self {
            Length::ChosenLonger => "accuracy/chosen_longer",
            Length::ChosenShorter => "accuracy/chosen_shorter",
        }
    }
}

impl Judged {
    /// From rewards and tokens of the chosen and the rejected side.
    pub fn new(rewards: [f64; 2], tokens: [usize; 2]) -> Judged {
        let length = match tokens[0].cmp(&tokens[1]) {
            std::cmp::Ordering::Greater => Some(Length::ChosenLonger),
            std::cmp::Ordering::Less => Some(Length::ChosenShorter),
            std::cmp::Ordering::Equal => None,
        };
        Judged { margin: rewards[0] - rewards[1], length }
    }

    /// 1 if the chosen side has the higher reward, else 0.
    pub fn right(&self) -> f64 {
        f64::from(u8::from(self.margin > 0.0))
    }

    /// σ(|margin|): how probable the model of Bradley and Terry finds it that the side with the higher reward is
    /// preferred.
    pub fn confidence(&self) -> f64 {
        1.0 / (1.0 + (-self.margin.abs()).exp())
    }
}

/// Pairs of some kind, and the share of them that was judged right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Share {
    /// How many.
    pub pairs: u64,
    /// Share with the higher reward on the chosen side; 0 of none.
    pub accuracy: f64,
}

/// z of 95% of a normal distribution.
const Z_95: f64 = 1.959_963_984_540_054;

impl Share {
    /// Where the accuracy over all such pairs lies with 95% confidence, as far as these are a random draw of them:
    /// (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n), *p* the accuracy, *n* the pairs; 0 to 1 of none.
    ///
    /// # Source
    /// Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    pub fn interval(&self) -> [f64; 2] {
        if self.pairs == 0 {
            return [0.0, 1.0];
        }
        let (p, n, z) = (self.accuracy, self.pairs as f64, Z_95);
        let centre = p + z * z / (2.0 * n);
        let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        let [low, high] = [-1.0, 1.0].map(|sign| (centre + sign * half) / (1.0 + z * z / n));
        // The accuracy lies between them, and they between 0 and 1, but for rounding.
        [low.min(p), high.max(p)].map(|end| end.clamp(0.0, 1.0))
    }

    fn add(&mut self, right: f64) {
        self.pairs += 1;
        self.accuracy += (right - self.accuracy) / self.pairs as f64;
    }
}

/// Pairs whose confidence lies in a range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Bin {
    /// Least confidence.
    pub from: f64,
    /// The pairs.
    #[serde(flatten)]
    pub share: Share,
    /// Their mean confidence; 0 of none.
    pub confidence: f64,
}

/// Number of ranges of confidence, from ½ to 1.
const BINS: usize = 10;

/// What came of many pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judgement {
    /// All.
    #[serde(flatten)]
    pub all: Share,
    /// Mean margin.
    pub margin: f64,
    /// Those whose chosen side is longer.
    pub chosen_longer: Share,
    /// Those whose chosen side is shorter.
    pub chosen_shorter: Share,
    /// By confidence, ten ranges of equal width from ½ to 1.
    pub calibration: Vec<Bin>,
    /// Σ pairs of a range · |accuracy - confidence| / pairs, over the ranges: 0 where confidence is what it says.
    ///
    /// # Source
    /// Guo et al., "On calibration of modern neural networks", arXiv 1706.04599, equation 3.
    pub expected_calibration_error: f64,
}

impl Default for Judgement {
    fn default() -> Self {
        let bin = |i: usize| Bin { from: 0.5 + 0.5 * i as f64 / BINS as f64, ..Bin::default() };
        Judgement {
            all: Share::default(),
            margin: 0.0,
            chosen_longer: Share::default(),
            chosen_shorter: Share::default(),
            calibration: (0..BINS).map(bin).collect(),
            expected_calibration_error: 0.0,
        }
    }
}

impl Judgement {
    /// Takes in a pair.
    pub fn add(&mut self, pair: &Judged) {
        let right = pair.right();
        self.all.add(right);
        let pairs = self.all.pairs as f64;
        self.margin += (pair.margin - self.margin) / pairs;
        match pair.length {
            Some(Length::ChosenLonger) => self.chosen_longer.add(right),
            Some(Length::ChosenShorter) => self.chosen_shorter.add(right),
            None => {}
        }
        let place = ((pair.confidence() - 0.5) * 2.0 * BINS as f64) as usize;
        let bin = &mut self.calibration[place.min(BINS - 1)];
        bin.share.add(right);
        bin.confidence += (pair.confidence() - bin.confidence) / bin.share.pairs as f64;
        let off = |b: &Bin| b.share.pairs as f64 * (b.share.accuracy - b.confidence).abs();
        self.expected_calibration_error = self.calibration.iter().map(off).sum::<f64>() / pairs;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_wilsons() {
        for (pairs, accuracy) in [(200, 0.61), (10, 0.0), (10, 1.0), (1, 1.0)] {
            let found @ [low, high] = Share { pairs, accuracy }.interval();
            assert!(low <= accuracy && accuracy <= high && low < high, "{found:?}");
            // An end e is a share from which the accuracy is 1.96 of its standard deviations away.
            for e in found {
                // 1.96² is 1.4e-4 more than z², of a variance.
                let (away, variance) = (accuracy - e, e * (1.0 - e) / pairs as f64);
                assert!((away * away - 1.96 * 1.96 * variance).abs() <= 1e-3 * variance + 1e-15, "{found:?}");
            }
        }
        assert_eq!(Share::default().interval(), [0.0, 1.0]);
    }

    #[test]
    fn shares_and_ranges_are_those_of_the_pairs() {
        let mut found = Judgement::default();
        // σ(ln 3) = ¾, σ(ln 9) = 0.9; the second is judged wrong.
        for (rewards, tokens) in [
            ([3f64.ln(), 0.0], [5, 3]),
            ([0.0, 3f64.ln()], [2, 3]),
            ([0.0, -(9f64.ln())], [4, 4]),
            ([1.0, 1.0], [4, 3]),
        ] {
            found.add(&Judged::new(rewards, tokens));
        }
        assert_eq!((found.all.pairs, found.all.accuracy), (4, 0.5));
        assert!((found.margin - 9f64.ln() / 4.0).abs() <= 1e-15);
        assert_eq!(found.chosen_longer, Share { pairs: 2, accuracy: 0.5 });
        assert_eq!(found.chosen_shorter, Share { pairs: 1, accuracy: 0.0 });
        let filled: Vec<(u64, f64)> =
            found.calibration.iter().filter(|b| b.share.pairs > 0).map(|b| (b.share.pairs, b.share.accuracy)).collect();
        assert_eq!(filled.iter().map(|f| f.0).sum::<u64>(), 4);
        // Equal rewards, twice ¾ of which one is right, and 0.9: 1 · 0.5 + 2 · 0.25 + 1 · 0.1, of 4.
        assert!((found.expected_calibration_error - 1.1 / 4.0).abs() <= 1e-12, "{found:?}");
    }
}
