//! PTX text to tokens.

use super::Problem;

/// A token and the line that it stands on, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind<'a>,
    pub(crate) line: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind<'a> {
    /// A name, a directive or an opcode with its modifiers: `%r1`, `.reg`, `ld.global.u32`, `$L__BB0_1`.
    Word(&'a str),
    /// An integer; a negative one is a minus sign and this.
    Int(u64),
    /// The bits of `0f…`.
    F32(u32),
    /// The bits of `0d…` or of a decimal fraction.
    F64(u64),
    Str(&'a str),
    Punct(u8),
}

pub(crate) fn lex(text: &str) -> Result<Vec<Token<'_>>, Problem> {
    let bytes = text.as_bytes();
    let (mut at, mut line) = (0, 1);
    let mut tokens = Vec::new();
    while at < bytes.len() {
        let byte = bytes[at];
        let begin = at;
        let kind = match byte {
            b'\n' => {
                line += 1;
                at += 1;
                continue;
            }
            b' ' | b'\t' | b'\r' => {
                at += 1;
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at += memchr(b'\n', &bytes[at..]);
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let Some(end) = text.get(at + 2..).and_then(|rest| rest.find("*/")) else {
                    return Err(Problem::new(line, "the comment that begins here has no end"));
                };
                line += bytes[at..at + 2 + end].iter().filter(|byte| **byte == b'\n').count() as u32;
                at += end + 4;
                continue;
            }
            b'"' => {
                let end = memchr(b'"', &bytes[at + 1..]);
                if at + 1 + end >= bytes.len() {
                    return Err(Problem::new(line, "the string that begins here has no end"));
                }
                at += end + 2;
                let inside = &text[begin + 1..at - 1];
                line += inside.bytes().filter(|byte| *byte == b'\n').count() as u32;
                Kind::Str(inside)
            }
            b'0'..=b'9' => {
                while at < bytes.len() && (bytes[at].is_ascii_alphanumeric() || bytes[at] == b'.') {
                    at += 1;
                }
                number(&text[begin..at])
                    .ok_or_else(|| Problem::new(line, format!("{} is no number", &text[begin..at])))?
            }
            _ if starts_word(byte) => {
                at += 1;
                while at < bytes.len() {
                    if continues_word(bytes[at]) {
                        at += 1;
                    } else if bytes[at] == b':'
                        && bytes.get(at + 1) == Some(&b':')
                        && bytes.get(at + 2).is_some_and(|byte| continues_word(*byte))
                    {
                        at += 2;
                    } else {
                        break;
                    }
                }
                Kind::Word(&text[begin..at])
            }
            b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'<' | b'>' | b',' | b';' | b':' | b'=' | b'+' | b'-' | b'@'
            | b'!' | b'|' | b'*' => {
                at += 1;
                Kind::Punct(byte)
            }
            _ => return Err(Problem::new(line, "a character that PTX does not have")),
        };
        tokens.push(Token { kind, line });
    }
    Ok(tokens)
}

fn memchr(byte: u8, bytes: &[u8]) -> usize {
    bytes.iter().position(|b| *b == byte).unwrap_or(bytes.len())
}

fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

fn continues_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'.' | b'%')
}

fn number(word: &str) -> Option<Kind<'_>> {
    if let Some(hex) = word.strip_prefix("0f").or_else(|| word.strip_prefix("0F")) {
        return (hex.len() == 8).then(|| u32::from_str_radix(hex, 16).ok()).flatten().map(Kind::F32);
    }
    if let Some(hex) = word.strip_prefix("0d").or_else(|| word.strip_prefix("0D")) {
        return (hex.len() == 16).then(|| u64::from_str_radix(hex, 16).ok()).flatten().map(Kind::F64);
    }
    if word.contains('.') {
        return word.parse().ok().map(|value: f64| Kind::F64(value.to_bits()));
    }
    let digits = word.strip_suffix('U').unwrap_or(word);
    let (digits, radix) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&digits[2..], 16),
        [b'0', b'b' | b'B', ..] => (&digits[2..], 2),
        [b'0', _, ..] => (&digits[1..], 8),
        _ => (digits, 10),
    };
    u64::from_str_radix(digits, radix).ok().map(Kind::Int)
}
