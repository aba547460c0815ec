//! What a token's experts made of it, weighed and added up; see `cuda/kernels/combine.cu`.

use super::{or_null_mut, row_threads, rows, size, types};
use crate::driver::Arg;
use crate::kernels::COMBINE;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "combine";

/// The choices of a token and where their rows are. `places` must hold each row of the parts once: whoever made it sees to that.
#[derive(Clone, Copy, Debug)]
pub struct Choices<'a> {
    /// (tokens, k) f32.
    pub weights: Slice<'a>,
    /// (tokens · k) u32, below tokens · k.
    pub places: Slice<'a>,
    /// k.
    pub of_token: usize,
}

impl Choices<'_> {
    /// Tokens, k and the size of a row.
    fn check(&self, parts: Slice<'_>) -> Result<[usize; 3]> {
        let count = self.places.len();
        let tokens = rows(OP, "choices of a token", self.places, self.of_token)?;
        self.places.expect_dtype(OP, "the places", DType::U32)?;
        self.weights.expect_dtype(OP, "the weights", DType::F32)?;
        self.weights.expect(OP, "the weights", count)?;
        parts.expect_compute(OP, "the parts")?;
        if count == 0 || !parts.len().is_multiple_of(count) {
            return Err(Error::Length { op: OP, what: "the parts", expected: count, got: parts.len() });
        }
        Ok([tokens, self.of_token, parts.len() / count])
    }
}

/// `y[t] = Σ_j w[t][j] parts[places[t k + j]]`; parts: (tokens · k, size), y: (tokens, size), of one type.
///
/// # Errors
/// Sizes or types that do not agree; no choice.
pub fn forward(queue: Queue<'_>, y: SliceMut<'_>, parts: Slice<'_>, of: Choices<'_>) -> Result<()> {
    let [tokens, k, width] = of.check(parts)?;
    y.expect(OP, "y", tokens * width)?;
    y.expect_dtype(OP, "y", parts.dtype())?;
    let sizes = [size(OP, "choices of a token", k)?, size(OP, "the size of a row", width)?].map(Arg::U32);
    let args = [y.arg(), parts.arg(), of.weights.arg(), of.places.arg(), sizes[0], sizes[1]];
    let shape = Shape::line(tokens, row_threads(width));
    queue.launch(&COMBINE, "combine_forward", &types([("T", parts.dtype())]), shape, &args)
}

/// `dparts[places[c]] = w[c] dy[t]`, if it is wanted, and `dw[c] = Σ parts[places[c]] dy[t]` for each choice c of a token t.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    queue: Queue<'_>,
    dparts: Option<SliceMut<'_>>,
    dw: SliceMut<'_>,
    dy: Slice<'_>,
    parts: Slice<'_>,
    of: Choices<'_>,
) -> Result<()> {
    let [tokens, k, width] = of.check(parts)?;
    dy.expect(OP, "dy", tokens * width)?;
    dy.expect_dtype(OP, "dy", parts.dtype())?;
    dw.expect(OP, "dw", tokens * k)?;
    dw.expect_dtype(OP, "dw", DType::F32)?;
    if let Some(dparts) = &dparts {
        dparts.expect(OP, "dparts", parts.len())?;
        dparts.expect_dtype(OP, "dparts", parts.dtype())?;
    }
    let args = [
        or_null_mut(dparts.as_ref()),
        dw.arg(),
        dy.arg(),
        parts.arg(),
        of.weights.arg(),
        of.places.arg(),
        Arg::U32(size(OP, "choices of a token", k)?),
        Arg::U32(size(OP, "the size of a row", width)?),
    ];
    let shape = Shape::line(tokens * k, row_threads(width));
    queue.launch(&COMBINE, "combine_backward", &types([("T", parts.dtype())]), shape, &args)
}
