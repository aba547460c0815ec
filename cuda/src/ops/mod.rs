//! Launchers: one file for each file of kernels, under the same stem as the op on the CPU.
//!
//! A launcher checks the number and the type of the elements that it is given, chooses the specialisation and the
//! grid, and puts the kernel on a [`Queue`](crate::Queue). It does not wait. Formulas, shapes, the order of sums and
//! what bounds a kernel are in the head of its `.cu` file.
//!
//! Activations may be f32, bf16 or f16; arithmetic is in f32. Nothing is written through an atomic float, so a result
//! depends neither on what else runs nor on chance.

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod block_rotate;
pub mod cast;
pub mod cayley;
pub mod choose;
pub mod combine;
pub mod copy;
pub mod dequantise;
pub mod dora_linear;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod gather;
pub mod ggml;
pub mod glu;
pub mod grad_norm;
pub mod layer_norm;
pub mod linear;
pub mod lm_head;
pub mod lm_head_divergence;
pub mod lm_head_top;
pub mod lora_linear;
pub mod lstm;
pub mod matmul;
mod matmul_hopper;
pub mod matmul_nf4;
mod matmul_rows_hopper;
pub mod matmul_runs;
pub mod nf4;
mod norm;
pub mod reduction;
pub mod rms_norm;
pub mod rope;
mod runs;
pub mod sampling;
pub mod softmax;
pub mod unary;

pub use runs::Runs;

use crate::cache::Defines;
use crate::device::Shape;
use crate::driver::{Arg, DevicePtr};
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Result};

/// Definitions of types.
pub(crate) fn types<const N: usize>(of: [(&str, DType); N]) -> Defines {
    of.into_iter().map(|(name, dtype)| (name.to_owned(), dtype.name().to_owned())).collect()
}

/// With one more definition.
pub(crate) fn with(mut defines: Defines, name: &str, value: impl ToString) -> Defines {
    defines.push((name.to_owned(), value.to_string()));
    defines
}

/// Threads of a block that takes a row: a function of the row's size alone, because the order of its sums is.
pub(crate) fn row_threads(size: usize) -> u32 {
    (size.div_ceil(8).next_multiple_of(32)).clamp(32, 512) as u32
}

/// A thread for each of `n`.
pub(crate) fn each(n: usize) -> Shape {
    Shape::line(n.div_ceil(256), 256)
}

/// A thread for each pack of 8.
pub(crate) fn packs(n: usize) -> Shape {
    each(n.div_ceil(8))
}

/// A size as the kernels take it.
pub(crate) fn size(op: &'static str, what: &'static str, n: usize) -> Result<u32> {
    // Half the range: kernels go past the end by a block's worth of elements before they stop.
    match u32::try_from(n) {
        Ok(small) if small < 1 << 31 => Ok(small),
        _ => Err(Error::Size { op, what, expected: "below 2^31", got: n }),
    }
}

/// Rows of `width` elements in a slice.
pub(crate) fn rows(op: &'static str, what: &'static str, x: Slice<'_>, width: usize) -> Result<usize> {
    if width == 0 || !x.len().is_multiple_of(width) {
        return Err(Error::Size { op, what, expected: "a positive divisor of the number of elements", got: width });
    }
    Ok(x.len() / width)
}

pub(crate) const NULL: Arg<'static> = Arg::Ptr(DevicePtr(0));

pub(crate) fn or_null(slice: Option<Slice<'_>>) -> Arg<'static> {
    slice.map_or(NULL, |slice| slice.arg())
}

pub(crate) fn or_null_mut(slice: Option<&SliceMut<'_>>) -> Arg<'static> {
    slice.map_or(NULL, |slice| slice.arg())
}

/// Checks that slices have as many elements, of the same type, as `like`.
pub(crate) fn same(op: &'static str, like: Slice<'_>, others: &[(&'static str, Slice<'_>)]) -> Result<()> {
    for (what, other) in others {
        other.expect(op, what, like.len())?;
        other.expect_dtype(op, what, like.dtype())?;
    }
    Ok(())
}
