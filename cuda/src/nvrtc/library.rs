//! The functions of NVRTC that are used, loaded by name.

use std::ffi::{CStr, c_char, c_int};
use std::path::{Path, PathBuf};

use libloading::Library;

use super::find::{choose, found};
use crate::probe::driver_version;
use crate::{Error, Result};

/// `nvrtcProgram`: a pointer to something that only NVRTC knows.
pub(super) type Handle = *mut std::ffi::c_void;

type Status = c_int;

macro_rules! functions {
    ($($field:ident = $name:literal: fn($($arg:ty),*);)*) => {
        /// The loaded library: its functions live as long as it does.
        pub(super) struct Api {
            pub(super) path: PathBuf,
            $(pub(super) $field: unsafe extern "C" fn($($arg),*) -> Status,)*
            error_string: unsafe extern "C" fn(Status) -> *const c_char,
            // After the functions: they are not used once it is gone.
            _library: Library,
            _builtins: Option<Library>,
        }

        impl Api {
            fn link(path: PathBuf, library: Library, builtins: Option<Library>) -> Option<Api> {
                // SAFETY: the signatures are those of nvrtc.h since CUDA 11.2; `nvrtcResult` is a C enum, and
                // the pointers are kept together with the library.
                unsafe {
                    Some(Api {
                        $($field: *library.get($name).ok()?,)*
                        error_string: *library.get(b"nvrtcGetErrorString\0").ok()?,
                        path,
                        _library: library,
                        _builtins: builtins,
                    })
                }
            }
        }
    };
}

functions! {
    version = b"nvrtcVersion\0": fn(*mut c_int, *mut c_int);
    create = b"nvrtcCreateProgram\0":
        fn(*mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char);
    destroy = b"nvrtcDestroyProgram\0": fn(*mut Handle);
    compile = b"nvrtcCompileProgram\0": fn(Handle, c_int, *const *const c_char);
    ptx_size = b"nvrtcGetPTXSize\0": fn(Handle, *mut usize);
    ptx = b"nvrtcGetPTX\0": fn(Handle, *mut c_char);
    cubin_size = b"nvrtcGetCUBINSize\0": fn(Handle, *mut usize);
    cubin = b"nvrtcGetCUBIN\0": fn(Handle, *mut c_char);
    log_size = b"nvrtcGetProgramLogSize\0": fn(Handle, *mut usize);
    log = b"nvrtcGetProgramLog\0": fn(Handle, *mut c_char);
}

impl Api {
    /// The first library of the search that serves the driver and has all functions.
    pub(super) fn open() -> Result<Api> {
        let driver = driver_version();
        choose(found(), driver, |nvrtc| Api::at(&nvrtc.path)).ok_or_else(|| Error::no_nvrtc(driver))
    }

    /// The library at a path; `None` if it does not load or lacks a function.
    pub(super) fn at(path: &Path) -> Option<Api> {
        let builtins = builtins_beside(path).and_then(|path| load(&path));
        Api::link(path.to_owned(), load(path)?, builtins)
    }

    /// An error for a status that is not 0.
    pub(super) fn check(&self, call: &'static str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: takes any number and gives a string that lives as long as the library, or null.
        let text = unsafe { (self.error_string)(status) };
        let reason = if text.is_null() {
            format!("error {status}")
        } else {
            // SAFETY: not null, and NVRTC ends its strings with a zero.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(Error::Nvrtc { call, reason })
    }
}

#[cfg(unix)]
fn load(path: &Path) -> Option<Library> {
    use libloading::os::unix::{Library as Unix, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: loading runs the library's initialisers. The path is that of NVIDIA's library in a place where
    // toolkits are installed, or a name that the system's loader resolves.
    unsafe { Unix::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.ok().map(Library::from)
}

#[cfg(not(unix))]
fn load(path: &Path) -> Option<Library> {
    // SAFETY: as above.
    unsafe { Library::new(path) }.ok()
}

/// NVRTC opens `libnvrtc-builtins` by its bare name at the first compilation, which only works if it is loaded
/// already or on the loader's path.
fn builtins_beside(nvrtc: &Path) -> Option<PathBuf> {
    let dir = nvrtc.canonicalize().ok()?.parent()?.to_owned();
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // Not the alternative build, which belongs to libnvrtc.alt.
            (name.starts_with("libnvrtc-builtins.so.") || name.starts_with("nvrtc-builtins64_"))
                && !name.contains("alt")
        })
        .collect();
    found.sort();
    found.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_nvrtc_is_passed_over() {
        assert!(Api::at(Path::new("/nonexistent/libnvrtc.so.13")).is_none());
        #[cfg(target_os = "linux")]
        assert!(Api::at(Path::new("libc.so.6")).is_none());
    }
}
