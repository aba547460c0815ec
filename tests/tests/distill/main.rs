//! Distillation: six steps of TRL's loss, whole runs, stored predictions, and what is refused.

mod parity;
mod runs;

use std::path::{Path, PathBuf};

/// A file or directory under `tests/fixtures`.
fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}
