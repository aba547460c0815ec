//! The layout of the hub's cache on disk.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::repo::is_commit;
use super::{HubError, RepoId, Result};
use crate::weights::atomic_write;

/// The part of the cache that belongs to one repository.
#[derive(Debug)]
pub(super) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache: &Path, repo: &RepoId) -> Self {
        RepoCache { root: cache.join(repo.folder()), locks: cache.join(".locks").join(repo.folder()) }
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The snapshot that a revision stands for, if this machine knows.
    pub(super) fn snapshot_of(&self, revision: &str) -> Option<PathBuf> {
        let commit = match fs::read_to_string(self.root.join("refs").join(revision)) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => revision.to_owned(),
        };
        let snapshot = self.snapshot(&commit);
        (is_commit(&commit) && snapshot.is_dir()).then_some(snapshot)
    }

    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        Ok(atomic_write(self.root.join("refs").join(revision), |w| w.write_all(commit.as_bytes()))?)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Where a blob grows until it is whole.
    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Gives a blob its name in a snapshot: a link, or a copy where there are no links.
    ///
    /// `file` has been found to be a path inside a directory.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        let blob = self.blob(etag);
        if same_file(&path, &blob) {
            return Ok(());
        }
        let dir = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(dir).map_err(|e| HubError::io("create", dir, e))?;
        // Relative, so that the cache can be moved: out of snapshots/<commit>/ and of the file's own folders.
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(HubError::io("replace", path, e)),
            _ => {}
        }
        if symlink(&target, &path).is_ok() || same_file(&path, &blob) {
            return Ok(());
        }
        let mut source = File::open(&blob).map_err(|e| HubError::io("open", &blob, e))?;
        Ok(atomic_write(&path, |w| io::copy(&mut source, w).map(drop))?)
    }

    /// Waits until no other process downloads this blob, and holds them off while the result lives.
    pub(super) fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        fs::create_dir_all(&self.locks).map_err(|e| HubError::io("create", &self.locks, e))?;
        let file = File::options().create(true).append(true).open(&path).map_err(|e| HubError::io("open", &path, e))?;
        match file.lock() {
            Ok(()) => Ok(file),
            // Some network file systems cannot lock: then two downloads at once are the user's to avoid.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(file),
            Err(e) => Err(HubError::io("lock", path, e)),
        }
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

/// Whether a name that the hub gives is a path that stays inside the directory it is put in.
pub(super) fn is_safe_path(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 1000
        && !name.contains(['\\', ':'])
        && !name.chars().any(char::is_control)
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Whether an etag can be the name of a file.
pub(super) fn is_safe_etag(etag: &str) -> bool {
    (1..=128).contains(&etag.len())
        && etag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !etag.starts_with('.')
        && !etag.ends_with(".incomplete")
}
