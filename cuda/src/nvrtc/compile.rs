//! Compiling.

use std::ffi::{CString, c_char, c_int};
use std::path::Path;
use std::ptr;

use super::library::{Api, Handle};
use super::ptxas::{self, Usage};
use super::{Arch, Nvrtc};
use crate::probe::driver_version;
use crate::{Error, Result};

/// What is compiled.
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// Its name in messages, such as `rms_norm.cu`.
    pub name: &'a str,
    /// CUDA C++.
    pub text: &'a str,
    /// (name, text) of what it includes.
    pub headers: &'a [(&'a str, &'a str)],
    /// (macro, value).
    pub defines: &'a [(String, String)],
    /// Whether the PTX says which line of CUDA C++ each instruction comes from.
    pub lines: bool,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// PTX text.
    pub ptx: String,
    /// Machine code for the architecture.
    pub cubin: Vec<u8>,
    /// What the assembler said of each kernel.
    pub usage: Vec<Usage>,
}

/// A loaded NVRTC. Programs may be compiled from several threads at once.
pub struct Compiler {
    api: Api,
    version: (i32, i32),
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiler").field("path", &self.api.path).field("version", &self.version).finish()
    }
}

/// Options of every compilation: part of what the cache asks about.
///
/// No fast mathematics: division, square root and exponentials are those that the tests compare with f64.
pub(crate) const OPTIONS: &[&str] = &["--std=c++17", "--device-as-default-execution-space", "--ptxas-options=-v"];

impl Compiler {
    /// The NVRTC of the [search](super::find_nvrtc).
    ///
    /// # Errors
    /// [`Error::NoNvrtc`].
    pub fn open() -> Result<Compiler> {
        Compiler::of(Api::open()?)
    }

    /// The NVRTC at a path.
    ///
    /// # Errors
    /// [`Error::NoNvrtc`] if it does not load.
    pub fn at(path: &Path) -> Result<Compiler> {
        Compiler::of(Api::at(path).ok_or_else(|| Error::no_nvrtc(driver_version()))?)
    }

    fn of(api: Api) -> Result<Compiler> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are valid for the call.
        api.check("nvrtcVersion", unsafe { (api.version)(&raw mut major, &raw mut minor) })?;
        Ok(Compiler { api, version: (major, minor) })
    }

    /// Where it is and which.
    pub fn nvrtc(&self) -> Nvrtc {
        Nvrtc { path: self.api.path.clone(), version: self.version }
    }

    /// Compiles to PTX and to a cubin.
    ///
    /// # Errors
    /// [`Error::Compile`] with the compiler's log; [`Error::Nvrtc`] for anything else that it refuses.
    pub fn compile(&self, program: &Program<'_>, arch: Arch) -> Result<Compiled> {
        let mut options = vec![format!("--gpu-architecture={arch}")];
        options.extend(OPTIONS.iter().map(|&option| option.to_owned()));
        if program.lines {
            options.push("--generate-line-info".to_owned());
        }
        options.extend(program.defines.iter().map(|(name, value)| format!("--define-macro={name}={value}")));
        let options = c_strings(options.iter().map(String::as_str))?;
        let (text, name) = (c_string(program.text)?, c_string(program.name)?);
        let names = c_strings(program.headers.iter().map(|header| header.0))?;
        let texts = c_strings(program.headers.iter().map(|header| header.1))?;
        let (names, texts, options) = (pointers(&names), pointers(&texts), pointers(&options));

        let api = &self.api;
        let mut unit = Unit { api, handle: ptr::null_mut() };
        // SAFETY: all strings end with a zero and outlive the call; the arrays have the lengths that are given.
        api.check("nvrtcCreateProgram", unsafe {
            let (texts, names) = (texts.as_ptr(), names.as_ptr());
            let count = program.headers.len() as c_int;
            (api.create)(&raw mut unit.handle, text.as_ptr(), name.as_ptr(), count, texts, names)
        })?;
        // SAFETY: the program was created; the options outlive the call.
        let status = unsafe { (api.compile)(unit.handle, options.len() as c_int, options.as_ptr()) };
        let log = unit.text("nvrtcGetProgramLog", api.log_size, api.log)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
        if let Err(error) = api.check("nvrtcCompileProgram", status) {
            let said = if log.trim().is_empty() { error.to_string() } else { log };
            return Err(Error::Compile { program: program.name.to_owned(), arch: arch.to_string(), log: said });
        }
        let mut ptx = unit.text("nvrtcGetPTX", api.ptx_size, api.ptx)?;
        while ptx.last() == Some(&0) {
            ptx.pop();
        }
        let ptx = String::from_utf8(ptx)
            .map_err(|_| Error::Nvrtc { call: "nvrtcGetPTX", reason: "the text is not UTF-8".into() })?;
        let ptx = if program.lines { without_folders(&ptx) } else { ptx };
        let cubin = unit.text("nvrtcGetCUBIN", api.cubin_size, api.cubin)?;
        Ok(Compiled { ptx, cubin, usage: ptxas::parse(&log) })
    }
}

/// The PTX with bare names of files: NVRTC puts the folder that the program happens to run in before them.
fn without_folders(ptx: &str) -> String {
    let line = |line: &str| match line.trim_start().strip_prefix(".file").and_then(|rest| rest.split_once('"')) {
        Some((number, path)) => {
            let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
            format!("\t.file{number}\"{name}")
        }
        None => line.to_owned(),
    };
    ptx.lines().map(|text| line(text) + "\n").collect()
}

/// A program under compilation, given back when done.
struct Unit<'a> {
    api: &'a Api,
    handle: Handle,
}

impl Unit<'_> {
    /// One of its outputs.
    fn text(
        &self,
        call: &'static str,
        size: unsafe extern "C" fn(Handle, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Handle, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>> {
        let mut bytes = 0;
        // SAFETY: the program is alive and the pointer is valid for the call.
        self.api.check(call, unsafe { size(self.handle, &raw mut bytes) })?;
        let mut out = vec![0u8; bytes];
        // SAFETY: the buffer has the size that NVRTC asked for.
        self.api.check(call, unsafe { get(self.handle, out.as_mut_ptr().cast()) })?;
        Ok(out)
    }
}

impl Drop for Unit<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: created by this library and destroyed once.
            unsafe { (self.api.destroy)(&raw mut self.handle) };
        }
    }
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::Nvrtc {
        call: "nvrtcCreateProgram",
        reason: "a text or an option holds a zero byte".into(),
    })
}

fn c_strings<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<CString>> {
    texts.map(c_string).collect()
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn files_lose_their_folders() {
        let ptx = "\t.file\t1 \"/a/b c/x.cu\"\n\tadd.s32 %r1, %r2, 3;\n.file 2 \"y.cuh\"\n";
        let bare = super::without_folders(ptx);
        assert_eq!(bare, "\t.file\t1 \"x.cu\"\n\tadd.s32 %r1, %r2, 3;\n\t.file 2 \"y.cuh\"\n");
    }
}
