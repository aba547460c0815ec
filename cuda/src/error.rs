//! What can go wrong on a device.

/// Result of a device's work.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a device, its compiler or its emulator.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device has no room.
    #[error("the device is out of memory: {asked} bytes were asked for, {free} of {total} are free")]
    OutOfMemory {
        /// What was asked for, bytes.
        asked: u64,
        /// What is free, bytes.
        free: u64,
        /// What there is, bytes.
        total: u64,
    },
    /// A call to the driver failed.
    #[error("{call} failed: {reason}")]
    Driver {
        /// The function of the driver.
        call: &'static str,
        /// Its name for the error.
        reason: String,
    },
    /// A handle that this device did not give out, or took back.
    #[error("{what} {handle} is not one of this device's")]
    Handle {
        /// What kind of handle.
        what: &'static str,
        /// Its number.
        handle: u64,
    },
    /// A kernel that the image does not have.
    #[error("the image has no kernel {name}")]
    NoKernel {
        /// Its name.
        name: String,
    },
    /// A launch that does not fit the kernel or the device.
    #[error("{kernel}: {problem}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// What does not fit.
        problem: String,
    },
    /// A tensor that the copy engine cannot be told of.
    #[error("{0}")]
    TensorMap(#[from] crate::driver::TensorMapProblem),
    /// There is no NVRTC to compile kernels with.
    #[error(
        "NVRTC, the compiler of CUDA kernels, was not found: `pip install {package}` in the Python on PATH, or set CUDA_HOME"
    )]
    NoNvrtc {
        /// The Python package that has one for the driver at hand.
        package: &'static str,
    },
    /// A call to NVRTC failed.
    #[error("{call} failed: {reason}")]
    Nvrtc {
        /// The function.
        call: &'static str,
        /// Its words.
        reason: String,
    },
    /// A kernel does not compile.
    #[error("{program} does not compile for {arch}: {log}")]
    Compile {
        /// The file.
        program: String,
        /// The architecture.
        arch: String,
        /// What the compiler said.
        log: String,
    },
    /// An architecture whose name is none.
    #[error("{text:?} is no architecture; write it as sm_80 or sm_90a")]
    Architecture {
        /// As written.
        text: String,
    },
    /// The kernel cache cannot be written.
    #[error("the kernel cache {path} cannot be used: {reason}")]
    Cache {
        /// The file or folder.
        path: std::path::PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The device has no room, and the allocator nothing left to give back.
    #[error(
        "{what} needs {asked} bytes of device memory: {free} of {total} are free, {in_use} are in use by this program"
    )]
    NoRoom {
        /// Who asked.
        what: &'static str,
        /// Bytes asked for.
        asked: u64,
        /// Bytes in use through this allocator.
        in_use: u64,
        /// Bytes free on the device.
        free: u64,
        /// Bytes that the device has.
        total: u64,
    },
    /// Sizes that do not agree.
    #[error("{op}: {what} should have {expected} elements, not {got}")]
    Length {
        /// The operation.
        op: &'static str,
        /// Which argument.
        what: &'static str,
        /// What the others demand.
        expected: usize,
        /// What it has.
        got: usize,
    },
    /// A size that the kernels do not do.
    #[error("{op}: {what} is {got}; it must be {expected}")]
    Size {
        /// The operation.
        op: &'static str,
        /// Which size.
        what: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        got: usize,
    },
    /// A dtype that an argument may not have.
    #[error("{op}: {what} is {got}; it must be {expected}")]
    DType {
        /// The operation.
        op: &'static str,
        /// Which argument.
        what: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        got: crate::DType,
    },
    /// A slice that does not begin where a kernel can fetch it.
    #[error("{op}: {what} must begin at a multiple of 16 bytes")]
    Alignment {
        /// The operation.
        op: &'static str,
        /// Which argument.
        what: &'static str,
    },
    /// A number out of its range.
    #[error("{op}: {what} is {got}; it must be {expected}")]
    Value {
        /// The operation.
        op: &'static str,
        /// Which number.
        what: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        got: f64,
    },
    /// A kernel did what it must not, and the emulator saw it.
    #[error("{0}")]
    Emulator(Box<crate::emulator::Fault>),
    /// PTX that the emulator cannot read or does not know.
    #[error("PTX line {line} `{text}`: {problem}")]
    Ptx {
        /// The line, from 1.
        line: u32,
        /// Its text.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What the emulator cannot be asked for.
    #[error("{what} is not emulated")]
    NotEmulated {
        /// What was asked for.
        what: String,
    },
}

impl Error {
    /// There is no NVRTC on a machine with this driver.
    pub(crate) fn no_nvrtc(driver: Option<(i32, i32)>) -> Error {
        Error::NoNvrtc { package: crate::Nvrtc::package(driver) }
    }
}
