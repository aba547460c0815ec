//! Which modules an adapter changes.

use std::collections::BTreeMap;
use std::fmt;

use regex::Regex;
use serde_json::{Value, json};

use super::json::{self, Fields};
use super::{AdapterError, EMBEDDING, HEAD};
use crate::decoder::Model;

/// Which modules are adapted.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// Every linear module but the LM head.
    AllLinear,
    /// Those whose name is, or ends in `.` and, one of these.
    Names(Vec<String>),
    /// Those whose whole name this regular expression matches.
    Regex(String),
}

/// As users write them: names in quotes, one after the other.
impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Targets::AllLinear => f.write_str("all-linear"),
            Targets::Names(names) => f.write_str(&quoted(names)),
            Targets::Regex(pattern) => write!(f, "{pattern:?}"),
        }
    }
}

/// Names in quotes.
pub(super) fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

impl Targets {
    /// From a list as users write it: nothing is `default`, one `all-linear`, one that looks like a regular
    /// expression is one, everything else names.
    pub fn from_list(list: &[String], default: &[&str]) -> Targets {
        let is_pattern = |t: &str| t.contains(['*', '\\', '(', '[', '|', '^', '$', '+', '?']);
        match list {
            [] => Targets::Names(default.iter().map(|s| s.to_string()).collect()),
            [one] if one == "all-linear" => Targets::AllLinear,
            [one] if is_pattern(one) => Targets::Regex(one.clone()),
            names => Targets::Names(names.to_vec()),
        }
    }
}

/// The settings that all methods which change modules share, under PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct Targeting {
    /// Modules that are adapted.
    pub target_modules: Targets,
    /// Modules, of those, that are not.
    pub exclude_modules: Option<Targets>,
    /// Layers that are adapted; all if `None`.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Modules that are trained whole.
    pub modules_to_save: Vec<String>,
    /// The base model, as the adapter names it.
    pub base_model: Option<String>,
}

/// Keys that are fields of [`Targeting`], and the kind of the adapter.
pub(super) const TARGETING: [&str; 6] = [
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "modules_to_save",
    "base_model_name_or_path",
    "peft_type",
];

impl Targeting {
    /// These modules in all layers.
    pub fn new(target_modules: Targets, base_model: Option<String>) -> Targeting {
        Targeting {
            target_modules,
            exclude_modules: None,
            layers_to_transform: None,
            modules_to_save: Vec::new(),
            base_model,
        }
    }

    pub(super) fn read(f: &Fields<'_>) -> Result<Targeting, AdapterError> {
        Ok(Targeting {
            target_modules: f.needed_targets()?,
            exclude_modules: f.targets("exclude_modules")?,
            layers_to_transform: f.layers("layers_to_transform")?,
            modules_to_save: f.strings("modules_to_save")?,
            base_model: f.text("base_model_name_or_path")?.map(str::to_string),
        })
    }

    /// Writes its entries into `all`, with what every adapter's file says.
    pub(super) fn write(&self, all: &mut Value, peft_type: &str) {
        all["auto_mapping"] = Value::Null;
        all["base_model_name_or_path"] = json!(self.base_model);
        all["exclude_modules"] = self.exclude_modules.as_ref().map_or(Value::Null, json::targets);
        all["inference_mode"] = json!(true);
        all["modules_to_save"] = json::list(&self.modules_to_save);
        all["peft_type"] = json!(peft_type);
        all["revision"] = Value::Null;
        all["target_modules"] = json::targets(&self.target_modules);
        all["task_type"] = json!("CAUSAL_LM");
    }

    /// The modules of `model` that are to be adapted.
    ///
    /// # Errors
    /// [`AdapterError::NoMatch`], [`AdapterError::Pattern`].
    pub(super) fn chosen(&self, model: &mut Model) -> Result<Chosen, AdapterError> {
        let targets = Matcher::new("target_modules", &self.target_modules)?;
        let exclude = self.exclude_modules.as_ref().map(|t| Matcher::new("exclude_modules", t)).transpose()?;
        let wanted = |name: &str| {
            let layer = layer_of(name);
            self.layers_to_transform.as_ref().is_none_or(|l| layer.is_some_and(|n| l.contains(&n)))
                && targets.matches(name)
                && !exclude.as_ref().is_some_and(|e| e.matches(name))
        };
        let linears: Vec<usize> =
            model.linears_mut().iter().enumerate().filter(|(_, l)| wanted(&l.name)).map(|(i, _)| i).collect();
        let all_linear = self.target_modules == Targets::AllLinear;
        let (embedding, head) = (!all_linear && wanted(EMBEDDING), !all_linear && wanted(HEAD));
        if linears.is_empty() && !embedding && !head {
            return Err(no_match(model, "target_modules", self.target_modules.to_string()));
        }
        Ok(Chosen { linears, embedding, head })
    }
}

