//! Finding NVRTC, the compiler that turns kernels into code for the card at hand.
//!
//! Searched in this order, newest major version first in each place:
//! 1. `CUDA_HOME` and `CUDA_PATH`, under `lib64`, `lib` and `targets/*/lib`;
//! 2. the toolkit's standard places, `/usr/local/cuda` and `/usr/local/cuda-*`, `/opt/cuda`;
//! 3. pip wheels (`nvidia/cuda_nvrtc/lib`, `nvidia/cu13/lib`) of `VIRTUAL_ENV`, `CONDA_PREFIX` and
//!    of each Python on `PATH`;
//! 4. the folder `nvrtc` beside the running program or in a folder above it, where `scripts/fetch-nvrtc` puts it
//!    (`target/nvrtc`);
//! 5. wherever the loader looks.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use libloading::Library;

/// An NVRTC that loads and answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvrtc {
    /// Its file; a bare name if the loader found it.
    pub path: PathBuf,
    /// Major and minor version.
    pub version: (i32, i32),
}

#[cfg(target_os = "linux")]
const NAMES: &[&str] = &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
#[cfg(target_os = "windows")]
const NAMES: &[&str] = &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"];
#[cfg(not(any(target_os = "linux", target_os = "windows")))]
const NAMES: &[&str] = &[];

/// The first NVRTC of the search that loads; `None` if there is none.
pub fn find_nvrtc() -> Option<Nvrtc> {
    candidates().find_map(|path| {
        let version = version_of(&path)?;
        Some(Nvrtc { path, version })
    })
}

/// The files of the search that exist, then the bare names that the loader may resolve.
pub(super) fn candidates() -> impl Iterator<Item = PathBuf> {
    let files = search_dirs(|name| std::env::var_os(name))
        .into_iter()
        .chain(beside(std::env::current_exe().ok().as_deref()))
        .flat_map(|dir| NAMES.iter().map(move |name| dir.join(name)))
        .filter(|path| path.is_file());
    files.chain(NAMES.iter().map(PathBuf::from))
}

/// Where a wheel unpacked beside the program has its libraries.
fn beside(program: Option<&Path>) -> Vec<PathBuf> {
    let above = program.into_iter().flat_map(|path| path.ancestors().skip(1));
    above.flat_map(|dir| WHEELS.map(|wheel| dir.join("nvrtc").join(wheel))).collect()
}

/// Folders of libraries within a folder of Python packages.
const WHEELS: [&str; 2] = ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"];

/// Loads the library and asks for its version.
fn version_of(path: &Path) -> Option<(i32, i32)> {
    // SAFETY: loading runs the library's initialisers. The path is that of NVIDIA's NVRTC in a place
    // where toolkits are installed, or a name that the system's loader resolves.
    let library = unsafe { Library::new(path) }.ok()?;
    let (mut major, mut minor) = (0_i32, 0_i32);
    // SAFETY: `nvrtcResult nvrtcVersion(int *major, int *minor)` since CUDA 7; `nvrtcResult` is a C
    // enum. Both pointers are valid for the call, and the library is alive.
    let status = unsafe {
        let ask = library.get::<unsafe extern "C" fn(*mut i32, *mut i32) -> i32>(b"nvrtcVersion\0").ok()?;
        ask(&raw mut major, &raw mut minor)
    };
    (status == 0).then_some((major, minor))
}

/// The directories of the search, in order, existing or not.
fn search_dirs(env: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(&env).map(PathBuf::from);
    let standard = ["/usr/local/cuda", "/opt/cuda"].into_iter().map(PathBuf::from);
    for toolkit in homes.chain(standard).chain(children(Path::new("/usr/local"), "cuda-")) {
        dirs.push(toolkit.join("lib64"));
        dirs.push(toolkit.join("lib"));
        dirs.extend(children(&toolkit.join("targets"), "").into_iter().map(|target| target.join("lib")));
    }
    let mut prefixes: Vec<PathBuf> =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(&env).map(PathBuf::from).collect();
    for bin in env("PATH").iter().flat_map(std::env::split_paths) {
        let python = ["python3", "python"].iter().any(|name| bin.join(name).is_file());
        if let (true, Some(prefix)) = (python, bin.parent()) {
            prefixes.push(prefix.to_owned());
        }
    }
    for prefix in prefixes {
        for python in children(&prefix.join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                for wheel in WHEELS {
                    dirs.push(python.join(packages).join(wheel));
                }
            }
        }
    }
    dirs
}

/// The directories in `dir` whose name starts so, the highest name first.
fn children(dir: &Path, start: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(start)))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_is_in_the_documented_order() {
        let place = tempfile::tempdir().unwrap();
        let at = place.path();
        for dir in ["tk/targets/x86_64-linux", "venv/lib/python3.12", "usr/bin", "usr/lib/python3.11"] {
            fs::create_dir_all(at.join(dir)).unwrap();
        }
        fs::write(at.join("usr/bin/python3"), "").unwrap();
        let dirs = search_dirs(|name| match name {
            "CUDA_HOME" => Some(at.join("tk").into()),
            "VIRTUAL_ENV" => Some(at.join("venv").into()),
            "PATH" => Some(std::env::join_paths([at.join("nothing"), at.join("usr/bin")]).unwrap()),
            _ => None,
        });
        let position = |dir: &str| dirs.iter().position(|d| d == &at.join(dir)).expect(dir);
        let order = [
            position("tk/lib64"),
            position("tk/targets/x86_64-linux/lib"),
            position("venv/lib/python3.12/site-packages/nvidia/cu13/lib"),
            position("venv/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib"),
            position("usr/lib/python3.11/dist-packages/nvidia/cu13/lib"),
        ];
        assert!(order.is_sorted(), "{order:?}");
    }

    #[test]
    fn a_wheel_beside_the_program_or_above_it_is_found() {
        let dirs = beside(Some(Path::new("/r/target/debug/deps/t")));
        let position = |dir: &str| dirs.iter().position(|d| d == Path::new(dir)).expect(dir);
        assert!(position("/r/target/debug/deps/nvrtc/nvidia/cu13/lib") < position("/r/target/nvrtc/nvidia/cu13/lib"));
        assert!(beside(None).is_empty());
    }

    #[test]
    fn a_file_that_is_no_library_is_passed_over() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("libnvrtc.so.13");
        fs::write(&file, "not ELF").unwrap();
        assert_eq!(version_of(&file), None);
        assert_eq!(version_of(&place.path().join("missing")), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_library_without_the_symbol_is_passed_over() {
        assert_eq!(version_of(Path::new("libc.so.6")), None);
    }
}
