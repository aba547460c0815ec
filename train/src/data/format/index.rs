//! Where each row of a file starts, and on which line.

use super::super::error::{At, Result};
use super::SourceFile;

/// Starts of the rows. Row `i` is bytes `starts[i]..starts[i + 1]`, the last ends at `end`.
#[derive(Debug, Default)]
pub(crate) struct RowIndex {
    starts: Vec<u64>,
    /// End of the last row.
    pub(crate) end: u64,
    /// (row, line) wherever a row is not on the line after the row before it.
    breaks: Vec<(u64, u64)>,
    next_line: u64,
}

impl RowIndex {
    /// No rows yet; the last one will end at `end`.
    pub(crate) fn new(end: u64) -> RowIndex {
        RowIndex { end, ..RowIndex::default() }
    }

    pub(crate) fn len(&self) -> u64 {
        self.starts.len() as u64
    }

    /// Adds a row that starts at byte `start` on `line`.
    pub(crate) fn push(&mut self, start: u64, line: u64) {
        if self.starts.is_empty() || line != self.next_line {
            self.breaks.push((self.len(), line));
        }
        self.next_line = line + 1;
        self.starts.push(start);
    }

    /// Byte range of row `i`.
    pub(crate) fn range(&self, i: u64) -> (u64, u64) {
        let i = i as usize;
        (self.starts[i], self.starts.get(i + 1).copied().unwrap_or(self.end))
    }

    /// Line on which row `i` starts, from 1.
    pub(crate) fn line(&self, i: u64) -> u64 {
        let k = self.breaks.partition_point(|&(row, _)| row <= i);
        let (row, line) = self.breaks[k - 1];
        line + (i - row)
    }

    /// Bytes of row `i` and where it stands.
    pub(crate) fn read(&self, file: &SourceFile, i: u64) -> Result<(Vec<u8>, At)> {
        let at = At::line(&file.path, self.line(i));
        let (start, end) = self.range(i);
        Ok((file.range(start, end, &at)?, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_gaps() {
        let mut index = RowIndex::default();
        let lines = [2, 3, 4, 7, 8, 20, 21, 22, 24];
        for (i, &line) in lines.iter().enumerate() {
            index.push(i as u64 * 10, line);
        }
        assert_eq!((0..9).map(|i| index.line(i)).collect::<Vec<_>>(), lines);
        assert_eq!(index.breaks.len(), 4);
    }
}
