//! From a file and flags to a checked configuration, and back to `config.yaml`.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value as Json;

use super::error::{ConfigError, Origin};
use super::groups::{ALIASES, MEANT, NOT_OURS};
use super::raw::{Node, Raw, parse_yaml};
use super::recipes::Recipe;
use super::table::Settings;

/// A flag as it stood on the command line: its name without the leading dashes, and its values in
/// order. `--no-x` is `x` with the value `false`.
pub type Flag = (String, Vec<String>);

/// A configuration and which of its settings somebody chose.
#[derive(Clone, Debug)]
pub struct Loaded<C> {
    /// The configuration, checked.
    pub config: C,
    /// The names of the settings that the file or a flag set.
    pub chosen: HashSet<String>,
}

/// Resolves defaults, then `file`, then `flags` (a flag beats the file), and checks the result.
///
/// # Errors
/// Whatever [`ConfigError`] says, at the first thing that is wrong.
pub fn resolve<C: Recipe>(file: Option<&Path>, flags: &[Flag]) -> Result<Loaded<C>, ConfigError> {
    let mut loaded = Loaded { config: C::default(), chosen: HashSet::new() };
    if let Some(path) = file {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        apply_yaml(&mut loaded, &text, path)?;
    }
    apply_flags(&mut loaded, flags)?;
    loaded.config.check_ranges()?;
    loaded.config.check_together()?;
    Ok(loaded)
}

fn apply_yaml<C: Recipe>(loaded: &mut Loaded<C>, text: &str, path: &Path) -> Result<(), ConfigError> {
    let mut seen = HashSet::new();
    for (written, at, value) in parse_yaml(text, path)? {
        let key = canonical(&written);
        if !seen.insert(key.clone()) {
            return Err(ConfigError::Twice { key, at });
        }
        set(loaded, &key, &written, &at, &value)?;
    }
    Ok(())
}

fn apply_flags<C: Recipe>(loaded: &mut Loaded<C>, flags: &[Flag]) -> Result<(), ConfigError> {
    let mut seen = HashSet::new();
    for (written, values) in flags {
        let key = canonical(written);
        let flag = format!("--{}", written.replace('_', "-"));
        let at = Origin::Flag(flag.clone());
        if !seen.insert(key.clone()) {
            return Err(ConfigError::Twice { key, at });
        }
        let value = match values.as_slice() {
            [one] => Raw::flag(&flag, one),
            many => Raw {
                // A repeated flag is one list; each part may itself have commas.
                node: Node::Text(many.join(",")),
                at: at.clone(),
            },
        };
        set(loaded, &key, written, &at, &value)?;
    }
    Ok(())
}

fn set<C: Recipe>(
    loaded: &mut Loaded<C>,
    key: &str,
    written: &str,
    at: &Origin,
    value: &Raw,
) -> Result<(), ConfigError> {
    if loaded.config.set(key, value)? {
        loaded.chosen.insert(key.to_owned());
        return Ok(());
    }
    if let Some(instead) = not_ours(key) {
        return Err(ConfigError::NotOurs { key: written.to_owned(), at: at.clone(), instead });
    }
    let keys = loaded.config.keys();
    Err(ConfigError::UnknownKey {
        key: written.to_owned(),
        at: at.clone(),
        nearest: nearest(key, keys.iter().map(|key| key.name)),
    })
}

/// The setting's own name for any accepted spelling: `-` and `_` are one, aliases resolve.
pub fn canonical(written: &str) -> String {
    let name = written.trim().replace('-', "_");
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, own)| (*own).to_owned())
}

/// All other names under which settings are accepted, with the setting's own name.
pub fn aliases() -> &'static [(&'static str, &'static str)] {
    ALIASES
}

/// What to do instead of a setting that other programs have and planish has not.
pub fn not_ours(written: &str) -> Option<&'static str> {
    let key = canonical(written);
    NOT_OURS.iter().find(|(name, _)| *name == key).map(|(_, instead)| *instead)
}

/// The candidate most like `name`, or meant by it, unless none is like it at all.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // What all flags begin with is no likeness, and `-` and `_` are one.
    let bare = |text: &str| text.trim_start_matches('-').replace('-', "_").to_ascii_lowercase();
    let name = bare(name);
    let meant = MEANT.iter().find(|(other, _)| *other == name).map(|(_, own)| *own);
    let likeness = |candidate: &str| {
        let candidate = bare(candidate);
        if meant == Some(candidate.as_str()) {
            return 1.0;
        }
        let (own, other) = (name.chars().count(), candidate.chars().count());
        let slips = strsim::damerau_levenshtein(&name, &candidate);
        // One slip in each three letters, at most three in all; a part of a longer name is like it too, unless it is
        // so short that it is part of many.
        let slipped = slips <= (own.min(other) / 3).min(3) || (slips == 1 && own > 2);
        let part = own > 4 && (candidate.starts_with(&name) || name.starts_with(&candidate) && other > 4);
        let likeness = if slipped || part { strsim::jaro_winkler(&name, &candidate) } else { 0.0 };
        // Two swapped letters of a short word Jaro-Winkler does not see.
        if slipped && slips == 1 { likeness.max(0.9) } else { likeness }
    };
    candidates
        .into_iter()
        .map(|candidate| (likeness(candidate), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.75)
        .map(|(_, candidate)| candidate.to_owned())
}

/// Writes a configuration as YAML: every setting, in the order of the table, under its heading.
/// Reading it back gives the same configuration, here and in PyYAML.
pub fn to_yaml<S: Settings>(settings: &S) -> String {
    let mut yaml = String::new();
    let mut group = "";
    for key in settings.keys() {
        if key.group != group {
            group = key.group;
            yaml.push_str(if yaml.is_empty() { "# " } else { "\n# " });
            yaml.push_str(group);
            yaml.push('\n');
        }
        yaml.push_str(key.name);
        yaml.push_str(": ");
        write_flow(&key.default, &mut yaml);
        yaml.push('\n');
    }
    yaml
}

/// Reads back what [`to_yaml`] wrote, without the checks across settings.
///
/// # Errors
/// As [`resolve`].
pub fn from_yaml<C: Recipe>(text: &str, path: &Path) -> Result<C, ConfigError> {
    let mut loaded = Loaded { config: C::default(), chosen: HashSet::new() };
    apply_yaml(&mut loaded, text, path)?;
    Ok(loaded.config)
}

fn write_flow(value: &Json, out: &mut String) {
    match value {
        Json::String(text) if is_plain(text) => out.push_str(text),
        Json::Number(number) => out.push_str(&yaml_number(&number.to_string())),
        Json::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                write_flow(item, out);
            }
            out.push(']');
        }
        Json::Object(map) => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                out.push_str(if i == 0 { "" } else { ", " });
                out.push_str(key);
                out.push_str(": ");
                write_flow(item, out);
            }
            out.push('}');
        }
        // JSON's strings, booleans and null are YAML's.
        other => out.push_str(&other.to_string()),
    }
}

/// YAML 1.1, which PyYAML reads, takes `1e-5` for a string: a float needs its point.
fn yaml_number(number: &str) -> String {
    match number.split_once('e') {
        Some((mantissa, exponent)) if !mantissa.contains('.') => format!("{mantissa}.0e{exponent}"),
        _ => number.to_owned(),
    }
}

/// True for texts that no YAML reader takes for anything else when they stand bare.
fn is_plain(text: &str) -> bool {
    let words = ["true", "false", "yes", "no", "on", "off", "null", "none", "y", "n"];
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
        && !words.contains(&text.to_ascii_lowercase().as_str())
}
