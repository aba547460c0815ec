//! Building a [`Model`] from named tensors.

use std::collections::HashSet;
use std::sync::Arc;

use planish_autograd::Param;
use planish_tensor::quant::Layout;
use planish_tensor::{DType, Tensor};

use super::Model;
use super::experts::Experts;
use super::latent::{LatentQkv, Queries};
use super::layer::{Layer, Qkv};
use super::mlp::{Feed, GateUp, Mlp};
use crate::config::{ExpertNames, Latent, ModelConfig, Moe, NormPlacement, QkNorm};
use crate::modules::{Linear, Norm, Slots, Weight};
use crate::{Error, Result};

/// ε of the norms of latent vectors.
const LATENT_EPS: f64 = 1e-6;

/// Where tensors come from: a weights file, a GGUF file, an initialiser.
pub trait TensorSource {
    /// The tensor of that name, if there is one; `shape` is what the config calls for.
    ///
    /// # Errors
    /// A file that cannot be read.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>>;
    /// All names.
    fn names(&self) -> Vec<String>;
}

/// How weights are held.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// Dtype to hold them in; as in the file if `None`. Weights that bitsandbytes has quantised stay so, whatever it is;
    /// blocks of a GGUF file stay so without it.
    pub dtype: Option<DType>,
    /// Whether gradients are wanted for all of them (full fine-tuning).
    pub trainable: bool,
}

/// Tensors that files carry but no model needs: buffers that are computed.
fn is_ignored(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || name.ends_with(".attn.bias") || name.ends_with(".masked_bias")
}

/// Whether a tensor is of DeepSeek-V3's modules that predict tokens after the next: layers behind the last, which
/// transformers leaves out too.
fn predicts_further(c: &ModelConfig, name: &str) -> bool {
    let modules = c.source["num_nextn_predict_layers"].as_u64().unwrap_or(0) as usize;
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    c.latent.is_some() && layer.is_some_and(|n| (c.num_layers()..c.num_layers() + modules.min(8)).contains(&n))
}

struct Loader<'a> {
    source: &'a dyn TensorSource,
    options: LoadOptions,
    used: HashSet<String>,
}

