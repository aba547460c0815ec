//! (IA)³: y = l ⊙ (x Wᵀ + b), or for feed-forward modules y = (l ⊙ x) Wᵀ + b, with one trained vector l a module.
//!
//! # Source
//! Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
//! arXiv:2205.05638, section 3.3; which side is scaled: PEFT's `feedforward_modules`.

use std::sync::Arc;

use planish_autograd::ops::cast::cast;
use planish_autograd::ops::elementwise::mul;
use planish_autograd::ops::linear::linear;
use planish_autograd::ops::view::reshape;
use planish_autograd::{Param, Var};
use planish_tensor::Tensor;
use planish_tensor::ops::elementwise as kernel;
use serde_json::{Map, Value, json};

use super::json::{self, Fields};
use super::select::{Matcher, TARGETING, last_parts};
use super::{AdapterError, Attach, Method, PREFIX, Targeting, Targets, copies};
use crate::decoder::Model;
use crate::modules::LinearAdapter;
use crate::{Ctx, Result};

/// Settings of (IA)³, under PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct Ia3Config {
    /// Which modules.
    pub target: Targeting,
    /// Those whose input is scaled, not their output.
    pub feedforward_modules: Targets,
    /// What adapter_config.json says besides.
    pub others: Map<String, Value>,
}

impl Ia3Config {
    /// These modules, of which those named `feedforward` have their input scaled.
    pub fn new(target: Targeting, feedforward: Targets) -> Ia3Config {
        Ia3Config { target, feedforward_modules: feedforward, others: Map::new() }
    }

    pub(super) fn read(f: &Fields<'_>) -> Result<Ia3Config, AdapterError> {
        f.must_be_off(&["fan_in_fan_out"])?;
        let feedforward = f.targets("feedforward_modules")?;
        Ok(Ia3Config {
            target: Targeting::read(f)?,
            feedforward_modules: feedforward.ok_or_else(|| f.bad("it has no `feedforward_modules`"))?,
            others: f.others(&[&TARGETING[..], &["feedforward_modules", "layers_to_transform"]].concat()),
        })
    }
}

impl Ia3Config {
    /// Refuses names of feed-forward modules that are not adapted: PEFT calls for a subset of the targets. Its own
    /// default may be idle.
    fn check_feedforward(&self, model: &mut Model, chosen: &[usize]) -> Result<(), AdapterError> {
        let Targets::Names(names) = &self.feedforward_modules else { return Ok(()) };
        let linears = model.linears_mut();
        let adapted: Vec<String> = chosen.iter().map(|&i| linears[i].name.to_string()).collect();
        let idle = |name: &&String| {
            let one = Matcher::Names(vec![name.to_string()]);
            *name != DEFAULT_FEEDFORWARD && !adapted.iter().any(|module| one.matches(module))
        };
        match names.iter().find(idle) {
            None => Ok(()),
            Some(name) => Err(AdapterError::NoMatch {
                key: "feedforward_modules",
                wanted: format!("{name:?}"),
                kind: "adapted",
                available: last_parts(adapted),
            }),
        }
    }
}

/// PEFT's feed-forward modules of the families there are.
const DEFAULT_FEEDFORWARD: &str = "down_proj";

/// l of one module.
#[derive(Debug)]
struct Scaling {
    /// l: (1, in) or (out, 1), as PEFT has it.
    l: Param,
    feedforward: bool,
}

impl LinearAdapter for Scaling {
    fn forward(&self, ctx: &Ctx, x: &Var, weight: &Var, bias: Option<&Var>) -> planish_autograd::Result<Var> {
        let l = ctx.param(&self.l);
        let l = cast(&reshape(&l, &[l.value().numel()])?, x.value().dtype())?;
        if self.feedforward { linear(&mul(x, &l)?, weight, bias) } else { mul(&linear(x, weight, bias)?, &l) }
    }

    fn params(&self) -> Vec<&Param> {
        vec![&self.l]
    }

    fn merge(&self, weight: Tensor, bias: Option<Tensor>) -> planish_tensor::Result<(Tensor, Option<Tensor>)> {
        let l = self.l.value();
        let scaled = |b: Tensor| kernel::mul(&b, &l.reshape(b.shape())?);
        let bias = if self.feedforward { bias } else { bias.map(scaled).transpose()? };
        Ok((kernel::mul(&weight, &l)?, bias))
    }
}

impl Method for Ia3Config {
    fn peft_type(&self) -> &'static str {
        "IA3"
    }

    fn to_json(&self) -> Value {
        let mut all = json!({
            "fan_in_fan_out": false,
            "feedforward_modules": json::targets(&self.feedforward_modules),
            "init_ia3_weights": true,
        });
        self.target.write(&mut all, "IA3");
        json::with_others(all, &self.others)
    }

    fn attach(&self, to: &mut Attach<'_>) -> Result<()> {
        let chosen = self.target.chosen(to.model)?.linears_only("IA3")?;
        let matcher = Matcher::new("feedforward_modules", &self.feedforward_modules)?;
        if to.is_fresh() {
            self.check_feedforward(to.model, &chosen)?;
        }
        for index in chosen {
            let linear = &to.model.linears_mut()[index];
            let (name, dims) = (linear.name.to_string(), linear.weight.base.value().dims().to_vec());
            let feedforward = matcher.matches(&name);
            let shape = if feedforward { [1, dims[1]] } else { [dims[0], 1] };
            let l = to.param(format!("{PREFIX}{name}.ia3_l"), &shape, |draw| draw.full(1.0))?;
            let slot = to.slot;
            to.model.linears_mut()[index].adapters.set(slot, Arc::new(Scaling { l, feedforward }));
        }
        copies::modules_to_save(to, &self.target.modules_to_save, false)?;
        to.finish(&[])
    }
}
