//! NVRTC, NVIDIA's compiler of CUDA C++ in a library.
//!
//! [`find_nvrtc`] says where it is; [`Compiler`] loads it and compiles a [`Program`] for an [`Arch`], to PTX and
//! to a cubin at once. Loading is by absolute path: first `libnvrtc-builtins` that lies beside it, with its symbols
//! visible to the rest, so that no library path has to be set. Without the library everything is an error, never a
//! panic.
//!
//! Kernels need none of CUDA's headers: what they share is in `kernels/*.cuh`, handed over in memory.

mod arch;
mod compile;
mod find;
mod library;
mod ptxas;

pub use arch::Arch;
pub(crate) use compile::OPTIONS;
pub use compile::{Compiled, Compiler, Program};
pub use find::{Nvrtc, find_nvrtc};
pub use ptxas::Usage;
