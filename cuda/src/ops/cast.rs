//! From one type to another; see `cuda/kernels/cast.cu`.

use super::{packs, types};
use crate::driver::Arg;
use crate::kernels::CAST;
use crate::memory::{Slice, SliceMut};
use crate::{Queue, Result};

const OP: &str = "cast";

/// y = x, rounded to the nearest, ties to even; any two of f32, bf16, f16.
///
/// # Errors
/// Sizes that differ; other types.
pub fn cast(queue: Queue<'_>, y: SliceMut<'_>, x: Slice<'_>) -> Result<()> {
    x.expect_compute(OP, "x")?;
    y.expect_compute(OP, "y")?;
    y.expect(OP, "y", x.len())?;
    let args = [y.arg(), x.arg(), Arg::U64(x.len() as u64)];
    queue.launch(&CAST, "cast", &types([("S", x.dtype()), ("T", y.dtype())]), packs(x.len()), &args)
}
