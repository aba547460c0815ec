//! The MLP of a layer: one for all tokens, or a choice of experts.

use planish_autograd::ops::{glu, grouped_linear::grouped_linear, view};
use planish_autograd::{Result, Var};

use super::experts::Experts;
use crate::Ctx;
use crate::config::Activation;
use crate::modules::Linear;

/// Projections to the MLP's gate and its input: apart, or one weight.
#[derive(Clone, Debug)]
pub(super) enum GateUp {
    /// gate, up.
    Split(Box<[Linear; 2]>),
    /// One of (gate + up) rows.
    Fused(Linear),
}

/// y = down(act(gate(x)) · up(x)).
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    pub(super) gate_up: GateUp,
    pub(super) down: Linear,
    pub(super) activation: Activation,
}

impl Mlp {
    pub(super) fn forward(&self, ctx: &Ctx, x: &Var) -> Result<Var> {
        let (gate, up) = match &self.gate_up {
            GateUp::Split(both) if ctx.is_lean() => (widened(&both[0], ctx, x)?, widened(&both[1], ctx, x)?),
            GateUp::Split(both) => Linear::forward_together(both.each_ref(), ctx, x)?.into(),
            GateUp::Fused(both) => {
                let all = widened(both, ctx, x)?;
                let n = all.dims()[1] / 2;
                let half = |start: usize| -> Result<Var> {
                    Ok(view::narrow(&all, 1, start, n)?.remade(|| {
                        let all = all.saved();
                        move || Ok(all.get()?.narrow(1, start, n)?)
                    }))
                };
                (half(0)?, half(n)?)
            }
        };
        self.down.forward(ctx, &self.activated(&gate, &up)?)
    }

    fn activated(&self, gate: &Var, up: &Var) -> Result<Var> {
        match self.activation {
            Activation::Silu => glu::swiglu(gate, up),
            Activation::Gelu => glu::geglu(gate, up),
            Activation::GeluTanh => glu::geglu_tanh(gate, up),
        }
    }

    /// As [`Mlp::forward`] of MLP g on rows `starts[g]..starts[g + 1]`, to the bit, in one product for each of the three
    /// maps; `None` where an adapter or a bias is in one of them.
    pub(super) fn grouped(ctx: &Ctx, mlps: &[&Mlp], starts: &[usize], x: &Var) -> Result<Option<Var>> {
        let plain = |mlp: &&Mlp| match &mlp.gate_up {
            GateUp::Split(both) => {
                let maps = [&both[0], &both[1], &mlp.down];
                let bare = |map: &&Linear| map.bias.is_none() && map.adapters.active(ctx).is_none();
                maps.iter().all(bare).then(|| maps.map(|map| map.weight.var(ctx)))
            }
            GateUp::Fused(_) => None,
        };
        let Some(maps) = mlps.iter().map(plain).collect::<Option<Vec<_>>>() else { return Ok(None) };
        let Some(first) = mlps.first() else { return Ok(None) };
        let of = |which: usize| maps.iter().map(|maps| maps[which].clone()).collect::<Vec<Var>>();
        let wide = |which: usize| -> Result<Var> {
            let weights = of(which);
            let y = grouped_linear(x, &weights, starts)?;
            if !ctx.is_lean() {
                return Ok(y);
            }
            Ok(y.remade(|| {
                let weights: Vec<Var> = weights.iter().map(Var::detach).collect();
                let (starts, x) = (starts.to_vec(), x.saved());
                move || Ok(grouped_linear(&Var::constant(x.get()?), &weights, &starts)?.into_value())
            }))
        };
        let (gate, up) = (wide(0)?, wide(1)?);
        grouped_linear(&first.activated(&gate, &up)?, &of(2), starts).map(Some)
    }

    pub(super) fn linears<'a>(&'a self, all: &mut Vec<&'a Linear>) {
        match &self.gate_up {
            GateUp::Split(both) => all.extend(both.iter()),
            GateUp::Fused(both) => all.push(both),
        }
        all.push(&self.down);
    }

    pub(super) fn linears_mut<'a>(&'a mut self, all: &mut Vec<&'a mut Linear>) {
        match &mut self.gate_up {
            GateUp::Split(both) => all.extend(both.iter_mut()),
            GateUp::Fused(both) => all.push(both),
        }
        all.push(&mut self.down);
    }
}

/// A projection to the wide side. Where the context is lean, its result is made again for the backward pass.
fn widened(linear: &Linear, ctx: &Ctx, x: &Var) -> Result<Var> {
    let y = linear.forward(ctx, x)?;
    if !ctx.is_lean() {
        return Ok(y);
    }
    Ok(y.remade(|| {
        let (linear, ctx, x) = (linear.clone(), ctx.on(None), x.saved());
        move || Ok(linear.forward(&ctx, &Var::constant(x.get()?))?.into_value())
    }))
}

/// What stands in the MLP's place.
#[derive(Clone, Debug)]
pub(super) enum Feed {
    /// One MLP for every token.
    Dense(Box<Mlp>),
    /// A few of many for each.
    Sparse(Box<Experts>),
}

impl Feed {
    /// What goes on to the next block, and the router's logits if there is a router.
    pub(super) fn forward(&self, ctx: &Ctx, x: &Var) -> Result<(Var, Option<Var>)> {
        match self {
            Feed::Dense(mlp) => Ok((mlp.forward(ctx, x)?, None)),
            Feed::Sparse(experts) => experts.forward(ctx, x).map(|(y, logits)| (y, Some(logits))),
        }
    }

    pub(super) fn linears<'a>(&'a self, all: &mut Vec<&'a Linear>) {
        match self {
            Feed::Dense(mlp) => mlp.linears(all),
            Feed::Sparse(experts) => experts.linears(all),
        }
    }

    pub(super) fn linears_mut<'a>(&'a mut self, all: &mut Vec<&'a mut Linear>) {
        match self {
            Feed::Dense(mlp) => mlp.linears_mut(all),
            Feed::Sparse(experts) => experts.linears_mut(all),
        }
    }
}
