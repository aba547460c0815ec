//! Conversations of a shape that was met before, which are rendered once instead of twice and more.
//!
//! Most templates write texts of messages as they are, with pieces of their own around them that go by the roles. What
//! these pieces are is found by following texts that stand for any: a **probe**, marked as every conversation would
//! be. Where a conversation's own rendering is the pieces around its own texts, it is known without marks which part is
//! whose. Any other is followed as if there were no shapes, so that what is found of a conversation never depends
//! on which were met before.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use super::Message;
use super::python::is_space;

/// Shapes that a template keeps before it begins anew.
const KEPT: usize = if cfg!(test) { 12 } else { 256 };

/// A part of what is rendered, and the message that it came from.
pub(super) type Part = (Range<usize>, Option<usize>);

/// What the pieces of a template go by, as long as messages are texts alone.
#[derive(PartialEq)]
struct Key {
    roles: Vec<String>,
    add_generation_prompt: bool,
    now: i64,
    special: BTreeMap<String, String>,
}

enum Piece {
    /// The template's own.
    Own(String),
    /// The text of a message.
    Message(usize),
}

/// What is known of one shape.
pub(super) struct Shape {
    key: Key,
    /// None for a template that does more with texts than to write them.
    pieces: Option<Vec<Piece>>,
}

/// The shapes of one template.
#[derive(Default)]
pub(super) struct Shapes(RwLock<Vec<Arc<Shape>>>);

/// What a conversation is looked up by.
#[derive(Clone, Copy)]
pub(super) struct Sought<'a> {
    pub(super) roles: &'a [&'a str],
    pub(super) add_generation_prompt: bool,
    pub(super) now: i64,
    pub(super) special: &'a BTreeMap<String, String>,
}

impl Sought<'_> {
    fn is(&self, key: &Key) -> bool {
        (self.add_generation_prompt, self.now) == (key.add_generation_prompt, key.now)
            && self.roles.iter().eq(key.roles.iter())
            && *self.special == key.special
    }
}

/// Whether a text may stand in a shape: one whose ends templates leave alone, and that says something.
pub(super) fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.starts_with(is_space) && !text.ends_with(is_space)
}

/// Messages that stand for any of these roles.
pub(super) fn probe(roles: &[&str]) -> Vec<Message> {
    roles.iter().enumerate().map(|(i, role)| Message::new(*role, format!("What message {i} says."))).collect()
}

impl Shapes {
    /// The shape of a conversation; one not met before is found by `follow`, from a rendering of its probe and the parts in
    /// it, if it could be followed.
    pub(super) fn get(
        &self,
        sought: Sought<'_>,
        follow: impl FnOnce(&[Message]) -> Option<(String, Vec<Part>)>,
    ) -> Arc<Shape> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(shape) = known.iter().find(|shape| sought.is(&shape.key)) {
            return shape.clone();
        }
        drop(known);
        let messages = probe(sought.roles);
        let pieces = follow(&messages).and_then(|(text, parts)| pieces(&text, &parts, &messages));
        let key = Key {
            roles: sought.roles.iter().map(|&role| role.to_owned()).collect(),
            add_generation_prompt: sought.add_generation_prompt,
            now: sought.now,
            special: sought.special.clone(),
        };
        let shape = Arc::new(Shape { key, pieces });
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            known.clear();
        }
        known.push(shape.clone());
        shape
    }
}

impl Shape {
    /// Where the texts of these messages stand in a rendering; `None` if it is not this shape around them.
    pub(super) fn parts(&self, rendered: &str, messages: &[Message]) -> Option<Vec<Part>> {
        let mut parts = Vec::new();
        let mut at = 0;
        for piece in self.pieces.as_ref()? {
            let text = match piece {
                Piece::Own(text) => text,
                Piece::Message(i) => &messages.get(*i)?.content,
            };
            if !rendered[at..].starts_with(text.as_str()) {
                return None;
            }
            let range = at..at + text.len();
            at = range.end;
            if let Piece::Message(i) = piece {
                parts.push((range, Some(*i)));
            }
        }
        (at == rendered.len()).then_some(parts)
    }
}

/// A rendering cut into pieces; `None` unless every part is the whole text of its message.
fn pieces(rendered: &str, parts: &[Part], messages: &[Message]) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    for (range, message) in parts {
        let message = (*message)?;
        if range.start < at || rendered[range.clone()] != messages[message].content {
            return None;
        }
        pieces.push(Piece::Own(rendered[at..range.start].to_owned()));
        pieces.push(Piece::Message(message));
        at = range.end;
    }
    pieces.push(Piece::Own(rendered[at..].to_owned()));
    Some(pieces)
}
