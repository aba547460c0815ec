//! What can go wrong between this machine and the hub.

use std::path::PathBuf;

/// Result of an operation on the hub or its cache.
pub type Result<T, E = HubError> = std::result::Result<T, E>;

/// What can go wrong between this machine and the hub.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done, e.g. `"create"`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it was refused.
        source: std::io::Error,
    },
    /// The disk of the cache is full.
    #[error("cannot write {}: the disk is full. Free some space, or move the cache with HF_HOME; the download will resume", path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// Not the id of a repository.
    #[error(
        "{id:?} is not a hub id: expected name or organisation/name, of letters, digits, '-', '_' and '.', and optionally @revision"
    )]
    InvalidId {
        /// What was given.
        id: String,
    },
    /// The endpoint is not a URL.
    #[error("HF_ENDPOINT {endpoint:?} is not a URL that begins with http:// or https://")]
    BadEndpoint {
        /// What was given.
        endpoint: String,
    },
    /// The hub must not be asked, and the cache has not all that is needed.
    #[error("{repo} is not (or not wholly) in the cache {}, and offline mode forbids downloading it; unset HF_HUB_OFFLINE or give a local directory", cache.display())]
    Offline {
        /// The repository.
        repo: String,
        /// The cache.
        cache: PathBuf,
    },
    /// No such repository, or a private one.
    #[error("the hub has no model {repo}, or it is private: check the spelling{}", if *token { ", and that HF_TOKEN may read it" } else { "; for a private model set HF_TOKEN" })]
    RepoNotFound {
        /// The repository.
        repo: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repo} has no revision of that name; check what follows the '@' (or --revision)")]
    RevisionNotFound {
        /// The repository, with the revision.
        repo: String,
    },
    /// The repository has no such file.
    #[error("{repo} has no file {file:?}")]
    FileNotFound {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
    },
    /// The terms of the model must be accepted first.
    #[error("{repo} is gated: accept its terms on its page while logged in, then set HF_TOKEN to a token of that account{}", if *token { " (the one set has no access)" } else { "" })]
    Gated {
        /// The repository.
        repo: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// The hub does not accept the token.
    #[error("the hub refused access to {repo} (HTTP {status}): HF_TOKEN is missing, wrong or expired")]
    Unauthorized {
        /// The repository.
        repo: String,
        /// The status, 401 or 403.
        status: u16,
    },
    /// The repository has nothing that can be read.
    #[error("{repo} has no {wanted}; it has {}", list(found))]
    NothingToRead {
        /// The repository.
        repo: String,
        /// What was looked for.
        wanted: String,
        /// Files that look like weights.
        found: Vec<String>,
    },
    /// The hub names a file that would be written outside its directory.
    #[error("{repo} names a file {file:?}, which is no path inside a directory; nothing was downloaded")]
    UnsafePath {
        /// The repository.
        repo: String,
        /// The name.
        file: String,
    },
    /// The server cannot be reached, or the connection was lost more often than is tried.
    #[error("cannot reach {url}: {source}; what was downloaded is kept, so trying again resumes")]
    Network {
        /// What was asked for.
        url: String,
        /// Why it failed.
        source: Box<ureq::Error>,
    },
    /// The server did not answer in time.
    #[error("{url} did not answer in time ({phase}); what was downloaded is kept, so trying again resumes")]
    Timeout {
        /// What was asked for.
        url: String,
        /// What was waited for.
        phase: String,
    },
    /// The server answered with an error.
    #[error("{url} answered with HTTP status {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
    },
    /// The server's answer is not what the hub's protocol says.
    #[error("{url} answered with {problem}; is HF_ENDPOINT a Hugging Face hub?")]
    Protocol {
        /// What was asked for.
        url: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The download has another size than announced.
    #[error("{url}: received {got} bytes of {expected}; the partial file was removed, try again")]
    WrongSize {
        /// What was asked for.
        url: String,
        /// Bytes announced.
        expected: u64,
        /// Bytes received.
        got: u64,
    },
    /// The download has another content than announced.
    #[error("{url}: the content has the hash {got} instead of {expected}; it was removed, try again")]
    WrongHash {
        /// What was asked for.
        url: String,
        /// The hash announced.
        expected: String,
        /// The hash of what was received.
        got: String,
    },
}

fn list(found: &[String]) -> String {
    match found {
        [] => "no weights".into(),
        few if few.len() <= 6 => few.join(", "),
        many => format!("{} and {} more", many[..6].join(", "), many.len() - 6),
    }
}

impl HubError {
    /// Wraps an I/O error, telling a full disk apart.
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let path = path.into();
        match source.kind() {
            StorageFull | QuotaExceeded => HubError::DiskFull { path },
            _ => HubError::Io { action, path, source },
        }
    }
}

impl From<crate::weights::WeightsError> for HubError {
    /// Of an atomic write into the cache.
    fn from(error: crate::weights::WeightsError) -> Self {
        match error {
            crate::weights::WeightsError::DiskFull { path } => HubError::DiskFull { path },
            crate::weights::WeightsError::Io { action, path, source } => HubError::Io { action, path, source },
            crate::weights::WeightsError::FileTooLarge { path } => {
                HubError::Io { action: "write", path, source: std::io::ErrorKind::FileTooLarge.into() }
            }
            other => HubError::Io { action: "write", path: PathBuf::new(), source: std::io::Error::other(other) },
        }
    }
}
