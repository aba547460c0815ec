//! LoRA on the two ends of the model: the embedding and the LM head.

use planish_autograd::ops::lora_embedding::lora_embedding;
use planish_autograd::ops::{cast, concat, dropout, elementwise, linear};
use planish_autograd::{Param, Var};
use planish_tensor::ops::concat as concat_kernel;
use planish_tensor::{DType, Tensor};

use super::lora::{Memo, delta, update};
use super::{Attach, EMBEDDING, HEAD, LoraConfig, LoraInit, PREFIX};
use crate::modules::Weight;
use crate::{Ctx, Result};

/// Number of the head's stream of dropout masks: none of a linear module.
const HEAD_ID: u64 = u64::MAX;

/// y_t = W\[ids_t\] + s·A\[:, ids_t\]ᵀ Bᵀ. (PEFT has no dropout here.)
#[derive(Debug)]
pub struct LoraEmbedding {
    /// A: (r, vocabulary).
    pub a: Param,
    /// B: (hidden, r).
    pub b: Param,
    /// s.
    pub scale: f64,
}

/// PEFT saves the weight under an adapted embedding or head too, in case it was resized. Such a copy takes the place
/// of the model's own while the adapter is on.
fn saved_base(to: &mut Attach<'_>, name: &str, weight: &mut Weight) -> Result<()> {
    let name = format!("{PREFIX}{name}.base_layer.weight");
    if let Some(copy) = to.optional(&name, weight.base.value().dims())? {
        weight.tuned.set(to.slot, Param::frozen(name, copy));
    }
    Ok(())
}

impl LoraEmbedding {
    pub(super) fn attach(to: &mut Attach<'_>, config: &LoraConfig) -> Result<LoraEmbedding> {
        let (r, scale) = config.rank_and_scale(EMBEDDING)?;
        let shape = to.model.embed_tokens.base.value().dims().to_vec();
        let random = config.init_lora_weights == LoraInit::Random;
        let name = |part: &str| format!("{PREFIX}{EMBEDDING}.{part}");
        let a =
            to.param(
                name("lora_embedding_A"),
                &[r, shape[0]],
                |draw| {
                    if random { draw.normal(1.0) } else { draw.full(0.0) }
                },
            )?;
        let b = to.param(name("lora_embedding_B"), &[shape[1], r], |draw| draw.normal(1.0))?;
        // A tied head keeps the weight without the update.
        let mut weight = to.model.embed_tokens.clone();
        saved_base(to, EMBEDDING, &mut weight)?;
        to.model.embed_tokens = weight;
        Ok(LoraEmbedding { a, b, scale })
    }

    /// Embedding of tokens.
    ///
    /// # Errors
    /// An id that is no row of the weight.
    pub fn forward(&self, ctx: &Ctx, weight: &Var, ids: &[u32]) -> planish_autograd::Result<Var> {
        lora_embedding(weight, &ctx.param(&self.a), &ctx.param(&self.b), ids, self.scale)
    }

    /// Its parameters.
    pub fn params(&self) -> [&Param; 2] {
        [&self.a, &self.b]
    }

    /// s·(B A)ᵀ: (vocabulary, hidden).
    pub(super) fn delta(&self) -> planish_tensor::Result<Tensor> {
        delta(&self.a.value(), &self.b.value(), self.scale)?.transpose(0, 1)
    }
}

/// z = W h + s·B A drop(h) for the LM head.
///
/// The head is one op over tiles of the vocabulary, so the update widens its operands instead of changing it: with
/// u = s·A drop(h), z = \[W | B\] \[h ; u\]. The widened weight is a copy of W in the compute dtype, kept while nothing
/// changes; training makes it anew for each pass and has the gradient of all of it made: the price of an update here
/// is about that of training W itself.
#[derive(Debug)]
pub struct HeadLora {
    /// A: (r, hidden).
    pub a: Param,
    /// B: (vocabulary, r).
    pub b: Param,
    /// s.
    pub scale: f64,
    /// Dropout on the update's input.
    pub dropout: f64,
    wide: Memo,
}

impl HeadLora {
    pub(super) fn attach(to: &mut Attach<'_>, config: &LoraConfig) -> Result<HeadLora> {
        let (r, scale) = config.rank_and_scale(HEAD)?;
        let mut weight = match &to.model.lm_head {
            Some(head) => head.clone(),
            None => Weight::new(to.model.embed_tokens.base.clone()),
        };
        let (shape, slot) = (weight.base.value().dims().to_vec(), to.slot);
        let init = &config.init_lora_weights;
        let name = |part: &str| format!("{PREFIX}{HEAD}.{part}.weight");
        let a = to.param(name("lora_A"), &[r, shape[1]], |draw| match init {
            LoraInit::Gaussian => draw.normal(1.0 / r as f64),
            _ => draw.uniform(1.0 / (shape[1] as f64).sqrt()),
        })?;
        let b = to.param(name("lora_B"), &[shape[0], r], |draw| match init {
            LoraInit::Random => draw.uniform(1.0 / (r as f64).sqrt()),
            _ => draw.full(0.0),
        })?;
        saved_base(to, HEAD, &mut weight)?;
        if to.model.lm_head.is_some() || weight.tuned.get(slot).is_some() {
            to.model.lm_head = Some(weight);
        }
        Ok(HeadLora { a, b, scale, dropout: config.lora_dropout, wide: Memo::default() })
    }

    /// (\[h ; u\], \[W | B\]) for the rows of h, which are the rows `tokens` of the pass where that is known: dropout
    /// goes by token.
    ///
    /// # Errors
    /// Shapes that do not agree.
    pub fn widen(&self, ctx: &Ctx, hidden: &Var, weight: &Var, tokens: Option<&[u32]>) -> Result<(Var, Var)> {
        let (a, b) = (ctx.param(&self.a), ctx.param(&self.b));
        let input = match (update(ctx, self.scale, self.dropout, HEAD_ID).dropout, tokens) {
            (Some((p, rows)), Some(tokens)) => dropout::dropout(hidden, p, &rows.select(tokens))?,
            _ => hidden.clone(),
        };
        let u = elementwise::scale(&linear::linear(&input, &a, None)?, self.scale)?;
        let wide = concat::concat(&[hidden, &u], 1)?;
        let dtype = hidden.value().dtype();
        let weight = if b.is_tracked() {
            concat::concat(&[&Var::constant(weight.value().to_dtype(dtype)?), &cast::cast(&b, dtype)?], 1)?
        } else {
            let key = [weight.value(), b.value()];
            let kept = self.wide.get(ctx, &key, || widened(key[0], key[1], dtype))?;
            // Kept for activations of another dtype.
            Var::constant(if kept.dtype() == dtype { kept } else { widened(key[0], key[1], dtype)? })
        };
        Ok((wide, weight))
    }

    /// Its parameters.
    pub fn params(&self) -> [&Param; 2] {
        [&self.a, &self.b]
    }

    /// s·B A: (vocabulary, hidden).
    pub(super) fn delta(&self) -> planish_tensor::Result<Tensor> {
        delta(&self.a.value(), &self.b.value(), self.scale)
    }
}

fn widened(weight: &Tensor, b: &Tensor, dtype: DType) -> planish_tensor::Result<Tensor> {
    concat_kernel::forward(&[&weight.to_dtype(dtype)?, &b.to_dtype(dtype)?], 1)
}
