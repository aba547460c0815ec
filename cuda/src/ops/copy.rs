//! Elements moved between layouts; see `cuda/kernels/copy.cu`.

use super::{each, size, types, with};
use crate::driver::Arg;
use crate::kernels::COPY;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result};

const OP: &str = "copy";

/// Most dimensions, once those that lie without gaps on both sides are one.
const RANK: usize = 8;

/// A dimension: its size, and the strides of x and y along it, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dim {
    /// Elements along it.
    pub size: usize,
    /// From one to the next in x; 0 repeats.
    pub x: usize,
    /// From one to the next in y.
    pub y: usize,
}

/// y at its strides = x at its own.
///
/// # Errors
/// More than 8 dimensions that do not run together; places beyond a slice; types that differ.
pub fn strided(queue: Queue<'_>, y: SliceMut<'_>, x: Slice<'_>, dims: &[Dim]) -> Result<()> {
    y.expect_dtype(OP, "y", x.dtype())?;
    launch(queue, "copy_strided", y, x, dims)
}

/// y at its strides += x at its own; y is f32.
///
/// # Errors
/// As [`strided`].
pub fn add(queue: Queue<'_>, y: SliceMut<'_>, x: Slice<'_>, dims: &[Dim]) -> Result<()> {
    y.expect_dtype(OP, "y", DType::F32)?;
    x.expect_compute(OP, "x")?;
    launch(queue, "copy_add", y, x, dims)
}

/// y = the value whose bits, in its lowest bytes, are `bits`.
///
/// # Errors
/// Those of the driver.
pub fn fill(queue: Queue<'_>, y: SliceMut<'_>, bits: u64) -> Result<()> {
    let args = [y.arg(), Arg::U64(bits), Arg::U64(y.len() as u64)];
    queue.launch(&COPY, "copy_fill", &defines(y.dtype()), each(y.len()), &args)
}

fn defines(dtype: DType) -> crate::cache::Defines {
    let defines = types([("T", dtype)]);
    if dtype.is_compute() { with(defines, "ADDS", 1) } else { defines }
}

fn launch(queue: Queue<'_>, name: &'static str, y: SliceMut<'_>, x: Slice<'_>, dims: &[Dim]) -> Result<()> {
    let n = dims.iter().map(|d| d.size).product::<usize>();
    if n == 0 {
        return Ok(());
    }
    for (what, slice, end) in [
        ("x", x, dims.iter().map(|d| (d.size - 1) * d.x).sum::<usize>()),
        ("y", *y, dims.iter().map(|d| (d.size - 1) * d.y).sum()),
    ] {
        if end >= slice.len() {
            return Err(Error::Length { op: OP, what, expected: end + 1, got: slice.len() });
        }
    }
    let dims = merged(dims);
    if dims.len() > RANK {
        return Err(Error::Size { op: OP, what: "the number of dimensions", expected: "at most 8", got: dims.len() });
    }
    let mut bytes = [0; 8 + 4 * RANK + 16 * RANK];
    bytes[..4].copy_from_slice(&(dims.len() as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&size(OP, "the number of elements", n)?.to_le_bytes());
    for (i, d) in dims.iter().enumerate() {
        bytes[8 + 4 * i..][..4].copy_from_slice(&(d.size as u32).to_le_bytes());
        for (at, stride) in [(8 + 4 * RANK, d.x), (8 + 12 * RANK, d.y)] {
            bytes[at + 8 * i..][..8].copy_from_slice(&(stride as u64).to_le_bytes());
        }
    }
    let args = [y.arg(), x.arg(), Arg::Bytes(&bytes)];
    queue.launch(&COPY, name, &defines(x.dtype()), each(n), &args)
}

/// Without sizes of 1, and with dimensions that run on in x and in y made one.
fn merged(dims: &[Dim]) -> Vec<Dim> {
    let mut out: Vec<Dim> = Vec::new();
    for &d in dims.iter().filter(|d| d.size != 1) {
        match out.last_mut() {
            Some(last) if last.x == d.x * d.size && last.y == d.y * d.size => {
                *last = Dim { size: last.size * d.size, ..d };
            }
            _ => out.push(d),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_that_run_on_are_one() {
        let dim = |size, x, y| Dim { size, x, y };
        assert_eq!(merged(&[dim(2, 12, 12), dim(3, 4, 4), dim(1, 9, 9), dim(4, 1, 1)]), [dim(24, 1, 1)]);
        assert_eq!(merged(&[dim(3, 1, 4), dim(4, 3, 1)]), [dim(3, 1, 4), dim(4, 3, 1)]);
        assert_eq!(merged(&[dim(5, 0, 6), dim(2, 3, 3), dim(3, 1, 1)]), [dim(5, 0, 6), dim(6, 1, 1)]);
        assert_eq!(merged(&[dim(1, 1, 1)]), []);
    }
}
