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
        if is_fresh(&binary) {
            return binary;
        }
        let target = profile.parent().expect("target");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "planish", "--target-dir"]).arg(target);
        build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
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

/// Whether a binary is younger than everything it was made of, which cargo writes beside it as a rule of make.
fn is_fresh(binary: &Path) -> bool {
    let modified = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let (Some(built), Ok(rule)) = (modified(binary), std::fs::read_to_string(binary.with_extension("d"))) else {
        return false;
    };
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let sources = parts_of(&rule);
    let locked = ["Cargo.toml", "Cargo.lock"].map(|name| root.join(name));
    !sources.is_empty() && sources.iter().chain(&locked).all(|path| modified(path).is_some_and(|at| at <= built))
}

/// What a rule of make depends on: `target: part part`, where a space in a name has a backslash before it.
fn parts_of(rule: &str) -> Vec<PathBuf> {
    let parts = rule.lines().next().and_then(|line| line.split_once(": ")).map_or("", |(_, parts)| parts);
    let names = parts.replace("\\ ", "\0");
    names.split(' ').filter(|name| !name.is_empty()).map(|name| name.replace('\0', " ").into()).collect()
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
        let (binary, source) = (dir.path().join("program"), dir.path().join("a file.rs"));
        std::fs::write(&source, "").unwrap();
        assert!(!is_fresh(&binary), "nothing there");
        std::fs::write(&binary, "").unwrap();
        assert!(!is_fresh(&binary), "nobody knows what of");
        let rule = |source: &Path| format!("program: {}\n", source.display().to_string().replace(' ', "\\ "));
        std::fs::write(binary.with_extension("d"), rule(&source)).unwrap();
        let at = |path: &Path, ahead: u64| {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(ahead)).unwrap();
        };
        at(&binary, 5);
        assert!(is_fresh(&binary));
        at(&source, 10);
        assert!(!is_fresh(&binary));
        std::fs::write(binary.with_extension("d"), rule(&dir.path().join("gone.rs"))).unwrap();
        assert!(!is_fresh(&binary), "a source is gone");
    }
}
