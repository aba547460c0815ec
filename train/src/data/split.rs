//! Training and validation rows of one file: disjoint, stable by seed, in file order, no memory.

use planish_tensor::rng::{Purpose, Stream};

use super::error::{DataError, Result};

/// How much is held out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ValidationSplit {
    /// A share of the rows, in (0, 1).
    Fraction(f64),
    /// A number of rows.
    Count(u64),
}

impl ValidationSplit {
    /// Reads `0.05` as a share and `200` as a count of rows.
    ///
    /// # Errors
    /// [`DataError::Setting`] for anything else.
    pub fn parse(text: &str) -> Result<ValidationSplit> {
        let bad = || DataError::Setting {
            key: "validation_split",
            value: text.into(),
            expected: "a fraction between 0 and 1, or a number of rows",
        };
        if let Ok(count) = text.trim().parse::<u64>() {
            return if count > 0 { Ok(ValidationSplit::Count(count)) } else { Err(bad()) };
        }
        match text.trim().parse::<f64>() {
            Ok(f) if f > 0.0 && f < 1.0 => Ok(ValidationSplit::Fraction(f)),
            _ => Err(bad()),
        }
    }

    /// Rows held out of each of several files with `rows` rows: together what was asked for, in
    /// proportion to their sizes.
    ///
    /// # Errors
    /// [`DataError::Split`] when nothing is held out, or nothing is left.
    pub(crate) fn share(self, rows: &[u64]) -> Result<Vec<u64>> {
        let total: u64 = rows.iter().sum();
        let held = match self {
            ValidationSplit::Fraction(f) => ((total as f64 * f).round() as u64).max(1),
            ValidationSplit::Count(n) => n,
        };
        if held == 0 || held >= total {
            let asked = match self {
                ValidationSplit::Fraction(f) => f.to_string(),
                ValidationSplit::Count(n) => n.to_string(),
            };
            return Err(DataError::Split { asked, rows: total });
        }
        // The running total is rounded, not each share, so that the shares add up exactly.
        let (mut before, mut given, mut out) = (0u64, 0u64, Vec::with_capacity(rows.len()));
        for &n in rows {
            before += n;
            let until = (before as u128 * held as u128 / total as u128) as u64;
            out.push(until - given);
            given = until;
        }
        Ok(out)
    }
}

/// The rows of one file that belong to one side of the split.
///
/// The file is cut into `held` strata of equal size, and one row of each, drawn by seed, is held
/// out: both sides cover the whole file, and row `t` of either is found without a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subset {
    /// All `rows`.
    All { rows: u64 },
    /// What is left for training.
    Train { rows: u64, held: u64, seed: u64 },
    /// What is held out.
    Held { rows: u64, held: u64, seed: u64 },
}

fn stratum(k: u64, rows: u64, held: u64) -> u64 {
    (k as u128 * rows as u128 / held as u128) as u64
}

fn drawn(k: u64, rows: u64, held: u64, seed: u64) -> u64 {
    let (start, end) = (stratum(k, rows, held), stratum(k + 1, rows, held));
    // Step u64::MAX: no epoch's shuffle draws from this stream.
    start + Stream::new(seed, Purpose::Shuffle, u64::MAX).below(k, end - start)
}

impl Subset {
    pub(crate) fn len(&self) -> u64 {
        match *self {
            Subset::All { rows } => rows,
            Subset::Train { rows, held, .. } => rows - held,
            Subset::Held { held, .. } => held,
        }
    }

    /// File row of element `t`.
    pub(crate) fn row(&self, t: u64) -> u64 {
        match *self {
            Subset::All { .. } | Subset::Train { held: 0, .. } => t,
            Subset::Held { rows, held, seed } => drawn(t, rows, held, seed),
            Subset::Train { rows, held, seed } => {
                // The last stratum k with at most t training rows before it: start(k) - k <= t.
                let (mut low, mut high) = (0, held);
                while high - low > 1 {
                    let mid = low + (high - low) / 2;
                    if stratum(mid, rows, held) - mid <= t { low = mid } else { high = mid }
                }
                let row = t + low;
                row + u64::from(row >= drawn(low, rows, held, seed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_sides_cover_the_file_once(rows in 2u64..400, held in 1u64..400, seed: u64) {
            let held = held.min(rows - 1);
            let train = Subset::Train { rows, held, seed };
            let val = Subset::Held { rows, held, seed };
            let a: Vec<u64> = (0..train.len()).map(|t| train.row(t)).collect();
            let b: Vec<u64> = (0..val.len()).map(|t| val.row(t)).collect();
            prop_assert!(a.is_sorted() && b.is_sorted());
            let mut all: Vec<u64> = a.into_iter().chain(b).collect();
            all.sort();
            prop_assert_eq!(all, (0..rows).collect::<Vec<_>>());
        }

        #[test]
        fn shares_add_up(rows in prop::collection::vec(0u64..1000, 1..6), held in 1u64..500) {
            let total: u64 = rows.iter().sum();
            match ValidationSplit::Count(held).share(&rows) {
                Ok(s) => {
                    prop_assert_eq!(s.iter().sum::<u64>(), held);
                    prop_assert!(s.iter().zip(&rows).all(|(s, r)| s <= r));
                }
                Err(_) => prop_assert!(held >= total),
            }
        }
    }

    #[test]
    fn parses_fractions_and_counts() {
        assert_eq!(ValidationSplit::parse("0.05").unwrap(), ValidationSplit::Fraction(0.05));
        assert_eq!(ValidationSplit::parse("200").unwrap(), ValidationSplit::Count(200));
        for bad in ["0", "1.5", "-3", "nan", "", "ten", "1.0"] {
            assert!(ValidationSplit::parse(bad).is_err(), "{bad}");
        }
    }
}
