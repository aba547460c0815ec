//! Plain text (`.txt`) as documents, one a row with the column `text`.
//!
//! One pass finds where documents begin; a row is then read by position, so that a file larger than memory trains. A
//! document of more than [`PIECE`] bytes becomes several rows, cut where a line begins; a line of more than [`LINE`]
//! bytes is cut anywhere between two characters.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::super::error::{At, DataError, Result};
use super::{Row, RowIndex, Rows, SourceFile};

/// What a document is in a file of plain text, under the names of `datasets`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleBy {
    /// Lines up to a blank one.
    #[default]
    Paragraph,
    /// A line.
    Line,
    /// The file.
    Document,
}

/// Bytes of a document after which the next line begins a new row.
const PIECE: u64 = 1 << 20;
/// Bytes of a line after which it is cut.
const LINE: u64 = 16 << 20;

/// A file of plain text.
pub(crate) struct Text {
    file: SourceFile,
    index: RowIndex,
}

/// Where the scan stands.
struct Scan {
    by: SampleBy,
    /// The line, from 1, and where it begins.
    line: u64,
    line_start: u64,
    /// Nothing but white space in the line so far.
    blank: bool,
    /// Where the row that is open began.
    open: Option<u64>,
    index: RowIndex,
}

impl Scan {
    fn begin(&mut self, at: u64) {
        self.index.push(at, self.line);
        self.open = Some(at);
    }

    /// The end of a line, whose break is at `at`.
    fn end_line(&mut self, at: u64) {
        if self.by == SampleBy::Line || (self.blank && self.by == SampleBy::Paragraph) {
            self.open = None;
        }
        (self.line, self.line_start, self.blank) = (self.line + 1, at + 1, true);
    }

    fn chunk(&mut self, offset: u64, bytes: &[u8]) {
        let mut i = 0;
        while i < bytes.len() {
            let at = offset + i as u64;
            if self.blank {
                match bytes[i] {
                    b'\n' => self.end_line(at),
                    b if b.is_ascii_whitespace() => {}
                    _ => {
                        self.blank = false;
                        let start = self.line_start;
                        if self.open.is_none_or(|open| start - open >= PIECE) {
                            self.begin(start);
                        }
                        continue;
                    }
                }
                i += 1;
                continue;
            }
            // A row of one line that is too long goes on in another, between two characters.
            let limit = self.open.unwrap_or(at).max(self.line_start) + LINE;
            if at >= limit && bytes[i] & 0xC0 != 0x80 {
                self.begin(at);
                continue;
            }
            let until = if at >= limit { i + 1 } else { bytes.len().min(i + (limit - at) as usize) };
            match memchr::memchr(b'\n', &bytes[i..until]) {
                Some(n) => {
                    self.end_line(at + n as u64);
                    i += n + 1;
                }
                None => i = until,
            }
        }
    }
}

impl Text {
    pub(crate) fn open(path: &Path, by: SampleBy) -> Result<Text> {
        let file = SourceFile::open(path)?;
        let start = file.bom()?;
        let index = RowIndex::new(file.len);
        let mut scan = Scan { by, line: 1, line_start: start, blank: true, open: None, index };
        file.scan(start, |offset, bytes| {
            scan.chunk(offset, bytes);
            Ok(())
        })?;
        Ok(Text { file, index: scan.index })
    }
}

impl Rows for Text {
    fn len(&self) -> u64 {
        self.index.len()
    }

    fn row(&self, i: u64) -> Result<Row> {
        let (bytes, at) = self.index.read(&self.file, i)?;
        let text = std::str::from_utf8(&bytes).map_err(|e| {
            let before = &bytes[..e.valid_up_to()];
            let lines = memchr::memchr_iter(b'\n', before).count() as u64;
            let byte = self.index.range(i).0 + before.len() as u64;
            DataError::TextUtf8 { at: At { line: at.line + lines, ..at.clone() }, byte }
        })?;
        let text = text.trim_end().to_owned();
        Ok(Row { fields: Map::from_iter([("text".to_owned(), text.into())]), at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(content: &[u8], by: SampleBy) -> Vec<(u64, String)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, content).unwrap();
        let text = Text::open(&path, by).unwrap();
        let row = |i| {
            let row = text.row(i).unwrap();
            (row.at.line, row.fields["text"].as_str().unwrap().to_owned())
        };
        (0..text.len()).map(row).collect()
    }

    fn shown(rows: &[(u64, String)]) -> Vec<(u64, &str)> {
        rows.iter().map(|(line, text)| (*line, text.as_str())).collect()
    }

    #[test]
    fn documents_by_blank_lines_by_line_and_whole() {
        let content = b"\xEF\xBB\xBF\n  one\ntwo\r\n \t\r\n\nthree\n\n";
        assert_eq!(shown(&rows(content, SampleBy::Paragraph)), [(2, "  one\ntwo"), (6, "three")]);
        assert_eq!(shown(&rows(content, SampleBy::Line)), [(2, "  one"), (3, "two"), (6, "three")]);
        assert_eq!(shown(&rows(content, SampleBy::Document)), [(2, "  one\ntwo\r\n \t\r\n\nthree")]);
        assert_eq!(shown(&rows(b"end without a break", SampleBy::Paragraph)), [(1, "end without a break")]);
        assert!(rows(b" \n\t\n", SampleBy::Document).is_empty());
    }

    #[test]
    fn a_long_document_is_cut_where_lines_begin() {
        let line = format!("{}\n", "x".repeat(999));
        let content = line.repeat(2500);
        let found = rows(content.as_bytes(), SampleBy::Document);
        assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 1050, 2099]);
        let back: String = found.iter().map(|(_, text)| format!("{text}\n")).collect();
        assert!(back == content, "nothing is lost");
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        // Three bytes a character: neither the limit nor the chunks of a scan fall between two.
        let content = "€".repeat(LINE as usize / 3 * 2 + 9);
        let found = rows(format!("a\n{content}\nb\n").as_bytes(), SampleBy::Line);
        assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2, 2, 2, 3]);
        assert!(found[1..4].iter().map(|(_, text)| text.as_str()).collect::<String>() == content);
        assert_eq!(found[4].1, "b");
    }

    #[test]
    fn invalid_utf8_has_its_line_and_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, b"fine\n\none\ntw\xFFo\n\nfine\n").unwrap();
        let text = Text::open(&path, SampleBy::Paragraph).unwrap();
        let said = text.row(1).unwrap_err().to_string();
        assert!(said.contains("a.txt:4: invalid UTF-8 at byte 12 of the file"), "{said}");
        assert!(text.row(0).is_ok() && text.row(2).is_ok());
    }
}
