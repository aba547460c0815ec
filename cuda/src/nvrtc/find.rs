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
//!
//! A driver runs machine code of its own major version of CUDA and of older ones, so where there is a driver, the first
//! that it can run the code of is taken. If there is none, the first of all is: the emulator runs its PTX.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::probe::driver_version;

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

impl Nvrtc {
    /// Whether a driver that is for this version of CUDA runs what it compiles.
    pub fn serves(&self, driver: (i32, i32)) -> bool {
        self.version.0 <= driver.0
    }

    /// The Python package that has an NVRTC for a driver, or for none.
    pub(crate) fn package(driver: Option<(i32, i32)>) -> &'static str {
        // From 13 on the name has no number, and the newest needs a new driver.
        if driver.is_some_and(|driver| driver.0 == 12) { "nvidia-cuda-nvrtc-cu12" } else { "nvidia-cuda-nvrtc" }
    }
}

/// The NVRTC of the search that is used; `None` if there is none.
pub fn find_nvrtc() -> Option<Nvrtc> {
    choose(found(), driver_version(), |nvrtc| Some(nvrtc.clone()))
}

/// All that load and answer, in the order of the search, each loaded when it is asked for.
pub(super) fn found() -> impl Iterator<Item = Nvrtc> {
    candidates().filter_map(|path| {
        let version = version_of(&path)?;
        Some(Nvrtc { path, version })
    })
}

/// What becomes of the first that serves the driver, if anything does, or of the first of the others.
pub(super) fn choose<R>(
    found: impl Iterator<Item = Nvrtc>,
    driver: Option<(i32, i32)>,
    open: impl Fn(&Nvrtc) -> Option<R>,
) -> Option<R> {
    let mut others = Vec::new();
    for nvrtc in found {
        if driver.is_some_and(|driver| !nvrtc.serves(driver)) {
            others.push(nvrtc);
        } else if let Some(opened) = open(&nvrtc) {
            return Some(opened);
        }
    }
    others.iter().find_map(open)
}

/// The files of the search that exist, then the bare names that the loader may resolve.
fn candidates() -> impl Iterator<Item = PathBuf> {
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

/// The directories in `dir` whose name starts so, the highest number first.
fn children(dir: &Path, start: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(start)))
        .map(|entry| entry.path())
        .collect();
    // 12.10 comes before 12.9.
    let numbers = |path: &PathBuf| -> Vec<u32> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    found.sort_by(|a, b| (numbers(b), b).cmp(&(numbers(a), a)));
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
    fn higher_numbers_come_first() {
        let place = tempfile::tempdir().unwrap();
        for name in ["cuda-12.9", "cuda-12.10", "cuda-9.2", "other"] {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        let found = children(place.path(), "cuda-");
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["cuda-12.10", "cuda-12.9", "cuda-9.2"]);
    }

    #[test]
    fn the_first_that_the_driver_runs_is_taken() {
        let of = |path: &str, version| Nvrtc { path: path.into(), version };
        let found = [of("a", (13, 1)), of("broken", (12, 9)), of("b", (12, 4)), of("c", (12, 8)), of("d", (11, 8))];
        let chosen = |driver| {
            let works = |nvrtc: &Nvrtc| (nvrtc.path != Path::new("broken")).then(|| nvrtc.clone());
            choose(found.clone().into_iter(), driver, works).unwrap().path
        };
        assert_eq!(chosen(None), Path::new("a"));
        assert_eq!(chosen(Some((13, 0))), Path::new("a"), "the minor version does not count");
        assert_eq!(chosen(Some((12, 4))), Path::new("b"));
        assert_eq!(chosen(Some((11, 8))), Path::new("d"));
        // None serves: the emulator can still use it.
        assert_eq!(chosen(Some((10, 0))), Path::new("a"));
        assert_eq!(choose(std::iter::empty(), Some((12, 4)), |nvrtc| Some(nvrtc.clone())), None);
    }

    #[test]
    fn what_is_not_needed_is_not_loaded() {
        let found = [(13, 0), (12, 4), (12, 9)].map(|version| Nvrtc { path: "x".into(), version });
        let asked = std::cell::Cell::new(0);
        let found = found.into_iter().inspect(|_| asked.set(asked.get() + 1));
        assert_eq!(choose(found, Some((12, 4)), |nvrtc| Some(nvrtc.version)), Some((12, 4)));
        assert_eq!(asked.get(), 2);
    }

    #[test]
    fn the_package_is_the_drivers() {
        assert_eq!(Nvrtc::package(None), "nvidia-cuda-nvrtc");
        assert_eq!(Nvrtc::package(Some((13, 0))), "nvidia-cuda-nvrtc");
        assert_eq!(Nvrtc::package(Some((12, 4))), "nvidia-cuda-nvrtc-cu12");
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
