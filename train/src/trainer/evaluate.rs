//! Loss on held-out data.

use std::sync::Arc;

use planish_nn::Ctx;
use planish_nn::decoder::Model;

use super::packed;
use crate::Result;
use crate::data::{Cursor, Sampler};
use crate::losses::{LossSum, cross_entropy};

/// Sums over one epoch of `sampler`, without dropout and without a tape.
///
/// # Errors
/// Those of the data and of the kernels.
pub fn evaluate(model: &Model, sampler: &Arc<Sampler>) -> Result<LossSum> {
    let ctx = Ctx::inference();
    let mut sum = LossSum::default();
    for step in sampler.steps(Cursor::default())?.epochs(1) {
        for batch in &step?.micro_batches {
            sum += cross_entropy(model, &ctx, &packed(batch), &batch.mask, false)?;
        }
    }
    Ok(sum)
}
