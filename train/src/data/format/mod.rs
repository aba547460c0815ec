//! Rows of data files: jsonl, json, csv, parquet and plain text, read one row at a time by number.
//!
//! Opening a file makes one pass over it that finds where each row starts (eight bytes a row, plus
//! sixteen for each break in the numbering of lines). Rows are then read by position: memory does
//! not grow with the size of the file, and any order costs the same.

mod csv;
mod index;
mod json;
mod jsonl;
#[cfg(feature = "parquet")]
mod parquet;
mod source;
mod text;

use std::path::Path;

use serde_json::{Map, Value};

use super::error::{At, DataError, Result};
pub(crate) use index::RowIndex;
pub(crate) use source::SourceFile;
pub use text::SampleBy;

/// A row longer than this is taken for a file of another kind (64 MiB).
pub(crate) const MAX_ROW_BYTES: u64 = 64 << 20;

/// The formats that are read.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line (`.jsonl`, `.ndjson`).
    Jsonl,
    /// An array of objects, or an object with one such array (`.json`); JSON lines are accepted too.
    Json,
    /// Comma-separated with a header (`.csv`).
    Csv,
    /// Tab-separated with a header (`.tsv`).
    Tsv,
    /// Parquet (`.parquet`), with the cargo feature `parquet`.
    Parquet,
    /// Plain text (`.txt`), in documents.
    Text,
}

impl Format {
    /// The extensions that are recognised, for messages.
    pub const ACCEPTED: &'static str = "jsonl, ndjson, json, csv, tsv, txt, each also with .gz behind it, and parquet";

    /// The format of a name such as `jsonl`, in any case.
    pub fn from_name(name: &str) -> Option<Format> {
        Some(match name.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" => Format::Jsonl,
            "json" => Format::Json,
            "csv" => Format::Csv,
            "tsv" => Format::Tsv,
            "parquet" => Format::Parquet,
            "txt" => Format::Text,
            _ => return None,
        })
    }

    /// The format by the extension of a path.
    ///
    /// # Errors
    /// [`DataError::UnknownFormat`].
    pub fn from_path(path: &Path) -> Result<Format> {
        let extension = |path: &Path| path.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
        let mut found = extension(path);
        let packed = found.eq_ignore_ascii_case("gz");
        if packed {
            found = extension(Path::new(path.file_stem().unwrap_or_default()));
        }
        // Parquet has a compression of its own.
        let format = Format::from_name(&found).filter(|format| !(packed && *format == Format::Parquet));
        format.ok_or_else(|| DataError::UnknownFormat { file: path.to_path_buf(), found, accepted: Format::ACCEPTED })
    }
}

/// A row: its columns, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// Columns and values; cells of CSV files are strings.
    pub(crate) fields: Map<String, Value>,
    /// Where it stands.
    pub(crate) at: At,
}

/// A file of rows with random access.
pub(crate) trait Rows: Send + Sync {
    /// Number of rows.
    fn len(&self) -> u64;
    /// Row `i`, parsed now: a malformed row is an error when it is read, not before.
    fn row(&self, i: u64) -> Result<Row>;
}

/// Opens a file and finds its rows.
///
/// # Errors
/// When the file cannot be read, holds no row, or is no file of its format.
pub(crate) fn open(path: &Path, format: Option<Format>, sample_by: SampleBy) -> Result<Box<dyn Rows>> {
    let format = match format {
        Some(format) => format,
        None => Format::from_path(path)?,
    };
    let rows: Box<dyn Rows> = match format {
        Format::Jsonl => Box::new(jsonl::Jsonl::open(path)?),
        Format::Json => json::open(path)?,
        Format::Csv => Box::new(csv::Csv::open(path, b',')?),
        Format::Text => Box::new(text::Text::open(path, sample_by)?),
        Format::Tsv => Box::new(csv::Csv::open(path, b'\t')?),
        #[cfg(feature = "parquet")]
        Format::Parquet => Box::new(parquet::Parquet::open(path)?),
        #[cfg(not(feature = "parquet"))]
        Format::Parquet => {
            return Err(DataError::FormatNotBuilt { file: path.into(), format: "parquet", feature: "parquet" });
        }
    };
    if rows.len() == 0 {
        return Err(DataError::Empty { file: path.to_path_buf() });
    }
    Ok(rows)
}

/// The JSON type of a value, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// UTF-8 text of a row, or where it stops being that.
pub(crate) fn utf8<'a>(bytes: &'a [u8], at: &At) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|e| DataError::Utf8 { at: at.clone(), byte: e.valid_up_to() })
}

/// The columns of a value that must be an object.
pub(crate) fn object(value: Value, at: At) -> Result<Row> {
    match value {
        Value::Object(fields) => Ok(Row { fields, at }),
        other => Err(DataError::NotAnObject { at, found: kind(&other) }),
    }
}

/// A JSON error of the row `row` that starts at `at`, with the line it is really on.
pub(crate) fn json_error(at: &At, row: &str, e: &serde_json::Error) -> DataError {
    // serde_json counts lines from 1 within the row and appends "at line … column …".
    let text = e.to_string();
    let message = text.split(" at line ").next().unwrap_or(&text);
    let line = at.line + (e.line() as u64).saturating_sub(1);
    let message = match not_a_number(row, e) {
        Some(word) => format!("{word} is no number of JSON; write null or leave the key out where there is no number"),
        None => message.to_owned(),
    };
    DataError::Json { at: At { line, ..at.clone() }, message: format!("{message} (column {})", e.column()) }
}

/// The word that Python writes for a float which JSON has no number for, if that is where the parser stopped.
fn not_a_number(row: &str, e: &serde_json::Error) -> Option<&'static str> {
    let line = row.lines().nth(e.line().saturating_sub(1))?.as_bytes();
    // It stops at the first letter, or behind it.
    let starts = e.column().saturating_sub(2)..=e.column();
    let at = |start: usize| line.get(start..).unwrap_or_default();
    let word = |start| ["NaN", "Infinity"].into_iter().find(|word| at(start).starts_with(word.as_bytes()));
    starts.filter_map(word).next()
}
