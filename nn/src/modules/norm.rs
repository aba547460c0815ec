//! [`Norm`]: RMSNorm.

use std::sync::Arc;

use planish_autograd::ops::rms_norm::{rms_norm, rms_norm_added};
use planish_autograd::{Result, Var};

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

    /// (x + added, the norm of it), in one pass.
    ///
    /// # Errors
    /// Shapes that do not agree.
    pub fn forward_added(&self, ctx: &Ctx, x: &Var, added: &Var) -> Result<(Var, Var)> {
        rms_norm_added(x, added, &self.weight.var(ctx), self.eps, self.offset)
    }
}
