//! Names that a user gives to modules: each is that of one, or is refused.
//!
//! PEFT passes over a name that matches nothing as long as another of the list does, and trains without what it was
//! asked for. An adapter that is loaded is read as PEFT reads it; what is typed for a new one is checked here.

use super::select::{Matcher, last_parts};
use super::{AdapterError, EMBEDDING, HEAD, Targets};
use crate::decoder::Model;

/// Modules among which names are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modules {
    /// Linear maps, and the two ends of the model.
    Linear,
    /// Norms.
    Norm,
    /// All.
    Any,
}

impl Modules {
    fn names(self, model: &mut Model) -> Vec<String> {
        let mut names = Vec::new();
        if self != Modules::Norm {
            names.extend(model.linears_mut().iter().map(|l| l.name.to_string()));
            names.extend([EMBEDDING, HEAD].map(str::to_owned));
        }
        if self != Modules::Linear {
            names.extend(model.layers.iter().flat_map(|l| l.norms()).map(|n| n.name.to_string()));
            names.push(model.norm.name.to_string());
            names.extend(model.score.as_ref().map(|_| "score".to_owned()));
        }
        names
    }

    fn kind(self) -> &'static str {
        match self {
            Modules::Linear => "linear",
            Modules::Norm => "norm",
            Modules::Any => "own",
        }
    }
}

/// Refuses a list of the setting `key`, as [`Targets::from_list`] takes it, with an entry that no module matches.
///
/// # Errors
/// [`AdapterError::NoMatch`] with the first such entry, [`AdapterError::Pattern`].
pub fn check_names(model: &mut Model, key: &'static str, list: &[String], among: Modules) -> Result<(), AdapterError> {
    let names = among.names(model);
    let matches = |targets: &Targets| -> Result<bool, AdapterError> {
        let matcher = Matcher::new(key, targets)?;
        Ok(names.iter().any(|name| matcher.matches(name)))
    };
    let entries = match Targets::from_list(list, &[]) {
        Targets::Names(names) => names.into_iter().map(|name| Targets::Names(vec![name])).collect(),
        one => vec![one],
    };
    for entry in entries {
        if !matches(&entry)? {
            let available = last_parts(names);
            return Err(AdapterError::NoMatch { key, wanted: entry.to_string(), kind: among.kind(), available });
        }
    }
    Ok(())
}

/// Refuses numbers of layers that the model does not have.
///
/// # Errors
/// [`AdapterError::Conflict`] with the first.
pub fn check_layers(model: &Model, key: &'static str, layers: &[usize]) -> Result<(), AdapterError> {
    let count = model.layers.len();
    match layers.iter().find(|layer| **layer >= count) {
        None => Ok(()),
        Some(layer) => {
            let problem = format!("has {layer}, but the model's layers are 0 to {}", count.saturating_sub(1));
            Err(AdapterError::Conflict { key, problem })
        }
    }
}
