//! `checkpoint-N` directories: saved whole, found by number, removed oldest first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::dir::fill_dir;
use super::error::RunError;

/// A directory `checkpoint-N`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Optimizer steps done.
    pub step: u64,
    /// The directory.
    pub path: PathBuf,
}

impl Checkpoint {
    /// What `resume_from_checkpoint` means: `latest` (or `true`, as in TRL) in `output_dir`, or
    /// the path of a checkpoint, or of a run directory whose latest is meant.
    ///
    /// # Errors
    /// [`RunError::NoCheckpoint`], [`RunError::NotACheckpoint`], [`RunError::Io`].
    pub fn find(resume_from: &str, output_dir: &Path) -> Result<Checkpoint, RunError> {
        if matches!(resume_from, "latest" | "true" | "True") {
            return latest(output_dir);
        }
        let path = Path::new(resume_from);
        if !path.is_dir() {
            return Err(RunError::NoCheckpoint { path: path.to_owned(), exists: path.exists() });
        }
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(step) = name.and_then(step_of) {
            return Ok(Checkpoint { step, path: path.to_owned() });
        }
        match latest(path) {
            Err(RunError::NoCheckpoint { path, .. }) => Err(RunError::NotACheckpoint { path }),
            found => found,
        }
    }
}

fn latest(dir: &Path) -> Result<Checkpoint, RunError> {
    let missing = |exists| RunError::NoCheckpoint { path: dir.to_owned(), exists };
    match list(dir) {
        Ok(mut all) => all.pop().ok_or_else(|| missing(true)),
        Err(RunError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Err(missing(false)),
        Err(error) => Err(error),
    }
}

/// The N of `checkpoint-N`. Only names that saving makes: no sign, no leading zero.
pub(super) fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("checkpoint-")?;
    let step: u64 = digits.parse().ok()?;
    (step.to_string() == digits).then_some(step)
}

pub(super) fn list(dir: &Path) -> Result<Vec<Checkpoint>, RunError> {
    let entries = fs::read_dir(dir).map_err(|source| RunError::io("list", dir, source))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| RunError::io("list", dir, source))?;
        let path = entry.path();
        if let Some(step) = entry.file_name().to_str().and_then(step_of)
            && path.is_dir()
        {
            found.push(Checkpoint { step, path });
        }
    }
    found.sort_by_key(|checkpoint| checkpoint.step);
    Ok(found)
}

pub(super) fn save<E: From<RunError>>(
    dir: &Path,
    step: u64,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<Checkpoint, E> {
    let path = replace_dir(dir, &format!("checkpoint-{step}"), fill)?;
    Ok(Checkpoint { step, path })
}

/// Puts a directory at `dir/name`, whole, even where there is one already.
pub(super) fn replace_dir<E: From<RunError>>(
    dir: &Path,
    name: &str,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<PathBuf, E> {
    let path = dir.join(name);
    if !path.exists() {
        fill_dir(&path, fill)?;
        return Ok(path);
    }
    // A directory cannot be renamed over another, so for an instant the name is free. A crash just
    // then costs this one directory; a run resumes from the one it had been resumed from.
    let next = dir.join(format!(".{name}.next.planish.tmp"));
    if next.exists() {
        fs::remove_dir_all(&next).map_err(|source| RunError::io("remove", &next, source))?;
    }
    fill_dir(&next, fill)?;
    discard(&path)?;
    fs::rename(&next, &path).map_err(|source| RunError::io("rename", &next, source))?;
    Ok(path)
}

/// Removes a directory such that a crash in the middle leaves no half of it under its name.
fn discard(path: &Path) -> Result<(), RunError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let trash = path.with_file_name(format!(".{name}.old.planish.tmp"));
    if trash.exists() {
        fs::remove_dir_all(&trash).map_err(|source| RunError::io("remove", &trash, source))?;
    }
    fs::rename(path, &trash).map_err(|source| RunError::io("remove", path, source))?;
    fs::remove_dir_all(&trash).map_err(|source| RunError::io("remove", &trash, source))
}

pub(super) fn rotate(dir: &Path, limit: usize, best: Option<u64>) -> Result<Vec<Checkpoint>, RunError> {
    let all = list(dir)?;
    let newest = all.last().map(|checkpoint| checkpoint.step);
    let mut surplus = all.len().saturating_sub(limit.max(1));
    let mut removed = Vec::new();
    for checkpoint in all {
        if surplus == 0 {
            break;
        }
        if Some(checkpoint.step) == newest || Some(checkpoint.step) == best {
            continue;
        }
        discard(&checkpoint.path)?;
        removed.push(checkpoint);
        surplus -= 1;
    }
    Ok(removed)
}
