//! The parts that decoders are built of.

mod linear;
mod norm;

pub use linear::{Linear, LoraLayer};
pub use norm::Norm;

use planish_autograd::{Param, Var};

use crate::Ctx;

/// A weight that an adapter may replace by a trained copy (PEFT's `modules_to_save`).
#[derive(Clone, Debug)]
pub struct Weight {
    /// The model's own.
    pub base: Param,
    /// The adapter's copy.
    pub tuned: Option<Param>,
}

impl Weight {
    /// A weight without a copy.
    pub fn new(base: Param) -> Weight {
        Weight { base, tuned: None }
    }

    /// The one in use.
    pub fn active(&self, ctx: &Ctx) -> &Param {
        self.tuned.as_ref().filter(|_| ctx.adapters()).unwrap_or(&self.base)
    }

    /// The value of the one in use.
    pub fn var(&self, ctx: &Ctx) -> Var {
        ctx.param(self.active(ctx))
    }

    /// Its parameters.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        std::iter::once(&self.base).chain(&self.tuned)
    }
}
