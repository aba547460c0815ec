//! What can be wrong with data: one sentence each, naming the file, the line and what to do.

use std::fmt;
use std::path::PathBuf;

/// Result of a data operation.
pub type Result<T, E = DataError> = std::result::Result<T, E>;

/// An error of a tokenizer or chat template, as it comes through [`super::TextEncoder`].
pub type TextError = Box<dyn std::error::Error + Send + Sync>;

/// A place in a data file; prints as `file:line`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At {
    /// The file, as the user named it.
    pub file: PathBuf,
    /// Line, from 1; 0 when the file has no lines (parquet) or the whole file is meant.
    pub line: u64,
    /// Row, from 0, for files without lines.
    pub row: Option<u64>,
}

impl At {
    /// A line of a file.
    pub fn line(file: impl Into<PathBuf>, line: u64) -> At {
        At { file: file.into(), line, row: None }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        match (self.line, self.row) {
            (0, Some(row)) => write!(f, " row {row}"),
            (0, None) => Ok(()),
            (line, _) => write!(f, ":{line}"),
        }
    }
}

/// What can be wrong with a data set or the settings it is read with.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A `--dataset` argument that cannot be parsed.
    #[error("--dataset {spec}: {what}; write PATH or PATH@WEIGHT, e.g. data/train.jsonl@0.5")]
    Spec {
        /// The argument.
        spec: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A file could not be opened or read.
    #[error("{}: cannot {action}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A directory without data files.
    #[error("{}: no data file in this directory; accepted extensions: {accepted}", dir.display())]
    NoFiles {
        /// The directory.
        dir: PathBuf,
        /// The extensions that are read.
        accepted: &'static str,
    },
    /// The format cannot be told from the file name.
    #[error(
        "{}: the extension {found:?} is no data format; accepted: {accepted}; rename the file after what is in it",
        file.display()
    )]
    UnknownFormat {
        /// The file.
        file: PathBuf,
        /// Its extension.
        found: String,
        /// The extensions that are read.
        accepted: &'static str,
    },
    /// This build cannot read the format.
    #[error("{}: this build of planish does not read {format} files; build it with `--features {feature}`", file.display())]
    FormatNotBuilt {
        /// The file.
        file: PathBuf,
        /// The format.
        format: &'static str,
        /// The cargo feature that reads it.
        feature: &'static str,
    },
    /// The file changed its size while it was in use.
    #[error("{}: the file ended at byte {found}, expected {expected}; it changed while it was being read", file.display())]
    Changed {
        /// The file.
        file: PathBuf,
        /// Bytes that could be read.
        found: u64,
        /// Bytes that were there when it was opened.
        expected: u64,
    },
    /// No rows.
    #[error("{}: the file holds no rows", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// Bytes that are not UTF-8.
    #[error("{at}: invalid UTF-8 at byte {byte} of the row; save the file as UTF-8")]
    Utf8 {
        /// Where.
        at: At,
        /// Offset of the bad byte within the row.
        byte: usize,
    },
    /// Malformed JSON.
    #[error("{at}: malformed JSON: {message}")]
    Json {
        /// Where.
        at: At,
        /// What the parser says.
        message: String,
    },
    /// A row that is valid JSON, but no object.
    #[error("{at}: expected an object with columns, found {found}")]
    NotAnObject {
        /// Where.
        at: At,
        /// The JSON type found.
        found: &'static str,
    },
    /// A JSON object that holds the rows under several names, or under none.
    #[error(
        "{}: expected an array of rows, or an object with one array of them; found {found}",
        file.display()
    )]
    JsonShape {
        /// The file.
        file: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// A row larger than is sane.
    #[error("{at}: the row is longer than {limit} bytes")]
    RowTooLong {
        /// Where.
        at: At,
        /// The limit, bytes.
        limit: u64,
    },
    /// A CSV record with another number of cells than the header.
    #[error("{at}: {found} cell(s) where the header names {expected} column(s)")]
    CellCount {
        /// Where.
        at: At,
        /// Cells of this record.
        found: usize,
        /// Columns of the header.
        expected: usize,
    },
    /// A quote that is opened and never closed.
    #[error("{at}: the quote opened here is never closed")]
    OpenQuote {
        /// Where it opens.
        at: At,
    },
    /// Two columns of one name.
    #[error("{}: the header names the column {column:?} twice", file.display())]
    DuplicateColumn {
        /// The file.
        file: PathBuf,
        /// The name.
        column: String,
    },
    /// A parquet file that cannot be read.
    #[error("{}: not a readable parquet file: {message}", file.display())]
    Parquet {
        /// The file.
        file: PathBuf,
        /// What the reader says.
        message: String,
    },
    /// The columns are of no known type.
    #[error(
        "{}: the columns {} are of no known type; accepted: {accepted}; or name them with --text-column, \
         --messages-column, or --prompt-column and --completion-column",
        file.display(), list(found)
    )]
    UnknownColumns {
        /// The file.
        file: PathBuf,
        /// Columns of the first row.
        found: Vec<String>,
        /// The types that are accepted here.
        accepted: String,
    },
    /// The columns fit two types.
    #[error(
        "{}: the columns {} are both {first} and {second}; say which with --dataset-type, or name the column that is meant with --messages-column, --text-column, or --prompt-column and --completion-column",
        file.display(), list(found)
    )]
    AmbiguousColumns {
        /// The file.
        file: PathBuf,
        /// Columns of the first row.
        found: Vec<String>,
        /// One type.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// The columns are of a type that this recipe does not take.
    #[error(
        "{}: the columns {} make rows of type {kind}, which are not read here; accepted: {accepted}; or name others \
         with --text-column, --messages-column, or --prompt-column and --completion-column",
        file.display(), list(found)
    )]
    WrongType {
        /// The file.
        file: PathBuf,
        /// Columns of the first row.
        found: Vec<String>,
        /// The type they have.
        kind: &'static str,
        /// The types that are accepted here.
        accepted: String,
    },
    /// Column flags that contradict each other.
    #[error("--{first} and --{second} cannot be used together: a row is either {one} or {other}")]
    ColumnFlags {
        /// One flag.
        first: &'static str,
        /// The other.
        second: &'static str,
        /// What the first makes of a row.
        one: &'static str,
        /// What the second makes of it.
        other: &'static str,
    },
    /// A column is missing in this row.
    #[error("{at}: the column {column:?} is missing{}; found: {}", meant(column, found), list(found))]
    MissingColumn {
        /// Where.
        at: At,
        /// The column.
        column: String,
        /// Columns of this row.
        found: Vec<String>,
    },
    /// A value of the wrong kind.
    #[error("{at}: {path} must be {expected}, found {found}")]
    Value {
        /// Where.
        at: At,
        /// The column, with the path within it, e.g. `messages[2].content`.
        path: String,
        /// What it must be.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// A token id outside of the vocabulary.
    #[error("{at}: {path} is {id}, but the model has {vocab} tokens")]
    TokenId {
        /// Where.
        at: At,
        /// The column, with the index within it.
        path: String,
        /// The id.
        id: i64,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A conversation without a template to render it.
    #[error("{at}: the row is a conversation, but the tokenizer has no chat template; give one with --chat-template")]
    NoTemplate {
        /// Where.
        at: At,
    },
    /// The tokenizer or the template failed on a row.
    #[error("{at}: {source}")]
    Text {
        /// Where.
        at: At,
        /// Why.
        #[source]
        source: TextError,
    },
    /// No token of an example is trained on.
    #[error("{at}: no token of this example is trained on ({why}); remove it, or pass --drop-unsupervised")]
    Unsupervised {
        /// Where.
        at: At,
        /// Why, in words.
        why: &'static str,
    },
    /// A completion without text.
    #[error(
        "{at}: {column} is empty, so there is nothing to learn from it; remove the row, or pass --drop-unsupervised"
    )]
    EmptyCompletion {
        /// Where.
        at: At,
        /// Which one.
        column: &'static str,
    },
    /// A pair whose sides are the same.
    #[error(
        "{at}: chosen and rejected are equal{when}, so the pair prefers nothing; remove the row, or pass --drop-unsupervised"
    )]
    EqualPair {
        /// Where.
        at: At,
        /// Since when, as a clause.
        when: &'static str,
    },
    /// Two answers of a row that are the same.
    #[error(
        "{at}: responses[{first}] and responses[{second}] are equal{when}, so neither is better; remove one, or pass --drop-unsupervised"
    )]
    EqualResponses {
        /// Where.
        at: At,
        /// The one.
        first: usize,
        /// The other.
        second: usize,
        /// Since when, as a clause.
        when: &'static str,
    },
    /// Answers none of which is better than another.
    #[error(
        "{at}: all scores are equal, so no response is better than another; remove the row, or pass --drop-unsupervised"
    )]
    EqualScores {
        /// Where.
        at: At,
    },
    /// A prompt that leaves no room for its completion.
    #[error(
        "{at}: the prompt has {prompt} tokens, which leaves no room for a completion in max_length {max}; raise max_length, or pass --drop-unsupervised"
    )]
    PromptFills {
        /// Where.
        at: At,
        /// Tokens of the prompt.
        prompt: usize,
        /// The limit.
        max: usize,
    },
    /// Nothing is left to train on.
    #[error("no example is left to train on: of {seen} seen, {why}")]
    NothingLeft {
        /// Examples looked at.
        seen: u64,
        /// Why they were dropped, with counts.
        why: String,
    },
    /// The split takes everything or nothing.
    #[error(
        "--validation-split {asked}: {}", if *rows < 2 {
            format!("{rows} row(s) cannot be split in two; give more data, or a file of its own with --eval-dataset")
        } else {
            format!("{rows} rows cannot be split so; use a fraction between 0 and 1, or a count below {rows}")
        }
    )]
    Split {
        /// What was asked for.
        asked: String,
        /// Rows there are.
        rows: u64,
    },
    /// A setting outside of its range.
    #[error("{key}: {value} is out of range; it must be {expected}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A cursor that does not fit the data.
    #[error(
        "the checkpoint stands at example {index} of epoch {epoch}, but an epoch of this data has {len}: \
         resume with the data set and the settings of the run"
    )]
    Cursor {
        /// Its epoch.
        epoch: u64,
        /// Its index.
        index: u64,
        /// Examples in an epoch.
        len: u64,
    },
}

/// Names in quotes, for people; long lists are cut.
/// The column that was meant, as a clause.
fn meant(column: &str, found: &[String]) -> String {
    let nearest = crate::config::nearest(column, found.iter().map(String::as_str));
    nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

pub(crate) fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "(none)".into();
    }
    let shown: Vec<String> = names.iter().take(20).map(|n| format!("`{}`", n.escape_debug())).collect();
    let more =
        if names.len() > shown.len() { format!(" and {} more", names.len() - shown.len()) } else { String::new() };
    shown.join(", ") + &more
}
