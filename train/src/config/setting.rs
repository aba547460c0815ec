//! How one value is parsed, checked and written: the types a setting can have.

use serde_json::Value as Json;

use super::error::ConfigError;
use super::raw::{Node, Raw};

/// What a scalar may be: words for the reader, a test for the machine.
pub struct Rule<T: ?Sized> {
    /// Completes "must be …".
    pub accepts: &'static str,
    /// True for an accepted value. Must be false for NaN.
    pub test: fn(&T) -> bool,
}

/// How a setting is given on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// `--x`, `--x true`, `--no-x`.
    Switch,
    /// `--x VALUE`.
    One,
    /// `--x A --x B` or `--x A,B`.
    Many,
}

/// A type that a setting can have.
pub trait Setting: Sized {
    /// What rules speak about: `T` for `T`, `Option<T>` and `Vec<T>`.
    type Scalar;
    /// How flags give it.
    const ARITY: Arity = Arity::One;
    /// True if the setting may be left out (`null`).
    const OPTIONAL: bool = false;

    /// Parses a value; the error completes "must be … found …".
    ///
    /// # Errors
    /// [`ConfigError::Value`] for a wrong type or a value the rule refuses.
    fn parse(key: &str, raw: &Raw, rule: &Rule<Self::Scalar>) -> Result<Self, ConfigError>;

    /// True if the rule accepts the value: the check for configurations built in code.
    fn allowed(&self, rule: &Rule<Self::Scalar>) -> bool;

    /// The value as JSON, from which YAML and help texts are written.
    fn to_json(&self) -> Json;
}

/// The error for a value that is not what `accepts` says.
pub(super) fn wrong(key: &str, raw: &Raw, accepts: impl Into<String>) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), at: raw.at.clone(), expected: accepts.into(), found: raw.found() }
}

/// Parses a scalar by its text and checks it.
pub(super) fn parse_scalar<T>(
    key: &str,
    raw: &Raw,
    rule: &Rule<T>,
    from_text: impl FnOnce(&str) -> Option<T>,
) -> Result<T, ConfigError> {
    let parsed = match &raw.node {
        Node::Text(text) => from_text(text.trim()),
        _ => None,
    };
    match parsed {
        Some(value) if (rule.test)(&value) => Ok(value),
        _ => Err(wrong(key, raw, rule.accepts)),
    }
}

fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

fn parse_f64(text: &str) -> Option<f64> {
    let lower = text.to_ascii_lowercase();
    match lower.as_str() {
        ".nan" => Some(f64::NAN),
        ".inf" | "+.inf" => Some(f64::INFINITY),
        "-.inf" => Some(f64::NEG_INFINITY),
        _ => lower.parse().ok(),
    }
}

/// The integer that `text` writes, also as `1e6` or `1_000`.
fn parse_integer(text: &str) -> Option<i128> {
    let plain = text.replace('_', "");
    plain.parse::<i128>().ok().or_else(|| {
        let value: f64 = plain.parse().ok()?;
        // Above 2^53 a float no longer names one integer.
        (value.fract() == 0.0 && value.abs() <= 9_007_199_254_740_992.0).then_some(value as i128)
    })
}

impl Setting for bool {
    type Scalar = bool;
    const ARITY: Arity = Arity::Switch;
    fn parse(key: &str, raw: &Raw, rule: &Rule<bool>) -> Result<Self, ConfigError> {
        parse_scalar(key, raw, rule, parse_bool)
    }
    fn allowed(&self, rule: &Rule<bool>) -> bool {
        (rule.test)(self)
    }
    fn to_json(&self) -> Json {
        Json::Bool(*self)
    }
}

impl Setting for f64 {
    type Scalar = f64;
    fn parse(key: &str, raw: &Raw, rule: &Rule<f64>) -> Result<Self, ConfigError> {
        parse_scalar(key, raw, rule, parse_f64)
    }
    fn allowed(&self, rule: &Rule<f64>) -> bool {
        (rule.test)(self)
    }
    fn to_json(&self) -> Json {
        // No setting is integral by type and fractional by habit: `lora_alpha: 32` reads better.
        if self.fract() == 0.0 && self.abs() < 1e15 { Json::from(*self as i64) } else { Json::from(*self) }
    }
}

macro_rules! integer_setting {
    ($($ty:ty),*) => {$(
        impl Setting for $ty {
            type Scalar = $ty;
            fn parse(key: &str, raw: &Raw, rule: &Rule<$ty>) -> Result<Self, ConfigError> {
                parse_scalar(key, raw, rule, |text| <$ty>::try_from(parse_integer(text)?).ok())
            }
            fn allowed(&self, rule: &Rule<$ty>) -> bool {
                (rule.test)(self)
            }
            fn to_json(&self) -> Json {
                Json::from(*self)
            }
        }
    )*};
}
integer_setting!(u64, usize, i64);

