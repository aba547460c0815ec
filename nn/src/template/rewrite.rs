//! Rewriting what transformers' Jinja knows and minijinja does not.
//!
//! - `{% generation %}…{% endgeneration %}` becomes a scope that writes a mark before and after its body.
//! - `'format' % value` becomes a call of the filter [`PERCENT`].
//! - The operands of `+` go through the filter [`LISTED`], which makes lists of what is lazy in the engine.
//!
//! The source is lexed as Jinja lexes it (text, comments, raw blocks, strings, nested brackets), so that
//! nothing inside a string or a comment is touched. Lines keep their numbers, and whitespace control its
//! meaning.

use std::borrow::Cow;
use std::collections::BTreeSet;

/// The filter that formats as Python's `%` on strings.
pub(super) const PERCENT: &str = "planish_percent";
/// The filter that makes a list of an operand that is lazy, and leaves everything else as it is.
pub(super) const LISTED: &str = "planish_listed";
/// The variables that hold the marks around a generation block.
pub(super) const MARKS: [&str; 2] = ["planish_generation_start", "planish_generation_end"];

/// The engine takes time quadratic in the length of a chain of operators, so that a tag of more tokens than
/// this is not for it. The longest in use have some hundred.
const MAX_TOKENS: usize = 4000;

/// What became of a template's source.
pub(super) struct Rewritten {
    pub(super) source: String,
    /// It has generation blocks.
    pub(super) generation: bool,
    /// The line of a tag that is too long to be parsed.
    pub(super) too_long: Option<usize>,
}

/// Rewrites a template's source.
pub(super) fn rewrite(source: &str) -> Rewritten {
    let mut out = String::with_capacity(source.len());
    let (mut at, mut generation, mut too_long) = (0, false, None);
    while let Some(tag) = next_tag(source, at) {
        out.push_str(&source[at..tag.start]);
        at = tag.end;
        let whole = &source[tag.start..tag.end];
        let inner = &source[tag.inner.0..tag.inner.1];
        if tag.kind != b'#' && too_long.is_none() && tokens(inner).len() > MAX_TOKENS {
            too_long = Some(source[..tag.start].matches('\n').count() + 1);
        }
        match (tag.kind, inner.trim()) {
            (b'%', word @ ("generation" | "endgeneration")) => {
                generation = true;
                let open = &source[tag.start..tag.inner.0];
                let close = &source[tag.inner.1..tag.end];
                let lines = "\n".repeat(inner.matches('\n').count());
                let [start, end] = MARKS;
                out.push_str(&if word == "generation" {
                    format!("{open} with %}}{{{{ {start} }}}}{{% if true {lines}{close}")
                } else {
                    format!("{open} endif %}}{{{{ {end} }}}}{{% endwith {lines}{close}")
                });
            }
            (b'%', "raw") => {
                let end = end_of_raw(source, tag.end).unwrap_or(source.len());
                out.push_str(&source[tag.start..end]);
                at = end;
            }
            (b'#', _) => out.push_str(whole),
            _ => {
                out.push_str(&source[tag.start..tag.inner.0]);
                out.push_str(&plus(&percent(inner, 0)));
                out.push_str(&source[tag.inner.1..tag.end]);
            }
        }
    }
    out.push_str(&source[at..]);
    Rewritten { source: out, generation, too_long }
}

struct Tag {
    /// `{`, `%` or `#`.
    kind: u8,
    start: usize,
    end: usize,
    /// Between the delimiters and their `-` or `+`.
    inner: (usize, usize),
}

/// The next tag at or after `from`; `None` where there is none, or it does not end (the parser says so).
fn next_tag(source: &str, from: usize) -> Option<Tag> {
    let bytes = source.as_bytes();
    let start = (from..bytes.len().saturating_sub(1)).find(|&i| bytes[i] == b'{' && b"{%#".contains(&bytes[i + 1]))?;
    let kind = bytes[start + 1];
    let inner_start = start + 2 + usize::from(matches!(bytes.get(start + 2), Some(b'-' | b'+')));
    let closing: &[u8] = match kind {
        b'{' => b"}}",
        b'%' => b"%}",
        _ => b"#}",
    };
    let (mut i, mut depth) = (inner_start, 0usize);
    while i < bytes.len() {
        let rest = &bytes[i..];
        if depth == 0 && rest.starts_with(closing) {
            let signed = i > inner_start && matches!(bytes[i - 1], b'-' | b'+');
            return Some(Tag { kind, start, end: i + 2, inner: (inner_start, i - usize::from(signed)) });
        }
        match bytes[i] {
            _ if kind == b'#' => {}
            quote @ (b'\'' | b'"') => i = string_end(bytes, i, quote)? - 1,
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        i += 1;
    }
    None
}

/// Behind the closing quote of the string that begins at `start`.
fn string_end(bytes: &[u8], start: usize, quote: u8) -> Option<usize> {
    let mut i = start + 1;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 1,
            b if b == quote => return Some(i + 1),
            _ => {}
        }
        i += 1;
    }
    None
}

/// Behind the `{% endraw %}` after `from`.
fn end_of_raw(source: &str, from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(i) = source[at..].find("{%").map(|i| at + i) {
        let rest = source[i + 2..].trim_start_matches(['-', '+']).trim_start();
        if let Some(rest) = rest.strip_prefix("endraw") {
            let rest = rest.trim_start().trim_start_matches(['-', '+']);
            if let Some(rest) = rest.strip_prefix("%}") {
                return Some(source.len() - rest.len());
            }
        }
        at = i + 2;
    }
    None
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    String,
    Word,
    Symbol(u8),
}

