//! Prompt tuning: embeddings of virtual tokens before every sequence.
//!
//! # Source
//! Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", arXiv:2104.08691.

use std::sync::Arc;

use planish_autograd::Param;
use planish_autograd::Var;
use planish_autograd::ops::{activation, concat, linear, lstm, unary};
use planish_tensor::Tensor;
use planish_tensor::ops::embedding;
use serde_json::{Map, Value, json};

use super::json::{self, Fields};
use super::{AdapterError, Attach, Method, copies};
use crate::decoder::{Place, VirtualTokens};
use crate::{Ctx, Result};

/// Name of the one tensor in PEFT's file of every prompt method.
pub(super) const FILE_NAME: &str = "prompt_embeddings";

/// What all prompt methods have, under PEFT's names.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Prompt {
    pub(super) num_virtual_tokens: usize,
    pub(super) base_model: Option<String>,
    pub(super) others: Map<String, Value>,
}

impl Prompt {
    pub(super) fn new(num_virtual_tokens: usize, base_model: Option<String>) -> Prompt {
        Prompt { num_virtual_tokens, base_model, others: Map::new() }
    }

    pub(super) fn read(f: &Fields<'_>, own: &[&str]) -> Result<Prompt, AdapterError> {
        let fields = [own, &["num_virtual_tokens", "base_model_name_or_path", "peft_type"]].concat();
        let prompt = Prompt {
            num_virtual_tokens: f.whole("num_virtual_tokens", 0)?,
            base_model: f.text("base_model_name_or_path")?.map(str::to_string),
            others: f.others(&fields),
        };
        if f.opt_whole("num_transformer_submodules")?.is_some_and(|n| n != 1) {
            return Err(AdapterError::Unsupported { what: "num_transformer_submodules above 1".into() });
        }
        prompt.validate()?;
        Ok(prompt)
    }

    pub(super) fn validate(&self) -> Result<(), AdapterError> {
        if (1..=65_536).contains(&self.num_virtual_tokens) {
            return Ok(());
        }
        let value = self.num_virtual_tokens.to_string();
        Err(AdapterError::Value { key: "num_virtual_tokens", value, expected: "from 1 to 65536" })
    }

    /// That a new adapter leaves the text some of the positions that the model was made for.
    pub(super) fn leaves_room(&self, to: &Attach<'_>) -> Result<(), AdapterError> {
        let (count, window) = (self.num_virtual_tokens, to.model.config.window());
        if !to.is_fresh() || count < window {
            return Ok(());
        }
        let problem = format!(
            "is {count}, which leaves a text none of the {window} positions that the model was made for (max_position_embeddings)"
        );
        Err(AdapterError::Conflict { key: "num_virtual_tokens", problem })
    }

    /// adapter_config.json with the method's own entries `all`; what the model fills in comes with `others`.
    pub(super) fn write(&self, mut all: Value, peft_type: &str) -> Value {
        all["auto_mapping"] = Value::Null;
        all["base_model_name_or_path"] = json!(self.base_model);
        all["inference_mode"] = json!(true);
        all["num_virtual_tokens"] = json!(self.num_virtual_tokens);
        all["peft_type"] = json!(peft_type);
        all["revision"] = Value::Null;
        all["task_type"] = json!("CAUSAL_LM");
        json::with_others(all, &self.others)
    }
}

/// What comes between the layers of an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Between {
    Tanh,
    Relu,
}

/// What an encoder does besides its linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    /// Layers of a bidirectional LSTM before them, each as wide as half of what the first linear layer takes.
    pub(super) recurrent: usize,
    pub(super) between: Between,
    pub(super) place: Place,
}

impl Kind {
    /// Of linear layers alone.
    pub(super) fn linear(between: Between, place: Place) -> Kind {
        Kind { recurrent: 0, between, place }
    }
}

/// `encoder_hidden_size`, where nothing is given `otherwise`.
pub(super) fn encoder_width(given: Option<usize>, otherwise: usize) -> Result<usize, AdapterError> {
    match given {
        Some(width) if !(1..=65_536).contains(&width) => {
            let (key, value) = ("encoder_hidden_size", width.to_string());
            Err(AdapterError::Value { key, value, expected: "from 1 to 65536" })
        }
        width => Ok(width.unwrap_or(otherwise)),
    }
}

/// One direction of a recurrent layer: W_ih (4 hidden, in), W_hh (4 hidden, hidden), b_ih and b_hh (4 hidden).
#[derive(Debug)]
struct Direction([Param; 4]);

impl Direction {
    fn through(&self, ctx: &Ctx, x: &Var, reverse: bool) -> planish_autograd::Result<Var> {
        let [w_ih, w_hh, b_ih, b_hh] = self.0.each_ref().map(|p| ctx.param(p));
        let bias = planish_autograd::ops::elementwise::add(&b_ih, &b_hh)?;
        lstm::lstm(&linear::linear(x, &w_ih, Some(&bias))?, &w_hh, reverse)
    }
}

