//! LoRA: y = x Wᵀ + b + s·drop(x) Aᵀ Bᵀ, and DoRA, which also trains the lengths of the rows of W + s·B A.
//!
//! # Source
//! Hu et al., arXiv:2106.09685; Liu et al. (DoRA), arXiv:2402.09353; Kalajdzievski (rsLoRA), arXiv:2312.03732.

use std::sync::{Arc, Mutex};

use planish_autograd::ops::dora_linear::{dora_linear, row_norms};
use planish_autograd::ops::lora_linear::{Lora, lora_linear};
use planish_autograd::{Param, Var};
use planish_tensor::ops::elementwise::{add_assign, div, mul, scale};
use planish_tensor::ops::linear::matmul;
use planish_tensor::{Real, Tensor, dispatch_real};
use serde_json::Value;

use super::init::{RESIDUAL, orthogonal};
use super::lora_config::LoraBias;
use super::lora_experts::saved_parameter;
use super::{
    AdapterError, Attach, HEAD, HeadLora, LoraConfig, LoraEmbedding, LoraInit, Method, PREFIX, Targets, copies, select,
};
use crate::modules::LinearAdapter;
use crate::{Ctx, Result};

/// A LoRA update of one linear map.
#[derive(Debug)]
pub struct LoraLayer {
    /// A: (r, in).
    pub a: Param,
    /// B: (out, r).
    pub b: Param,
    /// s.
    pub scale: f64,
    /// Dropout on the update's input.
    pub dropout: f64,
    /// Number of this module among the model's: its own stream of dropout masks.
    pub id: u64,
    /// DoRA's m.
    dora: Option<Dora>,
}

/// Lengths of rows, (out), and what they were divided by last.
#[derive(Debug)]
struct Dora {
    magnitude: Param,
    norms: Memo,
}

/// A tensor made from others, kept while these are what they were.
///
/// A handle in the key keeps its numbers: what changes them afterwards makes a buffer of its own, so that the key no
/// longer fits. Kept outside of training only, where weights would have to be copied at every step for it.
#[derive(Debug, Default)]
pub(super) struct Memo(Mutex<Option<(Vec<Tensor>, Tensor)>>);

impl Memo {
    pub(super) fn get(
        &self,
        ctx: &Ctx,
        key: &[&Tensor],
        make: impl FnOnce() -> planish_tensor::Result<Tensor>,
    ) -> planish_tensor::Result<Tensor> {
        let mut kept = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if ctx.tape().is_some() {
            *kept = None;
            drop(kept);
            return make();
        }
        if let Some((old, made)) = &*kept
            && old.iter().zip(key).all(|(old, new)| old.shares_storage(new))
        {
            return Ok(made.clone());
        }
        let made = make()?;
        *kept = Some((key.iter().map(|&t| t.clone()).collect(), made.clone()));
        Ok(made)
    }
}

impl LoraLayer {
    pub(super) fn new(a: Param, b: Param, scale: f64, dropout: f64, id: u64) -> LoraLayer {
        LoraLayer { a, b, scale, dropout, id, dora: None }
    }
}

/// Scale and dropout of module `id` under a context.
pub(super) fn update(ctx: &Ctx, scale: f64, dropout: f64, id: u64) -> Lora {
    Lora { scale, dropout: ctx.dropout().filter(|_| dropout > 0.0).map(|s| (dropout, s.substream(id))) }
}

/// s·B A, apart: added to W afterwards, as PEFT does.
pub(super) fn delta(a: &Tensor, b: &Tensor, s: f64) -> planish_tensor::Result<Tensor> {
    matmul(&scale(b, s)?, a, a.dtype())
}

impl LinearAdapter for LoraLayer {
    fn forward(&self, ctx: &Ctx, x: &Var, weight: &Var, bias: Option<&Var>) -> planish_autograd::Result<Var> {
        let lora = update(ctx, self.scale, self.dropout, self.id);
        let (a, b) = (ctx.param(&self.a), ctx.param(&self.b));
        let Some(dora) = &self.dora else { return lora_linear(x, weight, bias, &a, &b, &lora) };
        let key = [weight.value(), a.value(), b.value()];
        let norms = dora.norms.get(ctx, &key, || row_norms(key[0], key[1], key[2], self.scale))?;
        dora_linear(x, weight, bias, (&a, &b), (&ctx.param(&dora.magnitude), &norms), &lora)
    }

    fn params(&self) -> Vec<&Param> {
        [&self.a, &self.b].into_iter().chain(self.dora.as_ref().map(|d| &d.magnitude)).collect()
    }

