//! Rendering a conversation so that it is known which part of the text came from which message.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use minijinja::Value as Jinja;
use serde_json::{Map, Value};

use super::engine::Engine;
use super::error::{Result, TemplateError};
use super::marks::{Marker, Reading, Style, reserved};
use super::message::{size, to_jinja};
use super::python::is_space;
use super::shapes::{self, Part, Sought};
use super::{ChatOptions, Message};
use crate::tokenizer::Tokenizer;

/// What the final message is followed by while it is rendered, to find where it ends. As in transformers.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// More renderings than this are not spent on one conversation.
const MAX_TRIES: usize = 4096;
/// Nor more time, beyond which strings stay unmarked.
const SEARCH_TIME: Duration = Duration::from_secs(20);

/// A conversation and its surroundings, ready to be rendered.
pub(super) struct Conversation<'a> {
    engine: &'a Engine,
    source: &'a str,
    messages: &'a [Message],
    inputs: Inputs,
    roles: Vec<&'a str>,
    special: &'a BTreeMap<String, String>,
    options: &'a ChatOptions,
    size: usize,
}

/// What comes from outside of the template.
#[derive(Clone)]
struct Inputs {
    messages: Vec<Value>,
    tools: Value,
    extra: Map<String, Value>,
}

/// A string of the conversation that is followed into the text.
struct Tracked {
    /// The message it belongs to; `None` for tools and variables.
    message: Option<usize>,
    text: String,
}

