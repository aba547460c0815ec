//! AdaLoRA: LoRA in the form of a singular value decomposition, whose ranks go where they matter.
//!
//! y = x Wᵀ + b + s·drop(x) (E ⊙ A)ᵀ Bᵀ, s = α / (r₀ + 1e-5), with A: (r₀, in), E: (r₀, 1), B: (out, r₀). A penalty
//! keeps A and B near orthonormal: orth_reg_weight · mean over all A and B of ‖A Aᵀ - I‖_F, ‖Bᵀ B - I‖_F. After every
//! step the importance of each triplet is
//!
//! S(E_i) + mean_j S(A_ij) + mean_j S(B_ji),  S = Ī · Ū,  Ī ← β₁ Ī + (1-β₁) |w g|,  Ū ← β₂ Ū + (1-β₂) ||w g| - Ī|
//!
//! and the E of those that are not among the b most important of the model become 0, where b falls from r₀ to target_r
//! a module by a cubic between `tinit` and `total_step - tfinal`. Then the choice stands; what is saved is what was
//! chosen.
//!
//! # Source
//! Zhang et al., arXiv:2303.10512, equations 3 to 11, as PEFT's `RankAllocator` has them: weights after the step,
//! gradients as clipped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use planish_autograd::ops::elementwise::mul;
use planish_autograd::ops::lora_linear::lora_linear;
use planish_autograd::{Param, Var};
use planish_tensor::ops::elementwise::{self as kernel, add_assign, scale};
use planish_tensor::ops::index_select;
use planish_tensor::ops::linear::matmul;
use planish_tensor::{DType, Device, Tensor};
use serde_json::{Map, Value, json};

use super::json::{self, Fields};
use super::lora::{delta, update};
use super::select::TARGETING;
use super::{AdapterError, Attach, Method, PREFIX, Targeting, copies};
use crate::modules::LinearAdapter;
use crate::{Ctx, Result};

/// Settings of AdaLoRA, under PEFT's names.
#[derive(Debug)]
pub struct AdaLoraConfig {
    /// Which modules.
    pub target: Targeting,
    /// Rank that a module begins with.
    pub init_r: usize,
    /// Mean rank at the end.
    pub target_r: usize,
    /// Steps before ranks fall.
    pub tinit: u64,
    /// Steps after they have fallen.
    pub tfinal: u64,
    /// Steps between two allocations.
    pub delta_t: u64,
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// Weight of the penalty.
    pub orth_reg_weight: f64,
    /// Steps in all.
    pub total_step: u64,
    /// α.
    pub lora_alpha: f64,
    /// Dropout on the update's input.
    pub lora_dropout: f64,
    /// What adapter_config.json says besides.
    pub others: Map<String, Value>,
    state: Mutex<State>,
}

/// What training has found so far.
#[derive(Debug, Default)]
struct State {
    /// Which triplets of each E are kept, by its name.
    ranks: Option<BTreeMap<String, Vec<bool>>>,
    /// Ī and Ū of each parameter, by its name.
    averages: BTreeMap<String, (Vec<f64>, Vec<f64>)>,
    /// Whether the triplets that were not kept are gone already: a finished adapter was loaded.
    pruned: bool,
}

const FIELDS: [&str; 13] = [
    "init_r",
    "target_r",
    "tinit",
    "tfinal",
    "deltaT",
    "beta1",
    "beta2",
    "orth_reg_weight",
    "total_step",
    "lora_alpha",
    "lora_dropout",
    "rank_pattern",
    "layers_to_transform",
];

impl AdaLoraConfig {
    /// These modules over so many steps, with PEFT's defaults.
    pub fn new(target: Targeting, total_step: u64) -> AdaLoraConfig {
        AdaLoraConfig {
            target,
            init_r: 12,
            target_r: 8,
            tinit: 0,
            tfinal: 0,
            delta_t: 1,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.5,
            total_step,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            others: Map::new(),
            state: Mutex::default(),
        }
    }

