//! Tensor maps: what the copy engine of sm_90 must know of a tensor to bring a box of it.
//!
//! A kernel takes a map by value ([`Arg::Bytes`](super::Arg::Bytes), 128 bytes at a multiple of 64) and names a box by
//! the coordinates of its first element. Elements outside of the tensor are filled when a box is loaded, and left out
//! when it is stored; so edges need no code, and a sum over k may run past its end.
//!
//! # Source
//! The rules are those of `cuTensorMapEncodeTiled` (CUDA driver API, "Tensor Map Object Management"), without
//! interleaved layouts, traversal strides and packed types.

use super::DevicePtr;
use crate::DType;

/// Bytes of a map.
pub const TENSOR_MAP_BYTES: usize = 128;

/// How 16-byte chunks of a box's rows change places in shared memory, so that a column of them lies in all banks.
///
/// With rows of `span` bytes, the chunk at address a goes to `a ^ (a >> 7 & (span / 16 - 1)) << 4`: the address's bits
/// from 4 on are exchanged by those from 7 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Swizzle {
    /// They keep their places.
    #[default]
    None,
    /// Within 32 bytes.
    Bytes32,
    /// Within 64 bytes.
    Bytes64,
    /// Within 128 bytes.
    Bytes128,
}

impl Swizzle {
    /// Bytes within which chunks change places; `None` for no swizzle.
    pub const fn span(self) -> Option<u32> {
        match self {
            Swizzle::None => None,
            Swizzle::Bytes32 => Some(32),
            Swizzle::Bytes64 => Some(64),
            Swizzle::Bytes128 => Some(128),
        }
    }
}

/// What elements outside of the tensor are loaded as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fill {
    /// Zeros.
    #[default]
    Zeros,
    /// NaN; of floats only.
    Nan,
}

/// A tensor in global memory and the box of it that a copy moves. The innermost dimension comes first.
#[derive(Clone, Copy, Debug)]
pub struct TensorMap<'a> {
    /// The first element.
    pub base: DevicePtr,
    /// Type of the elements.
    pub dtype: DType,
    /// Elements along each dimension.
    pub sizes: &'a [u64],
    /// Bytes from one element to the next along each dimension but the innermost, whose elements are side by side.
    pub strides: &'a [u64],
    /// Elements of the box along each dimension.
    pub tile: &'a [u32],
    /// The order in shared memory.
    pub swizzle: Swizzle,
    /// What is outside.
    pub fill: Fill,
}

/// A description that no map can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorMapProblem {
    /// Too many dimensions, or none.
    #[error("a tensor map has 1 to 5 dimensions, not {rank}")]
    Rank {
        /// How many.
        rank: usize,
    },
    /// Lists that do not belong together.
    #[error("a tensor map of {rank} dimensions was given {got} {what}")]
    Lengths {
        /// Dimensions.
        rank: usize,
        /// Which list.
        what: &'static str,
        /// Its length.
        got: usize,
    },
    /// A first element that the copy engine cannot fetch.
    #[error("the tensor begins at {address:#x}, which is no multiple of 16 bytes")]
    Base {
        /// The address.
        address: u64,
    },
    /// A size out of its range.
    #[error("dimension {dimension} has {got} elements; a tensor map takes 1 to 2^32")]
    Size {
        /// Which dimension, the innermost 0.
        dimension: usize,
        /// Its elements.
        got: u64,
    },
    /// A stride that the copy engine cannot go.
    #[error("the stride of dimension {dimension} is {got} bytes; it must be a multiple of 16 below 2^40")]
    Stride {
        /// Which dimension, the innermost 0.
        dimension: usize,
        /// The stride, bytes.
        got: u64,
    },
    /// A box that is too large, or empty.
    #[error("the box has {got} elements along dimension {dimension}; it may have 1 to 256")]
    Tile {
        /// Which dimension, the innermost 0.
        dimension: usize,
        /// Its elements.
        got: u32,
    },
    /// Rows of the box that are no whole chunks.
    #[error("a row of the box has {bytes} bytes, which is no multiple of 16")]
    Row {
        /// Its bytes.
        bytes: u64,
    },
    /// Rows of the box that do not fit the swizzle.
    #[error("a row of the box has {bytes} bytes, more than the {span} that the swizzle spans")]
    Span {
        /// Its bytes.
        bytes: u64,
        /// Bytes of the swizzle.
        span: u32,
    },
    /// NaN where there is none.
    #[error("{dtype} has no NaN to fill with")]
    Fill {
        /// The type.
        dtype: DType,
    },
    /// A device without a copy engine that takes maps.
    #[error("tensor maps need compute capability 9.0, and the device has {major}.{minor}")]
    Device {
        /// Compute capability.
        major: u32,
        /// Compute capability.
        minor: u32,
    },
}

