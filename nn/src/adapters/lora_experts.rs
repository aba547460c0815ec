//! LoRA on parameters that are no linear module's in transformers 5 (PEFT's `target_parameters`): all experts of a layer
//! as one, and the router.
//!
//! Expert e of `mlp.experts.gate_up_proj` gets W_e + s·B_e A_e with one A_e: (r, in) for its gate and the other half
//! both, which are the upper and the lower rows of B_e: (out, r). PEFT's file has all A_e below each other,
//! (experts · r, in), and column ρ · experts + e of its B, (out, r · experts), is column ρ of B_e. Here B is held as
//! all B_e below each other, (experts · out, r), so that an expert's part is a run of rows, and turned around when it
//! is read and written.

use std::sync::Arc;

use planish_autograd::ops::lora_linear::{Lora, lora_linear};
use planish_autograd::ops::view::narrow;
use planish_autograd::{Param, Var};
use planish_tensor::Tensor;
use planish_tensor::ops::elementwise::add_assign;

use super::lora::delta;
use super::select::quoted;
use super::{AdapterError, Attach, LoraConfig, LoraInit, LoraLayer, PREFIX};
use crate::config::{ExpertNames, ModelConfig, Moe};
use crate::modules::LinearAdapter;
use crate::{Ctx, Result};

/// The update of one map of one expert: a part of the layer's.
#[derive(Debug)]
struct ExpertLora {
    /// All A_e: (experts · r, in).
    a: Param,
    /// All B_e: (experts · out, r).
    b: Param,
    /// s.
    scale: f64,
    expert: usize,
    rank: usize,
    /// First row of this map in B, and how many.
    rows: (usize, usize),
}

impl ExpertLora {
    fn parts(&self) -> planish_tensor::Result<(Tensor, Tensor)> {
        let a = self.a.value().narrow(0, self.expert * self.rank, self.rank)?;
        Ok((a, self.b.value().narrow(0, self.rows.0, self.rows.1)?))
    }
}

impl LinearAdapter for ExpertLora {
    fn forward(&self, ctx: &Ctx, x: &Var, weight: &Var, bias: Option<&Var>) -> planish_autograd::Result<Var> {
        let a = narrow(&ctx.param(&self.a), 0, self.expert * self.rank, self.rank)?;
        let b = narrow(&ctx.param(&self.b), 0, self.rows.0, self.rows.1)?;
        lora_linear(x, weight, bias, &a, &b, &Lora { scale: self.scale, dropout: None })
    }

    fn params(&self) -> Vec<&Param> {
        vec![&self.a, &self.b]
    }

    fn merge(&self, mut weight: Tensor, bias: Option<Tensor>) -> planish_tensor::Result<(Tensor, Option<Tensor>)> {
        let (a, b) = self.parts()?;
        add_assign(&mut weight, &delta(&a.contiguous()?, &b.contiguous()?, self.scale)?)?;
        Ok((weight, bias))
    }
}

/// (out, r · experts) as PEFT has it to (experts · out, r).
fn by_expert(b: &Tensor, experts: usize) -> planish_tensor::Result<Tensor> {
    let (out, r) = (b.dims()[0], b.dims()[1] / experts.max(1));
    b.reshape([out, r, experts])?.transpose(1, 2)?.transpose(0, 1)?.reshape([experts * out, r])?.copied()
}

/// The way back.
fn as_peft(b: &Tensor, experts: usize) -> planish_tensor::Result<Tensor> {
    let (out, r) = (b.dims()[0] / experts.max(1), b.dims()[1]);
    b.reshape([experts, out, r])?.transpose(0, 1)?.transpose(1, 2)?.reshape([out, r * experts])?.copied()
}

/// Parameters of a layer of experts.
const PARTS: [&str; 3] = ["experts.gate_up_proj", "experts.down_proj", "gate.weight"];

/// The parameters of all experts and routers, under transformers 5's names.
fn parameters(config: &ModelConfig) -> Vec<String> {
    let sparse = config.layers.iter().enumerate().filter(|(_, layer)| layer.sparse);
    sparse.flat_map(|(layer, _)| PARTS.map(|part| format!("model.layers.{layer}.mlp.{part}"))).collect()
}