    pub(super) fn read(f: &Fields<'_>) -> Result<AdaLoraConfig, AdapterError> {
        f.must_be_off(&["fan_in_fan_out", "use_dora", "lora_bias", "layer_replication", "alpha_pattern"])?;
        if let Some(bias) = f.text("bias")?.filter(|b| *b != "none") {
            return Err(AdapterError::Unsupported { what: format!("bias {bias:?} with ADALORA") });
        }
        let config = AdaLoraConfig {
            target: Targeting::read(f)?,
            init_r: f.whole("init_r", 12)?,
            target_r: f.whole("target_r", 8)?,
            tinit: f.whole("tinit", 0)? as u64,
            tfinal: f.whole("tfinal", 0)? as u64,
            delta_t: f.whole("deltaT", 1)? as u64,
            beta1: f.number("beta1", 0.85)?,
            beta2: f.number("beta2", 0.85)?,
            orth_reg_weight: f.number("orth_reg_weight", 0.5)?,
            total_step: f.whole("total_step", 0)? as u64,
            lora_alpha: f.number("lora_alpha", 8.0)?,
            lora_dropout: f.number("lora_dropout", 0.0)?,
            others: f.others(&[&TARGETING[..], &FIELDS].concat()),
            state: Mutex::default(),
        };
        config.validate()?;
        let ranks = read_ranks(f, config.init_r)?;
        config.lock().ranks = ranks;
        Ok(config)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`AdapterError::Value`], [`AdapterError::Conflict`].
    pub fn validate(&self) -> Result<(), AdapterError> {
        let bad = |key, value: String, expected| Err(AdapterError::Value { key, value, expected });
        if self.init_r == 0 {
            return bad("init_r", "0".into(), "at least 1");
        }
        if self.target_r == 0 || self.target_r > self.init_r {
            let problem = format!(
                "is {}, but ranks fall from init_r, which is {}: it must be from 1 to that",
                self.target_r, self.init_r
            );
            return Err(AdapterError::Conflict { key: "target_r", problem });
        }
        if self.delta_t == 0 {
            return bad("deltaT", "0".into(), "at least 1");
        }
        for (key, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(beta > 0.0 && beta < 1.0) {
                return bad(key, beta.to_string(), "above 0 and below 1");
            }
        }
        if !(self.orth_reg_weight >= 0.0 && self.orth_reg_weight.is_finite()) {
            return bad("orth_reg_weight", self.orth_reg_weight.to_string(), "at least 0");
        }
        if !(self.lora_alpha.is_finite() && self.lora_alpha >= 0.0) {
            return bad("lora_alpha", self.lora_alpha.to_string(), "at least 0");
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return bad("lora_dropout", self.lora_dropout.to_string(), "from 0 to below 1");
        }
        if self.tinit >= self.total_step.saturating_sub(self.tfinal) {
            let problem = format!(
                "is {} and tfinal {}, which leaves none of the {} steps for ranks to fall; lower them or train longer",
                self.tinit, self.tfinal, self.total_step
            );
            return Err(AdapterError::Conflict { key: "tinit", problem });
        }
        Ok(())
    }

    fn scale(&self) -> f64 {
        let alpha = if self.lora_alpha > 0.0 { self.lora_alpha } else { self.init_r as f64 };
        alpha / (self.init_r as f64 + 1e-5)
    }

    /// Ranks of all modules together after `step`, and whether they are allocated anew.
    fn budget(&self, step: u64, modules: usize) -> (usize, bool) {
        let (all, least) = (self.init_r * modules, self.target_r * modules);
        if step <= self.tinit {
            return (all, false);
        }
        let end = self.total_step - self.tfinal;
        if step >= end {
            return (least, true);
        }
        let left = 1.0 - (step - self.tinit) as f64 / (end - self.tinit) as f64;
        let budget = ((all - least) as f64 * left.powi(3) + least as f64) as usize;
        (budget, step.is_multiple_of(self.delta_t))
    }
}

/// `rank_pattern`: which triplets of each E are there.
fn read_ranks(f: &Fields<'_>, init_r: usize) -> Result<Option<BTreeMap<String, Vec<bool>>>, AdapterError> {
    let Some(value) = f.get("rank_pattern") else { return Ok(None) };
    let wrong = || f.bad(format!("`rank_pattern` must have {init_r} times true or false for each module"));
    let entries = value.as_object().ok_or_else(wrong)?;
    let mut all = BTreeMap::new();
    for (name, kept) in entries {
        let kept: Option<Vec<bool>> = kept.as_array().and_then(|a| a.iter().map(Value::as_bool).collect());
        all.insert(name.clone(), kept.filter(|k| k.len() == init_r).ok_or_else(wrong)?);
    }
    Ok(Some(all).filter(|a| !a.is_empty()))
}

