//! The divergence of a student's predictions from a teacher's; see `cuda/kernels/lm_head_divergence.cu`.
//!
//! Logits of both exist for [`ROWS`] rows and [`TILE`] tokens at a time, in f32.

use super::lm_head::{Gradients, LmHead, ROWS, Rows, Sizes, TILE};
use super::{row_threads, types};
use crate::driver::Arg;
use crate::kernels::LM_HEAD_DIVERGENCE;
use crate::memory::{DeviceBuffer, Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "lm_head_divergence";

/// A model's predictions.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Hidden states and head; the targets, as many as there are rows, are not looked at.
    pub of: Rows<'a>,
    /// Options of the head, the temperature among them.
    pub head: LmHead,
    /// ln Σ e^z: (rows) f32, as [`lm_head::forward`](super::lm_head::forward) gives it.
    pub lse: Slice<'a>,
}

impl Side<'_> {
    fn check(&self) -> Result<Sizes> {
        let sizes = self.of.check()?;
        self.lse.expect(OP, "lse", sizes.rows)?;
        self.lse.expect_dtype(OP, "lse", DType::F32)?;
        Ok(sizes)
    }

    /// `struct Cap` of the kernels.
    fn cap(&self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.head.scale.to_le_bytes());
        bytes[4..].copy_from_slice(&self.head.softcap.unwrap_or(0.0).to_le_bytes());
        bytes
    }

    fn lse(&self, (r0, n): (usize, usize)) -> Result<Arg<'static>> {
        Ok(self.lse.part(r0, n)?.arg())
    }
}

/// Both, whose rows and vocabularies must agree.
struct Pair<'a, 'b> {
    sides: [&'b Side<'a>; 2],
    sizes: [Sizes; 2],
    caps: [[u8; 8]; 2],
}

impl<'a, 'b> Pair<'a, 'b> {
    fn new(sides @ [student, teacher]: [&'b Side<'a>; 2]) -> Result<Pair<'a, 'b>> {
        let sizes = [student.check()?, teacher.check()?];
        let [ours, theirs] = &sizes;
        for (what, expected, got) in [
            ("the teacher's rows", ours.rows, theirs.rows),
            ("the teacher's vocabulary", ours.vocabulary, theirs.vocabulary),
        ] {
            if expected != got {
                return Err(Error::Length { op: OP, what, expected, got });
            }
        }
        Ok(Pair { sides, sizes, caps: sides.map(Side::cap) })
    }

