//! P-tuning: virtual tokens before every sequence, as an encoder makes them of trained embeddings.
//!
//! values = W₃ relu(W₂ relu(W₁ E + b₁) + b₂) + b₃, with E: (virtual tokens, hidden), or
//! values = W₂ relu(W₁ H + b₁) + b₂, with H: (virtual tokens, 2 width) of a bidirectional LSTM over E.
//!
//! # Source
//! Liu et al., "GPT Understands, Too", arXiv:2103.10385. PEFT saves the values only; what training needs to go on is in
//! a file of its own.

use std::sync::Arc;

use planish_autograd::Param;
use planish_tensor::Tensor;
use serde_json::{Value, json};

use super::json::Fields;
use super::prompt_tuning::{Between, FILE_NAME, Kind, Prompt, PromptEncoder, encoder_state, encoder_width, saved};
use super::{AdapterError, Attach, Method, copies};
use crate::Result;
use crate::decoder::Place;

/// PEFT's `encoder_reparameterization_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoder {
    /// Three linear layers with ReLU between.
    Mlp,
    /// A bidirectional LSTM, then two linear layers with ReLU between.
    Lstm,
}

/// Settings of p-tuning, under PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct PTuningConfig {
    pub(super) prompt: Prompt,
    /// The encoder.
    pub encoder: Encoder,
    /// Width between its layers, and of each direction of the LSTM; the model's if `None`.
    pub encoder_hidden_size: Option<usize>,
    /// Layers of the LSTM, at least 1. The MLP has three, whatever this says.
    pub encoder_num_layers: usize,
}

/// PEFT's.
const NUM_LAYERS: usize = 2;

impl PTuningConfig {
    /// So many virtual tokens, made by the MLP.
    pub fn new(num_virtual_tokens: usize, encoder_hidden_size: Option<usize>, base: Option<String>) -> PTuningConfig {
        let prompt = Prompt::new(num_virtual_tokens, base);
        PTuningConfig { prompt, encoder: Encoder::Mlp, encoder_hidden_size, encoder_num_layers: NUM_LAYERS }
    }

    pub(super) fn read(f: &Fields<'_>) -> Result<PTuningConfig, AdapterError> {
        let encoder = match f.text("encoder_reparameterization_type")? {
            None | Some("MLP") => Encoder::Mlp,
            Some("LSTM") => Encoder::Lstm,
            Some(other) => {
                return Err(AdapterError::Unsupported { what: format!("encoder_reparameterization_type {other:?}") });
            }
        };
        let own = ["encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers"];
        let encoder_hidden_size = f.opt_whole("encoder_hidden_size")?;
        let encoder_num_layers = f.whole("encoder_num_layers", NUM_LAYERS)?;
        Ok(PTuningConfig { prompt: Prompt::read(f, &own)?, encoder, encoder_hidden_size, encoder_num_layers })
    }

    fn kind(&self) -> Kind {
        let recurrent = if self.encoder == Encoder::Lstm { self.encoder_num_layers } else { 0 };
        Kind { recurrent, ..Kind::linear(Between::Relu, Place::Embeddings) }
    }
}

impl Method for PTuningConfig {
    fn peft_type(&self) -> &'static str {
        "P_TUNING"
    }

    fn to_json(&self) -> Value {
        let all = json!({
            "encoder_dropout": 0.0,
            "encoder_hidden_size": self.encoder_hidden_size,
            "encoder_num_layers": self.encoder_num_layers,
            "encoder_reparameterization_type": if self.encoder == Encoder::Mlp { "MLP" } else { "LSTM" },
            "num_attention_heads": null,
            "num_layers": null,
            "num_transformer_submodules": 1,
            "token_dim": null,
        });
        self.prompt.write(all, self.peft_type())
    }

    fn attach(&self, to: &mut Attach<'_>) -> Result<()> {
        self.prompt.validate()?;
        self.prompt.leaves_room(to)?;
        if !(1..=64).contains(&self.encoder_num_layers) {
            let value = self.encoder_num_layers.to_string();
            return Err(AdapterError::Value { key: "encoder_num_layers", value, expected: "from 1 to 64" }.into());
        }
        let (count, hidden) = (self.prompt.num_virtual_tokens, to.model.config.hidden_size);
        let encoder = if to.trains() {
            let width = encoder_width(self.encoder_hidden_size, hidden)?;
            let sizes: &[(usize, usize)] = match self.encoder {
                Encoder::Mlp => &[(width, hidden), (width, width), (hidden, width)],
                Encoder::Lstm => &[(2 * width, 2 * width), (hidden, 2 * width)],
            };
            PromptEncoder::attach(to, (count, hidden), "mlp_head", sizes, self.kind())?
        } else {
            // PEFT saves what the encoder makes: training goes on from that, without it.
            let values = to.param(FILE_NAME, &[count, hidden], |draw| draw.full(0.0))?;
            PromptEncoder::plain(values, Place::Embeddings)
        };
        let slot = to.slot;
        to.model.virtual_tokens.set(slot, Arc::new(encoder));
        copies::score_beside(to)?;
        to.finish(&[FILE_NAME.to_string()])
    }

    fn saved(&self, params: &[Param]) -> Result<Vec<(String, Tensor)>> {
        saved(params, self.kind())
    }

    fn training_state(&self, params: &[Param]) -> Vec<(String, Tensor)> {
        encoder_state(params)
    }

    fn is_mergeable(&self) -> bool {
        false
    }
}
