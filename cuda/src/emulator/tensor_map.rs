//! The emulator's own encoding of a tensor map: what `cuTensorMapEncodeTiled` is given, in 16 words.

use crate::DType;
use crate::driver::{Fill, TENSOR_MAP_BYTES, TensorMap};
use crate::error::{Error, Result};

/// The first word of every map, which no address is.
const MAGIC: u64 = u64::from_le_bytes(*b"tilemap1");

/// A map as copies use it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Map {
    pub(crate) base: u64,
    pub(crate) rank: usize,
    /// Bytes of an element.
    pub(crate) element: u64,
    /// Bits of an element outside.
    pub(crate) outside: u64,
    /// 16-byte chunks that change places, less 1: 0 for no swizzle.
    pub(crate) exchange: u64,
    pub(crate) sizes: [u64; 5],
    /// Bytes, the innermost's included; 0 where there is no dimension.
    pub(crate) strides: [u64; 5],
    /// Elements; 1 where there is no dimension.
    pub(crate) tile: [u64; 5],
}

fn nan(dtype: DType) -> u64 {
    match dtype {
        DType::F64 => f64::NAN.to_bits(),
        DType::F32 => u64::from(f32::NAN.to_bits()),
        DType::F16 => 0x7e00,
        _ => 0x7fc0,
    }
}

/// # Errors
/// What the rules forbid, and rows shorter than the swizzle's span, of which the documentation does not say how they
/// lie.
pub(crate) fn encode(map: &TensorMap<'_>, capability: (u32, u32)) -> Result<[u8; TENSOR_MAP_BYTES]> {
    map.check(capability)?;
    let span = map.swizzle.span().unwrap_or(16);
    if map.swizzle.span().is_some_and(|span| map.row_bytes() < u64::from(span)) {
        let what = format!("a box with rows of {} bytes in a swizzle of {span}", map.row_bytes());
        return Err(Error::NotEmulated { what });
    }
    let element = map.dtype.size() as u64;
    let outside = if map.fill == Fill::Nan { nan(map.dtype) } else { 0 };
    let mut words = [0_u64; TENSOR_MAP_BYTES / 8];
    words[0] = MAGIC;
    words[1] = map.base.0;
    words[2] = map.sizes.len() as u64 | element << 8 | u64::from(span / 16 - 1) << 16;
    words[3] = outside;
    for (at, (size, tile)) in map.sizes.iter().zip(map.tile).enumerate() {
        // A size may be 2^32.
        words[4 + at] = (size - 1) | u64::from(*tile) << 32;
    }
    words[9..9 + map.strides.len()].copy_from_slice(map.strides);
    let mut bytes = [0; TENSOR_MAP_BYTES];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    Ok(bytes)
}

/// A map from its bytes; `None` for bytes that `encode` did not make.
pub(crate) fn decode(bytes: &[u8; TENSOR_MAP_BYTES]) -> Option<Map> {
    let word = |at: usize| bytes[8 * at..8 * at + 8].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    let (rank, element) = ((word(2) & 0xff) as usize, word(2) >> 8 & 0xff);
    if word(0) != MAGIC || !(1..=5).contains(&rank) || !matches!(element, 1 | 2 | 4 | 8) {
        return None;
    }
    let mut map = Map {
        base: word(1),
        rank,
        element,
        outside: word(3),
        exchange: word(2) >> 16 & 7,
        sizes: [1; 5],
        strides: [0; 5],
        tile: [1; 5],
    };
    map.strides[0] = element;
    for at in 0..rank {
        map.sizes[at] = (word(4 + at) & 0xffff_ffff) + 1;
        map.tile[at] = (word(4 + at) >> 32).clamp(1, 256);
        if at > 0 {
            map.strides[at] = word(8 + at);
        }
    }
    Some(map)
}

impl Map {
    /// Where a byte of a box lies whose first byte is at `to`.
    pub(crate) fn place(&self, to: u64, at: u64) -> u64 {
        place(self.exchange, to, at)
    }

    /// Bytes of a box.
    pub(crate) fn bytes(&self) -> u64 {
        self.tile.iter().product::<u64>() * self.element
    }

    /// The rows of a box: for each, its first byte in the box, and the address of the element at coordinate 0 of
    /// the innermost dimension; `None` for a row that lies outside.
    pub(crate) fn rows(&self, first: [i64; 5]) -> impl Iterator<Item = (u64, Option<u64>)> + use<'_> {
        let row = self.tile[0] * self.element;
        let count: u64 = self.tile[1..].iter().product();
        (0..count).map(move |number| {
            let (mut rest, mut address) = (number, Some(self.base));
            for (dimension, begin) in first.iter().enumerate().take(self.rank).skip(1) {
                let at = begin + (rest % self.tile[dimension]) as i64;
                rest /= self.tile[dimension];
                let inside = (0..self.sizes[dimension] as i64).contains(&at);
                address = address
                    .filter(|_| inside)
                    .map(|address| address.wrapping_add((at as u64).wrapping_mul(self.strides[dimension])));
            }
            (number * row, address)
        })
    }
}

/// The address of byte `at` of what was copied to `to` with a swizzle.
pub(crate) fn place(exchange: u64, to: u64, at: u64) -> u64 {
    let plain = to.wrapping_add(at);
    plain ^ (plain >> 7 & exchange) << 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{DevicePtr, Swizzle};

    #[test]
    fn maps_are_read_as_they_were_written() {
        let map = TensorMap {
            base: DevicePtr(1 << 37),
            dtype: DType::F16,
            sizes: &[1 << 32, 3, 7],
            strides: &[32, 1 << 39],
            tile: &[32, 2, 256],
            swizzle: Swizzle::Bytes64,
            fill: Fill::Nan,
        };
        let bytes = encode(&map, (9, 0)).unwrap();
        let want = Map {
            base: 1 << 37,
            rank: 3,
            element: 2,
            outside: 0x7e00,
            exchange: 3,
            sizes: [1 << 32, 3, 7, 1, 1],
            strides: [2, 32, 1 << 39, 0, 0],
            tile: [32, 2, 256, 1, 1],
        };
        assert_eq!(decode(&bytes), Some(want));
        assert_eq!(decode(&[0; TENSOR_MAP_BYTES]), None);
        assert!(matches!(encode(&TensorMap { tile: &[16, 2, 1], ..map }, (9, 0)), Err(Error::NotEmulated { .. })));
        assert!(matches!(encode(&map, (8, 0)), Err(Error::TensorMap(_))));
    }

    #[test]
    fn rows_outside_have_no_address() {
        let map = TensorMap {
            base: DevicePtr(4096),
            dtype: DType::F32,
            sizes: &[4, 2, 3],
            strides: &[16, 48],
            tile: &[4, 2, 2],
            swizzle: Swizzle::None,
            fill: Fill::Zeros,
        };
        let map = decode(&encode(&map, (9, 0)).unwrap()).unwrap();
        let of = |first| map.rows(first).collect::<Vec<_>>();
        assert_eq!(of([0, 1, 2, 0, 0]), [(0, Some(4096 + 16 + 96)), (16, None), (32, None), (48, None)]);
        assert_eq!(of([9, -1, 0, 0, 0]), [(0, None), (16, Some(4096)), (32, None), (48, Some(4096 + 48))]);
        assert_eq!(map.bytes(), 64);
    }
}
