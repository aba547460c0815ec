//! A JSON document of rows: an array of objects, or an object one field of which is such an array
//! (`{"canary": "…", "examples": [{…}, …]}`). Never parsed whole: one pass finds where the rows
//! start, so that a document larger than memory can be read.

use std::path::Path;

use serde_json::Value;

use super::super::error::{At, DataError, Result, list};
use super::jsonl::Jsonl;
use super::{Row, RowIndex, Rows, SourceFile, json_error, object, utf8};

/// Names longer than this are cut; they are only compared and shown.
const MAX_KEY: usize = 256;

/// Fields that hold an array of objects in one row, so never the rows.
const COLUMNS: [&str; 7] = ["messages", "conversations", "prompt", "completion", "chosen", "rejected", "tools"];

struct Json {
    file: SourceFile,
    index: RowIndex,
}

/// What the scan is in, from the outside in; deeper levels are only counted.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Outer {
    /// Nothing seen yet.
    Start,
    /// In the outermost object.
    Object,
    /// In the array of rows, which is a field of the outermost object or the document itself.
    Rows { in_object: bool },
    /// After the outermost value.
    Done,
}

/// Scanner of the skeleton of a document.
struct Scan {
    outer: Outer,
    /// Depth of brackets below `outer`.
    depth: u64,
    in_string: bool,
    escaped: bool,
    line: u64,
    /// In the outer object: the last string seen at its level, a key until its value begins.
    key: Vec<u8>,
    /// Whether a value is expected: after `:` in the object, after `[` or `,` in the rows.
    expect: bool,
    /// Rows of the array that is being read.
    index: RowIndex,
    /// Rows of the first array that had any, and the names of all that had.
    rows: RowIndex,
    fields: Vec<String>,
    /// More follows the outermost value: the file is JSON lines.
    lines: bool,
}

/// Opens a JSON document, or JSON lines under the name of one.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Rows>> {
    let file = SourceFile::open(path)?;
    let mut scan = Scan {
        outer: Outer::Start,
        depth: 0,
        in_string: false,
        escaped: false,
        line: 1,
        key: Vec::new(),
        expect: false,
        index: RowIndex::default(),
        rows: RowIndex::default(),
        fields: Vec::new(),
        lines: false,
    };
    file.scan(file.bom()?, |offset, bytes| {
        let mut i = 0;
        while i < bytes.len() && !scan.lines {
            // Most of a file is the inside of strings: step over it in one go.
            if scan.in_string && !scan.escaped && !scan.at_key() {
                let Some(n) = memchr::memchr3(b'"', b'\\', b'\n', &bytes[i..]) else { break };
                i += n;
            }
            scan.byte(bytes[i], offset + i as u64, path)?;
            i += 1;
        }
        Ok(())
    })?;
    if scan.lines {
        return Ok(Box::new(Jsonl::new(file)?));
    }
    let shape = |found: String| DataError::JsonShape { file: path.to_path_buf(), found };
    match scan.outer {
        Outer::Start => return Err(DataError::Empty { file: path.into() }),
        Outer::Done => {}
        _ => {
            let message = "the file ends within a value".to_string();
            return Err(DataError::Json { at: At::line(path, scan.line), message });
        }
    }
    match &scan.fields[..] {
        // An array with no name, or one field.
        [_] => Ok(Box::new(Json { file, index: scan.rows })),
        // A document of one line may be one row of JSON lines.
        [] => Ok(Box::new(Jsonl::new(file)?)),
        several => Err(shape(format!("the arrays {}", list(several)))),
    }
}

impl Scan {
    /// Whether a string here may be the name of a field of the outer object.
    fn at_key(&self) -> bool {
        self.outer == Outer::Object && self.depth == 0 && !self.expect
    }

