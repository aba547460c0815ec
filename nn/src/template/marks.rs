//! Private-use characters that show, in rendered text, where a string of the conversation went.
//!
//! A mark is one character that occurs nowhere in the conversation or the template; it stands for a place in
//! a string. Marks between two letters pass through what templates do to text (trimming, splitting at tags,
//! changing case, `tojson`); what they do not pass through unseen changes the rendering, which the caller
//! notices, because without its marks it must be the plain rendering.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// How a string is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// At both ends and inside of words.
    Ends,
    /// The same, but inside of white space at its ends, which templates trim.
    Trimmed,
    /// Inside of words only: the template looks at how the string begins or ends.
    Inside,
    /// Each character is replaced by one of its own: the template looks at the length.
    Replaced,
    /// Not at all.
    Unmarked,
}

/// Marks in a string are thinned out to this number.
const PER_STRING: usize = 128;

/// Where a mark stands in the strings of the conversation.
#[derive(Debug, Clone, Copy)]
struct Mark {
    string: usize,
    /// Byte of the string.
    at: usize,
    /// The number of the mark within its string.
    number: usize,
    /// The character it replaces.
    replaces: Option<char>,
}

/// A supply of marks, and what each stands for.
pub(super) struct Marker<'a> {
    used: &'a HashSet<char>,
    next: u32,
    marks: HashMap<char, Mark>,
    strings: Vec<String>,
    per_string: usize,
    /// The two that stand around generation blocks.
    pub(super) generation: [char; 2],
}

/// Characters that marks are taken from: the private-use planes without what [`crate::tokenizer`] uses.
const FIRST: u32 = 0xF_0000;
const LAST: u32 = 0x10_FFF0;

/// The characters of a text that marks must not be.
pub(super) fn reserved(text: &str, into: &mut HashSet<char>) {
    into.extend(text.chars().filter(|&c| c as u32 >= FIRST));
}

impl<'a> Marker<'a> {
    /// A supply for about `strings` strings that avoids the characters in `used`. `None` if there are too few.
    pub(super) fn new(used: &'a HashSet<char>, strings: usize) -> Option<Self> {
        let per_string = (60_000 / strings.max(1)).clamp(4, PER_STRING);
        let mut marker =
            Marker { used, next: FIRST, marks: HashMap::new(), strings: Vec::new(), per_string, generation: ['\0'; 2] };
        marker.generation = [marker.take()?, marker.take()?];
        Some(marker)
    }

    fn take(&mut self) -> Option<char> {
        while self.next < LAST {
            let c = char::from_u32(self.next);
            self.next += 1;
            // The last two characters of each plane are not characters.
            if let Some(c) = c.filter(|c| (*c as u32) & 0xFFFE != 0xFFFE && !self.used.contains(c)) {
                return Some(c);
            }
        }
        None
    }

    /// The marked form of the next string. `None` if there are no marks left.
    pub(super) fn mark(&mut self, text: &str, style: Style) -> Option<String> {
        let string = self.strings.len();
        self.strings.push(text.to_owned());
        let mut out = String::with_capacity(text.len() + 64);
        if style == Style::Replaced {
            for (number, (at, c)) in text.char_indices().enumerate() {
                let mark = self.take()?;
                self.marks.insert(mark, Mark { string, at, number, replaces: Some(c) });
                out.push(mark);
            }
            return Some(out);
        }
        let mut from = 0;
        for (number, at) in places(text, style, self.per_string).into_iter().enumerate() {
            let mark = self.take()?;
            self.marks.insert(mark, Mark { string, at, number, replaces: None });
            out.push_str(&text[from..at]);
            out.push(mark);
            from = at;
        }
        out.push_str(&text[from..]);
        Some(out)
    }

    /// The rendering without its marks, and what they say.
    pub(super) fn read(&self, rendered: &str) -> Reading {
        let mut plain = String::with_capacity(rendered.len());
        let mut found: Vec<(usize, Mark)> = Vec::new();
        let (mut generation, mut open) = (Vec::new(), Vec::new());
        for c in rendered.chars() {
            if c == self.generation[0] {
                open.push(plain.len());
            } else if c == self.generation[1] {
                if let Some(start) = open.pop() {
                    generation.push(start..plain.len());
                }
            } else if let Some(mark) = self.marks.get(&c) {
                found.push((plain.len(), *mark));
                plain.extend(mark.replaces);
            } else {
                plain.push(c);
            }
        }
        let spans = self.spans(&plain, &found);
        Reading { plain, spans, generation }
    }

