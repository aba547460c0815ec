//! Parquet files, through the row interface of the `parquet` crate.
//!
//! Pages are compressed in groups of many rows, so a row cannot be read alone. The file is therefore
//! unpacked once, at opening, as JSON lines into a temporary file without a name, which the system
//! removes when it is closed: disk is used in place of memory, and rows are read by position as from
//! any other file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row as Record};
use serde_json::{Map, Value};

use super::super::error::{DataError, Result};
use super::jsonl::Jsonl;
use super::{Row, Rows, SourceFile};

/// A parquet file.
pub(crate) struct Parquet {
    rows: Jsonl,
}

impl Parquet {
    pub(crate) fn open(path: &Path) -> Result<Parquet> {
        let io = |action, source| DataError::Io { file: path.to_path_buf(), action, source };
        super::source::check_regular(path).map_err(|e| io("open it", e))?;
        let input = File::open(path).map_err(|e| io("open it", e))?;
        let output = tempfile::tempfile().map_err(|e| io("make a temporary file for it", e))?;
        let bad = |message: String| DataError::Parquet { file: path.to_path_buf(), message };
        // The reader is known to panic on some damaged files; that is the file's fault, too.
        let len = catch_unwind(AssertUnwindSafe(|| unpack(input, &output, path)))
            .unwrap_or_else(|_| Err(bad("the reader gave up on damaged data".into())))?;
        Ok(Parquet { rows: Jsonl::new(SourceFile::from_file(output, path, len))? })
    }
}

/// Writes all rows as JSON lines and returns the number of bytes.
fn unpack(input: File, output: &File, path: &Path) -> Result<u64> {
    let bad = |e: &dyn std::fmt::Display| DataError::Parquet { file: path.to_path_buf(), message: e.to_string() };
    let full = |source| DataError::Io { file: path.to_path_buf(), action: "unpack it", source };
    let reader = SerializedFileReader::new(input).map_err(|e| bad(&e))?;
    let mut out = BufWriter::with_capacity(1 << 20, output);
    let mut len = 0u64;
    for record in reader.get_row_iter(None).map_err(|e| bad(&e))? {
        let mut line = Value::Object(object(&record.map_err(|e| bad(&e))?)).to_string();
        line.push('\n');
        len += line.len() as u64;
        out.write_all(line.as_bytes()).map_err(full)?;
    }
    out.flush().map_err(full)?;
    Ok(len)
}

fn object(record: &Record) -> Map<String, Value> {
    record.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// A field as JSON; what JSON has no form for (dates, decimals, bytes that are no text) as its text.
fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => (*b).into(),
        Field::Byte(n) => (*n).into(),
        Field::Short(n) => (*n).into(),
        Field::Int(n) => (*n).into(),
        Field::Long(n) => (*n).into(),
        Field::UByte(n) => (*n).into(),
        Field::UShort(n) => (*n).into(),
        Field::UInt(n) => (*n).into(),
        Field::ULong(n) => (*n).into(),
        Field::Float16(x) => f64::from(x.to_f32()).into(),
        Field::Float(x) => f64::from(*x).into(),
        Field::Double(x) => (*x).into(),
        Field::Str(s) => s.as_str().into(),
        Field::Bytes(b) => String::from_utf8_lossy(b.data()).into(),
        Field::Group(record) => Value::Object(object(record)),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let key = |k: &Field| match value(k) {
                Value::String(s) => s,
                other => other.to_string(),
            };
            Value::Object(map.entries().iter().map(|(k, v)| (key(k), value(v))).collect())
        }
        other => other.to_string().into(),
    }
}

impl Rows for Parquet {
    fn len(&self) -> u64 {
        self.rows.len()
    }

    fn row(&self, i: u64) -> Result<Row> {
        let mut row = self.rows.row(i)?;
        // Lines are those of the temporary file.
        (row.at.line, row.at.row) = (0, Some(i));
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    /// Conversations of two turns and of one, and a number, as `datasets` writes them.
    fn file(path: &Path) {
        let schema = "message schema {
            optional group messages (LIST) { repeated group list { optional group element {
                optional binary role (UTF8); optional binary content (UTF8);
            } } }
            optional int64 id;
        }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for values in [["user", "assistant", "user"], ["hi", "ho", "é"]] {
            let mut column = group.next_column().unwrap().unwrap();
            let bytes = values.map(ByteArray::from);
            column.typed::<ByteArrayType>().write_batch(&bytes, Some(&[4, 4, 4]), Some(&[0, 1, 0])).unwrap();
            column.close().unwrap();
        }
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[7], Some(&[1, 0]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn nested_lists_are_read_as_json() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        file(&path);
        let rows = Parquet::open(&path).unwrap();
        assert_eq!(rows.len(), 2);
        let json = |i| Value::Object(rows.row(i).unwrap().fields).to_string();
        assert_eq!(
            json(0),
            r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}],"id":7}"#
        );
        assert_eq!(json(1), r#"{"messages":[{"role":"user","content":"é"}],"id":null}"#);
        assert_eq!(rows.row(1).unwrap().at.to_string(), format!("{} row 1", path.display()));
    }

    #[test]
    fn no_damage_panics() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        file(&path);
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x5A;
            std::fs::write(&path, &bad).unwrap();
            // Some damage goes unseen; what matters is that an error is all that comes of the rest.
            if let Ok(rows) = Parquet::open(&path) {
                (0..rows.len()).for_each(|i| drop(rows.row(i)));
            }
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(matches!(Parquet::open(&path), Err(DataError::Parquet { .. })), "cut at {at}");
        }
    }
}