    /// For each tile of rows and of the vocabulary the logits of both, then what is done with them.
    fn tiles(
        &self,
        queue: Queue<'_>,
        mut each: impl FnMut([Slice<'_>; 2], (usize, usize), (usize, usize)) -> Result<()>,
    ) -> Result<()> {
        let [student, teacher] = self.sides;
        let mut zs = student.of.logits(queue, &self.sizes[0])?;
        let mut zt = teacher.of.logits(queue, &self.sizes[1])?;
        for rows in blocks(self.sizes[0].rows) {
            student.of.tiles(queue, &self.sizes[0], rows, &mut zs, |zs, v0, width| {
                let zt = teacher.of.tile(queue, &self.sizes[1], rows, &mut zt, (v0, width))?;
                each([zs, zt], rows, (v0, width))
            })?;
        }
        Ok(())
    }
}

/// Rows that are taken at a time: where they begin, and how many.
fn blocks(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(ROWS).map(move |r0| (r0, ROWS.min(rows - r0)))
}

fn launch(queue: Queue<'_>, name: &'static str, dtype: DType, rows: usize, args: &[Arg<'_>]) -> Result<()> {
    queue.launch(&LM_HEAD_DIVERGENCE, name, &types([("T", dtype)]), Shape::line(rows, row_threads(TILE)), args)
}

fn number(n: usize) -> Arg<'static> {
    // The vocabulary has been checked, and k is at most that.
    Arg::U32(n as u32)
}

fn columns(rows: usize, all: &[(&'static str, Slice<'_>)]) -> Result<()> {
    all.iter().try_for_each(|(what, slice)| {
        slice.expect(OP, what, rows)?;
        slice.expect_dtype(OP, what, DType::F32)
    })
}

/// D, and the sums of g that [`backward`] needs: (rows) f32 each. `sides`: student and teacher.
///
/// # Errors
/// Sizes or types that do not agree; no room for the logits.
pub fn forward(
    queue: Queue<'_>,
    [divergence, centre]: [SliceMut<'_>; 2],
    sides: [&Side<'_>; 2],
    beta: f32,
) -> Result<()> {
    let pair = Pair::new(sides)?;
    columns(pair.sizes[0].rows, &[("the divergences", *divergence), ("their centres", *centre)])?;
    pair.tiles(queue, |[zs, zt], rows @ (r0, n), (v0, width)| {
        let sums = [&divergence, &centre].map(|sum| (**sum).part(r0, n));
        let [d, g] = sums.map(|sum| sum.map(|sum| sum.arg()));
        let (lse, [ours, theirs]) = (pair.sides.map(|side| side.lse(rows)), pair.caps.each_ref());
        let [a, b] = lse;
        let args = [d?, g?, zs.arg(), zt.arg(), a?, b?, number(v0), number(width), Arg::F32(beta)];
        let caps = [Arg::Bytes(ours), Arg::Bytes(theirs)];
        launch(queue, "lm_head_divergence_take", DType::F32, n, &[&args[..], &caps].concat())
    })
}

/// The gradient of a tile of logits, in the type of the hidden states.
struct Dz {
    room: DeviceBuffer,
    dtype: DType,
}

impl Dz {
    fn new(queue: Queue<'_>, of: &Rows<'_>, sizes: &Sizes) -> Result<Dz> {
        let (dtype, n) = (of.hidden.dtype(), ROWS.min(sizes.rows) * TILE.min(sizes.vocabulary));
        Ok(Dz { room: queue.alloc("the gradient of the head's logits", n, dtype)?, dtype })
    }

    fn part(&self, n: usize, width: usize) -> Result<Slice<'_>> {
        self.room.slice(self.dtype).part(0, n * width)
    }
}

/// What the gradients of divergences are multiplied with: `to.dlogprobs` stands for them.
fn upstream<'a>(to: &Gradients<'a>) -> Result<Slice<'a>> {
    let expected = 1;
    to.dlogprobs.ok_or(Error::Length { op: OP, what: "the upstream gradient", expected, got: 0 })
}

/// dhidden written and dW added to, of the student, from `to.dlogprobs`, the gradient of the divergences.
///
/// # Errors
/// As [`forward`]; no upstream gradient.
pub fn backward(
    queue: Queue<'_>,
    mut to: Gradients<'_>,
    sides: [&Side<'_>; 2],
    centre: Slice<'_>,
    beta: f32,
) -> Result<()> {
    let pair = Pair::new(sides)?;
    let (of, sizes, d) = (&pair.sides[0].of, &pair.sizes[0], upstream(&to)?);
    to.check(of, sizes)?;
    columns(sizes.rows, &[("the centres", centre)])?;
    if sizes.rows == 0 {
        return Ok(());
    }
    let dz = Dz::new(queue, of, sizes)?;
    pair.tiles(queue, |[zs, zt], rows @ (r0, n), at @ (_, width)| {
        let ([a, b], [ours, theirs]) = (pair.sides.map(|side| side.lse(rows)), pair.caps.each_ref());
        let (dz, centre, d) = (dz.part(n, width)?, centre.part(r0, n)?.arg(), d.part(r0, n)?.arg());
        let args = [dz.arg(), zs.arg(), zt.arg(), a?, b?, centre, d, number(width), Arg::F32(beta)];
        let caps = [Arg::Bytes(ours), Arg::Bytes(theirs)];
        launch(queue, "lm_head_divergence_gradient", dz.dtype(), n, &[&args[..], &caps].concat())?;
        to.take(queue, dz, of, sizes, rows, at)
    })
}

/// A teacher's k tokens in each row.
#[derive(Clone, Copy, Debug)]
pub struct Top<'a> {
    /// (rows, k) u32: different ones, below the vocabulary.
    pub ids: Slice<'a>,
    /// k.
    pub k: usize,
}

impl Top<'_> {
    fn check(&self, sizes: &Sizes) -> Result<()> {
        self.ids.expect_dtype(OP, "the teacher's tokens", DType::U32)?;
        self.ids.expect(OP, "the teacher's tokens", sizes.rows * self.k)
    }

