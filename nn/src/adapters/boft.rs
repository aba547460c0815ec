//! BOFT with one factor: y = s ∘ ((x R) Wᵀ) + b with R block-diagonal and orthogonal, by Cayley's transform of trained
//! blocks, and s a trained scale for each output.
//!
//! A block is (I - Q)(I + Q)⁻¹ with Q = (A - Aᵀ) / 2 of a trained A (n, n), where [OFT](super::oft) trains the numbers above
//! Q's diagonal.
//!
//! # Source
//! Liu et al., arXiv:2311.06243; PEFT's `boft`. With more butterfly factors than one PEFT needs a CUDA extension, and
//! takes one without it: such adapters are refused. Not supported: `boft_dropout`.

use std::sync::Arc;

use planish_autograd::ops::block_rotate::block_rotate;
use planish_autograd::ops::cast::cast;
use planish_autograd::ops::cayley::{Cayley, cayley};
use planish_autograd::ops::elementwise::{add, mul, scale, sub};
use planish_autograd::ops::index_select::index_select;
use planish_autograd::ops::linear::linear;
use planish_autograd::ops::view::reshape;
use planish_autograd::{Param, Var};
use planish_tensor::Tensor;
use planish_tensor::ops::{block_rotate as rotate, elementwise as kernel};
use serde_json::{Map, Value, json};

use super::divisors::does_not_divide;
use super::json::{self, Fields};
use super::lora::Memo;
use super::select::TARGETING;
use super::{AdapterError, Attach, Method, PREFIX, Targeting, copies};
use crate::modules::LinearAdapter;
use crate::{Ctx, Result};

/// Settings of BOFT, under PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct BoftConfig {
    /// Which modules.
    pub target: Targeting,
    /// Size of a block; 0 if their number is given.
    pub boft_block_size: usize,
    /// Blocks a module; 0 if their size is given.
    pub boft_block_num: usize,
    /// What adapter_config.json says besides.
    pub others: Map<String, Value>,
}

impl BoftConfig {
    /// These modules, with PEFT's defaults: blocks of 4.
    pub fn new(target: Targeting) -> BoftConfig {
        BoftConfig { target, boft_block_size: 4, boft_block_num: 0, others: Map::new() }
    }

    pub(super) fn read(f: &Fields<'_>) -> Result<BoftConfig, AdapterError> {
        f.must_be_off(&["fan_in_fan_out", "boft_dropout"])?;
        if let Some(bias) = f.text("bias")?.filter(|b| *b != "none") {
            return Err(AdapterError::Unsupported { what: format!("bias {bias:?} with BOFT") });
        }
        let factors = f.whole("boft_n_butterfly_factor", 1)?;
        if factors != 1 {
            return Err(AdapterError::Unsupported { what: format!("boft_n_butterfly_factor {factors} (1 is)") });
        }
        let own = ["boft_block_size", "boft_block_num", "boft_n_butterfly_factor"];
        let config = BoftConfig {
            target: Targeting::read(f)?,
            boft_block_size: f.whole("boft_block_size", 4)?,
            boft_block_num: f.whole("boft_block_num", 0)?,
            others: f.others(&[&TARGETING[..], &own].concat()),
        };
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), AdapterError> {
        if (self.boft_block_size == 0) == (self.boft_block_num == 0) {
            let problem = format!(
                "is {} and boft_block_num {}: give one of the two, and 0 for the other",
                self.boft_block_size, self.boft_block_num
            );
            return Err(AdapterError::Conflict { key: "boft_block_size", problem });
        }
        Ok(())
    }

    /// (blocks, their size) for a module of `input` features.
    fn blocks(&self, name: &str, input: usize) -> Result<(usize, usize), AdapterError> {
        let wanted = self.boft_block_size.max(self.boft_block_num);
        if !input.is_multiple_of(wanted) {
            let key = if self.boft_block_size > 0 { "boft_block_size" } else { "boft_block_num" };
            return Err(does_not_divide(key, wanted, name, input));
        }
        let other = input / wanted;
        Ok(if self.boft_block_size > 0 { (other, wanted) } else { (wanted, other) })
    }
}

/// R and s of one module.
#[derive(Debug)]
struct Butterfly {
    /// A: (1, blocks, n, n).
    a: Param,
    /// s: (out, 1).
    s: Param,
    n: usize,
    /// Places in A above the diagonals, and those they mirror.
    above: Vec<u32>,
    below: Vec<u32>,
    made: Memo,
}

