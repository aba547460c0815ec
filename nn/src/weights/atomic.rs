//! Replacing files and directories so that a crash at any byte leaves the old or the new, whole.
//!
//! The recipe is the usual one: write beside the target under a temporary name, flush to the disk,
//! rename over the target, flush the directory so that the rename itself survives a power cut.
//! Temporary names start with a dot and end in `.tmp`, so that one left by a killed process is
//! neither mistaken for data nor in the way of the next attempt.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Result, WeightsError};

/// Writes a file through `write`, and puts it at `path` only when all of it is on the disk.
///
/// If `write` fails, whatever was at `path` is untouched and nothing else is left behind.
///
/// ```
/// use std::io::Write;
/// # let dir = tempfile::tempdir()?;
/// let path = dir.path().join("state.json");
/// planish_nn::weights::atomic_write(&path, |w| w.write_all(b"{}"))?;
/// assert_eq!(std::fs::read(&path)?, b"{}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`WeightsError::DiskFull`], [`WeightsError::Io`].
pub fn atomic_write(path: impl AsRef<Path>, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    let temporary = temporary_beside(path)?;
    let done = (|| {
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        let mut buffered = BufWriter::with_capacity(1 << 20, file);
        write(&mut buffered)?;
        buffered.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_dir(parent(path))
    })();
    done.map_err(|source| {
        // Already renamed if only the last flush failed: then there is nothing to remove.
        fs::remove_file(&temporary).ok();
        WeightsError::io("write", path, source)
    })
}

/// As [`atomic_write`], with a look at the file before it is put in its place: `check` gets the name it has until then.
///
/// # Errors
/// As [`atomic_write`], and those of `check`.
pub(crate) fn atomic_replace(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    check: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<()> {
    let temporary = temporary_beside(path)?;
    let done = (|| {
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        let mut buffered = BufWriter::with_capacity(1 << 20, file);
        write(&mut buffered)?;
        buffered.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        check(&temporary)?;
        fs::rename(&temporary, path)?;
        sync_dir(parent(path))
    })();
    done.map_err(|source| {
        fs::remove_file(&temporary).ok();
        WeightsError::io("write", path, source)
    })
}

/// Builds a directory through `fill`, and puts it at `path` only when all of it is on the disk.
///
/// `fill` gets a temporary directory beside `path`. Nothing may be at `path` but an empty directory.
/// If `fill` fails the temporary directory is removed. Missing parents are created.
///
/// The error type is the caller's, so that `fill` may do anything.
///
/// # Errors
/// What `fill` returns; [`WeightsError::Exists`], [`WeightsError::DiskFull`], [`WeightsError::Io`].
pub fn atomic_dir<E: From<WeightsError>>(
    path: impl AsRef<Path>,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let path = path.as_ref();
    refuse_occupied(path)?;
    let temporary = temporary_beside(path)?;
    fs::create_dir(&temporary).map_err(|e| WeightsError::io("create", &temporary, e))?;
    let done = fill(&temporary).and_then(|()| {
        (|| {
            sync_tree(&temporary)?;
            fs::rename(&temporary, path)?;
            sync_dir(parent(path))
        })()
        .map_err(|source| WeightsError::io("write", path, source).into())
    });
    if done.is_err() {
        fs::remove_dir_all(&temporary).ok();
    }
    done
}

/// Removes what a killed process left beside `path`'s children: names that this module makes up.
///
/// Only call it on a directory that no other process is writing to.
///
/// # Errors
/// [`WeightsError::Io`].
pub fn remove_leftovers(dir: impl AsRef<Path>) -> Result<()> {
    let dir = dir.as_ref();
    let entries = fs::read_dir(dir).map_err(|e| WeightsError::io("list", dir, e))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !(name.starts_with('.') && name.ends_with(SUFFIX)) {
            continue;
        }
        let path = entry.path();
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        removed.map_err(|e| WeightsError::io("remove", path, e))?;
    }
    Ok(())
}

const SUFFIX: &str = ".planish.tmp";