    fn merge(&self, weight: Tensor, bias: Option<Tensor>) -> planish_tensor::Result<(Tensor, Option<Tensor>)> {
        let (a, b) = (self.a.value(), self.b.value());
        let mut merged = weight.clone();
        add_assign(&mut merged, &delta(&a, &b, self.scale)?)?;
        if let Some(dora) = &self.dora {
            let mut norms = row_norms(&weight, &a, &b, self.scale)?;
            // A row of zeros has no direction: it stays zero, as in `dora_linear`.
            dispatch_real!("dora", norms.dtype(), R => {
                norms.as_slice_mut::<R>()?.iter_mut().filter(|n| **n == R::ZERO).for_each(|n| *n = R::ONE);
            });
            let gain = div(&dora.magnitude.value(), &norms)?;
            merged = mul(&merged, &gain.unsqueeze(1)?)?;
        }
        Ok((merged, bias))
    }
}

impl LoraConfig {
    /// Rank and scale of a module.
    pub(super) fn rank_and_scale(&self, name: &str) -> Result<(usize, f64), AdapterError> {
        let r = select::by_pattern("rank_pattern", &self.rank_pattern, name)?.unwrap_or(self.r);
        let alpha = select::by_pattern("alpha_pattern", &self.alpha_pattern, name)?.unwrap_or(self.lora_alpha);
        Ok((r, alpha / if self.use_rslora { (r as f64).sqrt() } else { r as f64 }))
    }

    fn check(&self, to: &Attach<'_>, module: &str, r: usize, shape: &[usize]) -> Result<()> {
        // A gate of one number among the targets (that of Qwen2-MoE's shared expert) is no sign of a wrong rank.
        let drawn = matches!(self.init_lora_weights, LoraInit::Default | LoraInit::Random | LoraInit::Gaussian);
        let any = drawn && shape[0] == 1;
        if to.is_fresh() && r > shape[0].min(shape[1]) && !any {
            let (out, input) = (shape[0], shape[1]);
            return Err(AdapterError::Rank { key: "lora_r", rank: r, module: module.into(), out, input }.into());
        }
        Ok(())
    }

    fn attach_linear(&self, to: &mut Attach<'_>, index: usize) -> Result<()> {
        let linear = &to.model.linears_mut()[index];
        let (name, weight) = (linear.name.to_string(), linear.weight.base.value());
        let (out, input) = (weight.dims()[0], weight.dims()[1]);
        let (r, scale) = self.rank_and_scale(&name)?;
        self.check(to, &name, r, weight.dims())?;
        let taken = self.init_lora_weights.taken(&weight, r, scale, to.dtype)?;
        let part = |part: &str| format!("{PREFIX}{name}.{part}.weight");
        let bound = 1.0 / (input as f64).sqrt();
        let (stream, dtype) = (to.stream(&name), to.dtype);
        let drawn = |which: usize| Ok(orthogonal(stream, out, input, r, dtype)?[which].clone());
        let init = &self.init_lora_weights;
        let a = to.param(part("lora_A"), &[r, input], |draw| match (init, &taken) {
            (_, Some(taken)) => Ok(taken.a.clone()),
            (LoraInit::Gaussian, _) => draw.normal(1.0 / r as f64),
            (LoraInit::Orthogonal, _) => drawn(0),
            (LoraInit::Other(other), _) => Err(unsupported_init(other).into()),
            _ => draw.uniform(bound),
        })?;
        let b = to.param(part("lora_B"), &[out, r], |draw| match (init, &taken) {
            (_, Some(taken)) => Ok(taken.b.clone()),
            (LoraInit::Random, _) => draw.uniform(1.0 / (r as f64).sqrt()),
            (LoraInit::Orthogonal, _) => drawn(1),
            _ => draw.full(0.0),
        })?;
        let dora = if self.use_dora {
            let base = taken.as_ref().map_or(&weight, |t| &t.rest);
            let (a, b) = (a.value(), b.value());
            let name = format!("{PREFIX}{name}.lora_magnitude_vector");
            let magnitude = to.param(name, &[out], |_| Ok(row_norms(base, &a, &b, scale)?))?;
            Some(Dora { magnitude, norms: Memo::default() })
        } else {
            None
        };
        let (slot, id) = (to.slot, index as u64);
        let linear = &mut to.model.linears_mut()[index];
        if let Some(taken) = taken {
            linear.weight.tuned.set(slot, Param::frozen(format!("{RESIDUAL}{slot}.{name}.weight"), taken.rest));
        }
        let layer = LoraLayer { dora, ..LoraLayer::new(a, b, scale, self.lora_dropout, id) };
        linear.adapters.set(slot, Arc::new(layer));
        Ok(())
    }

    fn attach_ends(&self, to: &mut Attach<'_>, embedding: bool, head: bool) -> Result<()> {
        let slot = to.slot;
        for (wanted, name) in [(embedding, "embed_tokens"), (head, "lm_head")] {
            let needs = |what: &str| AdapterError::Unsupported { what: format!("{what} on {name}") };
            if wanted && self.use_dora {
                return Err(needs("use_dora").into());
            }
            if wanted && !matches!(self.init_lora_weights, LoraInit::Default | LoraInit::Random | LoraInit::Gaussian) {
                return Err(needs(&format!("init_lora_weights {}", self.init_lora_weights.to_json())).into());
            }
            if wanted && self.ensure_weight_tying {
                return Err(needs("ensure_weight_tying with LoRA").into());
            }
        }
        if embedding {
            let lora = LoraEmbedding::attach(to, self)?;
            to.model.embed_lora.set(slot, Arc::new(lora));
        }
        if head {
            let lora = HeadLora::attach(to, self)?;
            to.model.head_lora.set(slot, Arc::new(lora));
        }
        Ok(())
    }
}

