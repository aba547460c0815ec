//! Multi-head latent attention: queries, keys and values out of narrow vectors.
//!
//! [`Latent`](crate::config::Latent) has the formula. Heads are computed in full, (tokens, heads, size), and go through
//! the same attention as any other's: a query or key of nope + rope numbers and a value of another width both get zeros
//! up to the wider of the two, which adds nothing to q·k, and gives zeros behind a head's output that are cut off. The
//! cache of a sequence holds these keys and values: decoding multiplies each latent vector out once, where a cache of
//! latent vectors would be smaller but be multiplied out at every token.

use planish_autograd::ops::{concat::concat, view};
use planish_autograd::{Result, Var};
use planish_tensor::Tensor;

use super::rotary::Rotations;
use crate::Ctx;
use crate::config::{Latent, ModelConfig};
use crate::modules::{Linear, Norm};

/// From x to queries.
#[derive(Clone, Debug)]
pub(super) enum Queries {
    /// At once.
    Plain(Linear),
    /// Into a latent vector, normed, and out of it.
    Latent(Box<(Linear, Norm, Linear)>),
}

/// The projections of a layer.
#[derive(Clone, Debug)]
pub(super) struct LatentQkv {
    pub(super) queries: Queries,
    /// To the latent vector of keys and values, and the rotated part of keys.
    pub(super) kv_a: Linear,
    pub(super) kv_norm: Norm,
    /// From the latent vector to each head's key, without its rotated part, and value.
    pub(super) kv_b: Linear,
}

impl LatentQkv {
    /// Queries, keys and values, (tokens, heads, [`Latent::head_dim`]) each, turned by rotation `which`.
    pub(super) fn forward(
        &self,
        ctx: &Ctx,
        c: &ModelConfig,
        x: &Var,
        rotations: &Rotations,
        which: Option<usize>,
    ) -> Result<[Var; 3]> {
        let l = c.latent.as_ref().expect("a layer with latent projections is of a model with latent attention");
        let (tokens, heads) = (x.dims()[0], c.num_heads);
        let q = match &self.queries {
            Queries::Plain(q) => q.forward(ctx, x)?,
            Queries::Latent(parts) => {
                let (a, norm, b) = &**parts;
                b.forward(ctx, &norm.forward(ctx, &a.forward(ctx, x)?)?)?
            }
        };
        let q = view::reshape(&q, &[tokens, heads, l.query_size()])?;
        let turn = |x: &Var| -> Result<Var> {
            let x = if l.interleaved { side_by_side_apart(x)? } else { x.clone() };
            rotations.apply(which, &x)
        };
        let q_rope = turn(&view::narrow(&q, 2, l.nope, l.rope)?)?;
        let q = concat(&[&view::narrow(&q, 2, 0, l.nope)?, &q_rope], 2)?;

        let both = self.kv_a.forward(ctx, x)?;
        let latent = self.kv_norm.forward(ctx, &view::narrow(&both, 1, 0, l.kv_rank)?)?;
        let k_rope = turn(&view::reshape(&view::narrow(&both, 1, l.kv_rank, l.rope)?, &[tokens, 1, l.rope])?)?;
        let k_rope = view::broadcast_to(&k_rope, &[tokens, heads, l.rope])?;
        let kv = view::reshape(&self.kv_b.forward(ctx, &latent)?, &[tokens, heads, l.nope + l.value])?;
        let k = concat(&[&view::narrow(&kv, 2, 0, l.nope)?, &k_rope], 2)?;
        let v = view::narrow(&kv, 2, l.nope, l.value)?;
        Ok([widened(&q, l)?, widened(&k, l)?, widened(&v, l)?])
    }

    /// Its linear modules.
    pub(super) fn linears(&self) -> Vec<&Linear> {
        let mut all = match &self.queries {
            Queries::Plain(q) => vec![q],
            Queries::Latent(parts) => vec![&parts.0, &parts.2],
        };
        all.extend([&self.kv_a, &self.kv_b]);
        all
    }

    /// Its linear modules, mutably.
    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = match &mut self.queries {
            Queries::Plain(q) => vec![q],
            Queries::Latent(parts) => {
                let (a, _, b) = &mut **parts;
                vec![a, b]
            }
        };
        all.extend([&mut self.kv_a, &mut self.kv_b]);
        all
    }

    /// Its norms.
    pub(super) fn norms(&self) -> Vec<&Norm> {
        let q = match &self.queries {
            Queries::Plain(_) => None,
            Queries::Latent(parts) => Some(&parts.1),
        };
        q.into_iter().chain([&self.kv_norm]).collect()
    }

    /// Its norms, mutably.
    pub(super) fn norms_mut(&mut self) -> Vec<&mut Norm> {
        let q = match &mut self.queries {
            Queries::Plain(_) => None,
            Queries::Latent(parts) => Some(&mut parts.1),
        };
        q.into_iter().chain([&mut self.kv_norm]).collect()
    }
}

/// Heads' outputs without the zeros behind them: (tokens, heads · value).
pub(super) fn cut(out: &Var, l: &Latent) -> Result<Var> {
    let (tokens, heads) = (out.dims()[0], out.dims()[1]);
    view::reshape(&view::narrow(out, 2, 0, l.value)?, &[tokens, heads * l.value])
}

/// (x₀, x₁, x₂, x₃, …) as (x₀, x₂, …, x₁, x₃, …): pairs that lie side by side, as RoPE here wants them. Queries and
/// keys alike, so that their products are the same numbers.
fn side_by_side_apart(x: &Var) -> Result<Var> {
    let (tokens, heads, size) = (x.dims()[0], x.dims()[1], x.dims()[2]);
    let pairs = view::reshape(x, &[tokens, heads, size / 2, 2])?;
    view::reshape(&view::transpose(&pairs, 2, 3)?, &[tokens, heads, size])
}

/// With zeros up to the width that attention is computed in.
fn widened(x: &Var, l: &Latent) -> Result<Var> {
    let (tokens, heads, size) = (x.dims()[0], x.dims()[1], x.dims()[2]);
    match l.head_dim() - size {
        // In one piece, as a cache takes it.
        0 => view::reshape(x, &[tokens, heads, size]),
        missing => {
            let zeros = Tensor::zeros_on(x.value().device(), [tokens, heads, missing], x.value().dtype())?;
            concat(&[x, &Var::constant(zeros)], 2)
        }
    }
}
