//! Reading adapter_config.json: every entry with its type, and what is left over.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{AdapterError, Targets};

/// An adapter_config.json.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: &'a Path,
}

type Result<T> = std::result::Result<T, AdapterError>;

impl<'a> Fields<'a> {
    pub(super) fn new(value: &'a Value, path: &'a Path) -> Result<Fields<'a>> {
        match value.as_object() {
            Some(map) => Ok(Fields { map, path }),
            None => Err(AdapterError::Config { path: path.to_path_buf(), problem: "it is not a JSON object".into() }),
        }
    }

    pub(super) fn bad(&self, problem: impl Into<String>) -> AdapterError {
        AdapterError::Config { path: self.path.to_path_buf(), problem: problem.into() }
    }

    fn wrong(&self, key: &str, expected: &str) -> AdapterError {
        self.bad(format!("`{key}` must be {expected}"))
    }

    /// The entry, unless it is null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// The fields of an entry that is an object.
    pub(super) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let read = |v: &'a Value| v.as_object().ok_or_else(|| self.wrong(key, "an object"));
        Ok(self.get(key).map(read).transpose()?.map(|map| Fields { map, path: self.path }))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| self.wrong(key, "a text"))).transpose()
    }

    pub(super) fn number(&self, key: &str, default: f64) -> Result<f64> {
        self.get(key).map_or(Ok(default), |v| v.as_f64().ok_or_else(|| self.wrong(key, "a number")))
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |v| v.as_bool().ok_or_else(|| self.wrong(key, "true or false")))
    }

    /// A whole number of at most 2^24: no size of an adapter is larger, but a hostile file might say so.
    pub(super) fn opt_whole(&self, key: &str) -> Result<Option<usize>> {
        let whole = |v: &Value| v.as_f64().filter(|x| x.fract() == 0.0 && (0.0..=16_777_216.0).contains(x));
        let read = |v| whole(v).map(|x| x as usize).ok_or_else(|| self.wrong(key, "a whole number from 0 to 16777216"));
        self.get(key).map(read).transpose()
    }

    pub(super) fn whole(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.opt_whole(key)?.unwrap_or(default))
    }

    pub(super) fn strings(&self, key: &str) -> Result<Vec<String>> {
        let Some(v) = self.get(key) else { return Ok(Vec::new()) };
        let list = v.as_array().and_then(|a| a.iter().map(|s| s.as_str().map(str::to_string)).collect());
        list.ok_or_else(|| self.wrong(key, "a list of names"))
    }

    pub(super) fn targets(&self, key: &str) -> Result<Option<Targets>> {
        Ok(match self.get(key) {
            None => None,
            Some(Value::String(s)) if s == "all-linear" => Some(Targets::AllLinear),
            Some(Value::String(s)) => Some(Targets::Regex(s.clone())),
            Some(_) => Some(Targets::Names(self.strings(key)?)),
        })
    }

    pub(super) fn needed_targets(&self) -> Result<Targets> {
        match self.targets("target_modules")? {
            Some(targets) => Ok(targets),
            None if !self.strings("target_parameters")?.is_empty() => Ok(Targets::Names(Vec::new())),
            None => Err(self.bad("it has no `target_modules`")),
        }
    }

    pub(super) fn patterns(&self, key: &str) -> Result<BTreeMap<String, f64>> {
        let Some(v) = self.get(key) else { return Ok(BTreeMap::new()) };
        let wrong = || self.wrong(key, "an object of numbers");
        let entries = v.as_object().ok_or_else(wrong)?;
        entries.iter().map(|(k, v)| Ok((k.clone(), v.as_f64().ok_or_else(wrong)?))).collect()
    }

    pub(super) fn layers(&self, key: &str) -> Result<Option<Vec<usize>>> {
        let Some(v) = self.get(key) else { return Ok(None) };
        let list = v.as_array().cloned().unwrap_or_else(|| vec![v.clone()]);
        let read = list.iter().map(|n| n.as_u64().map(|n| n as usize)).collect::<Option<Vec<_>>>();
        read.map(Some).ok_or_else(|| self.wrong(key, "a list of layer numbers"))
    }

    /// Refuses options that are on, by name.
    pub(super) fn must_be_off(&self, keys: &[&str]) -> Result<()> {
        let off = |v: &Value| match v {
            Value::Bool(b) => !b,
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            Value::Number(n) => n.as_f64() == Some(0.0),
            _ => false,
        };
        match keys.iter().find(|key| self.get(key).is_some_and(|v| !off(v))) {
            Some(key) => Err(AdapterError::Unsupported { what: (*key).into() }),
            None => Ok(()),
        }
    }

    /// The entries that are not among `fields`.
    pub(super) fn others(&self, fields: &[&str]) -> Map<String, Value> {
        self.map.clone().into_iter().filter(|(key, _)| !fields.contains(&key.as_str())).collect()
    }
}

/// Whole numbers as such: PEFT's types say int.
pub(super) fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

/// Null for none.
pub(super) fn list(v: &[String]) -> Value {
    if v.is_empty() { Value::Null } else { json!(v) }
}

/// As PEFT writes them.
pub(super) fn targets(t: &Targets) -> Value {
    match t {
        Targets::AllLinear => json!("all-linear"),
        Targets::Regex(r) => json!(r),
        Targets::Names(n) => json!(n),
    }
}

/// `all` with the entries of `others` over it.
pub(super) fn with_others(mut all: Value, others: &Map<String, Value>) -> Value {
    others.iter().for_each(|(key, value)| all[key] = value.clone());
    all
}
