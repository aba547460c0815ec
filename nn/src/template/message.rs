//! Conversations as templates see them.

use serde_json::{Map, Value};

use super::error::{Result, TemplateError};

/// A message of a conversation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Everything else: `tool_calls`, `name`, `reasoning_content`, … An entry named `content` takes the place
    /// of the text: a list of parts, or null for a message without content.
    pub extra: Map<String, Value>,
}

/// The names that reasoning goes by; the first is the one that templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl Message {
    /// A message with nothing but a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into(), extra: Map::new() }
    }

    /// Takes a message out of a data set: an object with a `role`, usually a `content`, and whatever else.
    ///
    /// # Errors
    ///
    /// [`TemplateError::Message`], with `index` as its place in the conversation.
    pub fn from_json(value: &Value, index: usize) -> Result<Self> {
        let wrong = |problem| TemplateError::Message { index, problem };
        let object = value.as_object().ok_or(wrong("it is not an object"))?;
        let role = match object.get("role") {
            Some(Value::String(role)) => role.clone(),
            Some(_) => return Err(wrong("its `role` is not a string")),
            None => return Err(wrong("it has no `role`")),
        };
        let mut message = Message::new(role, "");
        for (key, value) in object {
            match (key.as_str(), value) {
                ("role", _) => {}
                ("content", Value::String(text)) => message.content.clone_from(text),
                ("content", Value::Null | Value::Array(_)) => {
                    message.extra.insert(key.clone(), value.clone());
                }
                ("content", _) => return Err(wrong("its `content` is neither a string nor a list of parts")),
                _ => {
                    message.extra.insert(key.clone(), value.clone());
                }
            }
        }
        if !object.contains_key("content") {
            message.extra.insert("content".to_owned(), Value::Null);
        }
        Ok(message)
    }

    /// What the template gets: as in transformers, without entries that are null, and with reasoning under
    /// the names that templates read.
    pub(super) fn to_template(&self) -> Map<String, Value> {
        let mut object = Map::new();
        let reasoning = REASONING.iter().find_map(|key| self.extra.get(*key).filter(|v| !v.is_null()));
        if let Some(reasoning) = reasoning {
            object.insert("thinking".to_owned(), reasoning.clone());
        }
        object.insert("role".to_owned(), Value::String(self.role.clone()));
        object.insert("content".to_owned(), Value::String(self.content.clone()));
        for (key, value) in &self.extra {
            if value.is_null() {
                object.remove(key);
            } else {
                object.insert(key.clone(), value.clone());
            }
        }
        if let Some(reasoning) = reasoning {
            object.insert(REASONING[0].to_owned(), reasoning.clone());
        }
        object
    }
}

/// Bytes of all strings in a value, and a little for each of its parts.
pub(super) fn size(value: &Value) -> usize {
    match value {
        Value::String(s) => s.len() + 8,
        Value::Array(items) => items.iter().map(size).sum::<usize>() + 8,
        Value::Object(map) => map.iter().map(|(k, v)| k.len() + size(v)).sum::<usize>() + 8,
        _ => 8,
    }
}

/// A JSON value as the template engine takes it.
pub(super) fn to_jinja(value: &Value) -> minijinja::Value {
    use minijinja::Value as Jinja;
    match value {
        Value::Null => Jinja::from(()),
        Value::Bool(b) => Jinja::from(*b),
        Value::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(i), _, _) => Jinja::from(i),
            (_, Some(u), _) => Jinja::from(u),
            (_, _, f) => Jinja::from(f.unwrap_or(f64::NAN)),
        },
        Value::String(s) => Jinja::from(s.as_str()),
        Value::Array(items) => items.iter().map(to_jinja).collect(),
        Value::Object(map) => Jinja::from_pairs(map.iter().map(|(k, v)| (k.as_str(), to_jinja(v)))),
    }
}
