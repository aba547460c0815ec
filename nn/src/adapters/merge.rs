//! Folding an adapter into the weights.

use std::sync::Arc;

use planish_autograd::Param;
use planish_tensor::ops::elementwise::add_assign;
use planish_tensor::{DType, Tensor};

use super::AdapterError;
use crate::Result;
use crate::decoder::{Model, Place};
use crate::modules::Weight;

/// Folds adapter 0 into the weights, trained copies in place of the originals. Sums are made in the compute dtype and
/// rounded once to the weight's; where that is quantised they stay in the compute dtype, and a quantised weight that
/// nothing is added to stays as it is ([`unpack`](crate::quantize::unpack) and
/// [`requantize`](crate::quantize::requantize) say what becomes of them). Adapters of other numbers, which were made for the weights as they were, are gone
/// afterwards.
///
/// # Errors
/// [`AdapterError::NotMergeable`] for virtual tokens; those of the kernels.
pub fn merge_adapter(model: &mut Model) -> Result<()> {
    let dtype = model.dtype();
    if let Some(lead) = model.virtual_tokens.get(0) {
        let embeddings = lead.place() == Place::Embeddings;
        let peft_type = if embeddings { "PROMPT_TUNING or P_TUNING" } else { "PREFIX_TUNING" };
        return Err(AdapterError::NotMergeable { peft_type }.into());
    }
    model.virtual_tokens.clear();
    for linear in model.linears_mut() {
        let adapter = linear.adapters.take(0);
        linear.adapters.clear();
        settle(&mut linear.weight)?;
        if let Some(bias) = &mut linear.bias {
            settle(bias)?;
        }
        let Some(adapter) = adapter else { continue };
        let own = |weight: &Weight| -> Result<Tensor> { Ok(weight.base.value().to_dtype(dtype)?.copied()?) };
        let bias = linear.bias.as_ref().map(&own).transpose()?;
        let (weight, bias) = adapter.merge(own(&linear.weight)?, bias)?;
        replace(&mut linear.weight, &weight)?;
        if let (Some(place), Some(bias)) = (&mut linear.bias, bias) {
            replace(place, &bias)?;
        }
    }
    model.layers.iter_mut().flat_map(|l| l.norms_mut()).try_for_each(|n| settle(&mut n.weight))?;
    settle(&mut model.norm.weight)?;
    ends(model, dtype)
}

/// The embedding and the head, which are one weight until an adapter makes them two.
fn ends(model: &mut Model, dtype: DType) -> Result<()> {
    let (embedding, head) = (model.embed_lora.take(0), model.head_lora.take(0));
    model.embed_lora.clear();
    model.head_lora.clear();
    if model.lm_head.is_none() && (embedding.is_some() || head.is_some()) {
        model.lm_head = Some(Weight::new(model.embed_tokens.base.clone()));
    }
    settle(&mut model.embed_tokens)?;
    if let Some(lora) = embedding {
        add(&mut model.embed_tokens, &lora.delta()?, dtype)?;
    }
    let Some(weight) = &mut model.lm_head else { return Ok(()) };
    settle(weight)?;
    if let Some(lora) = head {
        add(weight, &lora.delta()?, dtype)?;
    }
    if model.config.tie_word_embeddings {
        // They are two from now on.
        weight.base = Param::frozen("lm_head.weight", weight.base.value());
        let mut config = (*model.config).clone();
        config.tie_word_embeddings = false;
        config.source["tie_word_embeddings"] = false.into();
        model.config = Arc::new(config);
    }
    Ok(())
}

/// Puts adapter 0's copy in place of the weight.
fn settle(weight: &mut Weight) -> Result<()> {
    let tuned = weight.tuned.take(0);
    weight.tuned.clear();
    match tuned {
        Some(tuned) => replace(weight, &tuned.value()),
        None => Ok(()),
    }
}

fn add(weight: &mut Weight, delta: &Tensor, dtype: DType) -> Result<()> {
    let mut sum = weight.base.value().to_dtype(dtype)?.copied()?;
    add_assign(&mut sum, &delta.contiguous()?)?;
    replace(weight, &sum)
}

fn replace(weight: &mut Weight, value: &Tensor) -> Result<()> {
    let own = weight.base.value().dtype();
    let value = if own.is_float() { value.to_dtype(own)? } else { value.clone() };
    weight.base = Param::frozen(weight.base.name(), value);
    Ok(())
}
