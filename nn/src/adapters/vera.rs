//! VeRA: y = x Wᵀ + b + λ_b ⊙ ((λ_d ⊙ (drop(x) Aᵀ)) Bᵀ): one random pair A, B for all modules, two trained vectors
//! each.
//!
//! A module takes the columns of A and the rows of B that its shape needs. As A, B and the vectors are far smaller
//! than W, they are multiplied first, and the sum is LoRA's op.
//!
//! # Source
//! Kopiczko et al., arXiv:2310.11454, equation 2. PEFT can leave A and B out of the file and draw them again from a
//! seed of torch's; here they are always saved, and a file without them is refused.

use std::sync::Arc;

use planish_autograd::ops::elementwise::mul;
use planish_autograd::ops::lora_linear::lora_linear;
use planish_autograd::ops::view::{narrow, reshape};
use planish_autograd::{Param, Var};
use planish_tensor::Tensor;
use planish_tensor::ops::elementwise::add_assign;
use serde_json::{Map, Value, json};

use super::json::{self, Fields};
use super::lora::{delta, update};
use super::select::TARGETING;
use super::{AdapterError, Attach, Method, PREFIX, Targeting, copies};
use crate::modules::LinearAdapter;
use crate::{Ctx, Result};

/// Names of the shared pair.
const A: &str = "base_model.vera_A";
const B: &str = "base_model.vera_B";

/// Settings of VeRA, under PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct VeraConfig {
    /// Which modules.
    pub target: Targeting,
    /// Rank of the shared pair.
    pub r: usize,
    /// Dropout on the update's input.
    pub vera_dropout: f64,
    /// What λ_d begins with; λ_b begins with 0.
    pub d_initial: f64,
    /// What adapter_config.json says besides.
    pub others: Map<String, Value>,
}

impl VeraConfig {
    /// These modules, with PEFT's defaults.
    pub fn new(target: Targeting) -> VeraConfig {
        VeraConfig { target, r: 256, vera_dropout: 0.0, d_initial: 0.1, others: Map::new() }
    }

    pub(super) fn read(f: &Fields<'_>) -> Result<VeraConfig, AdapterError> {
        f.must_be_off(&["fan_in_fan_out"])?;
        if let Some(bias) = f.text("bias")?.filter(|b| *b != "none") {
            return Err(AdapterError::Unsupported { what: format!("bias {bias:?} with VERA") });
        }
        let own = ["r", "vera_dropout", "d_initial", "save_projection"];
        let config = VeraConfig {
            target: Targeting::read(f)?,
            r: f.whole("r", 256)?,
            vera_dropout: f.number("vera_dropout", 0.0)?,
            d_initial: f.number("d_initial", 0.1)?,
            others: f.others(&[&TARGETING[..], &own].concat()),
        };
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), AdapterError> {
        let bad = |key, value: f64, expected| Err(AdapterError::Value { key, value: value.to_string(), expected });
        if self.r == 0 {
            return bad("r", 0.0, "at least 1");
        }
        if !(0.0..1.0).contains(&self.vera_dropout) {
            return bad("vera_dropout", self.vera_dropout, "from 0 to below 1");
        }
        if !self.d_initial.is_finite() {
            return bad("d_initial", self.d_initial, "finite");
        }
        Ok(())
    }
}

/// The vectors of one module, and the pair that all share.
#[derive(Debug)]
struct Vectors {
    a: Param,
    b: Param,
    lambda_b: Param,
    lambda_d: Param,
    shape: [usize; 2],
    dropout: f64,
    id: u64,
}

impl Vectors {
    /// (λ_d ⊙ A, λ_b ⊙ B) of this module's shape.
    fn parts(&self, ctx: &Ctx) -> planish_autograd::Result<(Var, Var)> {
        let part = |shared: &Param, axis, size, lambda: &Param| {
            let lambda = ctx.param(lambda);
            let column = reshape(&lambda, &[lambda.value().numel(), 1])?;
            mul(&narrow(&ctx.param(shared), axis, 0, size)?, &column)
        };
        Ok((part(&self.a, 1, self.shape[1], &self.lambda_d)?, part(&self.b, 0, self.shape[0], &self.lambda_b)?))
    }
}

