//! Orthogonal fine-tuning: y = (x R) Wᵀ + b with R block-diagonal and orthogonal, by Cayley's transform of trained
//! skew-symmetric blocks ([`planish_tensor::ops::cayley`]).
//!
//! # Source
//! Qiu et al., arXiv:2306.07280; on the input and by a series: arXiv:2506.19847, section 3. Not supported:
//! `coft` and `module_dropout`.

use std::sync::Arc;

use planish_autograd::ops::block_rotate::block_rotate;
use planish_autograd::ops::cayley::{Cayley, cayley};
use planish_autograd::ops::linear::linear;
use planish_autograd::{Param, Var};
use planish_tensor::Tensor;
use planish_tensor::ops::{block_rotate as rotate, cayley as transform};
use serde_json::{Map, Value, json};

use super::divisors::does_not_divide;
use super::json::{self, Fields};
use super::lora::Memo;
use super::select::TARGETING;
use super::{AdapterError, Attach, Method, PREFIX, Targeting, copies};
use crate::modules::LinearAdapter;
use crate::{Ctx, Result};

/// Settings of OFT, under PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct OftConfig {
    /// Which modules.
    pub target: Targeting,
    /// Blocks a module; 0 if the size of a block is given.
    pub r: usize,
    /// Size of a block; 0 if their number is given.
    pub oft_block_size: usize,
    /// Whether a module's blocks are one.
    pub block_share: bool,
    /// Whether R is a series ([`Cayley::Series`]) and not exact.
    pub use_cayley_neumann: bool,
    /// Its terms.
    pub num_cayley_neumann_terms: usize,
    /// What adapter_config.json says besides.
    pub others: Map<String, Value>,
}

impl OftConfig {
    /// These modules, with PEFT's defaults: blocks of 32, five terms.
    pub fn new(target: Targeting) -> OftConfig {
        OftConfig {
            target,
            r: 0,
            oft_block_size: 32,
            block_share: false,
            use_cayley_neumann: true,
            num_cayley_neumann_terms: 5,
            others: Map::new(),
        }
    }

    pub(super) fn read(f: &Fields<'_>) -> Result<OftConfig, AdapterError> {
        f.must_be_off(&["fan_in_fan_out", "coft", "module_dropout"])?;
        if let Some(bias) = f.text("bias")?.filter(|b| *b != "none") {
            return Err(AdapterError::Unsupported { what: format!("bias {bias:?} with OFT") });
        }
        let own = ["r", "oft_block_size", "block_share", "use_cayley_neumann", "num_cayley_neumann_terms"];
        let config = OftConfig {
            target: Targeting::read(f)?,
            r: f.whole("r", 0)?,
            oft_block_size: f.whole("oft_block_size", 32)?,
            block_share: f.flag("block_share", false)?,
            use_cayley_neumann: f.flag("use_cayley_neumann", true)?,
            num_cayley_neumann_terms: f.whole("num_cayley_neumann_terms", 5)?,
            others: f.others(&[&TARGETING[..], &own].concat()),
        };
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), AdapterError> {
        if (self.r == 0) == (self.oft_block_size == 0) {
            let problem = format!(
                "is {} and oft_block_size {}: give one of the two, the number of blocks or their size, and 0 for the other",
                self.r, self.oft_block_size
            );
            return Err(AdapterError::Conflict { key: "oft_r", problem });
        }
        if self.use_cayley_neumann && !(1..=64).contains(&self.num_cayley_neumann_terms) {
            let value = self.num_cayley_neumann_terms.to_string();
            return Err(AdapterError::Value { key: "num_cayley_neumann_terms", value, expected: "from 1 to 64" });
        }
        Ok(())
    }

    /// Refuses what PEFT would change to the nearest divisor: an adapter that is loaded was made so, a new one is as it
    /// was asked for.
    fn check_divides(&self, module: &str, input: usize) -> Result<(), AdapterError> {
        let (key, wanted) = if self.r == 0 { ("oft_block_size", self.oft_block_size) } else { ("oft_r", self.r) };
        if input.is_multiple_of(wanted) { Ok(()) } else { Err(does_not_divide(key, wanted, module, input)) }
    }

