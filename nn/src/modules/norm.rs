//! [`Norm`]: RMSNorm.

use std::sync::Arc;

use planish_autograd::ops::rms_norm::rms_norm;
use planish_autograd::{Result, Var};
use planish_tensor::ops::rms_norm::forward_added;

use super::Weight;
use crate::Ctx;

/// y = x / sqrt(mean x² + ε) · (w + offset), over the last dimension.
#[derive(Clone, Debug)]
pub struct Norm {
    /// The module's path, e.g. `model.norm`.
    pub name: Arc<str>,
    /// w.
    pub weight: Weight,
    /// ε.
    pub eps: f64,
    /// Added to w.
    pub offset: f64,
}

impl Norm {
    /// Normalises.
    ///
    /// # Errors
    /// Shapes that do not agree.
    pub fn forward(&self, ctx: &Ctx, x: &Var) -> Result<Var> {
        rms_norm(x, &self.weight.var(ctx), self.eps, self.offset)
    }

    /// (x + added, the norm of it). Nothing is recorded.
    ///
    /// # Errors
    /// Shapes that do not agree.
    pub fn forward_added(&self, ctx: &Ctx, x: &Var, added: &Var) -> Result<(Var, Var)> {
        let weight = self.weight.var(ctx);
        let (sum, y) = forward_added(x.value(), added.value(), weight.value(), self.eps, self.offset)?;
        Ok((Var::constant(sum), Var::constant(y)))
    }
}
