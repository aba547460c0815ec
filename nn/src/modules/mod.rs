//! The parts that decoders are built of, and the places where adapters change them.

mod linear;
mod norm;
mod slots;

pub use linear::{Linear, LinearAdapter};
pub use norm::Norm;
pub use slots::Slots;

use planish_autograd::{Param, Var};

use crate::Ctx;

/// A weight that an adapter may replace by a copy of its own: a trained one (PEFT's `modules_to_save`, biases,
/// norms), or a frozen one (what PiSSA leaves of the weight).
#[derive(Clone, Debug)]
pub struct Weight {
    /// The model's own.
    pub base: Param,
    /// The adapters' copies.
    pub tuned: Slots<Param>,
}

impl Weight {
    /// A weight without a copy.
    pub fn new(base: Param) -> Weight {
        Weight { base, tuned: Slots::default() }
    }

    /// The one in use.
    pub fn active(&self, ctx: &Ctx) -> &Param {
        self.tuned.active(ctx).unwrap_or(&self.base)
    }

    /// The value of the one in use.
    pub fn var(&self, ctx: &Ctx) -> Var {
        ctx.param(self.active(ctx))
    }

    /// Its parameters.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        std::iter::once(&self.base).chain(self.tuned.iter())
    }
}
