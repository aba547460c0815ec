//! The decoder: one transformer for every family, driven by [`ModelConfig`].

mod cache;
mod layer;
mod load;
mod rotary;

pub use cache::SequenceCache;
pub use layer::Layer;
pub use load::{LoadOptions, TensorSource};

use std::sync::Arc;

use planish_autograd::ops::lm_head::{LmHead, Scores, lm_head};
use planish_autograd::ops::{elementwise, embedding, index_select};
use planish_autograd::{Param, Var, checkpoint};
use planish_tensor::rng::Rows;
use planish_tensor::{DType, Tensor};

use crate::config::ModelConfig;
use crate::modules::{Linear, Norm, Weight};
use crate::{Ctx, Error, Result};
use layer::Mixing;
use rotary::Rotations;

/// A stream of tokens cut into segments: the only form of a batch (law 2 of the design).
#[derive(Clone, Debug)]
pub struct Packed {
    /// Token ids.
    pub ids: Arc<[u32]>,
    /// Position of each token in its segment.
    pub positions: Arc<[u32]>,
    /// Segment s is tokens `cu_seqlens[s]..cu_seqlens[s + 1]`.
    pub cu_seqlens: Arc<[u32]>,
}

impl Packed {
    /// One segment after the other, positions from 0 in each.
    pub fn new<S: AsRef<[u32]>>(segments: &[S]) -> Packed {
        let (mut ids, mut positions, mut cu) = (vec![], vec![], vec![0u32]);
        for s in segments {
            ids.extend_from_slice(s.as_ref());
            positions.extend(0..s.as_ref().len() as u32);
            cu.push(ids.len() as u32);
        }
        Packed { ids: ids.into(), positions: positions.into(), cu_seqlens: cu.into() }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// A decoder-only transformer.
#[derive(Clone, Debug)]
pub struct Model {
    /// What it is made of.
    pub config: Arc<ModelConfig>,
    /// Token embedding, (vocabulary, hidden).
    pub embed_tokens: Weight,
    /// The layers.
    pub layers: Vec<Layer>,
    /// The norm after the last layer.
    pub norm: Norm,
    /// The LM head, (vocabulary, hidden), if it is not the embedding.
    pub lm_head: Option<Weight>,
    /// The head of one number, (1, hidden), of a reward model.
    pub score: Option<Weight>,
}

impl Model {
    /// Hidden states after the final norm, (tokens, hidden), of a packed batch.
    ///
    /// `recompute` keeps only each layer's input and computes the rest again in the backward pass.
    ///
    /// # Errors
    /// A token id outside the vocabulary; those of the kernels.
    pub fn forward(&self, ctx: &Ctx, batch: &Packed, recompute: bool) -> Result<Var> {
        let rotations = Rotations::new(&self.config, &batch.positions, &batch.cu_seqlens, self.dtype())?;
        let mut x = self.embed(ctx, &batch.ids)?;
        if let Some((alpha, rows)) = ctx.embedding_noise() {
            x = elementwise::add(&x, &Var::constant(noise(&x, &batch.cu_seqlens, alpha, rows)?))?;
        }
        for layer in &self.layers {
            x = match ctx.tape().filter(|_| recompute) {
                None => layer.forward(ctx, &x, &rotations, Mixing::Packed(&batch.cu_seqlens))?,
                Some(tape) => {
                    let (layer, ctx) = (layer.clone(), ctx.clone());
                    let (rotations, cu) = (rotations.clone(), batch.cu_seqlens.clone());
                    let segment = move |tape: Option<&planish_autograd::Tape>, x: &[Var]| {
                        Ok(vec![layer.forward(&ctx.on(tape), &x[0], &rotations, Mixing::Packed(&cu))?])
                    };
                    checkpoint(tape, segment, &[&x])?.pop().expect("one output")
                }
            };
        }
        Ok(self.norm.forward(ctx, &x)?)
    }

    /// Embedding of tokens, times the family's factor.
    ///
    /// # Errors
    /// [`Error::TokenId`].
    pub fn embed(&self, ctx: &Ctx, ids: &[u32]) -> Result<Var> {
        if let Some(position) = ids.iter().position(|&id| id as usize >= self.config.vocab_size) {
            let (id, vocab_size) = (ids[position], self.config.vocab_size);
            return Err(Error::TokenId { id, position, vocab_size });
        }
        let x = embedding::embedding(&self.embed_tokens.var(ctx), ids)?;
        scale(x, self.config.embedding_scale)
    }

    /// Per-token log-probabilities of `targets` at the given rows of `hidden`. Only these rows are
    /// computed (law 4 of the design).
    ///
    /// # Errors
    /// A row or a target out of range.
    pub fn scores(&self, ctx: &Ctx, hidden: &Var, rows: &[u32], targets: &[u32]) -> Result<Scores> {
        let selected = index_select::index_select(hidden, rows)?;
        Ok(lm_head(&selected, &self.head(ctx), targets, &self.head_options())?)
    }

    /// Logits of every token at the given hidden states, (rows, vocabulary): for sampling.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn logits(&self, ctx: &Ctx, hidden: &Tensor) -> Result<Tensor> {
        Ok(planish_tensor::ops::lm_head::logits(hidden, self.head(ctx).value(), &self.head_options())?)
    }

    /// The LM head's weight.
    pub fn head(&self, ctx: &Ctx) -> Var {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens).var(ctx)
    }