    /// (blocks, their size) for a module of `input` features: what was asked for, or the divisor nearest to it.
    fn blocks(&self, input: usize) -> (usize, usize) {
        let nearest = |wanted: usize| {
            if wanted >= input {
                return input;
            }
            let higher = (wanted..=input).find(|&d| input.is_multiple_of(d)).unwrap_or(input);
            let lower = (1..=wanted).rev().find(|&d| input.is_multiple_of(d)).unwrap_or(1);
            if wanted - lower <= higher - wanted { lower } else { higher }
        };
        if self.r == 0 {
            let n = nearest(self.oft_block_size);
            (input / n, n)
        } else {
            let r = nearest(self.r);
            (r, input / r)
        }
    }

    fn kind(&self) -> Cayley {
        if self.use_cayley_neumann { Cayley::Series(self.num_cayley_neumann_terms) } else { Cayley::Exact }
    }
}

/// R of one module.
#[derive(Debug)]
struct Rotation {
    /// (blocks, n (n - 1) / 2).
    q: Param,
    n: usize,
    kind: Cayley,
    made: Memo,
}

impl Rotation {
    /// R, (blocks, n, n), outside of training.
    fn fixed(&self, ctx: &Ctx) -> planish_tensor::Result<Tensor> {
        let q = self.q.value();
        self.made.get(ctx, &[&q], || transform::forward(&q, self.n, self.kind))
    }
}

impl LinearAdapter for Rotation {
    fn forward(&self, ctx: &Ctx, x: &Var, weight: &Var, bias: Option<&Var>) -> planish_autograd::Result<Var> {
        let q = ctx.param(&self.q);
        let r = if q.is_tracked() { cayley(&q, self.n, self.kind)? } else { Var::constant(self.fixed(ctx)?) };
        linear(&block_rotate(x, &r)?, weight, bias)
    }

    fn params(&self) -> Vec<&Param> {
        vec![&self.q]
    }

    /// y = x (R Wᵀ) + b, and a row of W Rᵀ is that row of W turned by Rᵀ.
    fn merge(&self, weight: Tensor, bias: Option<Tensor>) -> planish_tensor::Result<(Tensor, Option<Tensor>)> {
        let r = self.fixed(&Ctx::inference())?;
        Ok((rotate::backward_input(&weight, &r)?, bias))
    }
}

impl Method for OftConfig {
    fn peft_type(&self) -> &'static str {
        "OFT"
    }

    fn to_json(&self) -> Value {
        let mut all = json!({
            "bias": "none",
            "block_share": self.block_share,
            "coft": false,
            "eps": 6e-5,
            "fan_in_fan_out": false,
            "init_weights": true,
            "layers_pattern": null,
            "layers_to_transform": self.target.layers_to_transform,
            "module_dropout": 0.0,
            "num_cayley_neumann_terms": self.num_cayley_neumann_terms,
            "oft_block_size": self.oft_block_size,
            "r": self.r,
            "use_cayley_neumann": self.use_cayley_neumann,
        });
        self.target.write(&mut all, "OFT");
        json::with_others(all, &self.others)
    }

    fn attach(&self, to: &mut Attach<'_>) -> Result<()> {
        self.validate()?;
        let chosen = self.target.chosen(to.model)?.linears_only("OFT")?;
        for index in chosen {
            let linear = &to.model.linears_mut()[index];
            let (name, input) = (linear.name.to_string(), linear.weight.base.value().dims()[1]);
            if to.is_fresh() {
                self.check_divides(&name, input)?;
            }
            let (blocks, n) = self.blocks(input);
            let shape = [if self.block_share { 1 } else { blocks }, n * (n - 1) / 2];
            let q = to.param(format!("{PREFIX}{name}.oft_R.weight"), &shape, |draw| draw.full(0.0))?;
            let slot = to.slot;
            let rotation = Rotation { q, n, kind: self.kind(), made: Memo::default() };
            to.model.linears_mut()[index].adapters.set(slot, Arc::new(rotation));
        }
        copies::modules_to_save(to, &self.target.modules_to_save, false)?;
        to.finish(&[])
    }
}
