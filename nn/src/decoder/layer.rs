//! One layer: attention and MLP with their norms.

use std::sync::Arc;

use planish_autograd::ops::attention::{Attention, Stem, branched};
use planish_autograd::ops::{elementwise, view};
use planish_autograd::{Param, Result, Var};
use planish_tensor::ops::attention::CachedPass;

use super::experts::Experts;
use super::latent::{LatentQkv, cut};
use super::lead::Prefix;
use super::mlp::Feed;
use super::rotary::Rotations;
use crate::Ctx;
use crate::config::ModelConfig;
use crate::modules::{Linear, Norm};

/// Projections to queries, keys and values: apart, or one weight.
#[derive(Clone, Debug)]
pub(super) enum Qkv {
    /// q, k, v.
    Split(Box<[Linear; 3]>),
    /// One of (q + k + v) rows.
    Fused(Linear),
    /// By way of latent vectors.
    Latent(Box<LatentQkv>),
}

/// One layer of the decoder.
#[derive(Clone, Debug)]
pub struct Layer {
    pub(super) config: Arc<ModelConfig>,
    pub(super) index: usize,
    pub(super) attention_pre: Option<Norm>,
    pub(super) attention_post: Option<Norm>,
    pub(super) mlp_pre: Option<Norm>,
    pub(super) mlp_post: Option<Norm>,
    pub(super) q_norm: Option<Norm>,
    pub(super) k_norm: Option<Norm>,
    pub(super) qkv: Qkv,
    pub(super) o: Linear,
    pub(super) feed: Feed,
}

/// Which keys the queries of a pass see.
pub(super) enum Mixing<'a, 'b> {
    /// Those of their stem and of their own segment, after the adapter's prefix if there is one.
    Packed { cu: &'a Arc<[u32]>, stems: &'a Arc<[Option<Stem>]>, prefix: Option<&'a Prefix> },
    /// Those of their sequence's cache, to which their own are added first; in a new cache after the prefix.
    Cached { layer: usize, pass: &'a mut CachedPass<'b>, prefix: Option<&'a Prefix> },
}

impl Layer {
    /// x + attention(x), then + mlp(x), with the norms where the family has them; and the router's logits,
    /// (tokens, experts), where there is one.
    pub(super) fn forward(
        &self,
        ctx: &Ctx,
        x: &Var,
        rotations: &Rotations,
        mixing: Mixing<'_, '_>,
    ) -> Result<(Var, Option<Var>)> {
        let (x, added, routed) = self.forward_open(ctx, x, None, rotations, mixing)?;
        Ok((self.residual(&x, &added)?, routed))
    }

    /// The same of x + `added`, with its own last addition left to what comes next: the stream and what is to be added to
    /// it. An addition and the norm after it are one pass.
    pub(super) fn forward_open(
        &self,
        ctx: &Ctx,
        x: &Var,
        added: Option<&Var>,
        rotations: &Rotations,
        mixing: Mixing<'_, '_>,
    ) -> Result<(Var, Var, Option<Var>)> {
        let (x, y) = self.summed(ctx, x, added, &self.attention_pre)?;
        let a = normed(ctx, &self.attention_post, &self.attention(ctx, &y, rotations, mixing)?)?;
        let (x, y) = self.summed(ctx, &x, Some(&a), &self.mlp_pre)?;
        let (m, routed) = self.feed.forward(ctx, &y)?;
        Ok((x, normed(ctx, &self.mlp_post, &m)?, routed))
    }

    /// x + `added`, and the norm of it.
    fn summed(&self, ctx: &Ctx, x: &Var, added: Option<&Var>, norm: &Option<Norm>) -> Result<(Var, Var)> {
        let x = match (added, norm) {
            (Some(added), Some(norm)) if self.config.residual_scale == 1.0 => {
                return norm.forward_added(ctx, x, added);
            }
            (Some(added), _) => self.residual(x, added)?,
            (None, _) => x.clone(),
        };
        let y = normed(ctx, norm, &x)?;
        Ok((x, y))
    }

    pub(super) fn residual(&self, x: &Var, added: &Var) -> Result<Var> {
        match self.config.residual_scale {
            1.0 => elementwise::add(x, added),
            factor => elementwise::add(x, &elementwise::scale(added, factor)?),
        }
    }

    /// Queries, keys and values, (tokens, heads, size) each, and the rotation that queries and keys are still to be turned
    /// by, if any.
    fn heads(&self, ctx: &Ctx, x: &Var, rotations: &Rotations) -> Result<([Var; 3], Option<usize>)> {
        let c = &*self.config;
        let (tokens, d) = (x.dims()[0], c.head_dim);
        let which = c.layers[self.index].rope;
        let (q, k, v) = match &self.qkv {
            Qkv::Split(qkv) => Linear::forward_together(qkv.each_ref(), ctx, x)?.into(),
            Qkv::Fused(qkv) => {
                let all = qkv.forward(ctx, x)?;
                let (q, kv) = (c.num_heads * d, c.num_kv_heads * d);
                (view::narrow(&all, 1, 0, q)?, view::narrow(&all, 1, q, kv)?, view::narrow(&all, 1, q + kv, kv)?)
            }
            // Of these, parts of a head are turned, on the way.
            Qkv::Latent(qkv) => return Ok((qkv.forward(ctx, c, x, rotations, which)?, None)),
        };
        let heads = |x: &Var, heads: usize, norm: &Option<Norm>| -> Result<Var> {
            // A norm over the whole projection comes before the split into heads, one over each after.
            let whole = c.qk_norm == crate::config::QkNorm::Whole;
            let x = if whole { normed(ctx, norm, x)? } else { x.clone() };
            let x = view::reshape(&x, &[tokens, heads, d])?;
            if whole { Ok(x) } else { normed(ctx, norm, &x) }
        };
        let (q, k) = (heads(&q, c.num_heads, &self.q_norm)?, heads(&k, c.num_kv_heads, &self.k_norm)?);
        Ok(([q, k, view::reshape(&v, &[tokens, c.num_kv_heads, d])?], which))
    }

    fn attention(&self, ctx: &Ctx, x: &Var, rotations: &Rotations, mixing: Mixing<'_, '_>) -> Result<Var> {
        let c = &*self.config;
        let ([q, k, v], which) = self.heads(ctx, x, rotations)?;
        let window = c.layers[self.index].window;
        let options = Attention { scale: c.attention_scale, causal: true, window, softcap: c.attention_softcap };
        let turn = |x: &Var| rotations.apply(which, x);
        let out = match mixing {
            Mixing::Packed { cu, stems, prefix: None } => {
                branched(&turn(&q)?, &turn(&k)?, &v, cu, cu, stems, &options)?
            }
            Mixing::Packed { cu, stems, prefix: Some(p) } => {
                let k = p.before(&p.k, &turn(&k)?)?;
                branched(&turn(&q)?, &k, &p.before(&p.v, &v)?, cu, &p.cu, stems, &options)?
            }
            Mixing::Cached { layer, pass, prefix: None } => {
                let (kv, tables) = ([k.value(), v.value()], rotations.tables(which));
                Var::constant(pass.append_and_attend(layer, q.value(), kv, tables, &options)?)
            }
            Mixing::Cached { layer, pass, prefix: Some(p) } => {
                let (k, v) = (p.before(&p.k, &turn(&k)?)?, p.before(&p.v, &v)?);
                pass.append(layer, None, [k.value(), v.value()], None)?;
                Var::constant(pass.attend(layer, turn(&q)?.value(), &options)?)
            }
        };
        let out = match &c.latent {
            None => view::reshape(&out, &[x.dims()[0], c.num_heads * c.head_dim])?,
            Some(latent) => cut(&out, latent)?,
        };
        self.o.forward(ctx, &out)
    }

    /// Its linear modules.
    pub fn linears(&self) -> Vec<&Linear> {
        let mut all: Vec<&Linear> = match &self.qkv {
            Qkv::Split(qkv) => qkv.iter().collect(),
            Qkv::Fused(qkv) => vec![qkv],
            Qkv::Latent(qkv) => qkv.linears(),
        };
        all.push(&self.o);
        self.feed.linears(&mut all);
        all
    }

    /// Its linear modules, mutably.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all: Vec<&mut Linear> = match &mut self.qkv {
            Qkv::Split(qkv) => qkv.iter_mut().collect(),
            Qkv::Fused(qkv) => vec![qkv],
            Qkv::Latent(qkv) => qkv.linears_mut(),
        };
        all.push(&mut self.o);
        self.feed.linears_mut(&mut all);
        all
    }