/// A rendered conversation.
pub(super) struct Rendered {
    pub(super) text: String,
    /// Parts that came from outside of the template, in order: where, and which message's.
    pub(super) parts: Vec<Part>,
    /// Generation blocks, if they were asked for.
    pub(super) generation: Vec<Range<usize>>,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        source: &'a str,
        messages: &'a [Message],
        special: &'a BTreeMap<String, String>,
        options: &'a ChatOptions,
    ) -> Result<Self> {
        if messages.is_empty() {
            return Err(TemplateError::Empty);
        }
        if options.add_generation_prompt && options.continue_final_message {
            return Err(TemplateError::Conflict);
        }
        let inputs = Inputs {
            messages: messages.iter().map(|m| Value::Object(m.to_template())).collect(),
            tools: options.tools.clone().unwrap_or(Value::Null),
            extra: options.extra.clone(),
        };
        let bytes: usize = inputs.messages.iter().chain([&inputs.tools]).chain(inputs.extra.values()).map(size).sum();
        let roles = messages.iter().map(|m| m.role.as_str()).collect();
        Ok(Conversation { engine, source, messages, inputs, roles, special, options, size: bytes })
    }

    /// The text alone, as transformers' `apply_chat_template(tokenize=False)`.
    pub(super) fn text(&self) -> Result<String> {
        let mut whole = self.whole(&self.inputs, ["", ""])?;
        whole.truncate(self.cut(&whole)?);
        Ok(whole)
    }

    /// The first `n` messages alone.
    pub(super) fn prefix(&self, n: usize, add_generation_prompt: bool) -> Result<String> {
        let messages = self.inputs.messages.iter().take(n).cloned().collect();
        let inputs = Inputs { messages, ..self.inputs.clone() };
        self.render(&inputs, add_generation_prompt, ["", ""])
    }

    fn render(&self, inputs: &Inputs, add_generation_prompt: bool, marks: [&str; 2]) -> Result<String> {
        let mut variables: Vec<(Cow<'_, str>, Jinja)> =
            self.special.iter().map(|(k, v)| (Cow::from(k), Jinja::from(v.as_str()))).collect();
        variables.extend([
            ("messages".into(), inputs.messages.iter().map(to_jinja).collect()),
            ("tools".into(), to_jinja(&inputs.tools)),
            ("documents".into(), Jinja::from(())),
            ("add_generation_prompt".into(), Jinja::from(add_generation_prompt)),
        ]);
        variables.extend(inputs.extra.iter().map(|(k, v)| (Cow::from(k), to_jinja(v))));
        self.engine.render(&variables, self.size, self.options.now, marks)
    }

    /// All messages, the final one followed by [`TAG`] if it is to be continued.
    fn whole(&self, inputs: &Inputs, marks: [&str; 2]) -> Result<String> {
        if !self.options.continue_final_message {
            return self.render(inputs, self.options.add_generation_prompt, marks);
        }
        let mut inputs = inputs.clone();
        let last = inputs.messages.last_mut().and_then(final_text);
        let last = last.ok_or_else(|| TemplateError::Continue { name: self.engine.name.clone() })?;
        last.push_str(TAG);
        self.render(&inputs, self.options.add_generation_prompt, marks)
    }

    /// Where the text ends: at the final message's end if that is to be continued.
    fn cut(&self, whole: &str) -> Result<usize> {
        if !self.options.continue_final_message {
            return Ok(whole.len());
        }
        let missing = || TemplateError::Continue { name: self.engine.name.clone() };
        let mut last = self.inputs.messages.last().cloned().ok_or_else(missing)?;
        let text = final_text(&mut last).ok_or_else(missing)?;
        if !whole.contains(text.trim_matches(is_space)) {
            return Err(missing());
        }
        let at = whole.rfind(TAG.trim_end()).ok_or_else(missing)?;
        // A template that trims has taken the tag's space, and the text's before it.
        let trimmed = !whole[at..].starts_with(TAG);
        Ok(if trimmed { whole[..at].trim_end_matches(is_space).len() } else { at })
    }

    /// The text, and where each part of it came from. Generation blocks are looked for if they are asked for.
    pub(super) fn traced(&self, tokenizer: &Tokenizer) -> Result<Rendered> {
        let whole = self.whole(&self.inputs, ["", ""])?;
        if let Some(parts) = self.parts_by_shape(&whole, tokenizer)? {
            return Ok(Rendered { text: whole, parts, generation: Vec::new() });
        }
        self.followed(whole, tokenizer)
    }

    #[cfg(test)]
    pub(super) fn traced_by_shape(&self, tokenizer: &Tokenizer) -> Option<Vec<Part>> {
        let whole = self.whole(&self.inputs, ["", ""]).ok()?;
        self.parts_by_shape(&whole, tokenizer).unwrap()
    }

    /// The parts of a conversation of nothing but texts, if its template does nothing with them but to write them.
    fn parts_by_shape(&self, whole: &str, tokenizer: &Tokenizer) -> Result<Option<Vec<Part>>> {
        let o = self.options;
        let wants_blocks = o.return_assistant_tokens_mask && self.engine.has_generation;
        let alone = o.tools.is_none() && o.extra.is_empty() && !o.continue_final_message && !wants_blocks;
        let texts = self.messages.iter().all(|m| m.extra.is_empty() && shapes::is_plain(&m.content));
        let (true, true, Some(now)) = (alone, texts, o.now) else { return Ok(None) };
        // A role that could pass for a special token is followed as well.
        for role in &self.roles {
            if tokenizer.spells_special(role)? {
                return Ok(None);
            }
        }
        let (special, add_generation_prompt) = (self.special, o.add_generation_prompt);
        let sought = Sought { roles: &self.roles, add_generation_prompt, now, special };
        let shape = self.engine.shapes.get(sought, |probe| {
            let conversation = Conversation::new(self.engine, self.source, probe, special, o).ok()?;
            let whole = conversation.whole(&conversation.inputs, ["", ""]).ok()?;
            let rendered = conversation.followed(whole, tokenizer).ok()?;
            Some((rendered.text, rendered.parts))
        });
        Ok(shape.parts(whole, self.messages))
    }

    /// The same of any conversation, by marks.
    fn followed(&self, mut whole: String, tokenizer: &Tokenizer) -> Result<Rendered> {
        let cut = self.cut(&whole)?;
        let mut tracked = Vec::new();
        self.each_string(tokenizer, &mut |message, text| {
            tracked.push(Tracked { message, text: text.to_owned() });
            Some(text.to_owned())
        })?;
        let mut used = HashSet::new();
        reserved(self.source, &mut used);
        for value in self.inputs.messages.iter().chain([&self.inputs.tools]).chain(self.inputs.extra.values()) {
            reserved(&value.to_string(), &mut used);
        }
        let until = Instant::now() + SEARCH_TIME;
        let search =
            Search { conversation: self, tokenizer, used: &used, whole: &whole, strings: tracked.len(), until };
        let (styles, reading) = search.best(&tracked)?;
        let mut parts: Vec<Part> = reading.spans.iter().map(|s| (s.bytes.clone(), tracked[s.string].message)).collect();
        for (i, _) in styles.iter().enumerate().filter(|(_, s)| **s == Style::Unmarked) {
            if let Some(range) = self.find_unmarked(&whole, &parts, &tracked[i])? {
                let at = parts.partition_point(|(p, _)| p.start < range.start);
                parts.insert(at, (range, tracked[i].message));
            }
        }
        for range in parts.iter_mut().map(|(r, _)| r) {
            *range = range.start.min(cut)..range.end.min(cut);
        }
        parts.retain(|(r, _)| !r.is_empty());
        let generation = reading.generation.iter().map(|r| r.start.min(cut)..r.end.min(cut)).collect();
        whole.truncate(cut);
        Ok(Rendered { text: whole, parts, generation })
    }

    /// The one place outside of known parts where a string that cannot be marked stands.
    fn find_unmarked(&self, whole: &str, parts: &[Part], string: &Tracked) -> Result<Option<Range<usize>>> {
        let text = string.text.trim_matches(is_space);
        let free = |r: &Range<usize>| parts.iter().all(|(p, _)| p.end <= r.start || p.start >= r.end);
        let places: Vec<Range<usize>> =
            whole.match_indices(text).map(|(at, _)| at..at + text.len()).filter(free).take(2).collect();
        match (places.as_slice(), string.message) {
            ([only], _) => Ok(Some(only.clone())),
            (_, None) => Ok(None),
            (_, Some(message)) => Err(TemplateError::Provenance {
                name: self.engine.name.clone(),
                message,
                role: self.roles.get(message).copied().unwrap_or_default().to_owned(),
            }),
        }
    }

    /// The inputs with each string that is followed replaced by what `f` makes of it; `None` from `f` ends it.
    fn each_string(
        &self,
        tokenizer: &Tokenizer,
        f: &mut dyn FnMut(Option<usize>, &str) -> Option<String>,
    ) -> Result<Option<Inputs>> {
        let mut inputs = self.inputs.clone();
        for (i, message) in inputs.messages.iter_mut().enumerate() {
            if !replace(message, "", Some(i), tokenizer, f)? {
                return Ok(None);
            }
        }
        for value in [&mut inputs.tools].into_iter().chain(inputs.extra.values_mut()) {
            if !replace(value, "", None, tokenizer, f)? {
                return Ok(None);
            }
        }
        Ok(Some(inputs))
    }
}

