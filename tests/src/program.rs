//! The `planish` binary as a user runs it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What a run of the program left.
#[derive(Debug)]
pub struct Done {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// Results.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
}

/// The program, ready for arguments. It is built first if it is not there or old, for a test must not pass on an
/// old one. `cargo test --workspace` builds it before any test runs; with other choices of packages nobody does.
///
/// # Panics
/// If it does not build.
pub fn command() -> Command {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let binary = BINARY.get_or_init(|| {
        // Tests run from target/PROFILE/deps; the binary lies one up.
        let test = std::env::current_exe().expect("a test has a file");
        let profile = test.parent().and_then(|deps| deps.parent()).expect("target/PROFILE/deps").to_owned();
        let binary = profile.join(format!("planish{}", std::env::consts::EXE_SUFFIX));
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        if is_fresh(&binary, root) {
            return binary;
        }
        let target = profile.parent().expect("target");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "planish", "--target-dir"]).arg(target);
        build.current_dir(root);
        // What cargo tells a test about itself. Build scripts that look at it (that of `ring` does) would take it
        // for a change, and half of the dependencies would be built again each time, here and outside.
        let of_this_package = ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_"];
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| of_this_package.iter().any(|start| name.starts_with(start))) {
                build.env_remove(name);
            }
        }
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "planish does not build");
        binary
    });
    Command::new(binary)
}

/// The packages that it is made of.
const PACKAGES: [&str; 6] = ["autograd", "cli", "cuda", "nn", "tensor", "train"];

/// Whether a binary is younger than all of the packages in `root`, their folders included: a file that is gone changes its folder. What
/// cargo writes beside a binary, a rule of make, is not there when only tests asked for it.
fn is_fresh(binary: &Path, root: &Path) -> bool {
    let modified = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let Some(built) = modified(binary) else { return false };
    let mut left = vec![root.join("Cargo.toml"), root.join("Cargo.lock")];
    left.extend(PACKAGES.map(|name| root.join(name)));
    while let Some(path) = left.pop() {
        if modified(&path).is_none_or(|at| at > built) {
            return false;
        }
        if path.is_dir() {
            let Ok(entries) = std::fs::read_dir(&path) else { return false };
            let inside =
                entries.flatten().filter(|entry| !["tests", "examples"].iter().any(|name| entry.file_name() == *name));
            left.extend(inside.map(|entry| entry.path()));
        }
    }
    true
}

/// Runs the program to its end.
///
/// # Panics
/// If it cannot be started.
pub fn planish<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Done {
    let output = command().args(arguments).output().expect("planish starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Done { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs the program and asserts that it refuses as it should: exit code 2, nothing on stdout, one
/// line on stderr that says `words`. Returns that line.
///
/// # Panics
/// If it does anything else.
pub fn refused<S: AsRef<std::ffi::OsStr> + std::fmt::Debug>(arguments: &[S], words: &str) -> String {
    let done = planish(arguments);
    assert_eq!(done.code, 2, "{arguments:?}: {done:?}");
    assert!(done.stdout.is_empty(), "{arguments:?}: {done:?}");
    assert!(done.stderr.starts_with("error: ") && done.stderr.trim_end().lines().count() == 1, "{done:?}");
    assert!(done.stderr.contains(words), "{arguments:?}\nexpected: {words}\nfound: {}", done.stderr);
    done.stderr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_is_fresh_until_a_source_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let (root, binary) = (dir.path(), dir.path().join("program"));
        let source = root.join("cli/src/main.rs");
        for package in PACKAGES {
            std::fs::create_dir_all(root.join(package).join("src")).unwrap();
        }
        std::fs::create_dir(root.join("cuda/tests")).unwrap();
        for file in [&source, &root.join("Cargo.toml"), &root.join("Cargo.lock"), &root.join("cuda/tests/ops.rs")] {
            std::fs::write(file, "").unwrap();
        }
        assert!(!is_fresh(&binary, root), "nothing there");
        std::fs::write(&binary, "").unwrap();
        let at = |path: &Path, ahead: u64| {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(ahead)).unwrap();
        };
        at(&binary, 5);
        at(&root.join("cuda/tests/ops.rs"), 20);
        assert!(is_fresh(&binary, root), "tests are no part of it");
        at(&source, 10);
        assert!(!is_fresh(&binary, root));
        at(&binary, 15);
        assert!(is_fresh(&binary, root));
        std::fs::remove_file(root.join("Cargo.lock")).unwrap();
        assert!(!is_fresh(&binary, root), "a file is gone");
    }
}