/// Tokens of an expression: kind, start, end.
fn tokens(text: &str) -> Vec<(Kind, usize, usize)> {
    let bytes = text.as_bytes();
    let (mut out, mut i) = (Vec::new(), 0);
    while i < bytes.len() {
        let start = i;
        let kind = match bytes[i] {
            b if b.is_ascii_whitespace() => {
                i += 1;
                continue;
            }
            quote @ (b'\'' | b'"') => {
                i = string_end(bytes, i, quote).unwrap_or(bytes.len());
                Kind::String
            }
            b if b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80 => {
                while i < bytes.len() && (bytes[i].is_ascii_alphanumeric() || bytes[i] == b'_' || bytes[i] >= 0x80) {
                    i += 1;
                }
                Kind::Word
            }
            b => {
                i += 1;
                Kind::Symbol(b)
            }
        };
        out.push((kind, start, i));
    }
    out
}

/// Nested formats are rewritten to this depth; deeper ones stay, and fail when rendered.
const MAX_DEPTH: usize = 8;

/// `'…' % operand` to `'…'|planish_percent(operand)`. Only a string literal to the left tells formatting from
/// a remainder.
fn percent(text: &str, depth: usize) -> String {
    if depth > MAX_DEPTH || !text.contains('%') {
        return text.to_owned();
    }
    let tokens = tokens(text);
    let (mut out, mut at, mut i) = (String::new(), 0, 0);
    while i + 2 < tokens.len() {
        let is_format = tokens[i].0 == Kind::String && tokens[i + 1].0 == Kind::Symbol(b'%');
        let Some(last) = is_format.then(|| operand_end(&tokens, i + 2)).flatten() else {
            i += 1;
            continue;
        };
        out.push_str(&text[at..tokens[i].2]);
        let (first, end) = (tokens[i + 2].1, tokens[last].2);
        let tuple = tokens[i + 2].0 == Kind::Symbol(b'(') && matching(&tokens, i + 2) == Some(last);
        let operand = if tuple { &text[first + 1..end - 1] } else { &text[first..end] };
        // What stood between the string and the operand may have held line breaks.
        let lines = "\n".repeat(text[tokens[i].2..first].matches('\n').count());
        out.push_str(&format!("|{PERCENT}({lines}{})", percent(operand, depth + 1)));
        at = end;
        i = last + 1;
    }
    out.push_str(&text[at..]);
    out
}

/// Words that an operand cannot end with, so that a `+` behind them is a sign.
const KEYWORDS: [&str; 9] = ["in", "and", "or", "not", "if", "else", "elif", "is", "print"];

/// `a + b` to `a|planish_listed + b|planish_listed`, but for literals.
fn plus(text: &str) -> Cow<'_, str> {
    if !text.contains('+') {
        return Cow::Borrowed(text);
    }
    let tokens = tokens(text);
    let literal = |i: usize| match tokens[i].0 {
        Kind::String => true,
        Kind::Word => text.as_bytes()[tokens[i].1].is_ascii_digit(),
        Kind::Symbol(_) => false,
    };
    let word = |i: usize| (tokens[i].0 == Kind::Word).then(|| &text[tokens[i].1..tokens[i].2]);
    // A filter behind the name of a test (`x is defined + 1`) would be the test's.
    let of_test = |i: usize| i > 0 && matches!(word(i - 1), Some("is" | "not"));
    let mut ends = BTreeSet::new();
    for i in (1..tokens.len()).filter(|&i| tokens[i].0 == Kind::Symbol(b'+')) {
        let before = match tokens[i - 1].0 {
            Kind::Word => !KEYWORDS.contains(&word(i - 1).unwrap_or_default()) && !of_test(i - 1),
            Kind::Symbol(b) => matches!(b, b')' | b']'),
            Kind::String => true,
        };
        if !before {
            continue;
        }
        if !literal(i - 1) {
            ends.insert(tokens[i - 1].2);
        }
        if let Some(last) = operand_end(&tokens, i + 1).filter(|&last| last > i + 1 || !literal(last)) {
            ends.insert(tokens[last].2);
        }
    }
    let (mut out, mut at) = (String::with_capacity(text.len() + 16 * ends.len()), 0);
    for end in ends {
        out.push_str(&text[at..end]);
        out.push('|');
        out.push_str(LISTED);
        at = end;
    }
    out.push_str(&text[at..]);
    Cow::Owned(out)
}

/// The last token of the operand that begins at token `i`: a name, literal or bracket with what follows it.
fn operand_end(tokens: &[(Kind, usize, usize)], mut i: usize) -> Option<usize> {
    while tokens.get(i)?.0 == Kind::Symbol(b'-') {
        i += 1;
    }
    let mut last = match tokens[i].0 {
        Kind::String | Kind::Word => i,
        Kind::Symbol(b'(' | b'[' | b'{') => matching(tokens, i)?,
        Kind::Symbol(_) => return None,
    };
    loop {
        last = match tokens.get(last + 1).map(|t| t.0) {
            Some(Kind::Symbol(b'.' | b'|')) if tokens.get(last + 2).is_some_and(|t| t.0 == Kind::Word) => last + 2,
            Some(Kind::Symbol(b'(' | b'[')) => matching(tokens, last + 1)?,
            _ => return Some(last),
        }
    }
}

/// The token that closes the bracket at token `open`.
fn matching(tokens: &[(Kind, usize, usize)], open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.0 {
            Kind::Symbol(b'(' | b'[' | b'{') => depth += 1,
            Kind::Symbol(b')' | b']' | b'}') => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}
