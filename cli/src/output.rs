//! Printing results. Whoever reads them may stop reading (`| head`), which is no failure.

use std::fmt::Display;
use std::io::{self, Write};

/// Prints a line to stdout.
///
/// # Errors
/// The failure to write; [`crate::failure`] knows that a closed pipe is none.
pub(crate) fn line(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Prints a value as JSON, indented.
///
/// # Errors
/// As [`line()`].
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    Ok(line(text)?)
}

/// Prints a sentence for people to stderr. A closed stderr is nobody's loss.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
