//! A device without a GPU: PTX, interpreted.
//!
//! [`Emulator`] stands in for NVIDIA's driver, so everything above [`Driver`](crate::driver::Driver) runs unchanged. It
//! runs warps of 32 lanes in step and keeps a shadow of memory, which shows what hardware hides: accesses out of
//! bounds, misaligned or of freed memory, reads of bytes that nothing wrote, races on shared memory, barriers that not
//! all reach, `cp.async` data that nobody waited for. The first of these ends the launch as a [`Fault`], which names
//! kernel, block, thread and line. A launch that succeeds leaves a [`Report`].
//!
//! ```
//! use planish_cuda::driver::{Arg, Driver, Image, Launch, Stream};
//! use planish_cuda::emulator::Emulator;
//!
//! let ptx = "
//! .version 8.0
//! .target sm_80
//! .address_size 64
//! .visible .entry double_all(.param .u64 x) {
//!     .reg .b32 %r<3>;
//!     .reg .b64 %rd<4>;
//!     ld.param.u64 %rd1, [x];
//!     mov.u32 %r1, %tid.x;
//!     mul.wide.u32 %rd2, %r1, 4;
//!     add.s64 %rd3, %rd1, %rd2;
//!     ld.global.u32 %r2, [%rd3];
//!     add.s32 %r2, %r2, %r2;
//!     st.global.u32 [%rd3], %r2;
//!     ret;
//! }";
//! let device = Emulator::new((9, 0))?;
//! let stream = Stream::default();
//! let kernel = device.function(device.load(Image::Ptx(ptx))?, "double_all")?;
//! let x = device.alloc(64 * 4, stream)?;
//! device.upload(x, &[7; 64 * 4], stream)?;
//! let launch = Launch { grid: [1; 3], block: [64, 1, 1], cluster: [1; 3], shared_bytes: 0 };
//! device.launch(kernel, &launch, &[Arg::Ptr(x)], stream)?;
//! let mut bytes = [0; 64 * 4];
//! device.download(&mut bytes, x, stream)?;
//! assert_eq!(bytes, [14; 64 * 4]);
//! // Two warps read and write; each request is 32 lanes of 4 bytes side by side, four sectors.
//! assert_eq!(device.last_report().unwrap().global.used, 2 * 2 * 4);
//!
//! // One thread too many.
//! let launch = Launch { block: [65, 1, 1], ..launch };
//! let error = device.launch(kernel, &launch, &[Arg::Ptr(x)], stream).unwrap_err().to_string();
//! assert!(error.contains("thread (64, 0, 0), PTX line 12 `ld.global.u32 %r2, [%rd3];`"), "{error}");
//! assert!(error.contains("0 past their end"), "{error}");
//! # Ok::<(), planish_cuda::Error>(())
//! ```

mod barrier;
mod block;
mod class;
mod cluster;
mod decode;
mod device;
mod driver;
mod exec;
mod fault;
mod float;
mod isa;
mod launch;
mod mbarrier;
mod memory;
mod ptx;
mod report;
mod shared;
mod slots;
mod tensor_map;
mod together;
mod trace;
mod window;

pub use class::Class;
pub use device::Emulator;
pub use fault::{AccessKind, Fault, FaultKind, Line};
pub use report::{Report, Traffic, Waste};
pub use shared::Checks;
pub use trace::{Kind, Step, Trace, Watch, Written};
