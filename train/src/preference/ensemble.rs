//! What several reward models say of one thing.

/// Mean, spread and least of the members' numbers.
///
/// # Source
/// Coste et al., "Reward model ensembles help mitigate overoptimization", arXiv 2310.02743: the mean, the least
/// ("worst-case optimization", equation 2), and the spread by which uncertain rewards are lowered (equation 3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// (1/n) Σ r.
    pub mean: f64,
    /// √((1/n) Σ (r - mean)²): 0 of one member.
    pub std: f64,
    /// The least.
    pub min: f64,
}

impl Spread {
    /// Of at least one number.
    pub fn of(members: &[f64]) -> Spread {
        let n = members.len() as f64;
        let mean = members.iter().sum::<f64>() / n;
        let variance = members.iter().map(|r| (r - mean) * (r - mean)).sum::<f64>() / n;
        Spread { mean, std: variance.sqrt(), min: members.iter().copied().fold(f64::INFINITY, f64::min) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_one_and_of_several() {
        assert_eq!(Spread::of(&[-2.5]), Spread { mean: -2.5, std: 0.0, min: -2.5 });
        assert_eq!(Spread::of(&[1.0, 3.0, 8.0]), Spread { mean: 4.0, std: (26.0f64 / 3.0).sqrt(), min: 1.0 });
        assert!(Spread::of(&[1.0, f64::NAN]).mean.is_nan());
    }
}
