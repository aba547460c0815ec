//! Several files as one data set, its two sides of a split, and the order of an epoch.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::columns::{Columns, DatasetType, detect};
use super::error::{DataError, Result};
use super::format::{self, Rows};
use super::permute::Permutation;
use super::row::{Source, TypedRow, parse};
use super::spec::DatasetSpec;
use super::split::{Subset, ValidationSplit};

/// Wrong rows after which a file is given up whose first rows say nothing of its columns.
const UNDECIDED: u64 = 1000;

/// One file of a data set.
struct DataFile {
    path: Arc<Path>,
    rows: Box<dyn Rows>,
    kind: DatasetType,
    weight: f64,
    /// Number of its first row within the data set.
    base: u64,
    /// Which of the arguments it came from.
    spec: usize,
}

/// What a file was taken for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileInfo {
    /// The file, as it was named.
    pub path: String,
    /// The type of its rows.
    pub kind: DatasetType,
    /// Number of its rows.
    pub rows: u64,
    /// How often it is shown in an epoch.
    pub weight: f64,
}

/// Files of rows with random access. Rows are parsed when they are read.
pub struct Dataset {
    files: Vec<DataFile>,
    columns: Columns,
    len: u64,
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataset").field("files", &self.files()).finish_non_exhaustive()
    }
}

impl Dataset {
    /// Opens all files that `specs` name, finds their rows, and decides what the rows are, among the
    /// types in `accepted`.
    ///
    /// # Errors
    /// A file that cannot be read, holds no rows, or whose columns fit no accepted type.
    pub fn open(specs: &[DatasetSpec], columns: &Columns, accepted: &[DatasetType]) -> Result<Dataset> {
        let each: Vec<_> = specs.iter().map(|spec| (spec.clone(), accepted)).collect();
        Dataset::open_each(&each, columns)
    }

    /// As [`Dataset::open`], with types that are accepted for each spec by itself.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn open_each(specs: &[(DatasetSpec, &[DatasetType])], columns: &Columns) -> Result<Dataset> {
        let mut data = Dataset { files: Vec::new(), columns: columns.clone(), len: 0 };
        for (number, (spec, accepted)) in specs.iter().enumerate() {
            for path in spec.files()? {
                let rows = format::open(&path, spec.format, columns.sample_by)?;
                let decide = |i: u64| {
                    let found: Vec<String> = rows.row(i)?.fields.keys().cloned().collect();
                    detect(&path, &found, columns, accepted)
                };
                let tried = if columns.skip_invalid { rows.len().min(UNDECIDED) } else { 1 };
                let kind = (1..tried).fold(decide(0), |kind, i| kind.or_else(|first| decide(i).map_err(|_| first)))?;
                let base = data.len;
                data.len += rows.len();
                data.files.push(DataFile { path: path.into(), rows, kind, weight: spec.weight, base, spec: number });
            }
        }
        if data.files.is_empty() {
            let expected = "the path of at least one file";
            return Err(DataError::Setting { key: "dataset", value: "(none)".into(), expected });
        }
        Ok(data)
    }

    /// Number of rows of all files.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no rows; an open data set always has some.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What each file was taken for.
    pub fn files(&self) -> Vec<FileInfo> {
        let info = |f: &DataFile| FileInfo {
            path: f.path.display().to_string(),
            kind: f.kind,
            rows: f.rows.len(),
            weight: f.weight,
        };
        self.files.iter().map(info).collect()
    }

    fn file(&self, index: u64) -> &DataFile {
        assert!(index < self.len, "row {index} of {}", self.len);
        &self.files[self.files.partition_point(|f| f.base <= index) - 1]
    }

    /// The number of the spec that row `index` came from.
    ///
    /// # Panics
    /// When `index >= len()`.
    pub fn spec_of(&self, index: u64) -> usize {
        self.file(index).spec
    }

    /// Reads and parses row `index`, counted through all files.
    ///
    /// # Errors
    /// A malformed row, by file and line.
    ///
    /// # Panics
    /// When `index >= len()`.
    pub fn read(&self, index: u64) -> Result<(TypedRow, Source)> {
        let file = self.file(index);
        let i = index - file.base;
        let row = file.rows.row(i)?;
        let source = Source { file: file.path.clone(), line: row.at.line, row: i };
        Ok((parse(&row, file.kind, &self.columns)?, source))
    }

    /// The rows for training, and those held out if a split is wanted.
    ///
    /// The two are disjoint; both keep the order of the files; they depend on `seed` and the number
    /// of rows only.
    ///
    /// # Errors
    /// [`DataError::Split`] when either side would be empty.
    pub fn split(self: &Arc<Self>, split: Option<ValidationSplit>, seed: u64) -> Result<(View, Option<View>)> {
        let rows: Vec<u64> = self.files.iter().map(|f| f.rows.len()).collect();
        let Some(split) = split else {
            let parts = rows.iter().map(|&rows| Subset::All { rows });
            return Ok((View::new(self.clone(), parts, true), None));
        };
        let held = split.share(&rows)?;
        let each = || rows.iter().copied().zip(held.iter().copied());
        let train = each().map(|(rows, held)| Subset::Train { rows, held, seed });
        let val = each().map(|(rows, held)| Subset::Held { rows, held, seed });
        Ok((View::new(self.clone(), train, true), Some(View::new(self.clone(), val, false))))
    }

    /// All rows once, weights set aside: a data set for evaluation.
    pub fn all(self: &Arc<Self>) -> View {
        let parts: Vec<_> = self.files.iter().map(|f| Subset::All { rows: f.rows.len() }).collect();
        View::new(self.clone(), parts.into_iter(), false)
    }
}

