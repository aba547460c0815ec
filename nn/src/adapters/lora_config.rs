//! [`LoraConfig`]: PEFT's adapter_config.json of LoRA.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::json::{self, Fields};
use super::{AdapterError, LoraInit, Targeting, Targets};

/// Which biases are trained with a LoRA adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoraBias {
    /// None.
    None,
    /// All of the model.
    All,
    /// Those of adapted modules.
    LoraOnly,
}

impl LoraBias {
    fn name(self) -> &'static str {
        match self {
            LoraBias::None => "none",
            LoraBias::All => "all",
            LoraBias::LoraOnly => "lora_only",
        }
    }
}

/// Settings of a LoRA adapter, under PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// α: the update is scaled by α / r.
    pub lora_alpha: f64,
    /// Dropout on the update's input.
    pub lora_dropout: f64,
    /// Scale by α / √r instead (rsLoRA, arXiv:2312.03732).
    pub use_rslora: bool,
    /// Train the lengths of the updated weight's rows as well (DoRA, arXiv:2402.09353).
    pub use_dora: bool,
    /// How a new adapter begins.
    pub init_lora_weights: LoraInit,
    /// Which biases are trained.
    pub bias: LoraBias,
    /// Modules that are adapted.
    pub target_modules: Targets,
    /// Parameters that are adapted though they are no module's weight in transformers 5: `mlp.experts.gate_up_proj`,
    /// `mlp.experts.down_proj`, `mlp.gate.weight`, or ends of their names.
    pub target_parameters: Vec<String>,
    /// Modules, of those, that are not.
    pub exclude_modules: Option<Targets>,
    /// Modules that are trained whole.
    pub modules_to_save: Vec<String>,
    /// Layers that are adapted; all if `None`.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Ranks of modules whose name ends in (or matches) the key.
    pub rank_pattern: BTreeMap<String, usize>,
    /// α likewise.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Whether a trained copy of a tied embedding is the head too.
    pub ensure_weight_tying: bool,
    /// The base model, as the adapter names it.
    pub base_model: Option<String>,
    /// What adapter_config.json says besides, and what changes nothing here: kept as it was read, so that an
    /// adapter saved again says what it said.
    pub others: Map<String, Value>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        LoraConfig {
            r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            init_lora_weights: LoraInit::Default,
            bias: LoraBias::None,
            target_modules: Targets::AllLinear,
            target_parameters: Vec::new(),
            exclude_modules: None,
            modules_to_save: Vec::new(),
            layers_to_transform: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            ensure_weight_tying: false,
            base_model: None,
            others: Map::new(),
        }
    }
}

/// Keys that are fields of [`LoraConfig`].
const FIELDS: [&str; 15] = [
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "bias",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
    "ensure_weight_tying",
    "base_model_name_or_path",
];

/// Options that change what an adapter computes, and that must be off.
const UNSUPPORTED: [&str; 10] = [
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "velora_config",
    "monteclora_config",
];

impl LoraConfig {
    /// Reads adapter_config.json. `path` is for messages.
    ///
    /// # Errors
    /// [`AdapterError::Config`], [`AdapterError::Unsupported`], [`AdapterError::Value`].
    pub fn from_json(value: &Value, path: &Path) -> Result<LoraConfig, AdapterError> {
        LoraConfig::read(&Fields::new(value, path)?)
    }

