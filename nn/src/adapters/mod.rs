//! Parameter-efficient fine-tuning in PEFT's file format, both ways.
//!
//! A method is one file: its settings ([`Method`]: read, write, attach), what it makes of a linear map
//! ([`LinearAdapter`](crate::modules::LinearAdapter)) or puts before every sequence
//! ([`VirtualTokens`](crate::decoder::VirtualTokens)), its merge and PEFT's names; and a line in `METHODS`.
//! Recipes know none of them: they call [`attach`] or [`load_adapter`], train [`Model::params`], and call
//! [`save_adapter`].

mod adalora;
mod attach;
mod base;
mod boft;
mod combine;
mod copies;
mod divisors;
mod error;
mod files;
mod ia3;
mod init;
mod json;
mod linalg;
mod ln_tuning;
mod loftq;
mod lora;
mod lora_config;
mod lora_ends;
mod lora_experts;
mod merge;
mod names;
mod oft;
mod p_tuning;
mod partial;
mod prefix_tuning;
mod prompt_tuning;
mod select;
mod vera;

pub use adalora::AdaLoraConfig;
pub use attach::Attach;
pub use base::{base_name, is_same_base};
pub use boft::BoftConfig;
pub use combine::{Combination, Density, Signs, combine_adapters};
pub use error::AdapterError;
pub(crate) use files::WEIGHTS_FILE;
pub use files::{
    adapter_params, attach, attach_within, is_adapter, is_training_file, load_adapter, load_adapter_as, resume_adapter,
    save_adapter, save_training,
};
pub use ia3::Ia3Config;
pub use init::LoraInit;
pub use linalg::singular_vectors;
pub use ln_tuning::LnTuningConfig;
pub use loftq::replace_lora_weights_loftq;
pub use lora::LoraLayer;
pub use lora_config::{LoraBias, LoraConfig};
pub use lora_ends::{HeadLora, LoraEmbedding};
pub use merge::merge_adapter;
pub use names::{Modules, check_layers, check_names};
pub use oft::OftConfig;
pub use p_tuning::{Encoder, PTuningConfig};
pub use partial::{Partial, train_only};
pub use prefix_tuning::PrefixTuningConfig;
pub use prompt_tuning::{PromptInit, PromptTuningConfig};
pub use select::{Targeting, Targets};
pub use vera::VeraConfig;

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use planish_autograd::Param;
use planish_tensor::Tensor;
use serde_json::Value;

use crate::Result;
use crate::decoder::Model;
use json::Fields;

/// What PEFT puts before a module's name.
pub(crate) const PREFIX: &str = "base_model.model.";
/// Names of the modules that are no part of a layer.
const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

/// An adapter's settings: what its adapter_config.json says, and how it is put on a model.
pub trait Method: Debug + Send + Sync {
    /// Its kind, as PEFT calls it: `LORA`.
    fn peft_type(&self) -> &'static str;

    /// adapter_config.json, as PEFT writes it.
    fn to_json(&self) -> Value;

    /// Puts it on a model.
    ///
    /// # Errors
    /// A target that matches no module; a setting that cannot be; a file that does not fit.
    fn attach(&self, to: &mut Attach<'_>) -> Result<()>;

    /// What PEFT's file holds, from the adapter's parameters.
    ///
    /// # Errors
    /// Those of the kernels.
    fn saved(&self, params: &[Param]) -> Result<Vec<(String, Tensor)>> {
        Ok(params.iter().map(|p| (p.name().to_string(), p.value())).collect())
    }

    /// What going on with the training needs besides.
    fn training_state(&self, _params: &[Param]) -> Vec<(String, Tensor)> {
        Vec::new()
    }

    /// Adds the gradient of a penalty, times `weight`, to the parameters, and returns the penalty.
    ///
    /// # Errors
    /// Those of the kernels.
    fn penalise(&self, _params: &[Param], _weight: f64) -> Result<f64> {
        Ok(0.0)
    }

    /// Does what is due after optimizer step `step`, counted from 1. `gradients` are those of the step, one for each
    /// of `params`, to be multiplied by `scale`.
    ///
    /// # Errors
    /// Those of the kernels.
    fn stepped(&self, _params: &[Param], _gradients: &[Option<Tensor>], _scale: f64, _step: u64) -> Result<()> {
        Ok(())
    }

    /// Whether [`Method::stepped`] wants the gradients: they are kept for it then.
    fn wants_gradients(&self) -> bool {
        false
    }

    /// Whether it can be merged into the weights.
    fn is_mergeable(&self) -> bool {
        true
    }
}

/// Settings of any adapter.
pub type AdapterConfig = Arc<dyn Method>;

type Read = fn(&Fields<'_>) -> Result<AdapterConfig, AdapterError>;

/// Every method there is, by PEFT's name for it.
const METHODS: &[(&str, Read)] = &[
    ("LORA", |f| Ok(Arc::new(LoraConfig::read(f)?))),
    ("ADALORA", |f| Ok(Arc::new(AdaLoraConfig::read(f)?))),
    ("IA3", |f| Ok(Arc::new(Ia3Config::read(f)?))),
    ("LN_TUNING", |f| Ok(Arc::new(LnTuningConfig::read(f)?))),
    ("VERA", |f| Ok(Arc::new(VeraConfig::read(f)?))),
    ("OFT", |f| Ok(Arc::new(OftConfig::read(f)?))),
    ("BOFT", |f| Ok(Arc::new(BoftConfig::read(f)?))),
    ("PROMPT_TUNING", |f| Ok(Arc::new(PromptTuningConfig::read(f)?))),
    ("PREFIX_TUNING", |f| Ok(Arc::new(PrefixTuningConfig::read(f)?))),
    ("P_TUNING", |f| Ok(Arc::new(PTuningConfig::read(f)?))),
];

/// Reads an adapter_config.json of any method. `path` is for messages.
///
/// # Errors
/// [`AdapterError::UnknownType`], [`AdapterError::Config`], [`AdapterError::Unsupported`],
/// [`AdapterError::Value`].
pub fn read_config(value: &Value, path: &Path) -> Result<AdapterConfig, AdapterError> {
    let f = Fields::new(value, path)?;
    let found = f.text("peft_type")?.ok_or_else(|| f.bad("it has no `peft_type`"))?;
    match METHODS.iter().find(|(name, _)| *name == found) {
        Some((_, read)) => read(&f),
        None => {
            let known = METHODS.iter().map(|(name, _)| *name).collect();
            Err(AdapterError::UnknownType { path: path.to_path_buf(), found: found.to_string(), known })
        }
    }
}

/// The same adapter for another task: PEFT's `task_type` (`SEQ_CLS`, `TOKEN_CLS`).
///
/// # Errors
/// As [`read_config`]: settings that would not be read again.
pub fn of_task(config: &dyn Method, task_type: &str) -> Result<AdapterConfig, AdapterError> {
    let mut json = config.to_json();
    json["task_type"] = task_type.into();
    read_config(&json, Path::new("adapter_config.json"))
}

/// Attaches a fresh LoRA adapter.
///
/// # Errors
/// As [`attach`].
pub fn attach_lora(model: &mut Model, config: &LoraConfig, seed: u64) -> Result<()> {
    attach(model, config, seed, None)
}
