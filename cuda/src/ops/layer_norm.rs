//! Layer normalisation; see `cuda/kernels/layer_norm.cu`.

use super::{or_null, row_threads, rows, same, size, types};
use crate::driver::Arg;
use crate::kernels::LAYER_NORM;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Queue, Result, Shape};

const OP: &str = "layer_norm";

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
    let args = [y.arg(), stats.arg(), x.arg(), weight.arg(), or_null(bias), Arg::F32(eps), Arg::U32(width)];
    let defines = types([("T", x.dtype()), ("W", weight.dtype())]);
    queue.launch(&LAYER_NORM, "layer_norm_forward", &defines, Shape::line(count, row_threads(weight.len())), &args)
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
    let defines = types([("T", x.dtype()), ("W", weight.dtype())]);
    let args = [dx.arg(), dy.arg(), x.arg(), weight.arg(), stats.arg(), Arg::U32(width)];
    let shape = Shape::line(count, row_threads(weight.len()));
    queue.launch(&LAYER_NORM, "layer_norm_backward", &defines, shape, &args)?;
    let Some(gradients) = gradients else { return Ok(()) };
    gradients.expect(OP, "the gradients of weight and bias", 2 * weight.len())?;
    gradients.expect_dtype(OP, "the gradients of weight and bias", DType::F32)?;
    let blocks = count.div_ceil(super::reduction::ROW_BLOCK);
    let partial = queue.alloc("partial sums of a norm's gradient", blocks * 2 * weight.len(), DType::F32)?;
    let partial = partial.slice(DType::F32);
    let args = [partial.arg(), dy.arg(), x.arg(), stats.arg(), Arg::U32(size(OP, "rows", count)?), Arg::U32(width)];
    let shape = Shape::grid([weight.len().div_ceil(128), blocks, 1], 128);
    queue.launch(&LAYER_NORM, "layer_norm_dweight", &defines, shape, &args)?;
    let args = [gradients.arg(), partial.arg(), Arg::U32(blocks as u32), Arg::U32(2 * width)];
    queue.launch(
        &LAYER_NORM,
        "layer_norm_dweight_add",
        &defines,
        Shape::line((2 * weight.len()).div_ceil(128), 128),
        &args,
    )
}

fn check(x: Slice<'_>, weight: Slice<'_>, stats: Slice<'_>) -> Result<(u32, usize)> {
    x.expect_compute(OP, "x")?;
    weight.expect_compute(OP, "weight")?;
    let count = rows(OP, "the size of weight", x, weight.len())?;
    stats.expect(OP, "stats", 2 * count)?;
    stats.expect_dtype(OP, "stats", DType::F32)?;
    Ok((size(OP, "the size of a row", weight.len())?, count))
}