/// A, E and B of one module.
#[derive(Debug)]
struct Triplets {
    a: Param,
    e: Param,
    b: Param,
    scale: f64,
    dropout: f64,
    id: u64,
}

impl LinearAdapter for Triplets {
    fn forward(&self, ctx: &Ctx, x: &Var, weight: &Var, bias: Option<&Var>) -> planish_autograd::Result<Var> {
        let a = mul(&ctx.param(&self.a), &ctx.param(&self.e))?;
        lora_linear(x, weight, bias, &a, &ctx.param(&self.b), &update(ctx, self.scale, self.dropout, self.id))
    }

    fn params(&self) -> Vec<&Param> {
        vec![&self.a, &self.e, &self.b]
    }

    fn merge(&self, mut weight: Tensor, bias: Option<Tensor>) -> planish_tensor::Result<(Tensor, Option<Tensor>)> {
        let a = kernel::mul(&self.a.value(), &self.e.value())?;
        add_assign(&mut weight, &delta(&a, &self.b.value(), self.scale)?)?;
        Ok((weight, bias))
    }
}

/// The part of a parameter's name: `lora_A`, `lora_E`, `lora_B`, or something else.
fn part(param: &Param) -> &str {
    param.name().rsplit('.').next().unwrap_or_default()
}

/// The name of an E in `rank_pattern`.
fn key(name: &str) -> String {
    name.strip_prefix(PREFIX).unwrap_or(name).to_string()
}

/// The numbers of a tensor, wherever it is.
fn doubles(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.to_device(Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>()?)
}

