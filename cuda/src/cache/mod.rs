//! Compiled kernels on disk.
//!
//! An entry is named by a hash of all that its code depends on: the source, the headers that it includes, the macro
//! definitions, the compiler's options, the architecture and the version of NVRTC. So nothing ever has to be
//! invalidated: what changed has another name. Entries are written to a temporary file and renamed; two processes that
//! compile the same kernel write the same bytes. An entry whose checksum is wrong is compiled again and replaced. A cache
//! that cannot be written costs time only.

mod entry;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use sha2::{Digest, Sha256};

use crate::kernels::{HEADERS, Kernel};
use crate::nvrtc::{Arch, Compiled, Compiler, OPTIONS, Program};
use crate::{Error, Result};

/// Macro definitions that specialise a kernel: (name, value).
pub type Defines = Vec<(String, String)>;

/// Compiled kernels, from disk or from NVRTC.
#[derive(Debug)]
pub struct KernelCache {
    dir: Option<PathBuf>,
    lines: bool,
    compiler: OnceLock<Result<Compiler>>,
    asked: Mutex<BTreeSet<(&'static str, Defines)>>,
}

impl KernelCache {
    /// A cache in `dir`, or none. The folder is made when the first entry is written.
    pub fn new(dir: Option<PathBuf>) -> KernelCache {
        KernelCache { dir, lines: false, compiler: OnceLock::new(), asked: Mutex::default() }
    }

    /// A cache in the user's cache folder.
    pub fn of_user() -> KernelCache {
        KernelCache::new(default_dir(|name| std::env::var_os(name)))
    }

    /// The same, for kernels whose PTX names the lines of CUDA C++ that it comes from: what the emulator says of a
    /// fault, and what is shown of a warp, then does too.
    #[must_use]
    pub fn with_lines(self) -> KernelCache {
        KernelCache { lines: true, ..self }
    }

    /// Where entries are kept.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// NVRTC, loaded when it is first asked for.
    ///
    /// # Errors
    /// [`Error::NoNvrtc`].
    pub fn compiler(&self) -> Result<&Compiler> {
        self.compiler.get_or_init(Compiler::open).as_ref().map_err(Clone::clone)
    }

    /// What it was asked for so far: files by their stems, with definitions. For tests that hold the list of what is
    /// compiled ahead against what runs.
    pub fn asked(&self) -> Vec<(&'static str, Defines)> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// A kernel file compiled with these definitions for an architecture.
    ///
    /// # Errors
    /// [`Error::NoNvrtc`], and [`Error::Compile`] for a combination that the kernel refuses.
    pub fn get(&self, kernel: &Kernel, defines: &Defines, arch: Arch) -> Result<Compiled> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert((kernel.name, defines.clone()));
        let compiler = self.compiler()?;
        let version = compiler.nvrtc().version;
        let path = self.dir.as_ref().map(|dir| {
            let lines = if self.lines { "-lines" } else { "" };
            dir.join(format!("{}-{arch}{lines}-{}.kernel", kernel.name, &key(kernel, defines, arch, version)[..32]))
        });
        if let Some(found) = path.as_ref().and_then(|path| fs::read(path).ok()).and_then(|bytes| entry::read(&bytes)) {
            return Ok(found);
        }
        let name = format!("{}.cu", kernel.name);
        let program = Program { name: &name, text: kernel.text, headers: HEADERS, defines, lines: self.lines };
        let compiled = compiler.compile(&program, arch)?;
        if let Some(path) = path {
            // A full disk or a folder of somebody else must not keep the program from running.
            let _ = write(&path, &entry::write(&compiled));
        }
        Ok(compiled)
    }