/// Rows of one file in a view, and how many are shown in an epoch.
#[derive(Debug, Clone, Copy)]
struct Part {
    base: u64,
    subset: Subset,
    draws: u64,
    /// Draws of the parts up to and with this one.
    until: u64,
}

/// A side of a split: which rows belong to it, and how often each file is shown in an epoch.
#[derive(Debug, Clone)]
pub struct View {
    data: Arc<Dataset>,
    parts: Vec<Part>,
}

impl View {
    fn new(data: Arc<Dataset>, subsets: impl Iterator<Item = Subset>, weighted: bool) -> View {
        let mut until = 0;
        let part = |(file, subset): (&DataFile, Subset)| {
            let n = subset.len();
            let draws = match weighted && file.weight != 1.0 {
                true => ((n as f64 * file.weight).round() as u64).max(n.min(1)),
                false => n,
            };
            until += draws;
            Part { base: file.base, subset, draws, until }
        };
        let parts = data.files.iter().zip(subsets).map(part).collect();
        View { data, parts }
    }

    /// The data set.
    pub fn data(&self) -> &Arc<Dataset> {
        &self.data
    }

    /// Number of rows shown in an epoch, weights applied.
    pub fn epoch_len(&self) -> u64 {
        self.parts.last().map_or(0, |p| p.until)
    }

    /// Number of different rows.
    pub fn rows(&self) -> u64 {
        self.parts.iter().map(|p| p.subset.len()).sum()
    }

    /// Number within the data set of row `t` of this view, in file order.
    ///
    /// # Panics
    /// When `t >= rows()`.
    pub fn row(&self, mut t: u64) -> u64 {
        for part in &self.parts {
            if t < part.subset.len() {
                return part.base + part.subset.row(t);
            }
            t -= part.subset.len();
        }
        panic!("a row beyond the {} of the view", self.rows())
    }

    /// The order of an epoch: shuffled, or file by file.
    pub fn order(&self, seed: u64, shuffle: bool, epoch: u64) -> Order<'_> {
        let outer = shuffle.then(|| Permutation::new(seed, epoch, self.epoch_len()));
        Order { view: self, seed, epoch, outer }
    }
}

/// The order of one epoch; any element in constant time.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    view: &'a View,
    seed: u64,
    epoch: u64,
    outer: Option<Permutation>,
}

impl Order<'_> {
    /// Number of examples in the epoch.
    pub fn len(&self) -> u64 {
        self.view.epoch_len()
    }

    /// Whether the epoch is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number within the data set of the row at place `i`.
    ///
    /// # Panics
    /// When `i >= len()`.
    pub fn get(&self, i: u64) -> u64 {
        let v = self.outer.map_or(i, |p| p.get(i));
        let k = self.view.parts.partition_point(|p| p.until <= v);
        let part = &self.view.parts[k];
        let (j, n) = (v - (part.until - part.draws), part.subset.len());
        if part.draws == n {
            return part.base + part.subset.row(j);
        }
        // A weighted file is gone through in rounds of its own, so that every row is shown once
        // before any is shown again, across epochs too.
        let nth = self.epoch as u128 * part.draws as u128 + j as u128;
        let (round, place) = ((nth / n as u128) as u64, (nth % n as u128) as u64);
        let t = match self.outer {
            None => place,
            Some(_) => {
                let seed = self.seed.wrapping_add((k as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
                Permutation::new(seed, round, n).get(place)
            }
        };
        part.base + part.subset.row(t)
    }
}