impl TensorMap<'_> {
    /// Checks the description for a device of a compute capability.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self, (major, minor): (u32, u32)) -> Result<(), TensorMapProblem> {
        use TensorMapProblem as Problem;
        let rank = self.sizes.len();
        if major < 9 {
            return Err(Problem::Device { major, minor });
        }
        if !(1..=5).contains(&rank) {
            return Err(Problem::Rank { rank });
        }
        for (what, got, expected) in
            [("strides", self.strides.len(), rank - 1), ("sizes of its box", self.tile.len(), rank)]
        {
            if got != expected {
                return Err(Problem::Lengths { rank, what, got });
            }
        }
        if !self.base.0.is_multiple_of(16) {
            return Err(Problem::Base { address: self.base.0 });
        }
        if let Some((dimension, &got)) = self.sizes.iter().enumerate().find(|(_, size)| !(1..=1 << 32).contains(*size))
        {
            return Err(Problem::Size { dimension, got });
        }
        let bad = |stride: u64| !stride.is_multiple_of(16) || stride >= 1 << 40;
        if let Some((at, &got)) = self.strides.iter().enumerate().find(|(_, stride)| bad(**stride)) {
            return Err(Problem::Stride { dimension: at + 1, got });
        }
        if let Some((dimension, &got)) = self.tile.iter().enumerate().find(|(_, size)| !(1..=256).contains(*size)) {
            return Err(Problem::Tile { dimension, got });
        }
        let bytes = self.row_bytes();
        if !bytes.is_multiple_of(16) {
            return Err(Problem::Row { bytes });
        }
        if let Some(span) = self.swizzle.span().filter(|span| bytes > u64::from(*span)) {
            return Err(Problem::Span { bytes, span });
        }
        let float = matches!(self.dtype, DType::F32 | DType::F64 | DType::BF16 | DType::F16);
        if self.fill == Fill::Nan && !float {
            return Err(Problem::Fill { dtype: self.dtype });
        }
        Ok(())
    }

    /// Bytes of a row of the box.
    pub(crate) fn row_bytes(&self) -> u64 {
        u64::from(self.tile.first().copied().unwrap_or(0)) * self.dtype.size() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_has_its_sentence() {
        const HOPPER: (u32, u32) = (9, 0);
        let good = TensorMap {
            base: DevicePtr(4096),
            dtype: DType::BF16,
            sizes: &[100, 7],
            strides: &[208],
            tile: &[64, 8],
            swizzle: Swizzle::Bytes128,
            fill: Fill::Zeros,
        };
        assert_eq!(good.check(HOPPER), Ok(()));
        assert_eq!(TensorMap { fill: Fill::Nan, ..good }.check(HOPPER), Ok(()));
        let nan = TensorMap { dtype: DType::U8, fill: Fill::Nan, ..good };
        let span = |swizzle, tile| TensorMap { swizzle, tile, ..good };
        for (bad, words) in [
            (TensorMap { sizes: &[], strides: &[], tile: &[], ..good }, "1 to 5 dimensions, not 0"),
            (TensorMap { sizes: &[1; 6], strides: &[16; 5], tile: &[8; 6], ..good }, "not 6"),
            (TensorMap { strides: &[], ..good }, "of 2 dimensions was given 0 strides"),
            (TensorMap { tile: &[64], ..good }, "given 1 sizes of its box"),
            (TensorMap { base: DevicePtr(4104), ..good }, "begins at 0x1008"),
            (TensorMap { sizes: &[100, 0], ..good }, "dimension 1 has 0 elements"),
            (TensorMap { sizes: &[1 << 33, 7], ..good }, "dimension 0 has 8589934592"),
            (TensorMap { strides: &[200], ..good }, "stride of dimension 1 is 200 bytes"),
            (TensorMap { strides: &[1 << 40], ..good }, "below 2^40"),
            (TensorMap { tile: &[64, 257], ..good }, "257 elements along dimension 1"),
            (TensorMap { tile: &[0, 8], ..good }, "0 elements along dimension 0"),
            (TensorMap { tile: &[60, 8], ..good }, "120 bytes, which is no multiple of 16"),
            (span(Swizzle::Bytes128, &[72, 8]), "144 bytes, more than the 128"),
            (span(Swizzle::Bytes64, &[64, 8]), "128 bytes, more than the 64"),
            (span(Swizzle::Bytes32, &[24, 8]), "48 bytes, more than the 32"),
            (nan, "u8 has no NaN"),
        ] {
            let problem = bad.check(HOPPER).unwrap_err().to_string();
            assert!(problem.contains(words), "{problem} for {words}");
        }
        assert!(good.check((8, 9)).unwrap_err().to_string().contains("8.9"));
        assert_eq!(span(Swizzle::None, &[256, 8]).check(HOPPER), Ok(()));
    }
}