impl Butterfly {
    fn new(a: Param, s: Param, blocks: usize, n: usize) -> Butterfly {
        let place = |g: usize, i: usize, j: usize| ((g * n + i) * n + j) as u32;
        let pairs = (0..blocks).flat_map(|g| (0..n).flat_map(move |i| (i + 1..n).map(move |j| (g, i, j))));
        let (above, below) = pairs.map(|(g, i, j)| (place(g, i, j), place(g, j, i))).unzip();
        Butterfly { a, s, n, above, below, made: Memo::default() }
    }

    /// R, (blocks, n, n).
    fn rotation(&self, a: &Var) -> planish_autograd::Result<Var> {
        let flat = reshape(a, &[a.value().numel()])?;
        let half = scale(&sub(&index_select(&flat, &self.above)?, &index_select(&flat, &self.below)?)?, 0.5)?;
        let blocks = self.a.value().dims()[1];
        let q = reshape(&half, &[blocks, self.n * (self.n - 1) / 2])?;
        cayley(&q, self.n, Cayley::Exact)
    }

    /// R outside of training.
    fn fixed(&self, ctx: &Ctx) -> planish_tensor::Result<Tensor> {
        let a = self.a.value();
        let rotation = || match self.rotation(&Var::constant(a.clone())) {
            Ok(r) => Ok(r.into_value()),
            Err(planish_autograd::Error::Tensor(error)) => Err(error),
            Err(_) => unreachable!("nothing is recorded of a constant"),
        };
        self.made.get(ctx, &[&a], rotation)
    }
}

impl LinearAdapter for Butterfly {
    fn forward(&self, ctx: &Ctx, x: &Var, weight: &Var, bias: Option<&Var>) -> planish_autograd::Result<Var> {
        let (a, s) = (ctx.param(&self.a), ctx.param(&self.s));
        let r = if a.is_tracked() { self.rotation(&a)? } else { Var::constant(self.fixed(ctx)?) };
        let s = cast(&reshape(&s, &[s.value().numel()])?, x.value().dtype())?;
        let y = mul(&linear(&block_rotate(x, &r)?, weight, None)?, &s)?;
        match bias {
            Some(bias) => add(&y, &cast(bias, y.value().dtype())?),
            None => Ok(y),
        }
    }

    fn params(&self) -> Vec<&Param> {
        vec![&self.a, &self.s]
    }

    /// A row of s ∘ (W Rᵀ) is that row of W turned by Rᵀ and scaled.
    fn merge(&self, weight: Tensor, bias: Option<Tensor>) -> planish_tensor::Result<(Tensor, Option<Tensor>)> {
        let r = self.fixed(&Ctx::inference())?;
        Ok((kernel::mul(&rotate::backward_input(&weight, &r)?, &self.s.value())?, bias))
    }
}

impl Method for BoftConfig {
    fn peft_type(&self) -> &'static str {
        "BOFT"
    }

    fn to_json(&self) -> Value {
        let mut all = json!({
            "bias": "none",
            "boft_block_num": self.boft_block_num,
            "boft_block_size": self.boft_block_size,
            "boft_dropout": 0.0,
            "boft_n_butterfly_factor": 1,
            "fan_in_fan_out": false,
            "init_weights": true,
            "layers_pattern": null,
            "layers_to_transform": self.target.layers_to_transform,
        });
        self.target.write(&mut all, "BOFT");
        json::with_others(all, &self.others)
    }

    fn attach(&self, to: &mut Attach<'_>) -> Result<()> {
        self.validate()?;
        let chosen = self.target.chosen(to.model)?.linears_only("BOFT")?;
        for index in chosen {
            let linear = &to.model.linears_mut()[index];
            let (name, dims) = (linear.name.to_string(), linear.weight.base.value().dims().to_vec());
            let (blocks, n) = self.blocks(&name, dims[1])?;
            let a = to.param(format!("{PREFIX}{name}.boft_R"), &[1, blocks, n, n], |draw| draw.full(0.0))?;
            let s = to.param(format!("{PREFIX}{name}.boft_s"), &[dims[0], 1], |draw| draw.full(1.0))?;
            let slot = to.slot;
            let butterfly = Butterfly::new(a, s, blocks, n);
            to.model.linears_mut()[index].adapters.set(slot, Arc::new(butterfly));
        }
        copies::modules_to_save(to, &self.target.modules_to_save, false)?;
        to.finish(&[])
    }
}