impl AdaLoraConfig {
    /// Sets E to 0 where `ranks` says so.
    fn mask(params: &[Param], ranks: &BTreeMap<String, Vec<bool>>) -> Result<()> {
        for e in params.iter().filter(|p| part(p) == "lora_E") {
            let Some(kept) = ranks.get(&key(e.name())) else { continue };
            let mask: Vec<f64> = kept.iter().map(|&k| if k { 1.0 } else { 0.0 }).collect();
            let mask = Tensor::from_vec(mask, [kept.len(), 1])?.to_dtype(e.value().dtype())?;
            let masked = kernel::mul(&e.value(), &mask.to_device(e.value().device())?)?;
            e.update(|value| -> Result<()> {
                *value = masked;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Takes a step's gradients into the averages.
    fn observe(&self, params: &[Param], gradients: &[Option<Tensor>], factor: f64, state: &mut State) -> Result<()> {
        for (param, gradient) in params.iter().zip(gradients) {
            if !part(param).starts_with("lora_") {
                continue;
            }
            let values = doubles(&param.value())?;
            let gradient = match gradient {
                Some(g) => doubles(g)?,
                None => vec![0.0; values.len()],
            };
            let zeros = || (vec![0.0; values.len()], vec![0.0; values.len()]);
            let (mean, spread) = state.averages.entry(param.name().to_string()).or_insert_with(zeros);
            for (i, (w, g)) in values.iter().zip(&gradient).enumerate() {
                let importance = (w * g * factor).abs();
                mean[i] = self.beta1 * mean[i] + (1.0 - self.beta1) * importance;
                spread[i] = self.beta2 * spread[i] + (1.0 - self.beta2) * (importance - mean[i]).abs();
            }
        }
        Ok(())
    }

    /// The triplets of the whole model that `budget` lets live.
    fn allocate(&self, params: &[Param], budget: usize, state: &State) -> BTreeMap<String, Vec<bool>> {
        let score = |name: &str, i: usize| state.averages.get(name).map_or(0.0, |(mean, spread)| mean[i] * spread[i]);
        let mut scores: Vec<(String, Vec<f64>)> = Vec::new();
        for e in params.iter().filter(|p| part(p) == "lora_E") {
            let r = e.value().numel();
            let stem = e.name().trim_end_matches("lora_E");
            let others = |end: &str| {
                let name = format!("{stem}{end}");
                let width = params.iter().find(|p| p.name() == name).map_or(0, |p| p.value().numel() / r.max(1));
                (name, width)
            };
            let ((a, input), (b, out)) = (others("lora_A"), others("lora_B"));
            let triplet = |i: usize| {
                let of_a = (0..input).map(|j| score(&a, i * input + j)).sum::<f64>() / input.max(1) as f64;
                let of_b = (0..out).map(|j| score(&b, j * r + i)).sum::<f64>() / out.max(1) as f64;
                score(e.name(), i) + of_a + of_b
            };
            scores.push((key(e.name()), (0..r).map(triplet).collect()));
        }
        let mut sorted: Vec<f64> = scores.iter().flat_map(|(_, s)| s.iter().copied()).collect();
        sorted.sort_by(f64::total_cmp);
        // The largest that goes; none goes while the budget holds all.
        let gone = sorted.len().saturating_sub(budget).checked_sub(1).map(|i| sorted[i]);
        let kept = |s: Vec<f64>| s.into_iter().map(|x| gone.is_none_or(|g| x > g)).collect();
        scores.into_iter().map(|(name, s)| (name, kept(s))).collect()
    }
}

impl Method for AdaLoraConfig {
    fn peft_type(&self) -> &'static str {
        "ADALORA"
    }

    fn to_json(&self) -> Value {
        let mut all = json!({
            "alpha_pattern": {},
            "beta1": self.beta1,
            "beta2": self.beta2,
            "bias": "none",
            "deltaT": self.delta_t,
            "fan_in_fan_out": false,
            "init_lora_weights": true,
            "init_r": self.init_r,
            "layers_pattern": null,
            "layers_to_transform": self.target.layers_to_transform,
            "lora_alpha": json::number(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "orth_reg_weight": self.orth_reg_weight,
            "r": 8,
            "rank_pattern": self.lock().ranks,
            "target_r": self.target_r,
            "tfinal": self.tfinal,
            "tinit": self.tinit,
            "total_step": self.total_step,
        });
        self.target.write(&mut all, "ADALORA");
        json::with_others(all, &self.others)
    }

    fn attach(&self, to: &mut Attach<'_>) -> Result<()> {
        self.validate()?;
        let chosen = self.target.chosen(to.model)?.linears_only("ADALORA")?;
        let mut state = std::mem::take(&mut *self.lock());
        state.pruned = !to.trains() && state.ranks.is_some();
        for index in chosen {
            let linear = &to.model.linears_mut()[index];
            let (name, dims) = (linear.name.to_string(), linear.weight.base.value().dims().to_vec());
            if to.is_fresh() && self.init_r > dims[0].min(dims[1]) {
                let (rank, module, out, input) = (self.init_r, name, dims[0], dims[1]);
                return Err(AdapterError::Rank { key: "init_r", rank, module, out, input }.into());
            }
            let named = |part: &str| format!("{PREFIX}{name}.{part}");
            let kept = state.ranks.as_ref().filter(|_| state.pruned).and_then(|r| r.get(&key(&named("lora_E"))));
            let r = kept.map_or(self.init_r, |k| k.iter().filter(|&&k| k).count());
            let a = to.param(named("lora_A"), &[r, dims[1]], |draw| draw.normal(0.02))?;
            let e = to.param(named("lora_E"), &[r, 1], |draw| draw.full(0.0))?;
            let b = to.param(named("lora_B"), &[dims[0], r], |draw| draw.normal(0.02))?;
            for param in [&a, &e, &b] {
                let average = |kind: &str| to.kept(&format!("{kind}.{}", param.name()));
                if let (Some(mean), Some(spread)) = (average("importance")?, average("uncertainty")?) {
                    state.averages.insert(param.name().to_string(), (doubles(&mean)?, doubles(&spread)?));
                }
            }
            let (slot, id) = (to.slot, index as u64);
            let triplets = Triplets { a, e, b, scale: self.scale(), dropout: self.lora_dropout, id };
            to.model.linears_mut()[index].adapters.set(slot, Arc::new(triplets));
        }
        *self.lock() = state;
        copies::modules_to_save(to, &self.target.modules_to_save, false)?;
        to.finish(&[])
    }

    /// What was chosen, without what is masked.
    fn saved(&self, params: &[Param]) -> Result<Vec<(String, Tensor)>> {
        let state = self.lock();
        let mut all = Vec::new();
        for param in params {
            let (name, mut value) = (param.name().to_string(), param.value());
            let stem = name.rsplit_once('.').map_or("", |(stem, _)| stem);
            let kept =
                state.ranks.as_ref().filter(|_| !state.pruned).and_then(|r| r.get(&key(&format!("{stem}.lora_E"))));
            if let Some(kept) = kept {
                let rows: Vec<u32> = (0..kept.len() as u32).filter(|&i| kept[i as usize]).collect();
                value = match part(param) {
                    "lora_A" | "lora_E" => index_select::forward(&value, &rows)?,
                    "lora_B" => index_select::forward(&value.transpose(0, 1)?, &rows)?.transpose(0, 1)?.contiguous()?,
                    _ => value,
                };
            }
            all.push((name, value));
        }
        Ok(all)
    }

    fn training_state(&self, params: &[Param]) -> Vec<(String, Tensor)> {
        let state = self.lock();
        if state.pruned {
            return Vec::new();
        }
        let mut all: Vec<(String, Tensor)> = params.iter().map(|p| (p.name().to_string(), p.value())).collect();
        for (name, (mean, spread)) in &state.averages {
            for (kind, values) in [("importance", mean), ("uncertainty", spread)] {
                let tensor = Tensor::from_vec(values.clone(), [values.len()]);
                all.extend(tensor.ok().map(|t| (format!("{kind}.{name}"), t)));
            }
        }
        all
    }

    fn penalise(&self, params: &[Param], weight: f64) -> Result<f64> {
        let parts: Vec<&Param> = params.iter().filter(|p| matches!(part(p), "lora_A" | "lora_B")).collect();
        if self.orth_reg_weight == 0.0 || parts.is_empty() {
            return Ok(0.0);
        }
        let share = self.orth_reg_weight / parts.len() as f64;
        let mut penalty = 0.0;
        for param in parts {
            let p = param.value();
            let (dtype, by_rows) = (p.dtype(), part(param) == "lora_A");
            // Rows that should be orthonormal: of A itself, of Bᵀ.
            let rows = if by_rows { p } else { p.transpose(0, 1)?.contiguous()? };
            let r = rows.dims()[0];
            let identity: Vec<f64> = (0..r * r).map(|i| if i % r == i / r { 1.0 } else { 0.0 }).collect();
            let gram = matmul(&rows, &rows.transpose(0, 1)?, dtype)?;
            let identity = Tensor::from_vec(identity, [r, r])?.to_dtype(dtype)?.to_device(gram.device())?;
            let off = kernel::sub(&gram, &identity)?;
            let norm = doubles(&off)?.iter().map(|x| x * x).sum::<f64>().sqrt();
            penalty += share * norm;
            // The norm has no slope at 0.
            if norm == 0.0 || !param.is_trainable() {
                continue;
            }
            let slope = scale(&matmul(&off, &rows, dtype)?, 2.0 * share * weight / norm)?;
            let slope = if by_rows { slope } else { slope.transpose(0, 1)?.contiguous()? };
            let sum = match param.take_grad() {
                Some(mut grad) => {
                    add_assign(&mut grad, &slope)?;
                    grad
                }
                None => slope,
            };
            param.set_grad(Some(sum));
        }
        Ok(penalty)
    }

    fn stepped(&self, params: &[Param], gradients: &[Option<Tensor>], factor: f64, step: u64) -> Result<()> {
        let mut state = self.lock();
        if state.pruned {
            return Ok(());
        }
        let end = self.total_step - self.tfinal;
        if step < end {
            self.observe(params, gradients, factor, &mut state)?;
        }
        if step <= end {
            let modules = params.iter().filter(|p| part(p) == "lora_E").count();
            let (budget, due) = self.budget(step, modules);
            if due {
                state.ranks = Some(self.allocate(params, budget, &state));
                Self::mask(params, state.ranks.as_ref().expect("just made"))?;
            }
            if step == end {
                state.averages.clear();
            }
        } else if let Some(ranks) = &state.ranks {
            Self::mask(params, ranks)?;
        }
        Ok(())
    }

    fn wants_gradients(&self) -> bool {
        true
    }
}
