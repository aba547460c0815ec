//! The decoder: one transformer for every family, driven by [`ModelConfig`].

mod branch;
mod cache;
mod experts;
mod head;
mod latent;
mod layer;
mod lead;
mod load;
mod mlp;
mod rotary;
mod routing;
mod steady;

pub use cache::SequenceCache;
pub use layer::Layer;
pub use lead::{Place, VirtualTokens};
pub use load::{LoadOptions, TensorSource};
pub use routing::{LayerRouting, Routing};
pub(crate) use steady::Steady;

use std::sync::Arc;

use planish_autograd::ops::attention::Stem;
use planish_autograd::ops::lm_head::{Later, LmHead, Scores, lm_head, lm_head_later};
use planish_autograd::ops::{cast, elementwise, embedding, index_select};
use planish_autograd::{Param, Var, checkpoint};
use planish_tensor::gemm::FEW_ROWS;
use planish_tensor::ops::attention::CachedPass;
use planish_tensor::rng::Rows;
use planish_tensor::{DType, Device, Tensor, stream};

use crate::adapters::{HeadLora, LoraEmbedding};
use crate::config::ModelConfig;
use crate::modules::{Linear, Norm, Slots, Weight};
use crate::{Ctx, Error, Result};
use layer::Mixing;
use lead::{Lengthened, Prefix};
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
    /// For each segment the tokens of another that it goes on from, if any; empty if none does.
    pub stems: Arc<[Option<Stem>]>,
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
        Packed { ids: ids.into(), positions: positions.into(), cu_seqlens: cu.into(), stems: Arc::new([]) }
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
    /// The head of a reward model: (1, hidden) for answers, (2, hidden) for steps.
    pub score: Option<Weight>,
    /// Its bias: (outputs).
    pub score_bias: Option<Weight>,
    /// Low-rank updates of the embedding.
    pub embed_lora: Slots<Arc<LoraEmbedding>>,
    /// Low-rank updates of the LM head.
    pub head_lora: Slots<Arc<HeadLora>>,
    /// What adapters put before every sequence.
    pub virtual_tokens: Slots<Arc<dyn VirtualTokens>>,
    /// Trained beside the model and no part of it: an objective's own parameters. It saves them itself.
    pub beside: Vec<Param>,
    /// Dtype of what goes from op to op, if it is not [`Model::dtype`].
    activations: Option<DType>,
}

impl Model {
    /// Hidden states after the final norm, (tokens, hidden), of a packed batch.
    ///
    /// `recompute` keeps only each layer's input and computes the rest again in the backward pass.
    ///
    /// # Errors
    /// A token id outside the vocabulary; those of the kernels.
    pub fn forward(&self, ctx: &Ctx, batch: &Packed, recompute: bool) -> Result<Var> {
        Ok(self.forward_with(ctx, batch, recompute, &[])?.0)
    }