    fn part(&self, (r0, n): (usize, usize)) -> Result<Arg<'static>> {
        Ok(self.ids.part(r0 * self.k, n * self.k)?.arg())
    }
}

/// The student's capped logits of a teacher's k tokens, (rows, k) f32, and of all other tokens the largest and Σ e^(z - largest):
/// (rows, 2) f32.
///
/// # Errors
/// As [`forward`].
pub fn forward_top(queue: Queue<'_>, [kept, rest]: [SliceMut<'_>; 2], student: &Side<'_>, top: Top<'_>) -> Result<()> {
    let (sizes, cap, k) = (student.check()?, student.cap(), top.k);
    top.check(&sizes)?;
    columns(sizes.rows * k, &[("the logits that are kept", *kept)])?;
    columns(2 * sizes.rows, &[("the sums of the others", *rest)])?;
    if sizes.rows == 0 {
        return Ok(());
    }
    let mut logits = student.of.logits(queue, &sizes)?;
    for rows @ (r0, n) in blocks(sizes.rows) {
        let (rest, kept) = ((*rest).part(2 * r0, 2 * n)?.arg(), (*kept).part(r0 * k, n * k)?.arg());
        let ids = top.part(rows)?;
        student.of.tiles(queue, &sizes, rows, &mut logits, |zs, v0, width| {
            let args = [rest, kept, zs.arg(), ids, number(k), number(v0), number(width), Arg::Bytes(&cap)];
            launch(queue, "lm_head_divergence_rest", DType::F32, n, &args)
        })?;
    }
    Ok(())
}

/// As [`backward`]: of row r, ∂D/∂z of the k tokens, `slopes`: (rows, k) f32, and of any other P · `factors`: (rows) f32.
///
/// # Errors
/// As [`backward`].
pub fn backward_top(
    queue: Queue<'_>,
    mut to: Gradients<'_>,
    student: &Side<'_>,
    top: Top<'_>,
    [slopes, factors]: [Slice<'_>; 2],
) -> Result<()> {
    let (of, sizes, cap, k) = (&student.of, student.check()?, student.cap(), top.k);
    let d = upstream(&to)?;
    to.check(of, &sizes)?;
    top.check(&sizes)?;
    columns(sizes.rows * k, &[("the slopes", slopes)])?;
    columns(sizes.rows, &[("the factors", factors)])?;
    if sizes.rows == 0 {
        return Ok(());
    }
    let (dz, mut logits) = (Dz::new(queue, of, &sizes)?, of.logits(queue, &sizes)?);
    for rows @ (r0, n) in blocks(sizes.rows) {
        let (ids, slopes, lse) = (top.part(rows)?, slopes.part(r0 * k, n * k)?.arg(), student.lse(rows)?);
        let (factors, d) = (factors.part(r0, n)?.arg(), d.part(r0, n)?.arg());
        of.tiles(queue, &sizes, rows, &mut logits, |zs, v0, width| {
            let dz = dz.part(n, width)?;
            let numbers = [number(k), number(v0), number(width), Arg::Bytes(&cap)];
            let args = [&[dz.arg(), zs.arg(), ids, slopes, lse, factors, d][..], &numbers].concat();
            launch(queue, "lm_head_divergence_gradient_top", dz.dtype(), n, &args)?;
            to.take(queue, dz, of, &sizes, rows, (v0, width))
        })?;
    }
    Ok(())
}
