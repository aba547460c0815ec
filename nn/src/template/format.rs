//! What formatting may cost: the library pads to any width, and aborts where there is no memory for it.

use minijinja::formatting::FormatStyle;
use minijinja::{Error, ErrorKind, State};

use super::methods::MAX_WIDTH;

/// Pays for the widths and precisions of a format string, before the library pads to them.
pub(super) fn pay(state: &State, style: FormatStyle, pattern: &str) -> Result<(), Error> {
    let widths = match style {
        FormatStyle::Printf => printf_numbers(pattern),
        FormatStyle::StrFormat => braced_numbers(pattern),
    };
    if widths.iter().any(|w| *w > MAX_WIDTH) {
        return Err(Error::new(ErrorKind::InvalidOperation, "the width is too large"));
    }
    // The engine's fuel is worth 64 bytes.
    state.consume_fuel(widths.iter().sum::<usize>() as u64 / 64)
}

/// Widths and precisions of `%…` specifiers.
fn printf_numbers(pattern: &str) -> Vec<usize> {
    let mut found = Vec::new();
    let mut parts = pattern.split('%').skip(1);
    while let Some(part) = parts.next() {
        if part.is_empty() {
            // `%%`: what follows is text.
            parts.next();
            continue;
        }
        let spec = match part.strip_prefix('(').and_then(|p| p.split_once(')')) {
            Some((_, spec)) => spec,
            None => part,
        };
        let end = spec.find(|c: char| !(c.is_ascii_digit() || "#-+. ".contains(c))).unwrap_or(spec.len());
        numbers(&spec[..end], &mut found);
    }
    found
}

/// Widths and precisions of `{…:…}` fields. Numbers of a fill or a name's key are counted along.
fn braced_numbers(pattern: &str) -> Vec<usize> {
    let mut found = Vec::new();
    for field in pattern.split('{').skip(1) {
        if let Some((_, spec)) = field.split('}').next().and_then(|f| f.split_once(':')) {
            numbers(spec, &mut found);
        }
    }
    found
}

fn numbers(text: &str, found: &mut Vec<usize>) {
    let digits = text.split(|c: char| !c.is_ascii_digit()).filter(|d| !d.is_empty());
    found.extend(digits.map(|d| d.parse().unwrap_or(usize::MAX)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_found_where_they_stand() {
        assert_eq!(printf_numbers("a %5s 12 %-7.3f %(n99)08d %%44 %s"), [5, 7, 3, 8]);
        assert_eq!(braced_numbers("12 {} {0:>5} {x[9]:*^7.2f} {:99999999999999999999}"), [5, 7, 2, usize::MAX]);
    }
}