    /// Its norms.
    pub fn norms(&self) -> Vec<&Norm> {
        let all =
            [&self.attention_pre, &self.attention_post, &self.mlp_pre, &self.mlp_post, &self.q_norm, &self.k_norm];
        let mut all: Vec<&Norm> = all.into_iter().flatten().collect();
        if let Qkv::Latent(qkv) = &self.qkv {
            all.extend(qkv.norms());
        }
        all
    }

    /// Its norms, mutably.
    pub fn norms_mut(&mut self) -> Vec<&mut Norm> {
        let all = [
            &mut self.attention_pre,
            &mut self.attention_post,
            &mut self.mlp_pre,
            &mut self.mlp_post,
            &mut self.q_norm,
            &mut self.k_norm,
        ];
        let mut all: Vec<&mut Norm> = all.into_iter().flatten().collect();
        if let Qkv::Latent(qkv) = &mut self.qkv {
            all.extend(qkv.norms_mut());
        }
        all
    }

    /// What it holds besides: numbers of the weights file that no gradient is for.
    pub fn buffers(&self) -> Vec<&Param> {
        match &self.feed {
            Feed::Dense(_) => Vec::new(),
            Feed::Sparse(experts) => experts.bias.iter().collect(),
        }
    }

    /// Its experts, if it has any.
    pub(super) fn experts(&self) -> Option<&Experts> {
        match &self.feed {
            Feed::Dense(_) => None,
            Feed::Sparse(experts) => Some(experts),
        }
    }
}

fn normed(ctx: &Ctx, norm: &Option<Norm>, x: &Var) -> Result<Var> {
    match norm {
        Some(norm) => norm.forward(ctx, x),
        None => Ok(x.clone()),
    }
}