/// Virtual tokens: rows of a table, through an encoder's layers if there are any.
#[derive(Debug)]
pub(super) struct PromptEncoder {
    /// (virtual tokens, width).
    pub(super) embedding: Param,
    /// Forward and reverse of each recurrent layer.
    recurrent: Vec<[Direction; 2]>,
    /// W (out, in) and b (out) of each layer.
    pub(super) layers: Vec<(Param, Param)>,
    kind: Kind,
}

impl PromptEncoder {
    /// Of a table alone.
    pub(super) fn plain(embedding: Param, place: Place) -> PromptEncoder {
        let kind = Kind::linear(Between::Relu, place);
        PromptEncoder { embedding, recurrent: Vec::new(), layers: Vec::new(), kind }
    }

    /// A table of `width` and layers of these (out, in), under PEFT's names for their parameters within the encoder:
    /// `lstm_head.weight_ih_l0`, …, and `head.0`, `head.2`, …
    pub(super) fn attach(
        to: &mut Attach<'_>,
        (count, width): (usize, usize),
        head: &str,
        sizes: &[(usize, usize)],
        kind: Kind,
    ) -> Result<PromptEncoder> {
        let embedding = to.param("prompt_encoder.embedding.weight", &[count, width], |draw| draw.normal(1.0))?;
        let mut recurrent = Vec::new();
        for layer in 0..kind.recurrent {
            let (both, hidden) = (sizes[0].1, sizes[0].1 / 2);
            let input = if layer == 0 { width } else { both };
            // torch's initialisation of a recurrent layer.
            let bound = 1.0 / (hidden as f64).sqrt();
            let mut direction = |suffix: &str| -> Result<Direction> {
                let name = |part: &str| format!("prompt_encoder.lstm_head.{part}_l{layer}{suffix}");
                Ok(Direction([
                    to.param(name("weight_ih"), &[4 * hidden, input], |draw| draw.uniform(bound))?,
                    to.param(name("weight_hh"), &[4 * hidden, hidden], |draw| draw.uniform(bound))?,
                    to.param(name("bias_ih"), &[4 * hidden], |draw| draw.uniform(bound))?,
                    to.param(name("bias_hh"), &[4 * hidden], |draw| draw.uniform(bound))?,
                ]))
            };
            recurrent.push([direction("")?, direction("_reverse")?]);
        }
        let mut layers = Vec::new();
        for (i, &(out, input)) in sizes.iter().enumerate() {
            let name = |part: &str| format!("prompt_encoder.{head}.{}.{part}", 2 * i);
            // torch's initialisation of a linear layer.
            let bound = 1.0 / (input as f64).sqrt();
            let w = to.param(name("weight"), &[out, input], |draw| draw.uniform(bound))?;
            let b = to.param(name("bias"), &[out], |draw| draw.uniform(bound))?;
            layers.push((w, b));
        }
        Ok(PromptEncoder { embedding, recurrent, layers, kind })
    }

    /// The same from its parameters, in the order of [`VirtualTokens::params`].
    pub(super) fn from_params(params: &[Param], kind: Kind) -> Option<PromptEncoder> {
        let (embedding, rest) = params.split_first()?;
        // What was loaded to go on with has no encoder.
        let recurrent = if rest.is_empty() { 0 } else { kind.recurrent };
        let (recurrent, layers) = rest.split_at_checked(8 * recurrent)?;
        let direction = |p: &[Param]| Direction(std::array::from_fn(|i| p[i].clone()));
        let recurrent = recurrent.chunks_exact(8).map(|p| [direction(&p[..4]), direction(&p[4..])]).collect();
        let layers = layers.chunks_exact(2).map(|p| (p[0].clone(), p[1].clone())).collect();
        Some(PromptEncoder { embedding: embedding.clone(), recurrent, layers, kind })
    }

    /// What PEFT saves: the encoder's output.
    pub(super) fn output(&self) -> Result<Tensor> {
        Ok(self.values(&Ctx::inference())?.into_value().copied()?)
    }
}

impl VirtualTokens for PromptEncoder {
    fn count(&self) -> usize {
        self.embedding.value().dims()[0]
    }

    fn place(&self) -> Place {
        self.kind.place
    }

    fn values(&self, ctx: &Ctx) -> planish_autograd::Result<Var> {
        let mut x = ctx.param(&self.embedding);
        for [forward, reverse] in &self.recurrent {
            x = concat::concat(&[&forward.through(ctx, &x, false)?, &reverse.through(ctx, &x, true)?], 1)?;
        }
        for (i, (w, b)) in self.layers.iter().enumerate() {
            if i > 0 {
                x = match self.kind.between {
                    Between::Tanh => unary::tanh(&x)?,
                    Between::Relu => activation::relu(&x)?,
                };
            }
            x = linear::linear(&x, &ctx.param(w), Some(&ctx.param(b)))?;
        }
        Ok(x)
    }

    fn params(&self) -> Vec<&Param> {
        let recurrent = self.recurrent.iter().flatten().flat_map(|d| &d.0);
        let layers = self.layers.iter().flat_map(|(w, b)| [w, b]);
        std::iter::once(&self.embedding).chain(recurrent).chain(layers).collect()
    }
}