/// Keys whose values templates compare with words of their own, or count the letters of.
const NAMES: [&str; 5] = ["role", "type", "id", "tool_call_id", "name"];

fn replace(
    value: &mut Value,
    key: &str,
    message: Option<usize>,
    tokenizer: &Tokenizer,
    f: &mut dyn FnMut(Option<usize>, &str) -> Option<String>,
) -> Result<bool> {
    match value {
        Value::String(text) => {
            let name = NAMES.contains(&key);
            // Of names, tools and variables only what could pass for a special token matters.
            if text.is_empty() || ((name || message.is_none()) && !tokenizer.spells_special(text)?) {
                return Ok(true);
            }
            let owner = if key == "role" { None } else { message };
            match f(owner, text) {
                Some(new) => *text = new,
                None => return Ok(false),
            }
        }
        Value::Array(items) => {
            for item in items {
                if !replace(item, key, message, tokenizer, f)? {
                    return Ok(false);
                }
            }
        }
        Value::Object(map) => {
            for (key, value) in map {
                if !replace(value, key, message, tokenizer, f)? {
                    return Ok(false);
                }
            }
        }
        _ => {}
    }
    Ok(true)
}

/// The text of a message that can be continued: its content, or the last part of it that has a text.
fn final_text(message: &mut Value) -> Option<&mut String> {
    match message.get_mut("content")? {
        Value::String(text) => Some(text),
        Value::Array(parts) => parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }),
        _ => None,
    }
}