/// Whether `name` is `end` or ends in `.end`.
fn is_end(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn no_parameter(wanted: &[String]) -> AdapterError {
    let available = PARTS.map(|part| format!("mlp.{part}"));
    AdapterError::NoMatch {
        key: "target_parameters",
        wanted: quoted(wanted),
        kind: "expert",
        available: available.into(),
    }
}

/// Where transformers 5 has what file names call `at`.
fn in_memory(at: &str) -> String {
    at.replace(".block_sparse_moe", ".mlp")
}

impl LoraConfig {
    /// Whether a parameter under transformers 5's name is targeted.
    fn targets_parameter(&self, name: &str) -> bool {
        self.target_parameters.iter().any(|t| is_end(name, t))
    }

    /// The parameters that are targeted.
    pub(super) fn targeted_parameters(&self, config: &ModelConfig) -> Vec<String> {
        parameters(config).into_iter().filter(|name| self.targets_parameter(name)).collect()
    }

    /// Puts updates on the parameters that are targeted.
    pub(super) fn attach_parameters(&self, to: &mut Attach<'_>) -> Result<()> {
        if self.target_parameters.is_empty() {
            return Ok(());
        }
        let init = &self.init_lora_weights;
        let what = [
            (self.lora_dropout > 0.0, "lora_dropout".to_owned()),
            (self.use_dora, "use_dora".to_owned()),
            (to.is_fresh() && *init != LoraInit::Default, format!("init_lora_weights {}", init.to_json())),
        ];
        if let Some((_, what)) = what.into_iter().find(|(on, _)| *on) {
            return Err(AdapterError::Unsupported { what: format!("{what} with target_parameters") }.into());
        }
        let Some(moe) = to.model.config.moe else { return Err(no_parameter(&self.target_parameters).into()) };
        let block = if moe.names == ExpertNames::Mixtral { "block_sparse_moe" } else { "mlp" };
        let config = to.model.config.clone();
        if to.is_fresh() {
            let all = parameters(&config);
            let unknown = |t: &&String| !all.iter().any(|name| is_end(name, t));
            if let Some(unknown) = self.target_parameters.iter().find(unknown) {
                return Err(no_parameter(std::slice::from_ref(unknown)).into());
            }
        }
        let mut found = false;
        for (layer, _) in config.layers.iter().enumerate().filter(|(_, layer)| layer.sparse) {
            let at = format!("model.layers.{layer}.{block}");
            found |= self.attach_router(to, &at)?;
            found |= self.attach_experts(to, &at, &moe)?;
        }
        if found { Ok(()) } else { Err(no_parameter(&self.target_parameters).into()) }
    }

    fn attach_router(&self, to: &mut Attach<'_>, at: &str) -> Result<bool> {
        let name = format!("{}.gate", in_memory(at));
        if !self.targets_parameter(&format!("{name}.weight")) {
            return Ok(false);
        }
        let (r, scale) = self.rank_and_scale(&format!("{name}.weight"))?;
        let index = place(to, &format!("{at}.gate"))?;
        let weight = to.model.linears_mut()[index].weight.base.value();
        let (out, input) = (weight.dims()[0], weight.dims()[1]);
        let bound = 1.0 / (input as f64).sqrt();
        let a = to.param(format!("{PREFIX}{name}.lora_A.weight"), &[r, input], |draw| draw.uniform(bound))?;
        let b = to.param(format!("{PREFIX}{name}.lora_B.weight"), &[out, r], |draw| draw.full(0.0))?;
        let (slot, layer) = (to.slot, LoraLayer::new(a, b, scale, 0.0, index as u64));
        to.model.linears_mut()[index].adapters.set(slot, Arc::new(layer));
        Ok(true)
    }

    fn attach_experts(&self, to: &mut Attach<'_>, at: &str, moe: &Moe) -> Result<bool> {
        let (experts, hidden, width) = (moe.experts, to.model.config.hidden_size, moe.width);
        let module = format!("{}.experts", in_memory(at));
        let names = match moe.names {
            ExpertNames::Mixtral => ["w1", "w3", "w2"],
            ExpertNames::Mlp | ExpertNames::DeepSeek => ["gate_proj", "up_proj", "down_proj"],
        };
        let both = [format!("{module}.gate_up_proj"), format!("{module}.down_proj")];
        let wanted = both.clone().map(|name| self.targets_parameter(&name));
        // PEFT wraps the module once for each parameter: the first is within the second.
        let kinds: [(bool, &str, [usize; 2], &[&str]); 2] = [
            (wanted[0], if wanted[1] { ".base_layer" } else { "" }, [2 * width, hidden], &names[..2]),
            (wanted[1], "", [hidden, width], &names[2..]),
        ];
        for (name, (_, within, [out, input], maps)) in both.iter().zip(kinds).filter(|(_, kind)| kind.0) {
            let (rank, scale) = self.rank_and_scale(name)?;
            let file = format!("{PREFIX}{module}{within}");
            let bound = 1.0 / (input as f64).sqrt();
            let shape = [experts.saturating_mul(rank), input];
            let a = to.param(format!("{file}.lora_A.weight"), &shape, |draw| draw.uniform(bound))?;
            let shape = [out, rank.saturating_mul(experts)];
            let b = to.param(format!("{file}.lora_B.weight"), &shape, |draw| draw.full(0.0))?;
            let make = if b.is_trainable() { Param::trainable } else { Param::frozen };
            let b = make(b.name().to_owned(), by_expert(&b.value(), experts)?);
            let slot = to.slot;
            for expert in 0..experts {
                for (i, map) in maps.iter().enumerate() {
                    let index = place(to, &format!("{at}.experts.{expert}.{map}"))?;
                    let rows = out / maps.len();
                    let rows = (expert * out + i * rows, rows);
                    let layer = ExpertLora { a: a.clone(), b: b.clone(), scale, expert, rank, rows };
                    to.model.linears_mut()[index].adapters.set(slot, Arc::new(layer));
                }
            }
        }
        Ok(wanted.contains(&true))
    }
}

/// A parameter as PEFT has it in its file; `all` are those of the adapter.
pub(super) fn saved_parameter(param: &Param, all: &[Param]) -> Result<Tensor> {
    let (name, value) = (param.name(), param.value());
    let of_experts = [".experts.lora_B.weight", ".experts.base_layer.lora_B.weight"];
    if !of_experts.iter().any(|end| name.ends_with(end)) {
        return Ok(value);
    }
    let partner = name.replace(".lora_B.", ".lora_A.");
    let a = all.iter().find(|p| p.name() == partner).map(|p| p.value().dims()[0]);
    Ok(as_peft(&value, a.map_or(1, |rows| rows / value.dims()[1]))?)
}

/// Place among the model's linear modules; refused where an adapter is on it already.
fn place(to: &mut Attach<'_>, name: &str) -> Result<usize> {
    let slot = to.slot;
    let linears = to.model.linears_mut();
    let index = linears.iter().position(|l| &*l.name == name).expect("a layer of experts has this module");
    if linears[index].adapters.get(slot).is_some() {
        let problem = format!("and `target_modules` both ask for `{name}`; keep one");
        return Err(AdapterError::Conflict { key: "target_parameters", problem }.into());
    }
    Ok(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_peft_are_rows_of_experts() {
        // Two outputs, rank 3, two experts: column 2 ρ + e.
        let b = Tensor::from_vec((0..12).map(f64::from).collect(), [2, 6]).unwrap();
        let own = by_expert(&b, 2).unwrap();
        let want = [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 1.0, 3.0, 5.0, 7.0, 9.0, 11.0];
        assert_eq!((own.dims(), &own.to_vec::<f64>().unwrap()[..]), (&[4, 3][..], &want[..]));
        let back = as_peft(&own, 2).unwrap();
        assert_eq!((back.dims(), back.to_vec::<f64>().unwrap()), (b.dims(), b.to_vec::<f64>().unwrap()));
    }
}
