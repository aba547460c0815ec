//! [`RepoId`]: which model, at which revision.

use std::fmt;

use super::{HubError, Result};

/// A model on the hub, at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoId {
    name: String,
    revision: String,
}

impl RepoId {
    /// Parses `organisation/name`, or `name` alone, with an optional `@revision` (a branch, tag or
    /// commit; `main` by default).
    ///
    /// # Errors
    /// [`HubError::InvalidId`].
    pub fn parse(id: &str) -> Result<RepoId> {
        let invalid = || HubError::InvalidId { id: id.into() };
        let (name, revision) = id.split_once('@').unwrap_or((id, "main"));
        let parts: Vec<&str> = name.split('/').collect();
        if parts.len() > 2
            || name.len() > 200
            || !parts.iter().all(|part| valid_part(part))
            || !valid_revision(revision)
        {
            return Err(invalid());
        }
        Ok(RepoId { name: name.into(), revision: revision.into() })
    }

    /// The same model at another revision.
    ///
    /// # Errors
    /// [`HubError::InvalidId`] if it cannot be the name of one.
    pub fn with_revision(&self, revision: &str) -> Result<RepoId> {
        match valid_revision(revision) {
            true => Ok(RepoId { name: self.name.clone(), revision: revision.into() }),
            false => Err(HubError::InvalidId { id: format!("{}@{revision}", self.name) }),
        }
    }

    /// Without the revision.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The revision.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Name of its directory in the cache.
    pub(super) fn folder(&self) -> String {
        format!("models--{}", self.name.replace('/', "--"))
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.revision != "main" { write!(f, "@{}", self.revision) } else { Ok(()) }
    }
}

/// The hub's own rules; they also make the part a safe name of a directory.
fn valid_part(part: &str) -> bool {
    let ends = |c: char| c == '.' || c == '-';
    !part.is_empty()
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !part.starts_with(ends)
        && !part.ends_with(ends)
        && !part.contains("--")
        && !part.contains("..")
}

/// Git's rules, nearly: what passes is a relative path that stays where it is put.
fn valid_revision(revision: &str) -> bool {
    revision.len() <= 200
        && revision
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'\\' | b':' | b'?' | b'*' | b'[' | b'~' | b'^'))
        && revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains(".."))
}

/// Whether a string is a full commit id.
pub(super) fn is_commit(s: &str) -> bool {
    s.len() == 40 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