    pub(super) fn read(f: &Fields<'_>) -> Result<LoraConfig, AdapterError> {
        match f.text("peft_type")? {
            Some("LORA") => {}
            Some(other) => return Err(AdapterError::Unsupported { what: format!("peft_type {other}") }),
            None => return Err(f.bad("it has no `peft_type`")),
        }
        f.must_be_off(&UNSUPPORTED)?;
        let bias = match f.text("bias")? {
            None | Some("none") => LoraBias::None,
            Some("all") => LoraBias::All,
            Some("lora_only") => LoraBias::LoraOnly,
            Some(other) => return Err(AdapterError::Unsupported { what: format!("bias {other:?}") }),
        };
        let rank = |x: f64| if x.fract() == 0.0 && (1.0..=65_536.0).contains(&x) { Some(x as usize) } else { None };
        let wrong = || f.bad("`rank_pattern` must be whole numbers from 1 to 65536");
        let ranks = f.patterns("rank_pattern")?.into_iter();
        let r = f.number("r", 8.0)?;
        let t = Targeting::read(f)?;
        let config = LoraConfig {
            r: rank(r).ok_or(AdapterError::Value {
                key: "r",
                value: r.to_string(),
                expected: "a whole number from 1 to 65536",
            })?,
            lora_alpha: f.number("lora_alpha", 8.0)?,
            lora_dropout: f.number("lora_dropout", 0.0)?,
            use_rslora: f.flag("use_rslora", false)?,
            use_dora: f.flag("use_dora", false)?,
            init_lora_weights: LoraInit::read(f)?,
            bias,
            target_modules: t.target_modules,
            target_parameters: f.strings("target_parameters")?,
            exclude_modules: t.exclude_modules,
            modules_to_save: t.modules_to_save,
            layers_to_transform: t.layers_to_transform,
            rank_pattern: ranks
                .map(|(k, v)| Ok((k, rank(v).ok_or_else(wrong)?)))
                .collect::<Result<_, AdapterError>>()?,
            alpha_pattern: f.patterns("alpha_pattern")?,
            ensure_weight_tying: f.flag("ensure_weight_tying", false)?,
            base_model: t.base_model,
            others: f.others(&FIELDS),
        };
        config.validate()?;
        Ok(config)
    }

    /// The settings that it shares with other methods.
    pub(super) fn targeting(&self) -> Targeting {
        Targeting {
            target_modules: self.target_modules.clone(),
            exclude_modules: self.exclude_modules.clone(),
            layers_to_transform: self.layers_to_transform.clone(),
            modules_to_save: self.modules_to_save.clone(),
            base_model: self.base_model.clone(),
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`AdapterError::Value`].
    pub fn validate(&self) -> Result<(), AdapterError> {
        let bad = |key, value: f64, expected| Err(AdapterError::Value { key, value: value.to_string(), expected });
        if self.r == 0 {
            return bad("lora_r", 0.0, "at least 1");
        }
        for alpha in std::iter::once(&self.lora_alpha).chain(self.alpha_pattern.values()) {
            if !(alpha.is_finite() && *alpha > 0.0) {
                return bad("lora_alpha", *alpha, "positive");
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return bad("lora_dropout", self.lora_dropout, "from 0 to below 1");
        }
        self.init_lora_weights.validate()
    }

    /// As PEFT writes it. Of a new adapter it has the keys that every version of PEFT in use knows; those
    /// of an adapter that was read are all there again.
    pub fn to_json(&self) -> Value {
        let alphas: Map<String, Value> =
            self.alpha_pattern.iter().map(|(k, v)| (k.clone(), json::number(*v))).collect();
        let mut all = json!({
            "alpha_pattern": alphas,
            "bias": self.bias.name(),
            "ensure_weight_tying": self.ensure_weight_tying,
            "fan_in_fan_out": false,
            "init_lora_weights": self.init_lora_weights.to_json(),
            "layers_pattern": null,
            "layers_to_transform": self.layers_to_transform,
            "lora_alpha": json::number(self.lora_alpha),
            "lora_bias": false,
            "lora_dropout": self.lora_dropout,
            "r": self.r,
            "rank_pattern": self.rank_pattern,
            "use_dora": self.use_dora,
            "use_rslora": self.use_rslora,
        });
        if let Some(loftq) = self.init_lora_weights.loftq_config() {
            all["loftq_config"] = loftq;
        }
        self.targeting().write(&mut all, "LORA");
        // A key that older versions of PEFT do not know.
        if !self.target_parameters.is_empty() {
            all["target_parameters"] = json!(self.target_parameters);
        }
        json::with_others(all, &self.others)
    }
}
