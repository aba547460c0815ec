//! Python's view of values: `str()`, `repr()`, `json.dumps()`.

use minijinja::value::{Kwargs, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::engine::Limit;

/// Values nested deeper than this are refused: the conversation's JSON cannot be (its parser stops at 128),
/// a template's loop can.
const MAX_DEPTH: usize = 200;

/// `str(value)`; nothing for an undefined value. The engine charges for the result; before it is made, it is only
/// known that there is fuel for so much.
pub(super) fn to_str(state: &State, value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(s) => Ok(s.to_owned()),
        None => {
            let mut out = String::new();
            repr(&mut out, value, 0, affordable(state))?;
            Ok(out)
        }
    }
}

/// Bytes that the fuel left pays for, at 64 bytes each.
fn affordable(state: &State) -> usize {
    let left = state.fuel_levels().map_or(u64::MAX, |(_, left)| left.saturating_mul(64));
    usize::try_from(left).unwrap_or(usize::MAX)
}

/// What adds lists is lazy in the engine, so that doubling one again and again costs nothing until it is looked at,
/// when it has more entries than there is memory. The operands of `+` go through this: a list that is still to be made
/// is made, and paid for.
pub(super) fn listed(state: &State, value: Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    // The engine charges half a step for an entry once there is a list.
    let most = affordable(state) / 32;
    if value.len().is_some_and(|len| len > most) {
        return Err(too_much(most.saturating_mul(32)));
    }
    let mut items = Vec::new();
    for item in value.try_iter()? {
        if items.len() >= most {
            return Err(too_much(most.saturating_mul(32)));
        }
        items.push(item);
    }
    Ok(Value::from(items))
}

fn too_much(bytes: usize) -> Error {
    Error::new(ErrorKind::InvalidOperation, "a value is too large").with_source(Limit::Value(bytes))
}

fn repr(out: &mut String, value: &Value, depth: usize, limit: usize) -> Result<(), Error> {
    check(depth)?;
    if out.len() > limit {
        return Err(too_much(limit));
    }
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value, "nan", "inf")),
        ValueKind::String => repr_str(out, value.as_str().unwrap_or_default()),
        // What adds or cuts lists makes iterables of them.
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = value.downcast_object_ref::<Tuple>().is_some();
            out.push(if tuple { '(' } else { '[' });
            for (i, item) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(out, &item, depth + 1, limit)?;
            }
            if tuple && value.len() == Some(1) {
                out.push(',');
            }
            out.push(if tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(out, &key, depth + 1, limit)?;
                out.push_str(": ");
                repr(out, &value.get_item(&key)?, depth + 1, limit)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

fn repr_str(out: &mut String, s: &str) {
    let quote = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in s.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
}

fn number(value: &Value, nan: &str, infinity: &str) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(x) = f64::try_from(value.clone()) else { return value.to_string() };
    if x.is_nan() {
        return nan.to_owned();
    }
    if x.is_infinite() {
        return if x < 0.0 { format!("-{infinity}") } else { infinity.to_owned() };
    }
    // Python writes the shortest digits that read back, as Rust does, but changes to exponents elsewhere.
    let scientific = format!("{x:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = x.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

/// `json.dumps(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, the `tojson` of
/// transformers: no HTML is escaped and keys keep their order.
pub(super) fn tojson(
    state: &State,
    value: Value,
    positional: minijinja::value::Rest<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let given = |name: &str, i: usize| -> Result<Option<Value>, Error> {
        let named: Option<Value> = kwargs.get(name)?;
        Ok(named.or_else(|| positional.get(i).cloned()).filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let ensure_ascii = given("ensure_ascii", 0)?.is_some_and(|v| v.is_true());
    let indent = given("indent", 1)?.map(|v| match v.as_str() {
        Some(s) => s.to_owned(),
        None => " ".repeat(i64::try_from(v).map_or(0, |n| n.clamp(0, 64)) as usize),
    });
    let (mut item, mut key) = (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(separators) = given("separators", 2)? {
        let parts: Vec<Value> = separators.try_iter()?.take(3).collect();
        match parts.as_slice() {
            [a, b] => (item, key) = (to_str(state, a)?, to_str(state, b)?),
            _ => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be a pair of strings")),
        }
    }
    let sort_keys = given("sort_keys", 3)?.is_some_and(|v| v.is_true());
    kwargs.assert_all_used()?;
    let mut json = Json { out: String::new(), ensure_ascii, indent, item, key, sort_keys, limit: affordable(state) };
    json.write(&value, 0)?;
    Ok(Value::from(json.out))
}

struct Json {
    out: String,
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    limit: usize,
}

impl Json {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        check(depth)?;
        if self.out.len() > self.limit {
            return Err(too_much(self.limit));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value, "NaN", "Infinity")),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list('[', ']', &items, depth, |json, item| json.write(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.list('{', '}', &keys, depth, |json, key| {
                    match key.kind() {
                        ValueKind::String => json.string(key.as_str().unwrap_or_default()),
                        ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                            json.out.push('"');
                            json.write(key, depth + 1)?;
                            json.out.push('"');
                        }
                        kind => return Err(not_json(kind)),
                    }
                    json.out.push_str(&json.key.clone());
                    json.write(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => return Err(not_json(kind)),
        }
        Ok(())
    }

    fn list(
        &mut self,
        open: char,
        close: char,
        items: &[Value],
        depth: usize,
        write: impl Fn(&mut Json, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.item.clone());
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn string(&mut self, s: &str) {
        self.out.push('"');
        for c in s.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if (c as u32) < 0x20 => self.out.push_str(&format!("\\u{:04x}", c as u32)),
                c if self.ensure_ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

fn check(depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "a value is nested too deeply"));
    }
    Ok(())
}

fn not_json(kind: ValueKind) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("an {kind} value has no JSON form"))
}

/// What `str.isspace` calls a space: Unicode's and four separators.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