fn unsupported_init(value: &Value) -> AdapterError {
    AdapterError::Unsupported { what: format!("a new adapter with init_lora_weights {value}") }
}

impl Method for LoraConfig {
    fn peft_type(&self) -> &'static str {
        "LORA"
    }

    fn to_json(&self) -> Value {
        LoraConfig::to_json(self)
    }

    fn attach(&self, to: &mut Attach<'_>) -> Result<()> {
        self.validate()?;
        let modules = self.target_parameters.is_empty() || self.target_modules != Targets::Names(vec![]);
        let chosen = modules.then(|| self.targeting().chosen(to.model)).transpose()?;
        if to.is_fresh() {
            let mut adapted = self.targeted_parameters(&to.model.config);
            if let Some(chosen) = &chosen {
                adapted.extend(chosen.names(to.model));
            }
            select::each_used("rank_pattern", &self.rank_pattern, &adapted)?;
            select::each_used("alpha_pattern", &self.alpha_pattern, &adapted)?;
        }
        if let Some(chosen) = chosen {
            for index in &chosen.linears {
                self.attach_linear(to, *index)?;
            }
            self.attach_ends(to, chosen.embedding, chosen.head)?;
        }
        self.attach_parameters(to)?;
        copies::modules_to_save(to, &self.modules_to_save, self.ensure_weight_tying)?;
        match self.bias {
            LoraBias::None => {}
            bias => copies::biases(to, bias == LoraBias::All)?,
        }
        // With tying ensured PEFT saves the shared copy twice.
        let also = if self.ensure_weight_tying { vec![format!("{PREFIX}{HEAD}.weight")] } else { vec![] };
        to.finish(&also)
    }

    fn saved(&self, params: &[Param]) -> Result<Vec<(String, Tensor)>> {
        let named = |p: &Param| -> Result<_> { Ok((p.name().to_string(), saved_parameter(p, params)?)) };
        let mut all: Vec<(String, Tensor)> = params.iter().map(named).collect::<Result<_>>()?;
        let head = format!("{PREFIX}{HEAD}.weight");
        if self.ensure_weight_tying && !all.iter().any(|(n, _)| *n == head) {
            let embedding = format!("{PREFIX}model.embed_tokens.weight");
            let copy = all.iter().find(|(n, _)| *n == embedding).map(|(_, t)| t.clone());
            all.extend(copy.map(|t| (head, t)));
        }
        Ok(all)
    }
}

impl LoraConfig {
    /// Whether its updates are plain sums s·B A, which combinations of adapters are made of.
    pub(super) fn is_plain(&self) -> bool {
        !self.use_dora
            && !self.init_lora_weights.takes()
            && self.bias == LoraBias::None
            && self.modules_to_save.is_empty()
            && self.target_parameters.is_empty()
            && self.target_modules != Targets::Names(vec![])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use planish_tensor::DType;

    /// A row of zeros has no direction, merged or not.
    #[test]
    fn dora_merges_a_row_of_zeros_as_it_computes_it() {
        let tensor = |values: &[f32], shape: [usize; 2]| Tensor::from_vec(values.to_vec(), shape).unwrap();
        let (a, b) = (tensor(&[1.0, 2.0], [1, 2]), tensor(&[0.0, 1.0], [2, 1]));
        let weight = tensor(&[0.0, 0.0, 3.0, 4.0], [2, 2]);
        let magnitude = Param::trainable("m", Tensor::from_vec(vec![5f32, 6.0], [2]).unwrap());
        let dora = Some(Dora { magnitude, norms: Memo::default() });
        let layer =
            LoraLayer { dora, ..LoraLayer::new(Param::trainable("a", a), Param::trainable("b", b), 1.0, 0.0, 0) };
        let (merged, _) = layer.merge(weight.clone(), None).unwrap();
        let merged_values = merged.to_vec::<f32>().unwrap();
        assert_eq!(merged_values[..2], [0.0, 0.0]);
        let x = Tensor::from_vec(vec![0.5f32, -1.0], [1, 2]).unwrap();
        let apart = layer.forward(&Ctx::inference(), &Var::constant(x.clone()), &Var::constant(weight), None).unwrap();
        let together = matmul(&x, &merged.transpose(0, 1).unwrap(), DType::F32).unwrap();
        for (a, b) in apart.value().to_vec::<f32>().unwrap().iter().zip(together.to_vec::<f32>().unwrap()) {
            assert!((a - b).abs() <= 1e-5, "{a} and {b}");
        }
    }
}
