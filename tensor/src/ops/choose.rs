//! The largest scores of rows, chosen where they are: on a device, so that not all of them need come home.
//!
//! Of each row the places of the k largest, a bias for each place added in f64 if there is one, in the order of the places; of
//! equals the first.
//! On the processor a router chooses for itself (`planish_nn`), by the same rules and more.

use crate::device;
use crate::{Error, Result, Tensor};

const OP: &str = "choose";

/// The choice, (rows · k), from scores (rows, experts) and a bias (experts) on a device; `None` where scores are on the processor, or
/// their dtype, the bias's, or the sizes are not those of the device's kernel.
///
/// # Errors
/// Scores that are no matrix, a bias that does not go with them; two devices.
pub fn on_device(scores: &Tensor, bias: Option<&Tensor>, k: usize) -> Result<Option<Vec<u32>>> {
    let Some(on) = device::of(OP, [scores].into_iter().chain(bias))? else { return Ok(None) };
    if scores.rank() != 2 {
        return Err(Error::Rank { op: OP, expected: 2, shape: scores.dims().to_vec() });
    }
    if let Some(bias) = bias.filter(|bias| bias.dims() != &scores.dims()[1..]) {
        let (lhs, rhs) = (bias.dims().to_vec(), scores.dims().to_vec());
        return Err(Error::ShapeMismatch { op: OP, what: "bias against scores", lhs, rhs });
    }
    device::ops::choose::choose(&on, scores, bias, k)
}
