//! CSV and TSV with a header, quoted as RFC 4180 says: quoted cells may hold line breaks.

use std::path::Path;

use serde_json::{Map, Value};

use super::super::error::{At, DataError, Result};
use super::{Row, RowIndex, Rows, SourceFile, utf8};

/// A CSV file.
pub(crate) struct Csv {
    file: SourceFile,
    index: RowIndex,
    columns: Vec<String>,
    delimiter: u8,
}

/// Where the scan stands within a record.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// At the start of a record, where blank lines are passed over.
    RecordStart,
    /// At the start of a cell.
    CellStart,
    Bare,
    Quoted,
    /// After a quote in a quoted cell: its end, or the first of a doubled quote.
    QuoteInQuoted,
}

impl Csv {
    pub(crate) fn open(path: &Path, delimiter: u8) -> Result<Csv> {
        let file = SourceFile::open(path)?;
        let start = file.bom()?;
        let mut index = RowIndex::new(file.len);
        let (mut state, mut line, mut quote_line) = (State::RecordStart, 1u64, 0);
        file.scan(start, |offset, bytes| {
            for (i, &b) in bytes.iter().enumerate() {
                if state == State::RecordStart && !matches!(b, b'\n' | b'\r') {
                    index.push(offset + i as u64, line);
                    state = State::CellStart;
                }
                state = match (state, b) {
                    (State::RecordStart, _) => State::RecordStart,
                    (State::Quoted, b'"') => State::QuoteInQuoted,
                    (State::Quoted, _) => State::Quoted,
                    (State::QuoteInQuoted, b'"') => State::Quoted,
                    (_, b'\n') => State::RecordStart,
                    (_, b) if b == delimiter => State::CellStart,
                    (State::CellStart, b'"') => {
                        quote_line = line;
                        State::Quoted
                    }
                    _ => State::Bare,
                };
                line += u64::from(b == b'\n');
            }
            Ok(())
        })?;
        if state == State::Quoted {
            return Err(DataError::OpenQuote { at: At::line(path, quote_line) });
        }
        let mut csv = Csv { file, index, columns: Vec::new(), delimiter };
        if csv.index.len() > 0 {
            let (mut columns, _) = csv.record(0)?;
            for c in &mut columns {
                *c = c.trim().to_string();
            }
            let mut sorted = columns.clone();
            sorted.sort();
            if let Some(twice) = sorted.windows(2).find(|w| w[0] == w[1]) {
                return Err(DataError::DuplicateColumn { file: path.into(), column: twice[0].clone() });
            }
            csv.columns = columns;
        }
        Ok(csv)
    }

    /// Cells of a record; record 0 is the header.
    fn record(&self, i: u64) -> Result<(Vec<String>, At)> {
        let (bytes, at) = self.index.read(&self.file, i)?;
        let text = utf8(&bytes, &at)?.trim_end_matches(['\r', '\n']);
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .delimiter(self.delimiter)
            // The record was cut out by the scan; a bare \r within it ends nothing.
            .terminator(csv::Terminator::Any(b'\n'))
            .from_reader(text.as_bytes());
        let mut record = csv::StringRecord::new();
        reader.read_record(&mut record).map_err(|e| DataError::Io {
            file: self.file.path.clone(),
            action: "parse it",
            source: std::io::Error::other(e),
        })?;
        Ok((record.iter().map(str::to_string).collect(), at))
    }
}

impl Rows for Csv {
    fn len(&self) -> u64 {
        self.index.len().saturating_sub(1)
    }

    fn row(&self, i: u64) -> Result<Row> {
        let (cells, at) = self.record(i + 1)?;
        if cells.len() != self.columns.len() {
            return Err(DataError::CellCount { at, found: cells.len(), expected: self.columns.len() });
        }
        let fields: Map<_, _> = self.columns.iter().cloned().zip(cells.into_iter().map(Value::String)).collect();
        Ok(Row { fields, at })
    }
}
