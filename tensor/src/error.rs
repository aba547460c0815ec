//! Errors of the tensor layer: every variant carries the op, the shapes and the dtypes it is about.

use crate::{DType, Device};

/// Result of a tensor operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a tensor operation.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// Two shapes that must agree do not.
    #[error("{op}: {what}: {lhs:?} does not match {rhs:?}")]
    ShapeMismatch {
        /// Op that was called.
        op: &'static str,
        /// The relation that is broken, e.g. `"x's last size against weight"`.
        what: &'static str,
        /// Shape found.
        lhs: Vec<usize>,
        /// Shape it was compared with.
        rhs: Vec<usize>,
    },
    /// A tensor has another number of dimensions than the op takes.
    #[error("{op}: expected {expected} dimension(s), got shape {shape:?}")]
    Rank {
        /// Op that was called.
        op: &'static str,
        /// Number of dimensions expected.
        expected: usize,
        /// Shape found.
        shape: Vec<usize>,
    },
    /// The dtype is not the one expected.
    #[error("{op}: expected dtype {expected}, got {got}")]
    DTypeMismatch {
        /// Op that was called.
        op: &'static str,
        /// Dtype expected.
        expected: DType,
        /// Dtype found.
        got: DType,
    },
    /// The op does not take this dtype at all.
    #[error("{op}: dtype {dtype} is not supported")]
    UnsupportedDType {
        /// Op that was called.
        op: &'static str,
        /// Dtype found.
        dtype: DType,
    },
    /// An index, axis, start or id lies outside what it indexes.
    #[error("{op}: {what} {index} is out of range for size {len}")]
    OutOfRange {
        /// Op that was called.
        op: &'static str,
        /// What is out of range, e.g. `"axis"`, `"token id"`.
        what: &'static str,
        /// The value found.
        index: i128,
        /// The size it must stay below.
        len: usize,
    },
    /// A number has a value the op cannot take.
    #[error("{op}: {name} is {value}, but it must be {expected}")]
    InvalidValue {
        /// Op that was called.
        op: &'static str,
        /// Name of the argument.
        name: &'static str,
        /// Value found.
        value: f64,
        /// What it must be, e.g. `"in [0, 1)"`.
        expected: &'static str,
    },
    /// The size of a shape does not fit into the address space.
    #[error("a tensor of shape {shape:?} and dtype {dtype} is too large to address")]
    TooLarge {
        /// Shape asked for.
        shape: Vec<usize>,
        /// Dtype asked for.
        dtype: DType,
    },
    /// The allocator refused.
    #[error("out of memory: could not allocate {bytes} bytes for a tensor")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The data given does not fill the shape.
    #[error("{op}: {len} element(s) do not fill shape {shape:?}")]
    Length {
        /// Op that was called.
        op: &'static str,
        /// Elements given.
        len: usize,
        /// Shape asked for.
        shape: Vec<usize>,
    },
    /// A contiguous tensor was needed.
    #[error("{op}: the tensor of shape {shape:?} is not contiguous; call contiguous() first")]
    NotContiguous {
        /// Op that was called.
        op: &'static str,
        /// Shape found.
        shape: Vec<usize>,
    },
    /// A tensor reaches past the end of the file it is mapped from.
    #[error("bytes {offset}..{end} lie outside a mapping of {len} bytes")]
    Mapping {
        /// First byte of the tensor.
        offset: usize,
        /// One past its last byte (saturated).
        end: usize,
        /// Bytes in the mapping.
        len: usize,
    },
    /// An op that has no kernel was applied to tensors on a device.
    #[error("{op}: not supported on {device} yet; use --device cpu")]
    NotOnDevice {
        /// Op that was called.
        op: &'static str,
        /// Where the tensors are.
        device: Device,
    },
    /// Elements that are on a device were asked for as if they were in the processor's memory.
    #[error("{op}: the tensor is on {device}; copy it with to_device(Device::Cpu) first")]
    NotHere {
        /// What was called.
        op: &'static str,
        /// Where the tensor is.
        device: Device,
    },
    /// Tensors of two devices in one op.
    #[error("{op}: one tensor is on {lhs} and another on {rhs}; copy one of them with to_device first")]
    MixedDevices {
        /// Op that was called.
        op: &'static str,
        /// Where the first is.
        lhs: Device,
        /// Where the other is.
        rhs: Device,
    },
    /// What is for tensors on a device was given tensors of the processor.
    #[error("{op}: this is for tensors on a device, and these are on the processor")]
    OnlyOnDevice {
        /// What was called.
        op: &'static str,
    },
    /// Recorded work asks for something that does not happen again when it is replayed.
    #[error("{what} cannot be recorded")]
    NotRecorded {
        /// What was asked for.
        what: &'static str,
    },
    /// A device that is open already, so that none can be put in its place.
    #[error("{device} is open already")]
    DeviceOpen {
        /// The device.
        device: Device,
    },
    /// A device that cannot be used on this machine.
    #[error("--device {device} cannot be used: {why}")]
    NoDevice {
        /// The device.
        device: Device,
        /// What is missing and how to get it.
        why: String,
    },
    /// A device failed or has no room.
    #[error(transparent)]
    Device(#[from] planish_cuda::Error),
}

impl Error {
    /// Whether a device has no room for something: other than after a failure, it can still be used.
    pub fn is_no_room(&self) -> bool {
        use planish_cuda::Error as C;
        matches!(self, Error::Device(C::NoRoom { .. } | C::OutOfMemory { .. }))
    }
}
