//! What `--dataset` takes: a file or a directory, and how often its rows are shown.

use std::path::{Path, PathBuf};

use super::error::{DataError, Result};
use super::format::Format;

/// One `--dataset` argument: `PATH` or `PATH@WEIGHT`.
///
/// `WEIGHT` says how often the file is shown in an epoch: `@1` (the default) shows each row once,
/// `@2` twice, `@0.25` a quarter of the rows, another quarter in each epoch until all were seen.
/// What follows the last `@` counts only if it is a number, so Windows paths (`C:\data\a.jsonl@2`)
/// and names with an `@` in them work. A directory stands for all data files in it, sorted by name,
/// each with that weight.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetSpec {
    /// File or directory.
    pub path: PathBuf,
    /// How often its rows are shown in an epoch.
    pub weight: f64,
    /// The format, where the extension does not tell.
    pub format: Option<Format>,
}

/// The largest weight: beyond it a typing mistake is likelier than a wish.
const MAX_WEIGHT: f64 = 10_000.0;

impl DatasetSpec {
    /// A path with weight 1.
    pub fn new(path: impl Into<PathBuf>) -> DatasetSpec {
        DatasetSpec { path: path.into(), weight: 1.0, format: None }
    }

    /// Parses `PATH` or `PATH@WEIGHT`.
    ///
    /// # Errors
    /// [`DataError::Spec`] for an empty path or a weight that is not a positive number.
    ///
    /// ```
    /// use planish_train::data::DatasetSpec;
    /// let spec = DatasetSpec::parse(r"C:\data\a.jsonl@0.5")?;
    /// assert_eq!((spec.path.to_str(), spec.weight), (Some(r"C:\data\a.jsonl"), 0.5));
    /// assert_eq!(DatasetSpec::parse("me@home.csv")?.weight, 1.0);
    /// # Ok::<(), planish_train::data::DataError>(())
    /// ```
    pub fn parse(text: &str) -> Result<DatasetSpec> {
        let bad = |what| DataError::Spec { spec: text.to_string(), what };
        // A path that exists as it stands is meant as it stands.
        let (path, weight) = match text.rsplit_once('@') {
            Some((path, weight)) if !Path::new(text).exists() => match weight.trim().parse::<f64>() {
                Ok(weight) => (path, weight),
                Err(_) => (text, 1.0),
            },
            _ => (text, 1.0),
        };
        if path.trim().is_empty() {
            return Err(bad("the path is empty"));
        }
        if !(weight > 0.0 && weight <= MAX_WEIGHT) {
            return Err(bad("the weight must be a positive number of at most 10000"));
        }
        Ok(DatasetSpec { weight, ..DatasetSpec::new(path) })
    }

    /// The files that this stands for: itself, or the data files of a directory sorted by name. Plain text counts only
    /// where there is nothing else: a licence beside the data is not data.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let io = |source| DataError::Io { file: self.path.clone(), action: "read it", source };
        if !std::fs::metadata(&self.path).map_err(io)?.is_dir() {
            return Ok(vec![self.path.clone()]);
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.is_file() && Format::from_path(&path).is_ok() {
                files.push(path);
            }
        }
        if files.is_empty() {
            return Err(DataError::NoFiles { dir: self.path.clone(), accepted: Format::ACCEPTED });
        }
        let is_text = |path: &PathBuf| Format::from_path(path).is_ok_and(|format| format == Format::Text);
        if !files.iter().all(is_text) {
            files.retain(|path| !is_text(path));
        }
        files.sort();
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_bad_weights() {
        assert_eq!(DatasetSpec::parse("a.jsonl@2").unwrap().weight, 2.0);
        assert_eq!(DatasetSpec::parse("a@b.jsonl").unwrap().path, Path::new("a@b.jsonl"));
        for bad in ["", "@2", "a.jsonl@0", "a.jsonl@-1", "a.jsonl@nan", "a.jsonl@inf"] {
            assert!(matches!(DatasetSpec::parse(bad), Err(DataError::Spec { .. })), "{bad}");
        }
    }

    #[test]
    fn a_file_with_an_at_in_its_name_is_that_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl@2");
        std::fs::write(&path, "{}").unwrap();
        let spec = DatasetSpec::parse(path.to_str().unwrap()).unwrap();
        assert_eq!((spec.path, spec.weight), (path, 1.0));
    }

    #[test]
    fn directories_list_their_data_files() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(DatasetSpec::new(dir.path()).files(), Err(DataError::NoFiles { .. })));
        for name in ["b.jsonl", "a.csv", "README.md", "LICENSE.txt"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let files = DatasetSpec::new(dir.path()).files().unwrap();
        assert_eq!(files, [dir.path().join("a.csv"), dir.path().join("b.jsonl")]);
        for name in ["b.jsonl", "a.csv"] {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
        assert_eq!(DatasetSpec::new(dir.path()).files().unwrap(), [dir.path().join("LICENSE.txt")]);
    }
}