    fn byte(&mut self, b: u8, at: u64, path: &Path) -> Result<()> {
        if self.in_string {
            match b {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            if self.in_string && self.at_key() && self.key.len() < MAX_KEY {
                self.key.push(b);
            }
            self.line += u64::from(b == b'\n');
            return Ok(());
        }
        match b {
            b'\n' => self.line += 1,
            b' ' | b'\t' | b'\r' => {}
            _ => self.token(b, at, path)?,
        }
        Ok(())
    }

    /// A byte outside of strings that is not blank.
    fn token(&mut self, b: u8, at: u64, path: &Path) -> Result<()> {
        let bad = |line, message: &str| Err(DataError::Json { at: At::line(path, line), message: message.into() });
        // A value of the array of rows begins.
        if matches!(self.outer, Outer::Rows { .. }) && self.depth == 0 && !matches!(b, b',' | b']') {
            if self.expect && self.outer == (Outer::Rows { in_object: true }) && self.index.len() == 0 {
                // An array of anything but objects is not the rows: step over it as over any value.
                let name = String::from_utf8_lossy(&self.key).into_owned();
                if b != b'{' || COLUMNS.contains(&name.as_str()) {
                    (self.outer, self.depth) = (Outer::Object, 1);
                    return self.token(b, at, path);
                }
                self.fields.push(name);
            }
            if self.expect {
                self.index.push(at, self.line);
                self.expect = false;
            } else if matches!(b, b'{' | b'[' | b'"') {
                return bad(self.line, "expected `,` or `]` between rows");
            }
        }
        match (self.outer, b) {
            (Outer::Start, b'[') => {
                self.outer = Outer::Rows { in_object: false };
                self.fields.push(String::new());
                self.expect = true;
            }
            (Outer::Start, b'{') => self.outer = Outer::Object,
            (Outer::Start, _) => return bad(self.line, "expected `[` or `{`"),
            (Outer::Done, b'{') if self.fields != [""] => self.lines = true,
            (Outer::Done, _) => return bad(self.line, "more text after the end of the document"),
            (_, b'"') => {
                self.in_string = true;
                if self.outer == Outer::Object && self.depth == 0 && !self.expect {
                    self.key.clear();
                }
            }
            (Outer::Object, b':') if self.depth == 0 => self.expect = true,
            (Outer::Object, b',') if self.depth == 0 => self.expect = false,
            (Outer::Object, b'[') if self.depth == 0 && self.expect => {
                self.outer = Outer::Rows { in_object: true };
                self.index = RowIndex::default();
                self.expect = true;
            }
            (Outer::Object, b'}') if self.depth == 0 => self.outer = Outer::Done,
            (Outer::Rows { in_object }, b']') if self.depth == 0 => {
                if self.expect && self.index.len() > 0 {
                    return bad(self.line, "a row is missing after `,`");
                }
                self.index.end = at;
                if self.rows.len() == 0 {
                    self.rows = std::mem::take(&mut self.index);
                }
                self.outer = if in_object { Outer::Object } else { Outer::Done };
                self.expect = false;
            }
            (Outer::Rows { .. }, b',') if self.depth == 0 => {
                if self.expect {
                    return bad(self.line, "a row is missing before `,`");
                }
                self.expect = true;
            }
            (_, b'[' | b'{') => self.depth += 1,
            (_, b']' | b'}') => match self.depth.checked_sub(1) {
                Some(depth) => self.depth = depth,
                None => return bad(self.line, "a bracket closes that was never opened"),
            },
            _ => {}
        }
        Ok(())
    }
}

impl Rows for Json {
    fn len(&self) -> u64 {
        self.index.len()
    }

    fn row(&self, i: u64) -> Result<Row> {
        let (bytes, at) = self.index.read(&self.file, i)?;
        // Up to the next row: the value, then at most blanks and a comma.
        let text = utf8(&bytes, &at)?;
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        let value = values.next().unwrap_or(Ok(Value::Null)).map_err(|e| json_error(&at, text, &e))?;
        let rest = text[values.byte_offset()..].trim();
        if !matches!(rest, "" | ",") {
            let message =
                format!("expected `,` or `]` after the row, found {:?}", rest.chars().take(20).collect::<String>());
            return Err(DataError::Json { at, message });
        }
        object(value, at)
    }
}
