//! The most probable tokens of rows of logits.
//!
//! logprob_j = (z_j - max z) / T - ln Σ_v e^((z_v - max z) / T)
//!
//! logits: (rows, width), capped and scaled. On the processor in f64, whatever they are; on a device in f32, where k ids and
//! log-probabilities a row are all that is copied.

use planish_cuda::ops::lm_head_top::MOST;

use crate::{DType, Error, Result, Tensor, device};

const OP: &str = "lm_head_top";

/// Most tokens that a device is asked for in a row.
pub const MOST_ON_DEVICE: usize = MOST;

/// For each row its `k` most probable tokens with their log-probabilities at `temperature`, nats: (rows · k), the most
/// probable first, of equals the lower id.
///
/// # Errors
/// Not rows of logits; k outside of 1 to the width, or above [`MOST_ON_DEVICE`] on a device; a temperature that is not
/// positive.
pub fn most_probable(logits: &Tensor, k: usize, temperature: f64) -> Result<Vec<(u32, f64)>> {
    let &[_, width] = logits.dims() else {
        let (lhs, rhs) = (logits.dims().to_vec(), vec![0, 0]);
        return Err(Error::ShapeMismatch { op: OP, what: "logits against (rows, width)", lhs, rhs });
    };
    let bad = |name, value, expected| Err(Error::InvalidValue { op: OP, name, value, expected });
    if !(1..=width).contains(&k) {
        return bad("k", k as f64, "from 1 to the number of tokens");
    }
    if !(temperature > 0.0 && temperature.is_finite()) {
        return bad("temperature", temperature, "positive");
    }
    if let Some(on) = device::of(OP, [logits])? {
        return device::ops::lm_head::most_probable(&on, logits, k, temperature);
    }
    let all = logits.to_dtype(DType::F64)?.to_vec::<f64>()?;
    let mut out = Vec::with_capacity(all.len() / width * k);
    all.chunks_exact(width).for_each(|z| of_row(z, k, temperature, &mut out));
    Ok(out)
}

fn of_row(z: &[f64], k: usize, temperature: f64, out: &mut Vec<(u32, f64)>) {
    let most = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = z.iter().map(|z| ((z - most) / temperature).exp()).sum();
    let mut order: Vec<u32> = (0..z.len() as u32).collect();
    let by = |a: &u32, b: &u32| z[*b as usize].total_cmp(&z[*a as usize]).then(a.cmp(b));
    if k < order.len() {
        order.select_nth_unstable_by(k, by);
        order.truncate(k);
    }
    order.sort_unstable_by(by);
    out.extend(order.into_iter().map(|id| (id, (z[id as usize] - most) / temperature - sum.ln())));
}