/// A name beside `path` that neither this process nor another uses now.
pub(crate) fn temporary_beside(path: &Path) -> Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the path does not end in a name");
        return Err(WeightsError::Io { action: "write", path: path.into(), source });
    };
    let dir = parent(path);
    fs::create_dir_all(dir).map_err(|e| WeightsError::io("create", dir, e))?;
    loop {
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let candidate = dir.join(format!(".{}.{}.{n}{SUFFIX}", name.to_string_lossy(), std::process::id()));
        // A leftover of a killed process that had the same id.
        if fs::symlink_metadata(&candidate).is_err() {
            return Ok(candidate);
        }
    }
}

/// The path that is being written, in place of the temporary names that stand for it: messages are about
/// what the user asked for, and the temporary file is gone when they are read.
pub(super) fn shown(path: &Path) -> PathBuf {
    path.iter().map(|part| part.to_str().map_or(part, |name| meant(name).as_ref())).collect()
}

/// The name that a temporary name, perhaps that of another temporary name, stands for.
fn meant(name: &str) -> &str {
    let inner = || {
        let (rest, count) = name.strip_prefix('.')?.strip_suffix(SUFFIX)?.rsplit_once('.')?;
        let (rest, process) = rest.rsplit_once('.')?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        (is_number(count) && is_number(process) && !rest.is_empty()).then_some(rest)
    };
    inner().map_or(name, meant)
}

fn refuse_occupied(path: &Path) -> Result<()> {
    match fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(WeightsError::Exists { path: path.into() }),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(WeightsError::io("create", path, e)),
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Flushes a directory's entries. Windows has no such call: there the rename is as durable as it gets.
fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        atomic_write(&path, |w| w.write_all(b"old")).unwrap();
        let error = atomic_write(&path, |w| {
            w.write_all(&[0; 5000])?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert!(matches!(&error, WeightsError::DiskFull { path: p } if *p == path), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a"]);
        atomic_write(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn directories_appear_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/checkpoint-1");
        let failed: Result<()> = atomic_dir(&path, |tmp| {
            fs::write(tmp.join("x"), "x").unwrap();
            assert!(!path.exists());
            Err(WeightsError::DiskFull { path: tmp.into() })
        });
        assert!(matches!(failed, Err(WeightsError::DiskFull { .. })));
        assert_eq!(names(&dir.path().join("deep")), Vec::<String>::new());

        fs::create_dir(&path).unwrap();
        let fill = |tmp: &Path| -> Result<()> {
            fs::create_dir(tmp.join("sub")).unwrap();
            fs::write(tmp.join("sub/x"), "x").unwrap();
            Ok(())
        };
        atomic_dir(&path, fill).unwrap();
        assert_eq!(fs::read(path.join("sub/x")).unwrap(), b"x");
        let again = atomic_dir(&path, fill).unwrap_err();
        assert!(matches!(again, WeightsError::Exists { .. }), "{again}");
        assert_eq!(names(&dir.path().join("deep")), ["checkpoint-1"]);
    }

    #[test]
    fn messages_name_the_file_and_not_its_temporary_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint-1");
        let full: WeightsError = atomic_dir(&path, |tmp| {
            let inner = temporary_beside(&tmp.join("model.safetensors"))?;
            atomic_write(inner, |_| Err(io::ErrorKind::FileTooLarge.into()))
        })
        .unwrap_err();
        let named = path.join("model.safetensors");
        assert!(full.to_string().starts_with(&format!("cannot write {}: it would be", named.display())), "{full}");
        for own in ["a", ".a", ".a.planish.tmp", ".a.1.planish.tmp", "..1.2.planish.tmp", ".a.x.2.planish.tmp"] {
            assert_eq!(meant(own), own);
        }
    }

    #[test]
    fn leftovers_are_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["keep", ".keep", "x.planish.tmp", ".a.1.0.planish.tmp"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir_all(dir.path().join(".b.1.0.planish.tmp/inside")).unwrap();
        remove_leftovers(dir.path()).unwrap();
        assert_eq!(names(dir.path()), [".keep", "keep", "x.planish.tmp"]);
    }

    #[test]
    fn a_file_where_a_directory_should_be_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let under = atomic_write(file.join("y"), |_| Ok(())).unwrap_err();
        assert!(matches!(under, WeightsError::Io { .. }), "{under}");
        let at: WeightsError = atomic_dir(&file, |_| Ok(())).unwrap_err();
        assert!(matches!(at, WeightsError::Io { .. }), "{at}");
        assert_eq!(fs::read(&file).unwrap(), b"x");
    }
}