    /// As [`Model::forward`], and what comes out of the layers of these numbers, (tokens, hidden) each.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_with(
        &self,
        ctx: &Ctx,
        batch: &Packed,
        recompute: bool,
        layers: &[usize],
    ) -> Result<(Var, Vec<Var>)> {
        let mut seen = vec![None; layers.len()];
        let mut x = self.embed(ctx, &batch.ids)?;
        if let Some((alpha, rows)) = ctx.embedding_noise() {
            x = elementwise::add(&x, &Var::constant(noise(&x, batch, alpha, rows)?))?;
        }
        let (mut cu, mut positions) = (batch.cu_seqlens.clone(), batch.positions.clone());
        let (mut stems, mut prefixes, mut kept) = (batch.stems.clone(), Vec::new(), None);
        if let Some(lead) = self.virtual_tokens.active(ctx) {
            // What goes on from another segment has its virtual tokens there.
            let leads = |s: usize| batch.stems.get(s).is_none_or(Option::is_none);
            let table = Lengthened::new(&cu, lead.count(), leads);
            let n = lead.count() as u32;
            stems = batch.longer_stems(lead.count());
            match lead.place() {
                Place::Embeddings => {
                    x = table.stream(&self.inputs(lead.values(ctx)?)?, &x)?;
                    let own = |s: usize| positions[cu[s] as usize..cu[s + 1] as usize].iter().map(|p| p + n);
                    let leading = |s: usize| 0..if leads(s) { n } else { 0 };
                    positions = (0..cu.len() - 1).flat_map(|s| leading(s).chain(own(s))).collect();
                    (cu, kept) = (table.cu, Some(table.kept));
                }
                Place::KeysAndValues => {
                    prefixes = Prefix::all(&self.config, &self.activation(lead.values(ctx)?)?, lead.count(), &table)?;
                    positions = positions.iter().map(|p| p + n).collect();
                }
            }
        }
        let rotations = Rotations::new(&self.config, &positions, &cu, self.dtype(), self.device())?;
        // With a tape on a device layers end with their addition, recomputed or not: where gradients of halves meet they
        // are rounded, and recomputation changes no bit.
        let closed = ctx.tape().is_some() && !self.device().is_cpu();
        let mut added = None;
        for (i, layer) in self.layers.iter().enumerate() {
            let prefix = prefixes.get(i);
            let (out, open, routed) = match ctx.tape().filter(|_| recompute) {
                None if closed => {
                    let mixing = Mixing::Packed { cu: &cu, stems: &stems, prefix };
                    let (x, routed) = layer.forward(ctx, &x, &rotations, mixing)?;
                    (x, None, routed)
                }
                None => {
                    let mixing = Mixing::Packed { cu: &cu, stems: &stems, prefix };
                    let (x, last, routed) = layer.forward_open(ctx, &x, added.as_ref(), &rotations, mixing)?;
                    (x, Some(last), routed)
                }
                Some(tape) => {
                    let (layer, ctx) = (layer.clone(), ctx.clone());
                    let (rotations, cu, stems) = (rotations.clone(), cu.clone(), stems.clone());
                    // The prefix comes in as inputs, so that its gradient finds its way out.
                    let tables = prefix.map(|p| (p.cu.clone(), p.index.clone()));
                    let segment = move |tape: Option<&planish_autograd::Tape>, x: &[Var]| {
                        let own =
                            tables.clone().map(|(cu, index)| Prefix { k: x[1].clone(), v: x[2].clone(), cu, index });
                        let mixing = Mixing::Packed { cu: &cu, stems: &stems, prefix: own.as_ref() };
                        let (x, routed) = layer.forward(&ctx.on(tape), &x[0], &rotations, mixing)?;
                        Ok([x].into_iter().chain(routed.filter(|_| ctx.routing().is_some())).collect())
                    };
                    let inputs: Vec<&Var> =
                        std::iter::once(&x).chain(prefix.iter().flat_map(|p| [&p.k, &p.v])).collect();
                    let mut out = checkpoint(tape, segment, &inputs)?.into_iter();
                    (out.next().expect("a layer has an output"), None, out.next())
                }
            };
            (x, added) = (out, open);
            if let (Some(routing), Some(experts), Some(logits)) = (ctx.routing(), layer.experts(), routed) {
                routing.note(LayerRouting::new(i, experts, logits)?);
            }
            for (wanted, place) in layers.iter().zip(&mut seen) {
                if *wanted == i {
                    if let Some(added) = added.take() {
                        x = layer.residual(&x, &added)?;
                    }
                    *place = Some(x.clone());
                }
            }
        }
        let own = |x: Var| match &kept {
            Some(kept) => index_select::index_select(&x, kept),
            None => Ok(x),
        };
        let seen = seen.into_iter().flatten().map(own).collect::<planish_autograd::Result<Vec<_>>>()?;
        Ok((self.normed(ctx, x, added, kept.as_deref())?, seen))
    }

    /// Virtual tokens' embeddings, times the family's factor where it is on all inputs.
    fn inputs(&self, values: Var) -> Result<Var> {
        self.activation(scale(values, if self.config.scales_all_inputs { self.config.embedding_scale } else { 1.0 })?)
    }

    /// In the dtype of activations.
    fn activation(&self, x: Var) -> Result<Var> {
        Ok(cast::cast(&x, self.activations())?)
    }

    /// Embedding of tokens, times the family's factor, in the dtype of activations.
    ///
    /// # Errors
    /// [`Error::TokenId`].
    pub fn embed(&self, ctx: &Ctx, ids: &[u32]) -> Result<Var> {
        self.check_ids(ids)?;
        let weight = self.embed_tokens.var(ctx);
        let x = match self.embed_lora.active(ctx) {
            None => embedding::embedding(&weight, ids)?,
            Some(lora) => lora.forward(ctx, &weight, ids)?,
        };
        self.embedded(x)
    }

    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().position(|&id| id as usize >= self.config.vocab_size) {
            None => Ok(()),
            Some(position) => Err(Error::TokenId { id: ids[position], position, vocab_size: self.config.vocab_size }),
        }
    }

    /// Rows of the embedding as they go into the first layer.
    fn embedded(&self, rows: Var) -> Result<Var> {
        self.activation(scale(rows, self.config.embedding_scale)?)
    }

    /// Per-token log-probabilities of `targets` at the given rows of `hidden`. Only these rows are
    /// computed (law 4 of the design).
    ///
    /// # Errors
    /// A row or a target out of range.
    pub fn scores(&self, ctx: &Ctx, hidden: &Var, rows: &[u32], targets: &[u32]) -> Result<Scores> {
        let (hidden, head) = self.head_inputs(ctx, hidden, rows)?;
        Ok(lm_head(&hidden, &head, targets, &self.head_options())?)
    }

    /// The same for a loss whose slopes are known before, made in its backward pass ([`lm_head_later`]). `None` where that
    /// saves nothing, as the head is frozen.
    ///
    /// # Errors
    /// As [`Model::scores`].
    pub fn scores_later(&self, ctx: &Ctx, hidden: &Var, rows: &[u32], targets: &[u32]) -> Result<Option<Later>> {
        if self.head_lora.active(ctx).is_none() && !self.head(ctx).is_tracked() {
            return Ok(None);
        }
        let (hidden, head) = self.head_inputs(ctx, hidden, rows)?;
        let later = || lm_head_later(&hidden, &head, targets, &self.head_options());
        Ok(head.is_tracked().then(later).transpose()?)
    }

    /// Logits of every token at the given hidden states, (rows, vocabulary): for sampling.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn logits(&self, ctx: &Ctx, hidden: &Tensor) -> Result<Tensor> {
        let (ctx, hidden) = (ctx.on(None), Var::constant(hidden.clone()));
        let (hidden, head) = match self.head_lora.active(&ctx) {
            None => (hidden, self.head(&ctx)),
            Some(lora) => lora.widen(&ctx, &hidden, &self.head(&ctx), None)?,
        };
        Ok(planish_tensor::ops::lm_head::logits(hidden.value(), head.value(), &self.head_options())?)
    }

    /// The LM head's weight, without a low-rank update.
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
        let lead = self.virtual_tokens.active(&ctx);
        let count = lead.map_or(0, |l| l.count());
        let fresh: Vec<bool> = caches.iter().map(|c| c.rows() == 0).collect();
        let (mut ids, mut positions, mut cu) = (vec![], vec![], vec![0u32]);
        for (s, new) in tokens.iter().enumerate() {
            let start = if fresh[s] { count } else { caches[s].rows() } as u32;
            ids.extend_from_slice(new.as_ref());
            positions.extend(start..start + new.as_ref().len() as u32);
            cu.push(ids.len() as u32);
        }
        let mut x = self.embed(&ctx, &ids)?;
        let (mut prefixes, mut kept) = (Vec::new(), None);
        if let Some(lead) = lead.filter(|_| fresh.contains(&true)) {
            let table = Lengthened::new(&cu, count, |s| fresh[s]);
            match lead.place() {
                Place::Embeddings => {
                    x = table.stream(&self.inputs(lead.values(&ctx)?)?, &x)?;
                    let own = |s: usize| positions[cu[s] as usize..cu[s + 1] as usize].iter().copied();
                    let leading = |s: usize| 0..if fresh[s] { count as u32 } else { 0 };
                    positions = (0..fresh.len()).flat_map(|s| leading(s).chain(own(s))).collect();
                    (cu, kept) = (table.cu.to_vec(), Some(table.kept));
                }
                Place::KeysAndValues => {
                    prefixes = Prefix::all(&self.config, &self.activation(lead.values(&ctx)?)?, count, &table)?;
                }
            }
        }
        let rotations = Rotations::new(&self.config, &positions, &cu, self.dtype(), self.device())?;
        let held = caches.iter().map(|cache| cache.rows()).collect();
        let memory = caches.iter_mut().map(|cache| cache.memory()).collect();
        let mut pass = CachedPass::new(memory, held, &cu, prefixes.first().map_or(&cu, |p| &p.cu))?;
        // Ops of so few tokens are so short that no thread is to wait for the one before to have returned.
        let few = self.device().is_cpu() && positions.len() <= FEW_ROWS;
        let layers = || -> Result<Var> {
            let (x, added) = self.through_layers(&ctx, x, &rotations, &mut pass, &prefixes)?;
            self.normed(&ctx, x, added, kept.as_deref())
        };
        let hidden = if few { stream::scope(layers)? } else { layers()? };
        for ((new, cache), fresh) in tokens.iter().zip(caches.iter_mut()).zip(&fresh) {
            let lead = if *fresh { count } else { 0 };
            cache.advance(lead + new.as_ref().len());
            if *fresh {
                cache.set_lead(lead);
            }
        }
        Ok(hidden.into_value())
    }

    /// The stream behind the layers, and what is still to be added to it.
    fn through_layers(
        &self,
        ctx: &Ctx,
        mut x: Var,
        rotations: &Rotations,
        pass: &mut CachedPass<'_>,
        prefixes: &[Prefix],
    ) -> Result<(Var, Option<Var>)> {
        let mut added = None;
        for (i, layer) in self.layers.iter().enumerate() {
            let mixing = Mixing::Cached { layer: i, pass: &mut *pass, prefix: prefixes.get(i) };
            let (stream, last, _) = layer.forward_open(ctx, &x, added.as_ref(), rotations, mixing)?;
            (x, added) = (stream, Some(last));
        }
        Ok((x, added))
    }

    /// The final norm of x + `added`, at rows `kept` if not at all.
    fn normed(&self, ctx: &Ctx, mut x: Var, added: Option<Var>, kept: Option<&[u32]>) -> Result<Var> {
        let whole = kept.is_none() && self.config.residual_scale == 1.0;
        if let Some(added) = added.as_ref().filter(|_| whole) {
            return Ok(self.norm.forward_added(ctx, &x, added)?.1);
        }
        if let (Some(added), Some(layer)) = (&added, self.layers.last()) {
            x = layer.residual(&x, added)?;
        }
        if let Some(kept) = kept {
            x = index_select::index_select(&x, kept)?;
        }
        Ok(self.norm.forward(ctx, &x)?)
    }

    /// An empty cache for one sequence.
    pub fn cache(&self) -> SequenceCache {
        SequenceCache::new(&self.config, self.activations(), self.device())
    }

    /// Dtype that sums, new parameters and gradients of parameters are in: f64 for f64 weights, else f32. Activations
    /// too, unless [`Model::set_activations`] says otherwise.
    pub fn dtype(&self) -> DType {
        if self.embed_tokens.base.value().dtype() == DType::F64 { DType::F64 } else { DType::F32 }
    }

    /// Dtype of activations, of their gradients, and of the caches of decoding.
    pub fn activations(&self) -> DType {
        self.activations.unwrap_or_else(|| self.dtype())
    }

    /// Lets activations, from the embedding on to the LM head, and their gradients be bf16, with which products and
    /// attention run on tensor cores; or f32 again. On a device only. The stream of residuals is bf16 as well, as in
    /// transformers with bf16 weights; each op computes in f32 and rounds its result once. Weights are multiplied in
    /// bf16 whatever they are held in; log-probabilities, the statistics of norms and the gradients of parameters are
    /// f32.
    ///
    /// # Errors
    /// [`Error::Activations`] on the processor, and for other dtypes.
    pub fn set_activations(&mut self, dtype: DType) -> Result<()> {
        let device = self.device();
        match dtype {
            DType::F32 if self.dtype() == DType::F32 => self.activations = None,
            DType::BF16 if !device.is_cpu() => self.activations = Some(dtype),
            _ => return Err(Error::Activations { dtype, device }),
        }
        Ok(())
    }

    /// Where its weights are, and so what computes with them.
    pub fn device(&self) -> Device {
        self.embed_tokens.base.value().device()
    }

    /// Moves every parameter, adapters included, to a device. What is made from them afterwards (activations,
    /// gradients, caches) is there too.
    ///
    /// # Errors
    /// [`Error::Placing`] with the parameter that finds no room; those of opening the device.
    pub fn to_device(&self, device: Device) -> Result<()> {
        device.open()?;
        for param in self.params().into_iter().chain(self.base_params()) {
            let placed = param.update(|value| {
                *value = value.to_device(device)?;
                Ok(())
            });
            placed.map_err(|source| Error::Placing { name: param.name().to_owned(), source })?;
        }
        Ok(())
    }

    /// Every parameter, adapters included, in the order of the layers.
    pub fn params(&self) -> Vec<Param> {
        let mut all: Vec<Param> = self.embed_tokens.params().cloned().collect();
        all.extend(self.embed_lora.iter().flat_map(|l| l.params()).cloned());
        all.extend(self.virtual_tokens.iter().flat_map(|v| v.params()).cloned());
        for layer in &self.layers {
            layer.linears().into_iter().for_each(|l| all.extend(l.params().cloned()));
            layer.norms().into_iter().for_each(|n| all.extend(n.weight.params().cloned()));
        }
        all.extend(self.norm.weight.params().cloned());
        all.extend(self.lm_head.iter().flat_map(Weight::params).filter(|p| !p.same(&self.embed_tokens.base)).cloned());
        all.extend(self.score.iter().chain(&self.score_bias).flat_map(Weight::params).cloned());
        all.extend(self.head_lora.iter().flat_map(|l| l.params()).cloned());
        all.extend(self.beside.iter().cloned());
        // What two places share counts once.
        let mut once: Vec<Param> = Vec::with_capacity(all.len());
        let mut seen = std::collections::HashSet::new();
        for param in all {
            if seen.insert(param.name().to_string()) || !once.iter().any(|p| p.same(&param)) {
                once.push(param);
            }
        }
        once
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
            all.extend(layer.buffers().into_iter().cloned());
        }
        all.push(self.norm.weight.base.clone());
        // A head split off a tied embedding by an adapter is still the embedding.
        all.extend(self.lm_head.iter().map(|w| w.base.clone()).filter(|p| !p.same(&self.embed_tokens.base)));
        all.extend(self.score.iter().chain(&self.score_bias).map(|w| w.base.clone()));
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
fn noise(x: &Var, batch: &Packed, alpha: f64, rows: &Rows) -> Result<Tensor> {
    let (tokens, hidden) = (x.dims()[0], x.dims()[1]);
    if rows.len() != tokens {
        let (lhs, rhs) = (x.dims().to_vec(), vec![rows.len()]);
        let what = "a key for each token";
        return Err(planish_tensor::Error::ShapeMismatch { op: "embedding noise", what, lhs, rhs }.into());
    }
    let mut values = Vec::with_capacity(x.value().numel());
    for (s, segment) in batch.cu_seqlens.windows(2).enumerate() {
        let stem = batch.stems.get(s).copied().flatten().map_or(0, |stem| stem.len);
        let length = (segment[1] - segment[0] + stem) as usize;
        let bound = alpha / ((length * hidden).max(1) as f64).sqrt();
        for t in segment[0]..segment[1] {
            let row = rows.row(t as usize);
            values.extend((0..hidden as u32).map(|c| (2.0 * row.uniform(c) as f64 - 1.0) * bound));
        }
    }
    Ok(Tensor::from_vec(values, x.dims())?.to_dtype(x.value().dtype())?.to_device(x.value().device())?)
}

/// x · factor; x itself for 1.
fn scale(x: Var, factor: f64) -> Result<Var> {
    if factor == 1.0 { Ok(x) } else { Ok(elementwise::scale(&x, factor)?) }
}
