//! CUDA devices, kernels and their emulator, for planish.
//!
//! This is a beginning: [`probe()`] finds out, on any machine and without ever failing, what a CUDA
//! backend would find. There are no kernels yet, so nothing can be computed on a GPU; programs
//! that are asked to should say so with [`CudaReport::why_unavailable`].

pub mod driver;
pub mod emulator;
mod error;
mod nvrtc;
mod probe;

pub use error::{Error, Result};
pub use nvrtc::{Nvrtc, find_nvrtc};
pub use probe::{CudaReport, DeviceInfo, Driver, probe};