impl Loader<'_> {
    fn weight(&mut self, name: String, shape: &[usize]) -> Result<Weight> {
        let Some(tensor) = self.source.tensor(&name, shape)? else { return Err(Error::MissingTensor { name }) };
        if tensor.dims() != shape {
            return Err(Error::TensorShape { name, found: tensor.dims().to_vec(), expected: shape.to_vec() });
        }
        if !tensor.dtype().is_float() && tensor.quantized().is_none() {
            return Err(Error::TensorDtype { name, found: tensor.dtype() });
        }
        // A dtype asked for is that of what is not quantised; of a GGUF file's blocks it asks for their values.
        let stays = tensor.quantized().is_some_and(|q| !matches!(q.layout(), Layout::Ggml(_)));
        let tensor = match self.options.dtype {
            Some(dtype) if !stays => tensor.to_dtype(dtype)?,
            _ => tensor,
        };
        if let Some(q) = tensor.quantized().filter(|_| self.options.trainable) {
            return Err(Error::FrozenWeight { name, format: q.format() });
        }
        self.used.insert(name.clone());
        let make = if self.options.trainable { Param::trainable } else { Param::frozen };
        Ok(Weight::new(make(name, tensor)))
    }

    fn linear(&mut self, name: String, out: usize, input: usize, bias: bool) -> Result<Linear> {
        let weight = self.weight(format!("{name}.weight"), &[out, input])?;
        let bias = if bias { Some(self.weight(format!("{name}.bias"), &[out])?) } else { None };
        Ok(Linear { name: name.into(), weight, bias, adapters: Slots::default() })
    }

    fn norm(&mut self, name: String, size: usize, c: &ModelConfig) -> Result<Norm> {
        let weight = self.weight(format!("{name}.weight"), &[size])?;
        Ok(Norm { name: name.into(), weight, eps: c.norm_eps, offset: c.norm_offset })
    }

    fn layer(&mut self, c: &Arc<ModelConfig>, index: usize) -> Result<Layer> {
        let at = |rest: &str| format!("model.layers.{index}.{rest}");
        let (h, d) = (c.hidden_size, c.head_dim);
        let (q, kv) = (c.num_heads * d, c.num_kv_heads * d);
        let pre = c.norm_placement != NormPlacement::Post;
        let post = c.norm_placement != NormPlacement::Pre;
        // In Llama's naming the norm before the MLP is called after the attention before it.
        let mlp_pre = if post { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        let mut norm = |wanted: bool, name: &str, size: usize| -> Result<Option<Norm>> {
            if wanted { self.norm(at(name), size, c).map(Some) } else { Ok(None) }
        };
        let attention_pre = norm(pre, "input_layernorm", h)?;
        let attention_post = norm(post, "post_attention_layernorm", h)?;
        let mlp_pre = norm(pre, mlp_pre, h)?;
        let mlp_post = norm(post, "post_feedforward_layernorm", h)?;
        let (q_size, k_size) = if c.qk_norm == QkNorm::Whole { (q, kv) } else { (d, d) };
        let q_norm = norm(c.qk_norm != QkNorm::None, "self_attn.q_norm", q_size)?;
        let k_norm = norm(c.qk_norm != QkNorm::None, "self_attn.k_norm", k_size)?;
        let qkv = if let Some(latent) = &c.latent {
            Qkv::Latent(Box::new(self.latent(c, latent, at)?))
        } else if c.fused_projections {
            Qkv::Fused(self.linear(at("self_attn.qkv_proj"), q + 2 * kv, h, c.qkv_bias)?)
        } else {
            Qkv::Split(Box::new([
                self.linear(at("self_attn.q_proj"), q, h, c.qkv_bias)?,
                self.linear(at("self_attn.k_proj"), kv, h, c.qkv_bias)?,
                self.linear(at("self_attn.v_proj"), kv, h, c.qkv_bias)?,
            ]))
        };
        let q = c.latent.map_or(q, |latent| c.num_heads * latent.value);
        let o = self.linear(at("self_attn.o_proj"), h, q, c.o_bias)?;
        let feed = match c.moe.filter(|_| c.layers[index].sparse) {
            Some(moe) => Feed::Sparse(Box::new(self.experts(c, &moe, at)?)),
            None if c.fused_projections => Feed::Dense(Box::new(Mlp {
                gate_up: GateUp::Fused(self.linear(at("mlp.gate_up_proj"), 2 * c.intermediate_size, h, c.mlp_bias)?),
                down: self.linear(at("mlp.down_proj"), h, c.intermediate_size, c.mlp_bias)?,
                activation: c.activation,
            })),
            None => Feed::Dense(Box::new(self.mlp(c, |m| at(&format!("mlp.{m}_proj")), c.intermediate_size)?)),
        };
        let config = c.clone();
        Ok(Layer { config, index, attention_pre, attention_post, mlp_pre, mlp_post, q_norm, k_norm, qkv, o, feed })
    }

    /// An MLP of this width; `name` gives the names of gate, up and down.
    fn mlp(&mut self, c: &ModelConfig, name: impl Fn(&str) -> String, width: usize) -> Result<Mlp> {
        let h = c.hidden_size;
        let gate_up = GateUp::Split(Box::new([
            self.linear(name("gate"), width, h, c.mlp_bias)?,
            self.linear(name("up"), width, h, c.mlp_bias)?,
        ]));
        Ok(Mlp { gate_up, down: self.linear(name("down"), h, width, c.mlp_bias)?, activation: c.activation })
    }

    fn experts(&mut self, c: &ModelConfig, moe: &Moe, at: impl Fn(&str) -> String) -> Result<Experts> {
        let block = at(match moe.names {
            ExpertNames::Mixtral => "block_sparse_moe",
            ExpertNames::Mlp | ExpertNames::DeepSeek => "mlp",
        });
        let part = |of: &str| match (moe.names, of) {
            (ExpertNames::Mixtral, "gate") => "w1".to_string(),
            (ExpertNames::Mixtral, "up") => "w3".to_string(),
            (ExpertNames::Mixtral, _) => "w2".to_string(),
            (_, of) => format!("{of}_proj"),
        };
        let router = self.linear(format!("{block}.gate"), moe.experts, c.hidden_size, false)?;
        let bias = match moe.bias {
            true => Some(self.buffer(format!("{block}.gate.e_score_correction_bias"), &[moe.experts])?),
            false => None,
        };
        let experts = (0..moe.experts)
            .map(|e| self.mlp(c, |of| format!("{block}.experts.{e}.{}", part(of)), moe.width))
            .collect::<Result<_>>()?;
        let shared = match moe.shared_width {
            None => None,
            Some(width) => {
                let name = if moe.names == ExpertNames::DeepSeek { "shared_experts" } else { "shared_expert" };
                let mlp = self.mlp(c, |of| format!("{block}.{name}.{of}_proj"), width)?;
                let gate = match moe.shared_gate {
                    true => Some(self.linear(format!("{block}.{name}_gate"), 1, c.hidden_size, false)?),
                    false => None,
                };
                Some((mlp, gate))
            }
        };
        Ok(Experts { router, bias, experts, shared, moe: *moe })
    }

    /// Latent attention's projections. Their norms have an ε of their own, whatever the model's is.
    fn latent(&mut self, c: &ModelConfig, l: &Latent, at: impl Fn(&str) -> String) -> Result<LatentQkv> {
        let (h, q) = (c.hidden_size, c.num_heads * l.query_size());
        let queries = match l.q_rank {
            None => Queries::Plain(self.linear(at("self_attn.q_proj"), q, h, false)?),
            Some(rank) => Queries::Latent(Box::new((
                self.linear(at("self_attn.q_a_proj"), rank, h, l.bias)?,
                self.latent_norm(at("self_attn.q_a_layernorm"), rank, c)?,
                self.linear(at("self_attn.q_b_proj"), q, rank, false)?,
            ))),
        };
        Ok(LatentQkv {
            queries,
            kv_a: self.linear(at("self_attn.kv_a_proj_with_mqa"), l.kv_rank + l.rope, h, l.bias)?,
            kv_norm: self.latent_norm(at("self_attn.kv_a_layernorm"), l.kv_rank, c)?,
            kv_b: self.linear(at("self_attn.kv_b_proj"), c.num_heads * (l.nope + l.value), l.kv_rank, false)?,
        })
    }

    fn latent_norm(&mut self, name: String, size: usize, c: &ModelConfig) -> Result<Norm> {
        Ok(Norm { eps: LATENT_EPS, ..self.norm(name, size, c)? })
    }

    /// Numbers that are never trained, in the file's own dtype.
    fn buffer(&mut self, name: String, shape: &[usize]) -> Result<Param> {
        let options = std::mem::take(&mut self.options);
        let loaded = self.weight(name, shape);
        self.options = options;
        Ok(loaded?.base)
    }
}

