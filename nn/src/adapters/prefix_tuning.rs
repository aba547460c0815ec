//! Prefix tuning: keys and values before those of every sequence, in every layer.
//!
//! The values are trained as they are, (virtual tokens, 2 · layers · kv_heads · head_dim), or with `prefix_projection`
//! W₂ tanh(W₁ E + b₁) + b₂ with E: (virtual tokens, kv_heads · head_dim). Keys of the prefix are not rotated; the
//! sequence's positions begin after it.
//!
//! # Source
//! Li and Liang, arXiv:2101.00190, section 4. PEFT saves the values only; what training needs to go on is in a file of
//! its own.

use std::sync::Arc;

use planish_autograd::Param;
use planish_tensor::Tensor;
use serde_json::{Value, json};

use super::json::Fields;
use super::prompt_tuning::{Between, FILE_NAME, Kind, Prompt, PromptEncoder, encoder_state, encoder_width, saved};
use super::{AdapterError, Attach, Method, copies};
use crate::Result;
use crate::decoder::Place;

/// Settings of prefix tuning, under PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct PrefixTuningConfig {
    pub(super) prompt: Prompt,
    /// Whether an MLP makes the values.
    pub prefix_projection: bool,
    /// Width between its layers; that of the keys if `None`.
    pub encoder_hidden_size: Option<usize>,
}

impl PrefixTuningConfig {
    /// So many virtual tokens.
    pub fn new(num_virtual_tokens: usize, prefix_projection: bool, base: Option<String>) -> PrefixTuningConfig {
        let prompt = Prompt::new(num_virtual_tokens, base);
        PrefixTuningConfig { prompt, prefix_projection, encoder_hidden_size: None }
    }

    pub(super) fn read(f: &Fields<'_>) -> Result<PrefixTuningConfig, AdapterError> {
        let own = ["prefix_projection", "encoder_hidden_size"];
        Ok(PrefixTuningConfig {
            prompt: Prompt::read(f, &own)?,
            prefix_projection: f.flag("prefix_projection", false)?,
            encoder_hidden_size: f.opt_whole("encoder_hidden_size")?,
        })
    }
}

const KIND: Kind = Kind { recurrent: 0, between: Between::Tanh, place: Place::KeysAndValues };

impl Method for PrefixTuningConfig {
    fn peft_type(&self) -> &'static str {
        "PREFIX_TUNING"
    }

    fn to_json(&self) -> Value {
        let all = json!({
            "encoder_hidden_size": self.encoder_hidden_size,
            "num_attention_heads": null,
            "num_layers": null,
            "num_transformer_submodules": 1,
            "prefix_projection": self.prefix_projection,
            "token_dim": null,
        });
        self.prompt.write(all, self.peft_type())
    }

    fn attach(&self, to: &mut Attach<'_>) -> Result<()> {
        self.prompt.validate()?;
        self.prompt.leaves_room(to)?;
        let (count, c) = (self.prompt.num_virtual_tokens, to.model.config.clone());
        if c.latent.is_some() {
            let what = "keys and values in front of latent attention (PREFIX_TUNING)".into();
            return Err(AdapterError::Unsupported { what }.into());
        }
        let width = c.num_kv_heads * c.head_dim;
        let all = 2 * c.num_layers() * width;
        let encoder = if self.prefix_projection && to.trains() {
            let between = encoder_width(self.encoder_hidden_size, width)?;
            let sizes = [(between, width), (all, between)];
            PromptEncoder::attach(to, (count, width), "transform", &sizes, KIND)?
        } else {
            let values = to.param(FILE_NAME, &[count, all], |draw| draw.normal(1.0))?;
            PromptEncoder::plain(values, Place::KeysAndValues)
        };
        let slot = to.slot;
        to.model.virtual_tokens.set(slot, Arc::new(encoder));
        copies::score_beside(to)?;
        to.finish(&[FILE_NAME.to_string()])
    }

    fn saved(&self, params: &[Param]) -> Result<Vec<(String, Tensor)>> {
        saved(params, KIND)
    }

    fn training_state(&self, params: &[Param]) -> Vec<(String, Tensor)> {
        encoder_state(params)
    }

    fn is_mergeable(&self) -> bool {
        false
    }
}
