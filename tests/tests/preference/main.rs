//! Learning from preferences: numbers of TRL, whole runs, and what is refused.

mod parity;

use std::path::PathBuf;

/// A file or directory under `tests/fixtures`.
fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}