impl LinearAdapter for Vectors {
    fn forward(&self, ctx: &Ctx, x: &Var, weight: &Var, bias: Option<&Var>) -> planish_autograd::Result<Var> {
        let (a, b) = self.parts(ctx)?;
        lora_linear(x, weight, bias, &a, &b, &update(ctx, 1.0, self.dropout, self.id))
    }

    fn params(&self) -> Vec<&Param> {
        vec![&self.a, &self.b, &self.lambda_b, &self.lambda_d]
    }

    fn merge(&self, mut weight: Tensor, bias: Option<Tensor>) -> planish_tensor::Result<(Tensor, Option<Tensor>)> {
        match self.parts(&Ctx::inference()) {
            Ok((a, b)) => add_assign(&mut weight, &delta(a.value(), b.value(), 1.0)?)?,
            Err(planish_autograd::Error::Tensor(error)) => return Err(error),
            // Nothing is recorded, so nothing else can go wrong.
            Err(other) => unreachable!("{other}"),
        }
        Ok((weight, bias))
    }
}

impl Method for VeraConfig {
    fn peft_type(&self) -> &'static str {
        "VERA"
    }

    fn to_json(&self) -> Value {
        let mut all = json!({
            "bias": "none",
            "d_initial": self.d_initial,
            "fan_in_fan_out": false,
            "init_weights": true,
            "layers_pattern": null,
            "layers_to_transform": self.target.layers_to_transform,
            "projection_prng_key": 0,
            "r": self.r,
            "save_projection": true,
            "vera_dropout": self.vera_dropout,
        });
        self.target.write(&mut all, "VERA");
        if self.target.exclude_modules.is_none() {
            // Not among PEFT's settings of VeRA.
            all.as_object_mut().expect("just made").remove("exclude_modules");
        }
        json::with_others(all, &self.others)
    }

    fn attach(&self, to: &mut Attach<'_>) -> Result<()> {
        self.validate()?;
        let chosen = self.target.chosen(to.model)?.linears_only("VERA")?;
        let shapes: Vec<(String, [usize; 2])> = {
            let linears = to.model.linears_mut();
            let shape = |i: usize| {
                let value = linears[i].weight.base.value();
                (linears[i].name.to_string(), [value.dims()[0], value.dims()[1]])
            };
            chosen.iter().map(|&i| shape(i)).collect()
        };
        let largest = |axis: usize| shapes.iter().map(|(_, s)| s[axis]).max().unwrap_or(0);
        let (out, input, r) = (largest(0), largest(1), self.r);
        if !(to.is_fresh() || to.holds(A) && to.holds(B)) {
            let problem = "was off when this adapter was saved: its file lacks the matrices that all modules share, which \
                           PEFT draws anew from a seed of torch's; save it once more with save_projection on";
            return Err(AdapterError::Conflict { key: "save_projection", problem: problem.into() }.into());
        }
        // Kaiming's uniform with the gain of a ReLU.
        let a = to.frozen(A, &[r, input], |draw| draw.uniform((6.0 / input as f64).sqrt()))?;
        let b = to.frozen(B, &[out, r], |draw| draw.uniform((6.0 / r as f64).sqrt()))?;
        for (index, (name, shape)) in chosen.into_iter().zip(shapes) {
            let part = |part: &str| format!("{PREFIX}{name}.{part}");
            let lambda_b = to.param(part("vera_lambda_b"), &[shape[0]], |draw| draw.full(0.0))?;
            let lambda_d = to.param(part("vera_lambda_d"), &[r], |draw| draw.full(self.d_initial))?;
            let (a, b, dropout, id) = (a.clone(), b.clone(), self.vera_dropout, index as u64);
            let slot = to.slot;
            let vectors = Vectors { a, b, lambda_b, lambda_d, shape, dropout, id };
            to.model.linears_mut()[index].adapters.set(slot, Arc::new(vectors));
        }
        copies::modules_to_save(to, &self.target.modules_to_save, false)?;
        to.finish(&[])
    }
}