impl Model {
    /// Builds the model that `config` describes from the tensors of `source`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::TensorDtype`],
    /// [`Error::UnexpectedTensor`], and those of the source.
    pub fn load(config: ModelConfig, source: &dyn TensorSource, options: LoadOptions) -> Result<Model> {
        let c = Arc::new(config);
        let mut loader = Loader { source, options, used: HashSet::new() };
        let embed_tokens = loader.weight("model.embed_tokens.weight".into(), &[c.vocab_size, c.hidden_size])?;
        let layers = (0..c.num_layers()).map(|i| loader.layer(&c, i)).collect::<Result<_>>()?;
        let norm = loader.norm("model.norm".into(), c.hidden_size, &c)?;
        let lm_head = match c.tie_word_embeddings {
            true => None,
            false => Some(loader.weight("lm_head.weight".into(), &[c.vocab_size, c.hidden_size])?),
        };
        let mut others: Vec<String> =
            source.names().into_iter().filter(|n| !loader.used.contains(n) && !is_ignored(n)).collect();
        // Some writers save the tied head a second time.
        others.retain(|n| !(predicts_further(&c, n) || c.tie_word_embeddings && n == "lm_head.weight"));
        if !others.is_empty() {
            let name = others.swap_remove(0);
            return Err(Error::UnexpectedTensor { name, others: others.len() });
        }
        Ok(Model {
            config: c,
            embed_tokens,
            layers,
            norm,
            lm_head,
            score: None,
            score_bias: None,
            embed_lora: Slots::default(),
            head_lora: Slots::default(),
            virtual_tokens: Slots::default(),
            beside: Vec::new(),
            activations: None,
        })
    }
}
