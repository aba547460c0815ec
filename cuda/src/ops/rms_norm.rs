//! RMSNorm; see `cuda/kernels/rms_norm.cu`.

use super::norm::{self, Norm};
use super::{or_null, or_null_mut, rows, same, size};
use crate::driver::Arg;
use crate::kernels::RMS_NORM;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Queue, Result};

const OP: &str = "rms_norm";

/// ε and what is added to the weight (1 for Gemma, which stores w - 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    /// ε.
    pub eps: f32,
    /// Added to the weight.
    pub offset: f32,
}

/// y = x r (w + offset) and r, over rows of as many elements as `weight` has: x, y: (rows, size), r: (rows) f32.
///
/// With `residual` = (residual, sum), x + residual is rounded to `sum`, and y is the norm of that.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn forward(
    queue: Queue<'_>,
    y: SliceMut<'_>,
    r: SliceMut<'_>,
    x: Slice<'_>,
    weight: Slice<'_>,
    residual: Option<(Slice<'_>, SliceMut<'_>)>,
    norm: RmsNorm,
) -> Result<()> {
    let (width, count) = check(x, weight)?;
    same(OP, x, &[("y", *y)])?;
    per_row(*r, count)?;
    let (residual, sum) = residual.map_or((None, None), |(residual, sum)| (Some(residual), Some(sum)));
    if let (Some(residual), Some(sum)) = (residual, &sum) {
        same(OP, x, &[("residual", residual), ("sum", **sum)])?;
    }
    let args = [
        y.arg(),
        r.arg(),
        or_null_mut(sum.as_ref()),
        x.arg(),
        or_null(residual),
        weight.arg(),
        Arg::F32(norm.eps),
        Arg::F32(norm.offset),
        Arg::U32(size(OP, "rows", count)?),
        Arg::U32(width),
    ];
    let by = taken(weight, x);
    queue.launch(&RMS_NORM, "rms_norm_forward", &by.defines(x.dtype(), weight.dtype()), by.shape(count), &args)
}

/// dx (and `dresidual`, what reaches x past the norm, added to it); dw added to `dweight` (size) f32, if given.
///
/// # Errors
/// As [`forward`]; no room for the partial sums of dw.
pub fn backward(
    queue: Queue<'_>,
    dx: SliceMut<'_>,
    dweight: Option<SliceMut<'_>>,
    dy: Slice<'_>,
    x: Slice<'_>,
    weight: Slice<'_>,
    r: Slice<'_>,
    dresidual: Option<Slice<'_>>,
    how: RmsNorm,
) -> Result<()> {
    let (width, count) = check(x, weight)?;
    same(OP, x, &[("dx", *dx), ("dy", dy)])?;
    per_row(r, count)?;
    if let Some(dresidual) = dresidual {
        same(OP, x, &[("dresidual", dresidual)])?;
    }
    let by = taken(weight, x);
    let defines = by.defines(x.dtype(), weight.dtype());
    let (dresidual, offset) = (or_null(dresidual), Arg::F32(how.offset));
    let (count, total) = (Arg::U32(size(OP, "rows", count)?), count);
    let Some(dweight) = dweight else {
        let args = [dx.arg(), dy.arg(), x.arg(), weight.arg(), r.arg(), dresidual, offset, count, Arg::U32(width)];
        return queue.launch(&RMS_NORM, "rms_norm_backward", &defines, by.shape(total), &args);
    };
    dweight.expect(OP, "dweight", weight.len())?;
    dweight.expect_dtype(OP, "dweight", DType::F32)?;
    let each = by.rows_each(total);
    let blocks = total.div_ceil(each);
    let partial = queue.alloc("partial sums of a norm's gradient", blocks * weight.len(), DType::F32)?;
    let partial = partial.slice(DType::F32);
    let args = [
        dx.arg(),
        partial.arg(),
        dy.arg(),
        x.arg(),
        weight.arg(),
        r.arg(),
        dresidual,
        offset,
        count,
        Arg::U32(each as u32),
        Arg::U32(width),
    ];
    queue.launch(&RMS_NORM, "rms_norm_backward_trained", &defines, by.shape(blocks), &args)?;
    norm::fold(queue, (&RMS_NORM, "rms_norm_dweight_add", &defines), dweight, partial)
}

fn check(x: Slice<'_>, weight: Slice<'_>) -> Result<(u32, usize)> {
    x.expect_compute(OP, "x")?;
    weight.expect_compute(OP, "weight")?;
    Ok((size(OP, "the size of a row", weight.len())?, rows(OP, "the size of weight", x, weight.len())?))
}

/// 64 bytes of x a thread.
fn taken(weight: Slice<'_>, x: Slice<'_>) -> Norm {
    Norm::new(weight.len(), if x.dtype() == DType::F32 { 2 } else { 4 })
}

fn per_row(r: Slice<'_>, rows: usize) -> Result<()> {
    r.expect(OP, "r", rows)?;
    r.expect_dtype(OP, "r", DType::F32)
}
