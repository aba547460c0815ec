//! [`Linear`]: a linear map, as it is or as an adapter makes it.

use std::fmt::Debug;
use std::sync::Arc;

use planish_autograd::ops::linear::linear;
use planish_autograd::{Param, Result, Var};
use planish_tensor::Tensor;
use planish_tensor::ops::linear as kernel;

use super::{Slots, Weight};
use crate::Ctx;

/// What an adapter makes of a linear map y = x Wᵀ + b. One implementation a method, in [`crate::adapters`].
///
/// A row of y must be a function of the row of x alone, in an order of sums that depends on nothing else
/// (law 5 of the design).
pub trait LinearAdapter: Debug + Send + Sync {
    /// y, (…, out), of x, (…, in). W is frozen; b may be a trained copy.
    ///
    /// # Errors
    /// Shapes that do not agree.
    fn forward(&self, ctx: &Ctx, x: &Var, weight: &Var, bias: Option<&Var>) -> Result<Var>;

    /// Its own parameters, under their names in PEFT's file.
    fn params(&self) -> Vec<&Param>;

    /// W and b with which the plain map computes the same. Both come in the compute dtype and are the callee's
    /// to overwrite.
    ///
    /// # Errors
    /// Those of the kernels.
    fn merge(&self, weight: Tensor, bias: Option<Tensor>) -> planish_tensor::Result<(Tensor, Option<Tensor>)>;
}

/// y = x Wᵀ + b, or what an adapter makes of it.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The module's path, e.g. `model.layers.0.self_attn.q_proj`.
    pub name: Arc<str>,
    /// W: (out, in).
    pub weight: Weight,
    /// b: (out).
    pub bias: Option<Weight>,
    /// What adapters make of it.
    pub adapters: Slots<Arc<dyn LinearAdapter>>,
}

impl Linear {
    /// Applies the map.
    ///
    /// # Errors
    /// Shapes that do not agree.
    pub fn forward(&self, ctx: &Ctx, x: &Var) -> Result<Var> {
        let (weight, bias) = (self.weight.var(ctx), self.bias.as_ref().map(|b| b.var(ctx)));
        match self.adapters.active(ctx) {
            None => linear(x, &weight, bias.as_ref()),
            Some(adapter) => adapter.forward(ctx, x, &weight, bias.as_ref()),
        }
    }

    /// Applies several maps to one input, each with the bits of [`Linear::forward`]. Where nothing is recorded and no adapter
    /// takes part they may be one piece of work.
    ///
    /// # Errors
    /// Shapes that do not agree.
    pub fn forward_together<const N: usize>(linears: [&Linear; N], ctx: &Ctx, x: &Var) -> Result<[Var; N]> {
        let plain = |linear: &&Linear| linear.adapters.active(ctx).is_none();
        let all: Vec<Var> = if ctx.tape().is_none() && !x.is_tracked() && linears.iter().all(plain) {
            let maps = linears.map(|linear| (linear.weight.var(ctx), linear.bias.as_ref().map(|b| b.var(ctx))));
            let values = maps.each_ref().map(|(weight, bias)| (weight.value(), bias.as_ref().map(Var::value)));
            kernel::forward_together(x.value(), &values)?.into_iter().map(Var::constant).collect()
        } else {
            linears.iter().map(|linear| linear.forward(ctx, x)).collect::<Result<_>>()?
        };
        Ok(all.try_into().expect("one for each map"))
    }

    /// Every parameter.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        self.weight
            .params()
            .chain(self.bias.iter().flat_map(Weight::params))
            .chain(self.adapters.iter().flat_map(|a| a.params()))
    }
}