/// What an encoder's file holds: its output; and, for going on, the encoder.
pub(super) fn saved(params: &[Param], kind: Kind) -> Result<Vec<(String, Tensor)>> {
    let (head, own): (Vec<Param>, Vec<Param>) = params.iter().cloned().partition(|p| copies::is_score_beside(p.name()));
    let mut all = Vec::new();
    if let Some(encoder) = PromptEncoder::from_params(&own, kind) {
        all.push((FILE_NAME.to_string(), encoder.output()?));
    }
    all.extend(head.iter().map(|p| (p.name().to_string(), p.value())));
    Ok(all)
}

/// The parameters of an encoder that has layers.
pub(super) fn encoder_state(params: &[Param]) -> Vec<(String, Tensor)> {
    let own: Vec<&Param> = params.iter().filter(|p| !copies::is_score_beside(p.name())).collect();
    if own.len() < 2 {
        return Vec::new();
    }
    own.into_iter().map(|p| (p.name().to_string(), p.value())).collect()
}

/// How the virtual tokens begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptInit {
    /// `RANDOM`: standard normal.
    Random,
    /// `SAMPLE_VOCAB`: embeddings of random tokens.
    SampleVocab,
    /// `TEXT`: embeddings of a text's tokens, over and over.
    Text(String),
}

/// Settings of prompt tuning, under PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptTuningConfig {
    pub(super) prompt: Prompt,
    /// How the virtual tokens begin.
    pub init: PromptInit,
    /// Where PEFT finds the tokenizer of the text.
    pub tokenizer: Option<String>,
}

impl PromptTuningConfig {
    /// So many virtual tokens.
    pub fn new(num_virtual_tokens: usize, init: PromptInit, base_model: Option<String>) -> PromptTuningConfig {
        let tokenizer = matches!(init, PromptInit::Text(_)).then(|| base_model.clone()).flatten();
        PromptTuningConfig { prompt: Prompt::new(num_virtual_tokens, base_model), init, tokenizer }
    }

    pub(super) fn read(f: &Fields<'_>) -> Result<PromptTuningConfig, AdapterError> {
        let own = ["prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path"];
        let init = match f.text("prompt_tuning_init")? {
            None | Some("RANDOM") => PromptInit::Random,
            Some("SAMPLE_VOCAB") => PromptInit::SampleVocab,
            Some("TEXT") => PromptInit::Text(f.text("prompt_tuning_init_text")?.unwrap_or_default().to_string()),
            Some(other) => return Err(AdapterError::Unsupported { what: format!("prompt_tuning_init {other:?}") }),
        };
        let tokenizer = f.text("tokenizer_name_or_path")?.map(str::to_string);
        Ok(PromptTuningConfig { prompt: Prompt::read(f, &own)?, init, tokenizer })
    }
}

impl Method for PromptTuningConfig {
    fn peft_type(&self) -> &'static str {
        "PROMPT_TUNING"
    }

    fn to_json(&self) -> Value {
        let (name, text) = match &self.init {
            PromptInit::Random => ("RANDOM", None),
            PromptInit::SampleVocab => ("SAMPLE_VOCAB", None),
            PromptInit::Text(text) => ("TEXT", Some(text)),
        };
        let all = json!({
            "num_attention_heads": null,
            "num_layers": null,
            "num_transformer_submodules": 1,
            "prompt_tuning_init": name,
            "prompt_tuning_init_text": text,
            "token_dim": null,
            "tokenizer_kwargs": null,
            "tokenizer_name_or_path": self.tokenizer,
        });
        self.prompt.write(all, self.peft_type())
    }

    fn attach(&self, to: &mut Attach<'_>) -> Result<()> {
        self.prompt.validate()?;
        self.prompt.leaves_room(to)?;
        let (count, hidden) = (self.prompt.num_virtual_tokens, to.model.config.hidden_size);
        let table = to.model.embed_tokens.base.value();
        let ids: Option<Vec<u32>> = match (&self.init, to.prompt()) {
            (PromptInit::Text(text), ids) if to.is_fresh() => match ids {
                Some(ids) if !ids.is_empty() => Some((0..count).map(|i| ids[i % ids.len()]).collect()),
                _ => {
                    let problem = format!("{text:?} has no tokens to begin with; give a text");
                    return Err(AdapterError::Conflict { key: "prompt_tuning_init_text", problem }.into());
                }
            },
            (PromptInit::SampleVocab, _) => {
                let (stream, rows) = (to.stream(FILE_NAME), table.dims()[0] as u64);
                Some((0..count as u64).map(|i| stream.below(i, rows) as u32).collect())
            }
            _ => None,
        };
        let dtype = to.dtype;
        let embedding = to.param(FILE_NAME, &[count, hidden], |draw| match ids {
            Some(ids) => Ok(embedding::forward(&table, &ids)?.to_dtype(dtype)?),
            None => draw.normal(1.0),
        })?;
        let slot = to.slot;
        to.model.virtual_tokens.set(slot, Arc::new(PromptEncoder::plain(embedding, Place::Embeddings)));
        copies::score_beside(to)?;
        to.finish(&[])
    }

    fn is_mergeable(&self) -> bool {
        false
    }
}