/// The search for a way of marking strings that the template does not notice.
struct Search<'a> {
    conversation: &'a Conversation<'a>,
    tokenizer: &'a Tokenizer,
    used: &'a HashSet<char>,
    whole: &'a str,
    strings: usize,
    until: Instant,
}

impl Search<'_> {
    /// Marks as many strings as well as the template allows.
    fn best(&self, tracked: &[Tracked]) -> Result<(Vec<Style>, Reading)> {
        for style in [Style::Ends, Style::Trimmed] {
            let mut styles = vec![style; tracked.len()];
            let Some(mut reading) = self.attempt(&styles)? else { continue };
            if style == Style::Trimmed {
                // Some templates trim some roles: those they do not keep the marks at the very ends.
                let spaced = |t: &Tracked| t.text.trim() != t.text;
                for i in (0..tracked.len()).filter(|&i| spaced(&tracked[i])).take(MAX_TRIES) {
                    self.improve(&mut styles, &mut reading, i, &[Style::Ends])?;
                }
            }
            return Ok((styles, reading));
        }
        let mut styles = vec![Style::Unmarked; tracked.len()];
        let Some(mut reading) = self.attempt(&styles)? else {
            // Even the marks of generation blocks change it: the template works on what such a block gave.
            return Err(TemplateError::Provenance {
                name: self.conversation.engine.name.clone(),
                message: 0,
                role: self.conversation.roles.first().copied().unwrap_or_default().to_owned(),
            });
        };
        for i in (0..tracked.len()).take(MAX_TRIES) {
            let order = [Style::Ends, Style::Trimmed, Style::Inside, Style::Replaced];
            self.improve(&mut styles, &mut reading, i, &order)?;
        }
        Ok((styles, reading))
    }

    /// Takes the first of some styles for string `i` that leaves the rendering as it is.
    fn improve(&self, styles: &mut [Style], reading: &mut Reading, i: usize, order: &[Style]) -> Result<()> {
        for &style in order {
            if Instant::now() > self.until {
                return Ok(());
            }
            let before = std::mem::replace(&mut styles[i], style);
            if let Some(better) = self.attempt(styles)? {
                *reading = better;
                return Ok(());
            }
            styles[i] = before;
        }
        Ok(())
    }

    /// Renders with these styles; `None` if the template noticed.
    fn attempt(&self, styles: &[Style]) -> Result<Option<Reading>> {
        let Some(mut marker) = Marker::new(self.used, self.strings) else { return Ok(None) };
        let mut next = styles.iter();
        let marked = self
            .conversation
            .each_string(self.tokenizer, &mut |_, text| marker.mark(text, *next.next().unwrap_or(&Style::Unmarked)))?;
        let Some(marked) = marked else { return Ok(None) };
        let generation = marker.generation.map(String::from);
        let marks = [generation[0].as_str(), generation[1].as_str()];
        // A template may well raise an exception for a string that has become longer.
        let Ok(rendered) = self.conversation.whole(&marked, marks) else { return Ok(None) };
        let reading = marker.read(&rendered);
        Ok((reading.plain == self.whole).then_some(reading))
    }
}
