//! Tensors, dtypes and CPU kernels of planish.
//!
//! [`Tensor`] is an n-dimensional array with run-time dtype, shape and strides over shared storage,
//! owned or mapped from a file. [`ops`] holds the kernels, forward and backward side by side, each
//! a plain function on tensors: the autograd layer decides what to save and when to call which.
//!
//! Arithmetic is done in f32 (or f64, for gradient checks); weights may be stored as bf16 or f16 and
//! are widened as they are read.

mod convert;
mod device;
mod dispatch;
mod dtype;
mod error;
pub mod gemm;
pub mod memory;
pub mod ops;
pub mod parallel;
pub mod pool;
pub mod quant;
mod real;
mod reduce;
pub mod rng;
mod scratch;
mod shape;
pub mod simd;
mod storage;
pub mod stream;
mod team;
mod tensor;

pub use device::{Device, MemoryUse, Transfers, optim, replay};
pub use dtype::{Bool, DType, Element, Float, Real, ViaF32, bf16, f16};
pub use error::{Error, Result};
pub use shape::{Shape, broadcast_shapes};
pub use tensor::Tensor;

pub use memmap2::Mmap;
