//! Typed access to config.json, with errors that name the key.

use serde_json::{Map, Value};

/// What is wrong with a config.json.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// It is not a JSON object.
    #[error("config.json is not a JSON object")]
    NotAnObject,
    /// A key without a default is missing.
    #[error("config.json has no `{key}`")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A key holds a value of another type.
    #[error("config.json: `{key}` is {found}, but it must be {expected}")]
    Type {
        /// The key.
        key: String,
        /// The value found, shortened.
        found: String,
        /// The type expected.
        expected: &'static str,
    },
    /// A value that no model can have.
    #[error("config.json: `{key}` is {value}, but it must be {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value found.
        value: String,
        /// What it must be.
        expected: String,
    },
    /// Two entries that cannot both be right.
    #[error("config.json contradicts itself: {what}")]
    Contradiction {
        /// The two entries.
        what: String,
    },
    /// An architecture that this program does not know.
    #[error("the model type `{model_type}` is not supported; supported are {}", .known.join(", "))]
    UnknownModelType {
        /// As found.
        model_type: String,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// A feature of a known architecture that this program does not have.
    #[error("config.json: {what} is not supported")]
    Unsupported {
        /// The key and its value.
        what: String,
    },
}

/// The entries of a config.json.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
}

type Result<T> = std::result::Result<T, ConfigError>;

impl<'a> Fields<'a> {
    /// The entries of a JSON object.
    ///
    /// # Errors
    /// [`ConfigError::NotAnObject`].
    pub fn new(value: &'a Value) -> Result<Fields<'a>> {
        value.as_object().map(|map| Fields { map }).ok_or(ConfigError::NotAnObject)
    }

    /// A value that is there and not null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether the key is there, be it null.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    fn typed<T>(&self, key: &str, expected: &'static str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => {
                read(v).map(Some).ok_or_else(|| ConfigError::Type { key: key.to_string(), found: shorten(v), expected })
            }
        }
    }

    /// A size.
    ///
    /// # Errors
    /// [`ConfigError::Type`] if it is no whole number from 0.
    pub fn opt_usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number from 0", |v| v.as_u64().and_then(|v| usize::try_from(v).ok()))
    }

    /// A size that has no default.
    ///
    /// # Errors
    /// [`ConfigError::Missing`], [`ConfigError::Type`].
    pub fn usize(&self, key: &'static str) -> Result<usize> {
        self.opt_usize(key)?.ok_or(ConfigError::Missing { key })
    }

    /// A number.
    ///
    /// # Errors
    /// [`ConfigError::Type`].
    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A number with a default.
    ///
    /// # Errors
    /// [`ConfigError::Type`].
    pub fn f64(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.opt_f64(key)?.unwrap_or(default))
    }

    /// A truth value with a default.
    ///
    /// # Errors
    /// [`ConfigError::Type`].
    pub fn bool(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A text.
    ///
    /// # Errors
    /// [`ConfigError::Type`].
    pub fn opt_str(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a text", Value::as_str)
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// [`ConfigError::Type`].
    pub fn opt_f64s(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.typed(key, "a list of numbers", |v| v.as_array()?.iter().map(Value::as_f64).collect())
    }

    /// A list of texts.
    ///
    /// # Errors
    /// [`ConfigError::Type`].
    pub fn opt_strs(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.typed(key, "a list of texts", |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A nested object.
    ///
    /// # Errors
    /// [`ConfigError::Type`].
    pub fn opt_object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        self.typed(key, "an object", |v| v.as_object().map(|map| Fields { map }))
    }
}

fn shorten(v: &Value) -> String {
    let text = v.to_string();
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
