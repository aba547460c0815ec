//! Device memory.
//!
//! [`Pool`] keeps what is given back and hands it out again: a training step in the steady state asks the driver for
//! nothing. [`DeviceBuffer`] is a piece of it that gives itself back; [`Slice`] and [`SliceMut`] are typed views, which
//! launchers take.

mod buffer;
mod pool;
mod slice;

pub use buffer::DeviceBuffer;
pub use pool::{Pool, Usage};
pub use slice::{Pod, Slice, SliceMut};
