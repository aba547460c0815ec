//! How far one model's predictions are from another's on a text.

use planish_tensor::ops::index_select;
use planish_tensor::parallel;

use crate::decoder::{Model, Packed};
use crate::{Ctx, Result};

/// Rows of logits that are in memory at a time.
const ROWS: usize = 64;

/// The distance of model B from model A, over the tokens of a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drift {
    /// Mean KL(A ‖ B) of the next token's distribution, nats.
    pub kl: f64,
    /// Share of tokens of which both find the same next one most probable.
    pub agreement: f64,
    /// Tokens compared.
    pub tokens: usize,
}

/// Compares two models that share a vocabulary on one sequence; every position's prediction counts.
///
/// # Errors
/// A token id outside the vocabulary; those of the kernels.
pub fn drift(a: (&Model, &Ctx), b: (&Model, &Ctx), ids: &[u32]) -> Result<Drift> {
    let batch = Packed::new(&[ids]);
    let hidden = |(model, ctx): (&Model, &Ctx)| -> Result<_> { Ok(model.forward(ctx, &batch, false)?.into_value()) };
    let (ha, hb) = (hidden(a)?, hidden(b)?);
    let (mut kl, mut same) = (0.0, 0usize);
    for start in (0..ids.len()).step_by(ROWS) {
        let rows: Vec<u32> = (start..ids.len().min(start + ROWS)).map(|r| r as u32).collect();
        let logits = |(model, ctx): (&Model, &Ctx), hidden| -> Result<Vec<f64>> {
            let logits = model.logits(ctx, &index_select::forward(hidden, &rows)?)?;
            Ok(logits.to_dtype(planish_tensor::DType::F64)?.to_vec::<f64>()?)
        };
        let (la, lb) = (logits(a, &ha)?, logits(b, &hb)?);
        let width = la.len() / rows.len();
        let each = parallel::map(rows.len(), |r| {
            let range = r * width..(r + 1) * width;
            compare(&la[range.clone()], &lb[range])
        });
        each.into_iter().for_each(|(d, agrees)| {
            kl += d;
            same += agrees as usize;
        });
    }
    let tokens = ids.len();
    let share = |x: f64| x / tokens.max(1) as f64;
    Ok(Drift { kl: share(kl), agreement: share(same as f64), tokens })
}

/// KL of two rows of logits, and whether the largest is at the same place (the first of equals).
fn compare(a: &[f64], b: &[f64]) -> (f64, bool) {
    let top = |z: &[f64]| {
        z.iter().enumerate().fold((0, f64::NEG_INFINITY), |best, (i, &z)| if z > best.1 { (i, z) } else { best })
    };
    let ((ia, ma), (ib, mb)) = (top(a), top(b));
    let lse = |z: &[f64], m: f64| m + z.iter().map(|z| (z - m).exp()).sum::<f64>().ln();
    let (la, lb) = (lse(a, ma), lse(b, mb));
    let kl = a.iter().zip(b).map(|(a, b)| (a - la).exp() * ((a - la) - (b - lb))).sum();
    (kl, ia == ib)
}

#[cfg(test)]
mod tests {
    use super::compare;

    #[test]
    fn of_two_coins() {
        // p = (0.8, 0.2), q = (0.5, 0.5); a constant in the logits changes nothing.
        let (kl, same) = compare(&[4f64.ln() + 3.0, 3.0], &[1.0, 1.0]);
        let want = 0.8 * (0.8f64 / 0.5).ln() + 0.2 * (0.2f64 / 0.5).ln();
        assert!((kl - want).abs() < 1e-12 && same, "{kl} is not {want}");
        assert!(!compare(&[1.0, 2.0], &[2.0, 1.0]).1);
        assert!(compare(&[1.0, 2.0], &[1.0, 2.0]).0.abs() < 1e-15);
    }
}
