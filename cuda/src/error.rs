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
