//! What can be wrong with a setting.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::load::nearest;
use super::raw::{Node, Raw};

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// A line of a YAML file, counted from 1.
    File {
        /// The file as the user named it.
        path: Arc<PathBuf>,
        /// The line of the value.
        line: u64,
    },
    /// A flag on the command line, in its canonical spelling (`--learning-rate`).
    Flag(String),
    /// The calling program: nothing that a user could look up.
    Program,
}

impl fmt::Display for Origin {
    /// A prefix such as `train.yaml:3: `; empty for [`Origin::Program`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line } => write!(f, "{}:{line}: ", path.display()),
            Origin::Flag(flag) => write!(f, "{flag}: "),
            Origin::Program => Ok(()),
        }
    }
}

impl ConfigError {
    /// Adds which of the names that are accepted is most like the one that was written.
    pub(super) fn with_nearest<'a>(mut self, raw: &Raw, names: impl IntoIterator<Item = &'a str>) -> ConfigError {
        if let (ConfigError::Value { found, .. }, Node::Text(text)) = (&mut self, &raw.node)
            && let Some(name) = nearest(text, names)
        {
            found.push_str(&format!("; did you mean `{name}`?"));
        }
        self
    }
}

/// A setting that cannot be used. Every variant is the user's to mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file of settings cannot be read.
    #[error("cannot read the settings file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not YAML, or not a map of settings.
    #[error("{at}{problem}")]
    Yaml {
        /// Where the parser stopped.
        at: Origin,
        /// What the parser says, in one line.
        problem: String,
    },
    /// No setting has this name.
    #[error("{at}there is no setting `{key}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey {
        /// The name as written.
        key: String,
        /// Where.
        at: Origin,
        /// The known name that is most like it.
        nearest: Option<String>,
    },
    /// A setting of TRL or transformers that has no meaning here.
    #[error("{at}`{key}` is not a setting of planish: {instead}")]
    NotOurs {
        /// The name as written.
        key: String,
        /// Where.
        at: Origin,
        /// What planish does, or has, in its place.
        instead: &'static str,
    },
    /// The same setting twice in one place, possibly under two spellings.
    #[error("{at}`{key}` is set twice; keep one of the two")]
    Twice {
        /// The setting.
        key: String,
        /// The second place.
        at: Origin,
    },
    /// A value of the wrong type or outside the accepted range.
    #[error("{at}`{key}` must be {expected}, found {found}")]
    Value {
        /// The setting.
        key: String,
        /// Where.
        at: Origin,
        /// What is accepted.
        expected: String,
        /// What was written.
        found: String,
    },
    /// A setting without a default that nobody set.
    #[error("`{key}` is not set; give `--{}` or write `{key}:` in the settings file", key.replace('_', "-"))]
    Missing {
        /// The setting.
        key: &'static str,
    },
    /// Two settings that contradict each other.
    #[error("`{key}` {problem}")]
    Conflict {
        /// The setting to change first.
        key: &'static str,
        /// What it contradicts and what to do.
        problem: &'static str,
    },
}