    /// What lies between neighbouring marks of one string is that string's; beyond its first and last marks
    /// as far as the texts agree, but for white space there, which may be the template's own.
    fn spans(&self, plain: &str, found: &[(usize, Mark)]) -> Vec<Span> {
        let mut spans: Vec<Span> = Vec::new();
        let mut add = |range: Range<usize>, string: usize| match spans.last_mut() {
            Some(last) if last.string == string && last.bytes.end == range.start => last.bytes.end = range.end,
            _ if range.is_empty() => {}
            _ => spans.push(Span { bytes: range, string }),
        };
        let follows = |a: &Mark, b: &Mark| a.string == b.string && b.number == a.number + 1;
        for (i, &(at, mark)) in found.iter().enumerate() {
            let text = &self.strings[mark.string];
            if let Some(c) = mark.replaces {
                add(at..at + c.len_utf8(), mark.string);
                continue;
            }
            let before = i.checked_sub(1).map(|j| &found[j]);
            if !before.is_some_and(|(_, b)| follows(b, &mark)) {
                let floor = before.map_or(0, |&(b, _)| b);
                let same = common_suffix(&plain[floor..at], &text[..mark.at]);
                let start = at - same.trim_start().len();
                add(start..at, mark.string);
            }
            match found.get(i + 1) {
                Some((next, b)) if follows(&mark, b) => add(at..*next, mark.string),
                next => {
                    let ceiling = next.map_or(plain.len(), |&(n, _)| n);
                    let same = common_prefix(&plain[at..ceiling], &text[mark.at..]);
                    add(at..at + same.trim_end().len(), mark.string);
                }
            }
        }
        spans
    }
}

/// A part of the rendered text that came from a string of the conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) bytes: Range<usize>,
    pub(super) string: usize,
}

/// A rendering with its marks read and removed.
pub(super) struct Reading {
    pub(super) plain: String,
    pub(super) spans: Vec<Span>,
    pub(super) generation: Vec<Range<usize>>,
}

/// The bytes at which a string is marked, ascending.
fn places(text: &str, style: Style, limit: usize) -> Vec<usize> {
    if matches!(style, Style::Unmarked | Style::Replaced) || text.is_empty() {
        return Vec::new();
    }
    let mut inside = Vec::new();
    let (mut previous, mut in_tag, mut in_word) = (' ', false, false);
    for (at, c) in text.char_indices() {
        // Templates look for tags (`</think>`, `[INST]`): a mark inside would hide one.
        in_tag = match c {
            '<' | '[' => true,
            '>' | ']' | '\n' => false,
            _ => in_tag,
        };
        let word = c.is_alphanumeric();
        if word && previous.is_alphanumeric() && !in_tag && !in_word {
            inside.push(at);
            in_word = true;
        }
        in_word &= word;
        previous = c;
    }
    if inside.len() > limit {
        let n = inside.len();
        inside = (0..limit).map(|i| inside[i * (n - 1) / (limit - 1)]).collect();
    }
    if style != Style::Inside {
        let (start, end) = match style {
            Style::Ends => (0, text.len()),
            _ => (text.len() - text.trim_start().len(), text.trim_end().len()),
        };
        inside.insert(0, start.min(end));
        inside.push(end);
        inside.dedup();
    }
    inside
}

fn common_prefix<'a>(a: &'a str, b: &str) -> &'a str {
    if a.starts_with(b) {
        return &a[..b.len()];
    }
    let same =
        a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y || matches!(x, '<' | '[')).map(|((i, _), _)| i);
    &a[..same.unwrap_or(a.len().min(b.len()))]
}

fn common_suffix<'a>(a: &'a str, b: &str) -> &'a str {
    if a.ends_with(b) {
        return &a[a.len() - b.len()..];
    }
    // A tag at which the template cut the text may end as the template's own token before it does.
    let same: usize = a
        .chars()
        .rev()
        .zip(b.chars().rev())
        .take_while(|(x, y)| x == y && !matches!(x, '>' | ']'))
        .map(|(x, _)| x.len_utf8())
        .sum();
    &a[a.len() - same..]
}
