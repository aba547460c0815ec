//! Typed rows: what the columns mean, before any token exists.

use std::path::Path;

use serde_json::{Map, Value};

use super::columns::{Columns, DatasetType};
use super::error::{At, DataError, Result};
use super::format::{Row, kind};
use super::{pairs, ranked, steps};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`, or what the template knows.
    pub role: String,
    /// The text.
    pub content: String,
    /// Everything else: `tool_calls`, `name`, `reasoning_content`, …
    pub extra: Map<String, Value>,
}

impl ChatMessage {
    /// A turn of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> ChatMessage {
        ChatMessage { role: role.into(), content: content.into(), extra: Map::new() }
    }
}

/// A text, or the turns of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// A conversation, to be rendered by the chat template.
    Chat(Vec<ChatMessage>),
}

/// What a row gives to the template besides messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatExtras {
    /// The column `tools`: an array of tool schemas, or that as a JSON string.
    pub tools: Option<Value>,
    /// The column `chat_template_kwargs`.
    pub kwargs: Map<String, Value>,
}

/// A prompt with the answer wanted of it, a short form that becomes a conversation where the
/// tokenizer has a template and a plain text where it has none.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// What the user says, if there is a conversation.
    pub user: String,
    /// The prompt as plain text, if there is none.
    pub plain: String,
    /// The answer.
    pub answer: String,
    /// What stands between the plain prompt and the answer.
    pub separator: &'static str,
}

/// A row by its meaning.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq)]
pub enum TypedRow {
    /// A plain text.
    Text(String),
    /// A conversation.
    Messages(Vec<ChatMessage>, ChatExtras),
    /// A prompt and its completion.
    PromptCompletion {
        /// The prompt.
        prompt: Content,
        /// Its completion.
        completion: Content,
        /// For the template.
        extras: ChatExtras,
    },
    /// An instruction or question and its answer.
    Task(Task),
    /// A prompt with a good and a bad completion.
    Preference {
        /// The prompt.
        prompt: Content,
        /// The better completion.
        chosen: Content,
        /// The worse completion.
        rejected: Content,
        /// By how much the one is better, where the row says so.
        margin: Option<f64>,
        /// For the template.
        extras: ChatExtras,
    },
    /// A prompt with a completion that is good or bad.
    Labelled {
        /// The prompt.
        prompt: Content,
        /// Its completion.
        completion: Content,
        /// Whether it is good.
        label: bool,
        /// For the template.
        extras: ChatExtras,
    },
    /// A prompt with several answers, each with a number that says how good it is.
    Ranked {
        /// The prompt.
        prompt: Content,
        /// The answers, at least two.
        responses: Vec<Content>,
        /// A finite number for each.
        scores: Vec<f64>,
        /// For the template.
        extras: ChatExtras,
    },
    /// A prompt with answers in steps.
    Stepwise {
        /// The prompt.
        prompt: String,
        /// The answers.
        trajectories: Vec<Trajectory>,
    },
    /// A prompt.
    PromptOnly {
        /// The prompt.
        prompt: Content,
        /// For the template.
        extras: ChatExtras,
    },
    /// Tokens already; `mask[i]` says whether token `i` is trained on.
    Tokenized {
        /// Token ids, not yet checked against a vocabulary.
        ids: Vec<i64>,
        /// One a token.
        mask: Vec<bool>,
    },
}

/// An answer in steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trajectory {
    /// The steps, at least one.
    pub steps: Vec<String>,
    /// Whether each is right, where the row says so.
    pub labels: Option<Vec<bool>>,
}

/// A row being read: its columns under the names of the file.
pub(crate) struct Reader<'a> {
    pub(crate) row: &'a Row,
    pub(crate) columns: &'a Columns,
}

/// Parses a row as `kind`.
///
/// # Errors
/// A missing column or a value of the wrong kind, by file, line and path.
pub(crate) fn parse(row: &Row, of: DatasetType, columns: &Columns) -> Result<TypedRow> {
    let r = Reader { row, columns };
    Ok(match of {
        DatasetType::Text => TypedRow::Text(r.text("text")?.to_string()),
        DatasetType::Messages => TypedRow::Messages(r.messages("messages")?, r.extras()?),
        DatasetType::ShareGpt => TypedRow::Messages(r.messages("conversations")?, r.extras()?),
        DatasetType::PromptCompletion => {
            let (prompt, completion) = r.pair()?;
            TypedRow::PromptCompletion { prompt, completion, extras: r.extras()? }
        }
        DatasetType::Labelled => {
            let (prompt, completion) = r.pair()?;
            TypedRow::Labelled { prompt, completion, label: r.label()?, extras: r.extras()? }
        }
        DatasetType::PromptOnly => TypedRow::PromptOnly { prompt: r.content("prompt")?, extras: r.extras()? },
        DatasetType::Preference => pairs::preference(&r)?,
        DatasetType::Alpaca => {
            let input = match r.get("input") {
                None | Some(Value::Null) => "",
                Some(_) => r.text("input")?,
            };
            TypedRow::Task(pairs::alpaca(r.text("instruction")?, input, r.text("output")?))
        }
        DatasetType::QuestionAnswer => TypedRow::Task(pairs::question_answer(r.text("question")?, r.text("answer")?)),
        DatasetType::Tokenized => r.tokenized()?,
        DatasetType::Ranked => ranked::ranked(&r)?,
        DatasetType::Stepwise => steps::stepwise(&r)?,
        DatasetType::Prm800k => steps::prm800k(&r)?,
    })
}

impl Reader<'_> {
    pub(crate) fn get(&self, canonical: &str) -> Option<&Value> {
        self.row.fields.get(self.columns.actual(canonical))
    }

    pub(crate) fn need(&self, canonical: &str) -> Result<&Value> {
        self.get(canonical).ok_or_else(|| DataError::MissingColumn {
            at: self.row.at.clone(),
            column: self.columns.actual(canonical).to_string(),
            found: self.row.fields.keys().cloned().collect(),
        })
    }

    pub(crate) fn wrong(&self, path: impl Into<String>, expected: &'static str, found: &Value) -> DataError {
        let mut shown = match found {
            Value::Null | Value::Array(_) | Value::Object(_) => kind(found).to_string(),
            scalar => scalar.to_string(),
        };
        if shown.chars().count() > 40 {
            shown = shown.chars().take(40).collect::<String>() + "…";
        }
        DataError::Value { at: self.row.at.clone(), path: path.into(), expected, found: shown }
    }

    pub(crate) fn text(&self, canonical: &str) -> Result<&str> {
        let value = self.need(canonical)?;
        value.as_str().ok_or_else(|| self.wrong(format!("`{}`", self.columns.actual(canonical)), "a string", value))
    }

    /// A column that is a text or a conversation.
    pub(crate) fn content(&self, canonical: &str) -> Result<Content> {
        match self.need(canonical)? {
            Value::String(s) => Ok(Content::Text(s.clone())),
            Value::Array(_) => Ok(Content::Chat(self.messages(canonical)?)),
            other => {
                let path = format!("`{}`", self.columns.actual(canonical));
                Err(self.wrong(path, "a string or an array of messages", other))
            }
        }
    }

    /// `prompt` and `completion`, of one form.
    fn pair(&self) -> Result<(Content, Content)> {
        let (prompt, completion) = (self.content("prompt")?, self.content("completion")?);
        self.same_form(&prompt, &completion, "completion")?;
        Ok((prompt, completion))
    }

    pub(crate) fn same_form(&self, prompt: &Content, other: &Content, name: &str) -> Result<()> {
        let expected = match (prompt, other) {
            (Content::Text(_), Content::Chat(_)) => "a string, as the prompt is",
            (Content::Chat(_), Content::Text(_)) => "an array of messages, as the prompt is",
            _ => return Ok(()),
        };
        Err(self.wrong(format!("`{}`", self.columns.actual(name)), expected, self.need(name)?))
    }

    /// A conversation; `from`/`value` are read as `role`/`content`, with ShareGPT's role names.
    pub(crate) fn messages(&self, canonical: &str) -> Result<Vec<ChatMessage>> {
        let name = self.columns.actual(canonical);
        self.turns(name, self.need(canonical)?)
    }

    /// A conversation at a path.
    pub(crate) fn turns(&self, path: &str, value: &Value) -> Result<Vec<ChatMessage>> {
        let Value::Array(turns) = value else {
            return Err(self.wrong(format!("`{path}`"), "an array of messages", value));
        };
        if turns.is_empty() {
            return Err(self.wrong(format!("`{path}`"), "an array of at least one message", value));
        }
        turns.iter().enumerate().map(|(i, turn)| self.message(&format!("{path}[{i}]"), turn)).collect()
    }

    fn message(&self, path: &str, turn: &Value) -> Result<ChatMessage> {
        let Value::Object(fields) = turn else { return Err(self.wrong(path, "an object with role and content", turn)) };
        let (mut role, mut content, mut extra) = (None, None, Map::new());
        for (key, value) in fields {
            match (key.as_str(), value) {
                ("role", v) => role = Some(self.string(format!("{path}.role"), v)?),
                ("from", v) => role = Some(share_gpt_role(&self.string(format!("{path}.from"), v)?).to_string()),
                // Templates tell an absent content from an empty one.
                ("content", Value::Null) => {
                    content = Some(String::new());
                    extra.insert(key.clone(), Value::Null);
                }
                ("content" | "value", v) => content = Some(self.message_text(format!("{path}.{key}"), v)?),
                // Parquet and datasets fill fields that a turn does not have with null.
                (_, Value::Null) => {}
                (_, v) => {
                    extra.insert(key.clone(), v.clone());
                }
            }
        }
        match (role, content) {
            (Some(role), Some(content)) => Ok(ChatMessage { role, content, extra }),
            // A turn that only calls tools may have no content.
            (Some(role), None) if extra.contains_key("tool_calls") => {
                Ok(ChatMessage { role, content: String::new(), extra })
            }
            (None, _) => Err(self.wrong(path, "an object with `role` (or `from`)", turn)),
            (_, None) => Err(self.wrong(path, "an object with `content` (or `value`)", turn)),
        }
    }

    fn string(&self, path: String, value: &Value) -> Result<String> {
        value.as_str().map(str::to_string).ok_or_else(|| self.wrong(path, "a string", value))
    }

    /// A content: a string, null (nothing), or parts of which all are text.
    fn message_text(&self, path: String, value: &Value) -> Result<String> {
        match value {
            Value::String(s) => Ok(s.clone()),
            Value::Null => Ok(String::new()),
            Value::Array(parts) => {
                let mut out = String::new();
                for (i, part) in parts.iter().enumerate() {
                    let is_text = part.get("type").and_then(Value::as_str).is_none_or(|t| t == "text");
                    match part.get("text").and_then(Value::as_str) {
                        Some(text) if is_text => out.push_str(text),
                        _ => {
                            let path = format!("{path}[{i}]");
                            return Err(self.wrong(path, "a part of type text (this engine reads text only)", part));
                        }
                    }
                }
                Ok(out)
            }
            other => Err(self.wrong(path, "a string", other)),
        }
    }

    pub(crate) fn extras(&self) -> Result<ChatExtras> {
        let tools = match self.row.fields.get("tools") {
            None | Some(Value::Null) => None,
            Some(Value::String(s)) if s.trim().is_empty() => None,
            Some(v @ Value::String(s)) => {
                let parsed: Value =
                    serde_json::from_str(s).map_err(|_| self.wrong("`tools`", "an array of tools as JSON", v))?;
                Some(parsed)
            }
            Some(v) => Some(v.clone()),
        };
        let kwargs = match self.row.fields.get("chat_template_kwargs") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(map)) => map.clone(),
            Some(other) => return Err(self.wrong("`chat_template_kwargs`", "an object", other)),
        };
        Ok(ChatExtras { tools, kwargs })
    }

    fn label(&self) -> Result<bool> {
        let value = self.need("label")?;
        truth(value).ok_or_else(|| self.wrong("`label`", "true or false", value))
    }

    /// A column that is a finite number, or a text that writes one (CSV), if it is there. One that is null or empty is a
    /// number that is lacking, not 0.
    pub(crate) fn number(&self, canonical: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(canonical) else { return Ok(None) };
        let number = match value {
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_f64(),
        };
        match number.filter(|x: &f64| x.is_finite()) {
            Some(x) => Ok(Some(x)),
            None => Err(self.wrong(format!("`{canonical}`"), "a finite number", value)),
        }
    }

    fn integers(&self, name: &'static str, value: &Value) -> Result<Vec<i64>> {
        let Value::Array(items) = value else {
            return Err(self.wrong(format!("`{name}`"), "an array of integers", value));
        };
        let one = |(i, v): (usize, &Value)| {
            let bit = v.as_bool().map(i64::from);
            v.as_i64().or(bit).ok_or_else(|| self.wrong(format!("{name}[{i}]"), "an integer", v))
        };
        items.iter().enumerate().map(one).collect()
    }

    /// `input_ids` with its masks: a token is trained on where every mask that is given says so.
    fn tokenized(&self) -> Result<TypedRow> {
        let value = self.need("input_ids")?;
        let ids = self.integers("input_ids", value)?;
        let mut mask = vec![true; ids.len()];
        for name in ["labels", "completion_mask", "assistant_masks", "attention_mask"] {
            let Some(value) = self.row.fields.get(name).filter(|v| !v.is_null()) else { continue };
            let given = self.integers(name, value)?;
            if given.len() != ids.len() {
                let found = Value::from(format!("{} of {} input_ids", given.len(), ids.len()));
                return Err(self.wrong(format!("`{name}`"), "as long as `input_ids`", &found));
            }
            for (i, (&g, m)) in given.iter().zip(&mut mask).enumerate() {
                let on = match (name, g) {
                    ("labels", -100) => false,
                    ("labels", label) if label == ids[i] => true,
                    ("labels", label) => {
                        return Err(self.wrong(
                            format!("labels[{i}]"),
                            "-100 or the token at its place",
                            &label.into(),
                        ));
                    }
                    (_, 0) => false,
                    (_, 1) => true,
                    (_, other) => return Err(self.wrong(format!("{name}[{i}]"), "0 or 1", &other.into())),
                };
                if name == "attention_mask" && !on {
                    return Err(self.wrong(format!("{name}[{i}]"), "1: rows come without padding", &g.into()));
                }
                *m &= on;
            }
        }
        Ok(TypedRow::Tokenized { ids, mask })
    }
}

/// True or false, as files write them.
pub(crate) fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::Number(n) if n.as_f64() == Some(1.0) => Some(true),
        Value::Number(n) if n.as_f64() == Some(0.0) => Some(false),
        Value::String(s) if matches!(s.trim(), "true" | "True" | "1") => Some(true),
        Value::String(s) if matches!(s.trim(), "false" | "False" | "0") => Some(false),
        _ => None,
    }
}

/// ShareGPT's names of the roles; others stay as they are.
fn share_gpt_role(from: &str) -> &str {
    match from {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "bot" | "model" => "assistant",
        "observation" | "function_response" => "tool",
        other => other,
    }
}

/// A place in a file, cheap to keep beside every example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file, shared.
    pub file: std::sync::Arc<Path>,
    /// Line, from 1; 0 in files without lines.
    pub line: u64,
    /// Row of the file, from 0.
    pub row: u64,
}

impl Source {
    /// The place for an error message.
    pub fn at(&self) -> At {
        At { file: self.file.to_path_buf(), line: self.line, row: Some(self.row) }
    }
}
