//! [`LoraConfig`]: PEFT's adapter_config.json.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::AdapterError;

/// Which linear modules are adapted.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// Every linear module but the LM head.
    AllLinear,
    /// Those whose name is, or ends in `.` and, one of these.
    Names(Vec<String>),
    /// Those whose whole name this regular expression matches.
    Regex(String),
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
    /// Modules that are adapted.
    pub target_modules: Targets,
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
            target_modules: Targets::AllLinear,
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
const FIELDS: [&str; 12] = [
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
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
const UNSUPPORTED_FLAGS: [&str; 6] =
    ["use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "trainable_token_indices"];
const UNSUPPORTED_OBJECTS: [&str; 6] = [
    "layer_replication",
    "target_parameters",
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
        let bad = |problem: String| AdapterError::Config { path: path.to_path_buf(), problem };
        let map = value.as_object().ok_or_else(|| bad("it is not a JSON object".into()))?;
        let get = |key: &str| map.get(key).filter(|v| !v.is_null());
        match get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            Some(other) => return Err(AdapterError::Unsupported { what: format!("peft_type {other}") }),
            None => return Err(bad("it has no `peft_type`".into())),
        }
        for key in UNSUPPORTED_FLAGS {
            if get(key).is_some_and(|v| v != &Value::Bool(false)) {
                return Err(AdapterError::Unsupported { what: key.into() });
            }
        }
        for key in UNSUPPORTED_OBJECTS {
            if get(key).is_some_and(|v| !is_empty(v)) {
                return Err(AdapterError::Unsupported { what: key.into() });
            }
        }
        if let Some(bias) = get("bias").and_then(Value::as_str).filter(|b| *b != "none") {
            return Err(AdapterError::Unsupported { what: format!("bias {bias:?}") });
        }
        let wrong = |key: &str, expected: &str| bad(format!("`{key}` must be {expected}"));
        let number = |key: &'static str, default: f64| match get(key) {
            None => Ok(default),
            Some(v) => v.as_f64().ok_or_else(|| wrong(key, "a number")),
        };
        let flag = |key: &'static str| get(key).and_then(Value::as_bool).unwrap_or(false);
        let strings = |key: &'static str| -> Result<Vec<String>, AdapterError> {
            match get(key) {
                None => Ok(Vec::new()),
                Some(v) => v
                    .as_array()
                    .and_then(|a| a.iter().map(|s| s.as_str().map(str::to_string)).collect())
                    .ok_or_else(|| wrong(key, "a list of names")),
            }
        };
        let targets = |key: &'static str| -> Result<Option<Targets>, AdapterError> {
            Ok(match get(key) {
                None => None,
                Some(Value::String(s)) if s == "all-linear" => Some(Targets::AllLinear),
                Some(Value::String(s)) => Some(Targets::Regex(s.clone())),
                Some(_) => Some(Targets::Names(strings(key)?)),
            })
        };
        let patterns = |key: &'static str| -> Result<BTreeMap<String, f64>, AdapterError> {
            let Some(v) = get(key) else { return Ok(BTreeMap::new()) };
            let entries = v.as_object().ok_or_else(|| wrong(key, "an object"))?;
            entries
                .iter()
                .map(|(k, v)| Ok((k.clone(), v.as_f64().ok_or_else(|| wrong(key, "an object of numbers"))?)))
                .collect()
        };
        let layers = match get("layers_to_transform") {
            None => None,
            Some(v) => {
                let list = v.as_array().cloned().unwrap_or_else(|| vec![v.clone()]);
                let read = list.iter().map(|n| n.as_u64().map(|n| n as usize)).collect::<Option<Vec<_>>>();
                Some(read.ok_or_else(|| wrong("layers_to_transform", "a list of layer numbers"))?)
            }
        };
        let rank = |x: f64| if x.fract() == 0.0 && (1.0..=65_536.0).contains(&x) { Some(x as usize) } else { None };
        let ranks = patterns("rank_pattern")?
            .into_iter()
            .map(|(k, v)| Ok((k, rank(v).ok_or_else(|| wrong("rank_pattern", "whole numbers from 1"))?)))
            .collect::<Result<_, AdapterError>>()?;
        let r = number("r", 8.0)?;
        let config = LoraConfig {
            r: rank(r).ok_or(AdapterError::Value {
                key: "r",
                value: r.to_string(),
                expected: "a whole number from 1",
            })?,
            lora_alpha: number("lora_alpha", 8.0)?,
            lora_dropout: number("lora_dropout", 0.0)?,
            use_rslora: flag("use_rslora"),
            target_modules: targets("target_modules")?.ok_or_else(|| bad("it has no `target_modules`".into()))?,
            exclude_modules: targets("exclude_modules")?,
            modules_to_save: strings("modules_to_save")?,
            layers_to_transform: layers,
            rank_pattern: ranks,
            alpha_pattern: patterns("alpha_pattern")?,
            ensure_weight_tying: flag("ensure_weight_tying"),
            base_model: get("base_model_name_or_path").and_then(Value::as_str).map(str::to_string),
            others: map.clone().into_iter().filter(|(key, _)| !FIELDS.contains(&key.as_str())).collect(),
        };
        config.validate()?;
        Ok(config)
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
        if !(self.lora_alpha.is_finite() && self.lora_alpha > 0.0) {
            return bad("lora_alpha", self.lora_alpha, "positive");
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return bad("lora_dropout", self.lora_dropout, "from 0 to below 1");
        }
        Ok(())
    }

    /// As PEFT writes it. Of a new adapter it has the keys that every version of PEFT in use knows; those
    /// of an adapter that was read are all there again.
    pub fn to_json(&self) -> Value {
        let targets = |t: &Targets| match t {
            Targets::AllLinear => json!("all-linear"),
            Targets::Regex(r) => json!(r),
            Targets::Names(n) => json!(n),
        };
        let list = |v: &[String]| if v.is_empty() { Value::Null } else { json!(v) };
        // Whole numbers as such: PEFT's types say int.
        let number = |x: f64| if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) };
        let alphas: Map<String, Value> = self.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        let mut all = json!({
            "alpha_pattern": alphas,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "ensure_weight_tying": self.ensure_weight_tying,
            "exclude_modules": self.exclude_modules.as_ref().map(targets),
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": self.layers_to_transform,
            "lora_alpha": number(self.lora_alpha),
            "lora_bias": false,
            "lora_dropout": self.lora_dropout,
            "modules_to_save": list(&self.modules_to_save),
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": self.rank_pattern,
            "revision": null,
            "target_modules": targets(&self.target_modules),
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.use_rslora,
        });
        self.others.iter().for_each(|(key, value)| all[key] = value.clone());
        all
    }
}

fn is_empty(v: &Value) -> bool {
    match v {
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}
