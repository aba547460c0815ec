//! JSON lines: one object a line; blank lines are passed over.

use std::path::Path;

use serde_json::Value;

use super::super::error::Result;
use super::{Row, RowIndex, Rows, SourceFile, json_error, object, utf8};

/// A file of JSON lines.
pub(crate) struct Jsonl {
    file: SourceFile,
    index: RowIndex,
}

impl Jsonl {
    pub(crate) fn open(path: &Path) -> Result<Jsonl> {
        Jsonl::new(SourceFile::open(path)?)
    }

    pub(crate) fn new(file: SourceFile) -> Result<Jsonl> {
        let start = file.bom()?;
        let mut index = RowIndex::new(file.len);
        // A row starts at the first byte of its line that is not blank.
        let (mut line, mut in_row) = (1, false);
        file.scan(start, |offset, bytes| {
            let mut i = 0;
            while i < bytes.len() {
                if in_row {
                    match memchr::memchr(b'\n', &bytes[i..]) {
                        Some(n) => {
                            (line, in_row) = (line + 1, false);
                            i += n + 1;
                        }
                        None => break,
                    }
                } else {
                    match bytes[i] {
                        b'\n' => line += 1,
                        b' ' | b'\t' | b'\r' => {}
                        _ => {
                            index.push(offset + i as u64, line);
                            in_row = true;
                        }
                    }
                    i += 1;
                }
            }
            Ok(())
        })?;
        Ok(Jsonl { file, index })
    }
}

impl Rows for Jsonl {
    fn len(&self) -> u64 {
        self.index.len()
    }

    fn row(&self, i: u64) -> Result<Row> {
        let (bytes, at) = self.index.read(&self.file, i)?;
        let text = utf8(&bytes, &at)?.trim_end();
        let value: Value = serde_json::from_str(text).map_err(|e| json_error(&at, text, &e))?;
        object(value, at)
    }
}