    /// Compiles a kernel into the cache and says what it takes.
    ///
    /// # Errors
    /// As [`get`](KernelCache::get), and [`Error::Cache`] if the folder cannot be written.
    pub fn precompile(&self, kernel: &Kernel, defines: &Defines, arch: Arch) -> Result<Compiled> {
        if let Some(dir) = &self.dir {
            fs::create_dir_all(dir).map_err(|e| Error::Cache { path: dir.clone(), reason: e.to_string() })?;
            tempfile::tempfile_in(dir).map_err(|e| Error::Cache { path: dir.clone(), reason: e.to_string() })?;
        }
        self.get(kernel, defines, arch)
    }
}

/// Hash of all that compiled code depends on, in hexadecimal.
fn key(kernel: &Kernel, defines: &Defines, arch: Arch, version: (i32, i32)) -> String {
    let mut hash = Sha256::new();
    // Lengths first, so that no two different lists are the same bytes.
    let mut add = |part: &str| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(&format!("{arch} {}.{}", version.0, version.1));
    add(kernel.text);
    included(kernel.text).iter().for_each(|(name, text)| [name, text].into_iter().for_each(|part| add(part)));
    OPTIONS.iter().for_each(|option| add(option));
    defines.iter().for_each(|(name, value)| [name, value].into_iter().for_each(|part| add(part)));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The headers that a text includes, and those that they include, in the order of [`HEADERS`].
fn included(text: &str) -> Vec<(&'static str, &'static str)> {
    let names = |text: &str, name: &str| text.contains(&format!("#include \"{name}\""));
    let mut found = vec![false; HEADERS.len()];
    loop {
        let before = found.clone();
        for (at, (name, _)) in HEADERS.iter().enumerate() {
            found[at] |= names(text, name)
                || before.iter().zip(HEADERS).any(|(found, (_, header))| *found && names(header, name));
        }
        if found == before {
            return HEADERS.iter().zip(found).filter(|(_, found)| *found).map(|(header, _)| *header).collect();
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// `planish/kernels` in the user's cache folder: `XDG_CACHE_HOME`, `LOCALAPPDATA` or `~/.cache`.
fn default_dir(env: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| set("LOCALAPPDATA"))
        .or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("planish").join("kernels"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;

    #[test]
    fn every_part_changes_the_key() {
        let kernel = &kernels::RMS_NORM;
        let one = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        let (arch, version) = (Arch::new(8, 0), (13, 0));
        let other = Kernel { text: "", ..kernels::RMS_NORM };
        let keys = [
            key(kernel, &one("T", "f32"), arch, version),
            key(kernel, &one("T", "f16"), arch, version),
            key(kernel, &one("Tf", "32"), arch, version),
            key(kernel, &Vec::new(), arch, version),
            key(kernel, &Vec::new(), Arch::new(8, 9), version),
            key(kernel, &Vec::new(), arch, (13, 1)),
            key(&other, &Vec::new(), arch, version),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert!(keys.iter().all(|key| key.len() == 64));
    }

    #[test]
    fn headers_that_are_not_included_change_nothing() {
        let of = |kernel: &Kernel| included(kernel.text).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(of(&kernels::CAST), ["common.cuh"]);
        assert_eq!(of(&kernels::MATMUL_HOPPER), ["common.cuh", "mma.cuh", "product.cuh", "hopper.cuh", "ring.cuh"]);
        assert!(of(&kernels::ATTENTION_HOPPER).contains(&"attention.cuh"), "by way of another");
    }

    #[test]
    fn the_folder_is_the_users() {
        let of = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> = set.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
            default_dir(move |name| set.iter().find(|(n, _)| n == name).map(|(_, v)| v.into()))
        };
        assert_eq!(of(&[("HOME", "/h")]).unwrap(), Path::new("/h/.cache/planish/kernels"));
        assert_eq!(of(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).unwrap(), Path::new("/x/planish/kernels"));
        assert_eq!(of(&[("HOME", "/h"), ("XDG_CACHE_HOME", "x")]).unwrap(), Path::new("/h/.cache/planish/kernels"));
        assert_eq!(of(&[]), None);
    }
}