    /// The LM head's options.
    pub fn head_options(&self) -> LmHead {
        LmHead { scale: self.config.logit_scale, softcap: self.config.final_softcap }
    }

    /// Runs new tokens of several sequences over their caches, which grow by them, and returns the hidden
    /// states after the final norm, (tokens, hidden). Nothing is recorded.
    ///
    /// `tokens[s]` are the new tokens of the sequence of `caches[s]`: a prompt or a part of it, or the
    /// token just sampled.
    ///
    /// # Errors
    /// A token id outside the vocabulary; those of the kernels.
    pub fn decode<S: AsRef<[u32]>>(
        &self,
        ctx: &Ctx,
        tokens: &[S],
        caches: &mut [&mut SequenceCache],
    ) -> Result<Tensor> {
        assert_eq!(tokens.len(), caches.len(), "a cache for each sequence");
        let ctx = ctx.on(None);
        let (mut ids, mut positions, mut cu) = (vec![], vec![], vec![0u32]);
        for (new, cache) in tokens.iter().zip(caches.iter()) {
            let start = cache.len() as u32;
            ids.extend_from_slice(new.as_ref());
            positions.extend(start..start + new.as_ref().len() as u32);
            cu.push(ids.len() as u32);
        }
        let rotations = Rotations::new(&self.config, &positions, &cu, self.dtype())?;
        let mut x = self.embed(&ctx, &ids)?;
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&ctx, &x, &rotations, Mixing::Cached { layer: i, cu: &cu, caches })?;
        }
        for (new, cache) in tokens.iter().zip(caches.iter_mut()) {
            cache.advance(new.as_ref().len());
        }
        Ok(self.norm.forward(&ctx, &x)?.into_value())
    }

    /// An empty cache for one sequence.
    pub fn cache(&self) -> SequenceCache {
        SequenceCache::new(&self.config, self.dtype())
    }

    /// Dtype that activations are computed in: f64 for f64 weights, else f32.
    pub fn dtype(&self) -> DType {
        if self.embed_tokens.base.value().dtype() == DType::F64 { DType::F64 } else { DType::F32 }
    }

    /// Every parameter, adapters included, in the order of the layers.
    pub fn params(&self) -> Vec<Param> {
        let mut all: Vec<Param> = self.embed_tokens.params().cloned().collect();
        for layer in &self.layers {
            layer.linears().into_iter().for_each(|l| all.extend(l.params().cloned()));
            layer.norms().into_iter().for_each(|n| all.extend(n.weight.params().cloned()));
        }
        all.extend(self.norm.weight.params().cloned());
        all.extend(self.lm_head.iter().flat_map(Weight::params).filter(|p| !p.same(&self.embed_tokens.base)).cloned());
        all.extend(self.score.iter().flat_map(Weight::params).cloned());
        all
    }

    /// The model's own parameters, without adapters: name and parameter, as in the weights file.
    pub fn base_params(&self) -> Vec<Param> {
        let mut all = vec![self.embed_tokens.base.clone()];
        for layer in &self.layers {
            for l in layer.linears() {
                all.push(l.weight.base.clone());
                all.extend(l.bias.iter().map(|b| b.base.clone()));
            }
            all.extend(layer.norms().into_iter().map(|n| n.weight.base.clone()));
        }
        all.push(self.norm.weight.base.clone());
        // A head split off a tied embedding by an adapter is still the embedding.
        all.extend(self.lm_head.iter().map(|w| w.base.clone()).filter(|p| !p.same(&self.embed_tokens.base)));
        all.extend(self.score.iter().map(|w| w.base.clone()));
        all
    }

    /// Every linear module of the layers, mutably: to attach adapters.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.layers.iter_mut().flat_map(Layer::linears_mut).collect()
    }

    /// Number of the model's own parameters.
    pub fn num_params(&self) -> usize {
        self.base_params().iter().map(|p| p.value().numel()).sum()
    }
}

/// NEFTune: uniform in ±alpha / sqrt(length · hidden) for each segment (arXiv:2310.05914, algorithm 1),
/// token t drawing from row t.
fn noise(x: &Var, cu: &[u32], alpha: f64, rows: &Rows) -> Result<Tensor> {
    let (tokens, hidden) = (x.dims()[0], x.dims()[1]);
    if rows.len() != tokens {
        let (lhs, rhs) = (x.dims().to_vec(), vec![rows.len()]);
        let what = "a key for each token";
        return Err(planish_tensor::Error::ShapeMismatch { op: "embedding noise", what, lhs, rhs }.into());
    }
    let mut values = Vec::with_capacity(x.value().numel());
    for segment in cu.windows(2) {
        let length = (segment[1] - segment[0]) as usize;
        let bound = alpha / ((length * hidden).max(1) as f64).sqrt();
        for t in segment[0]..segment[1] {
            let row = rows.row(t as usize);
            values.extend((0..hidden as u32).map(|c| (2.0 * row.uniform(c) as f64 - 1.0) * bound));
        }
    }
    Ok(Tensor::from_vec(values, x.dims())?.to_dtype(x.value().dtype())?)
}

/// x · factor; x itself for 1.
fn scale(x: Var, factor: f64) -> Result<Var> {
    if factor == 1.0 { Ok(x) } else { Ok(elementwise::scale(&x, factor)?) }
}