impl Setting for String {
    type Scalar = String;
    fn parse(key: &str, raw: &Raw, rule: &Rule<String>) -> Result<Self, ConfigError> {
        // Not trimmed: an end-of-sequence token may be a newline.
        match &raw.node {
            Node::Text(text) if (rule.test)(text) => Ok(text.clone()),
            _ => Err(wrong(key, raw, rule.accepts)),
        }
    }
    fn allowed(&self, rule: &Rule<String>) -> bool {
        (rule.test)(self)
    }
    fn to_json(&self) -> Json {
        Json::String(self.clone())
    }
}

impl<T: Setting> Setting for Option<T> {
    type Scalar = T::Scalar;
    const ARITY: Arity = T::ARITY;
    const OPTIONAL: bool = true;
    fn parse(key: &str, raw: &Raw, rule: &Rule<T::Scalar>) -> Result<Self, ConfigError> {
        match &raw.node {
            Node::Null => Ok(None),
            Node::Text(text) if matches!(text.to_ascii_lowercase().as_str(), "none" | "null" | "~" | "") => Ok(None),
            _ => T::parse(key, raw, rule).map(Some),
        }
    }
    fn allowed(&self, rule: &Rule<T::Scalar>) -> bool {
        self.as_ref().is_none_or(|value| value.allowed(rule))
    }
    fn to_json(&self) -> Json {
        self.as_ref().map_or(Json::Null, T::to_json)
    }
}

impl<T: Setting> Setting for Vec<T> {
    type Scalar = T::Scalar;
    const ARITY: Arity = Arity::Many;
    /// A list, one value, or values with commas between them.
    fn parse(key: &str, raw: &Raw, rule: &Rule<T::Scalar>) -> Result<Self, ConfigError> {
        match &raw.node {
            Node::Null => Ok(Vec::new()),
            // A list written in YAML is taken as it is: the way to say a value with a comma.
            Node::List(items) => items.iter().map(|item| T::parse(key, item, rule)).collect(),
            Node::Text(text) => text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(|part| {
                    let part = Raw { node: Node::Text(part.to_owned()), at: raw.at.clone() };
                    T::parse(key, &part, rule)
                })
                .collect(),
            Node::Map(_) => Err(wrong(key, raw, format!("a list, each {}", rule.accepts))),
        }
    }
    fn allowed(&self, rule: &Rule<T::Scalar>) -> bool {
        self.iter().all(|value| value.allowed(rule))
    }
    fn to_json(&self) -> Json {
        Json::Array(self.iter().map(T::to_json).collect())
    }
}

/// The rules of the tables. Comparisons are false for NaN, so NaN is refused by each of them.
pub(super) mod rules {
    use super::Rule;

    pub(in super::super) const SWITCH: Rule<bool> = Rule { accepts: "true or false", test: |_| true };
    pub(in super::super) const TEXT: Rule<String> =
        Rule { accepts: "a text that is not empty", test: |v| !v.is_empty() };
    /// For settings whose absence is reported as such and not as a bad value.
    pub(in super::super) const MAYBE_TEXT: Rule<String> = Rule { accepts: "a text", test: |_| true };
    pub(in super::super) const POSITIVE: Rule<f64> =
        Rule { accepts: "a number above 0", test: |v| *v > 0.0 && v.is_finite() };
    pub(in super::super) const NOT_NEGATIVE: Rule<f64> =
        Rule { accepts: "a number of at least 0", test: |v| *v >= 0.0 && v.is_finite() };
    pub(in super::super) const SHARE: Rule<f64> =
        Rule { accepts: "a number from 0 to 1", test: |v| (0.0..=1.0).contains(v) };
    pub(in super::super) const BELOW_HALF: Rule<f64> =
        Rule { accepts: "a number from 0 to below 0.5", test: |v| (0.0..0.5).contains(v) };
    pub(in super::super) const FINITE: Rule<f64> = Rule { accepts: "a number", test: |v| v.is_finite() };
    pub(in super::super) const BELOW_ONE: Rule<f64> =
        Rule { accepts: "a number from 0 to below 1", test: |v| (0.0..1.0).contains(v) };
    pub(in super::super) const WHOLE: Rule<u64> = Rule { accepts: "a whole number of at least 0", test: |_| true };
    pub(in super::super) const TIME: Rule<u64> = Rule {
        accepts: "a whole number of seconds since 1970 UTC, at most 253402300799 (the year 9999)",
        test: |v| *v <= 253_402_300_799,
    };
    pub(in super::super) const AT_LEAST_ONE: Rule<u64> =
        Rule { accepts: "a whole number of at least 1", test: |v| *v >= 1 };
    pub(in super::super) const COUNT: Rule<usize> = Rule { accepts: "a whole number of at least 1", test: |v| *v >= 1 };
    /// One token predicts nothing.
    pub(in super::super) const LENGTH: Rule<usize> =
        Rule { accepts: "a whole number of at least 2", test: |v| *v >= 2 };
    pub(in super::super) const ANY_COUNT: Rule<usize> =
        Rule { accepts: "a whole number of at least 0", test: |_| true };
    pub(in super::super) const ANY_WHOLE: Rule<i64> = Rule { accepts: "a whole number", test: |_| true };
    pub(in super::super) const STEPS_OR_ALL: Rule<i64> =
        Rule { accepts: "a whole number of at least 1, or -1 for no limit", test: |v| *v == -1 || *v >= 1 };
}
