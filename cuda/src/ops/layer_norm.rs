//! Layer normalisation; see `cuda/kernels/layer_norm.cu`.

use super::norm::{self, Norm};
use super::{or_null, rows, same, size};
use crate::driver::Arg;
use crate::kernels::LAYER_NORM;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Queue, Result};

const OP: &str = "layer_norm";

/// Packs of a row that a thread keeps: the sums of the gradients take the registers of more.
const PACKS: usize = 2;

/// y = x̂ w + b and stats = (μ, r), over rows of as many elements as `weight` has: x, y: (rows, size),
/// stats: (rows, 2) f32.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn forward(
    queue: Queue<'_>,
    y: SliceMut<'_>,
    stats: SliceMut<'_>,
    x: Slice<'_>,
    weight: Slice<'_>,
    bias: Option<Slice<'_>>,
    eps: f32,
) -> Result<()> {
    let (width, count) = check(x, weight, *stats)?;
    same(OP, x, &[("y", *y)])?;
    if let Some(bias) = bias {
        same(OP, weight, &[("bias", bias)])?;
    }
    let (by, rows) = (Norm::new(weight.len(), PACKS), Arg::U32(size(OP, "rows", count)?));
    let args = [y.arg(), stats.arg(), x.arg(), weight.arg(), or_null(bias), Arg::F32(eps), rows, Arg::U32(width)];
    queue.launch(&LAYER_NORM, "layer_norm_forward", &by.defines(x.dtype(), weight.dtype()), by.shape(count), &args)
}

/// dx; dw and db added to `gradients`: (2, size) f32, dw first, if given.
///
/// # Errors
/// As [`forward`]; no room for the partial sums.
pub fn backward(
    queue: Queue<'_>,
    dx: SliceMut<'_>,
    gradients: Option<SliceMut<'_>>,
    dy: Slice<'_>,
    x: Slice<'_>,
    weight: Slice<'_>,
    stats: Slice<'_>,
) -> Result<()> {
    let (width, count) = check(x, weight, stats)?;
    same(OP, x, &[("dx", *dx), ("dy", dy)])?;
    let (by, rows) = (Norm::new(weight.len(), PACKS), Arg::U32(size(OP, "rows", count)?));
    let defines = by.defines(x.dtype(), weight.dtype());
    let Some(gradients) = gradients else {
        let args = [dx.arg(), dy.arg(), x.arg(), weight.arg(), stats.arg(), rows, Arg::U32(width)];
        return queue.launch(&LAYER_NORM, "layer_norm_backward", &defines, by.shape(count), &args);
    };
    gradients.expect(OP, "the gradients of weight and bias", 2 * weight.len())?;
    gradients.expect_dtype(OP, "the gradients of weight and bias", DType::F32)?;
    let each = by.rows_each(count);
    let blocks = count.div_ceil(each);
    let partial = queue.alloc("partial sums of a norm's gradient", blocks * 2 * weight.len(), DType::F32)?;
    let partial = partial.slice(DType::F32);
    let args = [
        dx.arg(),
        partial.arg(),
        dy.arg(),
        x.arg(),
        weight.arg(),
        stats.arg(),
        rows,
        Arg::U32(each as u32),
        Arg::U32(width),
    ];
    queue.launch(&LAYER_NORM, "layer_norm_backward_trained", &defines, by.shape(blocks), &args)?;
    norm::fold(queue, (&LAYER_NORM, "layer_norm_dweight_add", &defines), gradients, partial)
}

fn check(x: Slice<'_>, weight: Slice<'_>, stats: Slice<'_>) -> Result<(u32, usize)> {
    x.expect_compute(OP, "x")?;
    weight.expect_compute(OP, "weight")?;
    let count = rows(OP, "the size of weight", x, weight.len())?;
    stats.expect(OP, "stats", 2 * count)?;
    stats.expect_dtype(OP, "stats", DType::F32)?;
    Ok((size(OP, "the size of a row", weight.len())?, count))
}
