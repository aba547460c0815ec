//! Python's methods on strings, dicts and lists, where `minijinja_contrib::pycompat` lacks them or differs.

use minijinja::formatting::FormatStyle;
use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::format;
use super::python::is_space;

/// Padding wider than this is a mistake or an attack.
pub(super) const MAX_WIDTH: usize = 1 << 16;

pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.kind(), method) {
        (
            ValueKind::Map | ValueKind::Seq,
            "append" | "extend" | "insert" | "pop" | "popitem" | "remove" | "clear" | "update" | "setdefault" | "sort"
            | "reverse",
        ) => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("templates cannot change values (`{method}` is forbidden, as in transformers' sandbox)"),
        )),
        (ValueKind::Map | ValueKind::Seq, "copy") => Ok(value.clone()),
        (ValueKind::Seq, "index") => {
            let (what,): (&Value,) = from_args(args)?;
            let found = value.try_iter()?.position(|v| v == *what);
            found.map(Value::from).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "value is not in list"))
        }
        (ValueKind::String, "format") => {
            format::pay(state, FormatStyle::StrFormat, value.as_str().unwrap_or_default())?;
            pycompat::unknown_method_callback(state, value, method, args)
        }
        (ValueKind::String, _) => match value.as_str().map(|s| string(s, method, args)) {
            Some(Ok(Some(result))) => Ok(result),
            Some(Err(e)) => Err(e),
            _ => pycompat::unknown_method_callback(state, value, method, args),
        },
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// The result of a string method, or `None` for one that is left to pycompat.
fn string(s: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(s, chars, method != "rstrip", method != "lstrip"))
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(s.strip_prefix(prefix).unwrap_or(s))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(s.strip_suffix(suffix).unwrap_or(s))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            if separator.is_empty() {
                return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
            }
            let split = if method == "partition" { s.split_once(separator) } else { s.rsplit_once(separator) };
            let parts = match split {
                Some((a, b)) => [a, separator, b],
                None if method == "partition" => [s, "", ""],
                None => ["", "", s],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "rsplit" => {
            let (separator, max): (Option<&str>, Option<i64>) = from_args(args)?;
            let limit = max.filter(|&m| m >= 0).map_or(usize::MAX, |m| usize::try_from(m).unwrap_or(usize::MAX));
            Value::from(rsplit(s, separator, limit)?)
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            Value::from(splitlines(s, keep.unwrap_or(false)))
        }
        "title" => {
            let mut after_letter = false;
            let title = s.chars().flat_map(|c| -> Vec<char> {
                let inside = std::mem::replace(&mut after_letter, c.is_alphabetic());
                if inside { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
            });
            Value::from(title.collect::<String>())
        }
        "swapcase" => Value::from(
            s.chars()
                .flat_map(|c| -> Vec<char> {
                    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
                })
                .collect::<String>(),
        ),
        "casefold" => Value::from(s.to_lowercase()),
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let at = if method == "index" { s.find(what) } else { s.rfind(what) };
            let at = at.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "substring not found"))?;
            Value::from(s[..at].chars().count())
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let zeros = "0".repeat(missing(s, width)?);
            Value::from(match s.strip_prefix(['-', '+']) {
                Some(digits) => format!("{}{zeros}{digits}", &s[..1]),
                None => zeros + s,
            })
        }
        "ljust" | "rjust" | "center" => {
            let (width, fill): (usize, Option<&str>) = from_args(args)?;
            let fill = fill.unwrap_or(" ");
            let pad = missing(s, width)?;
            let left = match method {
                "ljust" => 0,
                "rjust" => pad,
                // CPython puts the odd one to the left when both are odd.
                _ => pad / 2 + (pad & width & 1),
            };
            Value::from(format!("{}{s}{}", fill.repeat(left), fill.repeat(pad - left)))
        }
        _ => return Ok(None),
    }))
}

/// `str.strip` and its like.
pub(super) fn strip<'a>(s: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let gone = |c: char| chars.map_or_else(|| is_space(c), |set| set.contains(c));
    let s = if left { s.trim_start_matches(gone) } else { s };
    if right { s.trim_end_matches(gone) } else { s }
}

fn missing(s: &str, width: usize) -> Result<usize, Error> {
    if width > MAX_WIDTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "the width is too large"));
    }
    Ok(width.saturating_sub(s.chars().count()))
}

fn rsplit(s: &str, separator: Option<&str>, limit: usize) -> Result<Vec<Value>, Error> {
    let mut parts: Vec<&str> = Vec::new();
    match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(separator) => parts.extend(s.rsplitn(limit.saturating_add(1), separator)),
        None => {
            let mut rest = s.trim_end_matches(is_space);
            while parts.len() < limit
                && let Some(at) = rest.rfind(is_space)
            {
                let width = rest[at..].chars().next().map_or(1, char::len_utf8);
                parts.push(&rest[at + width..]);
                rest = rest[..at].trim_end_matches(is_space);
            }
            let rest = if parts.len() < limit { rest } else { rest.trim_end_matches(is_space) };
            if !rest.is_empty() {
                parts.push(rest);
            }
        }
    }
    Ok(parts.into_iter().rev().map(Value::from).collect())
}

/// Lines as Python ends them: `\n`, `\r`, `\r\n`, and Unicode's and ASCII's separators.
fn splitlines(s: &str, keep: bool) -> Vec<Value> {
    let ends = |c: char| {
        matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let (mut lines, mut rest) = (Vec::new(), s);
    while let Some(at) = rest.find(ends) {
        let width =
            if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(1, char::len_utf8) };
        lines.push(Value::from(&rest[..if keep { at + width } else { at }]));
        rest = &rest[at + width..];
    }
    if !rest.is_empty() {
        lines.push(Value::from(rest));
    }
    lines
}
