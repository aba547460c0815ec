//! What can go wrong with a run directory.

use std::io;
use std::path::{Path, PathBuf};

use planish_nn::weights::WeightsError;

/// A run directory that cannot be made, written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The directory of a new run holds something already.
    #[error(
        "output_dir {} is not empty; choose another one, go on with the run in it \
         (--resume-from-checkpoint latest), or remove that run (--overwrite-output-dir)",
        path.display()
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// There is a file where the directory should be.
    #[error("output_dir {} is a file; choose the name of a directory", path.display())]
    NotADirectory {
        /// The file.
        path: PathBuf,
    },
    /// The directory cannot be created or written to.
    #[error("cannot write to output_dir {}: {source}", path.display())]
    Unwritable {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory has no checkpoint to go on from.
    #[error("there is no checkpoint in {}{}", path.display(), if *exists { "" } else { ": no such directory" })]
    NoCheckpoint {
        /// The directory that was searched.
        path: PathBuf,
        /// Whether there is such a directory.
        exists: bool,
    },
    /// The run has gone on beyond the checkpoint: its later steps would be mixed with those of the new one.
    #[error(
        "{} is of a later step than {}; go on from it (--resume-from-checkpoint latest), remove it, or branch off \
         with another --output-dir",
        later.display(), from.display()
    )]
    LaterCheckpoint {
        /// The checkpoint to resume from.
        from: PathBuf,
        /// The newest one.
        later: PathBuf,
    },
    /// The path to resume from is no checkpoint.
    #[error("{} is not a checkpoint: expected a directory named checkpoint-N, or `latest`", path.display())]
    NotACheckpoint {
        /// The path as given.
        path: PathBuf,
    },
    /// The directory is not that of a run.
    #[error("{} is not a run directory: it has no metrics.jsonl", path.display())]
    NotARun {
        /// The directory.
        path: PathBuf,
    },
    /// A line of a run's file that cannot be understood.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The disk is full.
    #[error("cannot write {}: the disk is full; what was saved before is intact. Free some space, and \
        resume if there is a checkpoint", path.display())]
    DiskFull {
        /// The file being written.
        path: PathBuf,
    },
    /// The file would be larger than the process, or the file system, lets a file be.
    #[error(
        "cannot write {}: it would be larger than a file may be here (`ulimit -f`, or the limit of the file system); \
         what was saved before is intact. Raise the limit, and resume if there is a checkpoint",
        path.display()
    )]
    FileTooLarge {
        /// The file being written.
        path: PathBuf,
    },
    /// A paged optimizer's states have no room on the disk: the run does not begin.
    #[error(
        "cannot reserve {bytes} bytes for the optimizer's states in {}: {}, or keep more of them in memory \
         (optim_memory_budget)",
        path.display(),
        if *limit {
            "it would be larger than a file may be here (`ulimit -f`, or the limit of the file system). Raise the limit"
        } else {
            "the disk is full. Free some space"
        }
    )]
    NoRoom {
        /// Bytes that all of the states take there.
        bytes: u64,
        /// The file that was to be reserved.
        path: PathBuf,
        /// Whether it is a limit on files that is in the way, not the disk.
        limit: bool,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it was refused.
        source: io::Error,
    },
    /// Writing a file or a checkpoint failed.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl RunError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> RunError {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let path = path.to_owned();
        match source.kind() {
            StorageFull | QuotaExceeded => RunError::DiskFull { path },
            FileTooLarge => RunError::FileTooLarge { path },
            _ => RunError::Io { action, path, source },
        }
    }
}
