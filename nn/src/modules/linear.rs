//! [`Linear`]: a linear map, with or without a low-rank update.

use std::sync::Arc;

use planish_autograd::ops::linear::linear;
use planish_autograd::ops::lora_linear::{Lora, lora_linear};
use planish_autograd::{Param, Result, Var};

use super::Weight;
use crate::Ctx;

/// y = x Wᵀ + b, plus a LoRA update where one is attached.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The module's path, e.g. `model.layers.0.self_attn.q_proj`.
    pub name: Arc<str>,
    /// W: (out, in).
    pub weight: Weight,
    /// b: (out).
    pub bias: Option<Weight>,
    /// The update.
    pub lora: Option<LoraLayer>,
}

/// A LoRA update s · x Aᵀ Bᵀ.
#[derive(Clone, Debug)]
pub struct LoraLayer {
    /// A: (r, in).
    pub a: Param,
    /// B: (out, r).
    pub b: Param,
    /// s.
    pub scale: f64,
    /// Dropout on the update's input.
    pub dropout: f64,
    /// Number of this module among those adapted: its own stream of dropout masks.
    pub id: u64,
}

impl Linear {
    /// Applies the map.
    ///
    /// # Errors
    /// Shapes that do not agree.
    pub fn forward(&self, ctx: &Ctx, x: &Var) -> Result<Var> {
        let bias = self.bias.as_ref().map(|b| b.var(ctx));
        match self.lora.as_ref().filter(|_| ctx.adapters()) {
            None => linear(x, &self.weight.var(ctx), bias.as_ref()),
            Some(lora) => {
                let dropout =
                    ctx.dropout().filter(|_| lora.dropout > 0.0).map(|s| (lora.dropout, s.substream(lora.id)));
                let update = Lora { scale: lora.scale, dropout };
                let (a, b) = (ctx.param(&lora.a), ctx.param(&lora.b));
                lora_linear(x, &self.weight.var(ctx), bias.as_ref(), &a, &b, &update)
            }
        }
    }

    /// Every parameter.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        self.weight
            .params()
            .chain(self.bias.iter().flat_map(Weight::params))
            .chain(self.lora.iter().flat_map(|l| [&l.a, &l.b]))
    }
}
