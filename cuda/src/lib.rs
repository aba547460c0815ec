//! CUDA devices, kernels and their emulator, for planish.
//!
//! From the bottom up: [`driver`] is the boundary to a device, NVIDIA's or emulated; [`nvrtc`] compiles kernels and
//! [`cache`] keeps what was compiled; [`memory`] allocates; a [`Device`] is all of these together; [`ops`] are the
//! launchers of the kernels in `cuda/kernels`, which [`kernels`] lists. There are no tensors here: launchers take
//! device [slices](memory::Slice) and sizes.
//!
//! [`probe()`] finds out, on any machine and without ever failing, what a CUDA backend would find;
//! [`CudaReport::unavailable`] says what is missing.

pub mod cache;
pub mod conformance;
mod device;
pub mod driver;
mod dtype;
pub mod emulator;
mod error;
mod graph;
pub mod kernels;
pub mod memory;
pub mod nvrtc;
pub mod ops;
mod probe;
mod profile;
pub mod sample;

pub use device::{Device, Queue, Shape};
pub use dtype::DType;
pub use error::{Error, Result};
pub use graph::{Recorder, Recording};
pub use nvrtc::{Nvrtc, find_nvrtc};
pub use probe::{CudaReport, DeviceInfo, Driver, probe};
pub use profile::KernelTime;
