//! Dropout with a counter-based mask; see `cuda/kernels/dropout.cu`.

use super::{row_threads, rows, same, size, types};
use crate::driver::Arg;
use crate::kernels::DROPOUT;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "dropout";

/// The stream that masks are drawn from, and how much is dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Seed of the stream.
    pub seed: u64,
    /// Its purpose (`tensor/src/rng.rs`).
    pub purpose: u32,
    /// Its step.
    pub step: u64,
    /// Probability that an element becomes 0, in [0, 1).
    pub p: f64,
}

impl Dropout {
    /// `struct Mask` of the kernels.
    ///
    /// # Errors
    /// p outside [0, 1).
    pub fn bytes(&self) -> Result<[u8; 32]> {
        if !(0.0..1.0).contains(&self.p) {
            return Err(Error::Value { op: OP, what: "p", expected: "in [0, 1)", got: self.p });
        }
        let threshold = (self.p * (1u64 << 32) as f64) as u32;
        let scale = (1.0 / (1.0 - self.p)) as f32;
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.step.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.purpose.to_le_bytes());
        bytes[20..24].copy_from_slice(&threshold.to_le_bytes());
        bytes[24..28].copy_from_slice(&scale.to_le_bytes());
        Ok(bytes)
    }
}

/// y = x under the mask, and dx from dy: the two are the same. x: (rows, columns), keys: (rows) words of 64 bits as
/// pairs of u32.
///
/// # Errors
/// Sizes or types that do not agree; p outside [0, 1).
pub fn dropout(
    queue: Queue<'_>,
    y: SliceMut<'_>,
    x: Slice<'_>,
    keys: Slice<'_>,
    dropout: &Dropout,
    columns: usize,
) -> Result<()> {
    x.expect_compute(OP, "x")?;
    same(OP, x, &[("y", *y)])?;
    let count = rows(OP, "the number of columns", x, columns)?;
    keys.expect_dtype(OP, "the keys", DType::U32)?;
    keys.expect(OP, "the keys", 2 * count)?;
    let mask = dropout.bytes()?;
    let args = [y.arg(), x.arg(), keys.arg(), Arg::Bytes(&mask), Arg::U32(size(OP, "columns", columns)?)];
    queue.launch(&DROPOUT, "dropout", &types([("T", x.dtype())]), Shape::line(count, row_threads(columns)), &args)
}
