//! Rows that are wrong: which errors are a row's own, and under which name they are counted.

use serde::{Deserialize, Serialize};

use super::error::DataError;

/// Rows that are wrong in one way, and were dropped for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvalidRows {
    /// What is wrong with them, without the values found: `` `label` must be true or false ``.
    pub reason: String,
    /// How many they are.
    pub rows: u64,
    /// What was said of the first of them, with file and line.
    pub first: Vec<String>,
}

/// Rows of each reason that are told apart.
const NAMED: usize = 3;

impl InvalidRows {
    /// Counts one more among `all`.
    pub(super) fn count(all: &mut Vec<InvalidRows>, reason: String, error: &DataError) {
        let at = all.iter().position(|rows| rows.reason == reason).unwrap_or_else(|| {
            all.push(InvalidRows { reason, rows: 0, first: Vec::new() });
            all.len() - 1
        });
        all[at].rows += 1;
        if all[at].first.len() < NAMED {
            all[at].first.push(error.to_string());
        }
    }
}

impl DataError {
    /// What is wrong with a row, where the error is of that row alone: without it, the rest of the data is as good as
    /// it was. Values and places within the row are left out, so that equal faults have equal names.
    pub fn fault(&self) -> Option<String> {
        Some(match self {
            DataError::Utf8 { .. } | DataError::TextUtf8 { .. } => "invalid UTF-8".into(),
            DataError::Json { .. } => "malformed JSON".into(),
            DataError::NotAnObject { .. } => "not an object with columns".into(),
            DataError::RowTooLong { .. } => "longer than a row may be".into(),
            DataError::CellCount { .. } => "another number of cells than the header has".into(),
            // Without a row it is the file that lacks the column.
            DataError::MissingColumn { at, column, .. } if at.line > 0 || at.row.is_some() => {
                format!("the column {column:?} is missing")
            }
            DataError::Value { path, expected, .. } => format!("{} must be {expected}", without_numbers(path)),
            DataError::TokenId { .. } => "a token id outside of the vocabulary".into(),
            DataError::Text { .. } => "the tokenizer or the chat template fails on it".into(),
            DataError::Unsupervised { .. }
            | DataError::EmptyCompletion { .. }
            | DataError::EqualPair { .. }
            | DataError::EqualResponses { .. }
            | DataError::EqualScores { .. }
            | DataError::PromptFills { .. } => "nothing to train on".into(),
            _ => return None,
        })
    }
}

/// `messages[2].content` as `messages[].content`.
fn without_numbers(path: &str) -> String {
    let mut inside = false;
    let keep = |c: &char| {
        inside = (inside || *c == '[') && *c != ']';
        !(inside && c.is_ascii_digit())
    };
    path.chars().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::super::error::At;
    use super::*;

    #[test]
    fn equal_faults_have_equal_names() {
        let at = |line| At::line("a.jsonl", line);
        let value = |line, path: &str, found: &str| DataError::Value {
            at: at(line),
            path: path.into(),
            expected: "a string",
            found: found.into(),
        };
        let mut all = Vec::new();
        for (line, found) in (1..=5).zip(["1", "2", "null", "true", "[]"]) {
            let error = value(line, &format!("turn2[{line}].content"), found);
            InvalidRows::count(&mut all, error.fault().unwrap(), &error);
        }
        let json = DataError::Json { at: at(9), message: "x".into() };
        InvalidRows::count(&mut all, json.fault().unwrap(), &json);
        let counts: Vec<_> = all.iter().map(|rows| (rows.reason.as_str(), rows.rows, rows.first.len())).collect();
        assert_eq!(counts, [("turn2[].content must be a string", 5, 3), ("malformed JSON", 1, 1)]);
        assert_eq!(all[0].first[1], "a.jsonl:2: turn2[2].content must be a string, found 2");
        // A file without the column is no fault of a row.
        let whole = DataError::MissingColumn { at: at(0), column: "a".into(), found: Vec::new() };
        assert_eq!(whole.fault(), None);
        assert_eq!(DataError::Empty { file: "a".into() }.fault(), None);
    }
}