/// Modules to adapt.
pub(super) struct Chosen {
    /// Places among the model's linear modules.
    pub(super) linears: Vec<usize>,
    /// The embedding.
    pub(super) embedding: bool,
    /// The LM head.
    pub(super) head: bool,
}

impl Chosen {
    /// Their names.
    pub(super) fn names(&self, model: &mut Model) -> Vec<String> {
        let linears = model.linears_mut();
        let mut names: Vec<String> = self.linears.iter().map(|&i| linears[i].name.to_string()).collect();
        let ends = [(self.embedding, EMBEDDING), (self.head, HEAD)];
        names.extend(ends.into_iter().filter(|(there, _)| *there).map(|(_, name)| name.to_owned()));
        names
    }

    /// Refuses embedding and head, for methods that have no form for them.
    pub(super) fn linears_only(self, peft_type: &str) -> Result<Vec<usize>, AdapterError> {
        for (there, name) in [(self.embedding, "embed_tokens"), (self.head, "lm_head")] {
            if there {
                let what = format!("{peft_type} on {name} (modules_to_save trains it whole)");
                return Err(AdapterError::Unsupported { what });
            }
        }
        Ok(self.linears)
    }
}

/// The number of the layer that a module is in.
pub(super) fn layer_of(name: &str) -> Option<usize> {
    name.split('.').skip_while(|p| *p != "layers").nth(1).and_then(|n| n.parse().ok())
}

/// A compiled [`Targets`].
pub(super) enum Matcher {
    All,
    Names(Vec<String>),
    Regex(Regex),
}

impl Matcher {
    pub(super) fn new(key: &'static str, targets: &Targets) -> Result<Matcher, AdapterError> {
        Ok(match targets {
            Targets::AllLinear => Matcher::All,
            Targets::Names(names) => Matcher::Names(names.clone()),
            // PEFT matches the whole name.
            Targets::Regex(pattern) => Matcher::Regex(compile(key, pattern, &format!("^(?:{pattern})$"))?),
        })
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        match self {
            Matcher::All => true,
            Matcher::Names(names) => names.iter().any(|n| is_suffix(name, n)),
            Matcher::Regex(regex) => regex.is_match(name),
        }
    }
}

fn compile(key: &'static str, pattern: &str, whole: &str) -> Result<Regex, AdapterError> {
    Regex::new(whole).map_err(|e| AdapterError::Pattern { key, pattern: pattern.into(), problem: e.to_string() })
}

/// A key of `rank_pattern` or `alpha_pattern`, which matches the end of a name.
fn compile_pattern(key: &'static str, pattern: &str) -> Result<Regex, AdapterError> {
    compile(key, pattern, &format!(r"^(?:.*\.)?(?:{pattern})$"))
}

/// Whether `name` is `suffix` or ends in `.suffix`.
fn is_suffix(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The value of the first pattern that the name matches, as PEFT looks it up.
pub(super) fn by_pattern<T: Copy>(
    key: &'static str,
    patterns: &BTreeMap<String, T>,
    name: &str,
) -> Result<Option<T>, AdapterError> {
    for (pattern, value) in patterns {
        if compile_pattern(key, pattern)?.is_match(name) {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Refuses a pattern that none of the adapted modules matches: its number would be nobody's.
///
/// # Errors
/// [`AdapterError::NoMatch`], [`AdapterError::Pattern`].
pub(super) fn each_used<T>(
    key: &'static str,
    patterns: &BTreeMap<String, T>,
    adapted: &[String],
) -> Result<(), AdapterError> {
    for pattern in patterns.keys() {
        let regex = compile_pattern(key, pattern)?;
        if !adapted.iter().any(|name| regex.is_match(name)) {
            let available = last_parts(adapted.iter().cloned());
            return Err(AdapterError::NoMatch { key, wanted: format!("{pattern:?}"), kind: "adapted", available });
        }
    }
    Ok(())
}

/// That nothing matches, with the linear modules there are.
pub(super) fn no_match(model: &mut Model, key: &'static str, wanted: String) -> AdapterError {
    let names: Vec<String> = model.linears_mut().iter().map(|l| l.name.to_string()).collect();
    AdapterError::NoMatch { key, wanted, kind: "linear", available: last_parts(names) }
}

/// The last parts of names, each once.
pub(super) fn last_parts(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut available: Vec<String> = Vec::new();
    for name in names {
        let last = name.rsplit('.').next().unwrap_or_default().to_string();
        if !available.contains(&last) {
            available.push(last);
        }
    }
    available
}
