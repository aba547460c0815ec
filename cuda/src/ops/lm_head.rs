//! The language-model head; see `cuda/kernels/lm_head.cu`.
//!
//! Logits exist for [`ROWS`] rows and [`TILE`] tokens of the vocabulary at a time, in f32; where they are wanted twice, by
//! [`forward_with_gradients`], for as many rows as have room in [`WHOLE_BYTES`].

use super::matmul::{Epilogue, Layout, Term, matmul};
use super::{NULL, each, row_threads, rows, size, types};
use crate::driver::Arg;
use crate::kernels::LM_HEAD;
use crate::memory::{DeviceBuffer, Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "lm_head";

/// Tokens of the vocabulary that are taken at a time. Part of the arithmetic, not only a tuning knob.
pub const TILE: usize = 8192;

/// Rows that are taken at a time: with [`TILE`], 128 MiB of logits. The more, the fewer times the gradient of a trained head
/// is read and written.
pub const ROWS: usize = 4096;

/// Logits of the whole vocabulary that exist at a time at most, bytes.
pub const WHOLE_BYTES: usize = 1 << 30;

/// Options of the head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LmHead {
    /// Factor on the logits (1 for most models).
    pub scale: f32,
    /// Bound c of the soft-cap c tanh(z / c).
    pub softcap: Option<f32>,
}

impl Default for LmHead {
    fn default() -> Self {
        LmHead { scale: 1.0, softcap: None }
    }
}

impl LmHead {
    fn args(&self) -> [Arg<'static>; 2] {
        [Arg::F32(self.scale), Arg::F32(self.softcap.unwrap_or(0.0))]
    }
}

/// What the head is asked about.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Hidden states: (rows, size).
    pub hidden: Slice<'a>,
    /// W: (vocabulary, size); where hidden is f32, of any type.
    pub weight: Slice<'a>,
    /// Target tokens: (rows) u32, below the vocabulary.
    pub targets: Slice<'a>,
}

/// What they are many of.
pub(super) struct Sizes {
    pub(super) rows: usize,
    size: usize,
    pub(super) vocabulary: usize,
}

impl Rows<'_> {
    pub(super) fn check(&self) -> Result<Sizes> {
        let count = self.targets.len();
        self.targets.expect_dtype(OP, "targets", DType::U32)?;
        self.weight.expect_compute(OP, "the weight")?;
        if self.hidden.dtype() != DType::F32 {
            self.hidden.expect_dtype(OP, "hidden", self.weight.dtype())?;
        }
        if count == 0 {
            self.hidden.expect(OP, "hidden", 0)?;
            return Ok(Sizes { rows: 0, size: 0, vocabulary: 0 });
        }
        let width = self.hidden.len() / count;
        self.hidden.expect(OP, "hidden", width * count)?;
        let vocabulary = rows(OP, "the size of a hidden state", self.weight, width)?;
        if vocabulary == 0 {
            return Err(Error::Size { op: OP, what: "the vocabulary", expected: "positive", got: 0 });
        }
        size(OP, "the vocabulary", vocabulary)?;
        Ok(Sizes { rows: count, size: width, vocabulary })
    }

    /// Rows `r0..r0 + n`, and for each tile of the vocabulary: its logits, made, then what is done with them.
    pub(super) fn tiles(
        &self,
        queue: Queue<'_>,
        sizes: &Sizes,
        rows: (usize, usize),
        logits: &mut DeviceBuffer,
        mut each_tile: impl FnMut(Slice<'_>, usize, usize) -> Result<()>,
    ) -> Result<()> {
        for v0 in (0..sizes.vocabulary).step_by(TILE) {
            let width = TILE.min(sizes.vocabulary - v0);
            each_tile(self.tile(queue, sizes, rows, logits, (v0, width))?, v0, width)?;
        }
        Ok(())
    }

    /// Logits of rows `r0..r0 + n` and `width` tokens from `v0`, made.
    pub(super) fn tile<'l>(
        &self,
        queue: Queue<'_>,
        sizes: &Sizes,
        (r0, n): (usize, usize),
        logits: &'l mut DeviceBuffer,
        (v0, width): (usize, usize),
    ) -> Result<Slice<'l>> {
        let hidden = self.hidden.part(r0 * sizes.size, n * sizes.size)?;
        let weight = self.weight.part(v0 * sizes.size, width * sizes.size)?;
        let term = Term { a: hidden, b: weight, depth: sizes.size };
        let out = logits.slice_mut(DType::F32).part(0, n * width)?;
        matmul(queue, out, [n, width], Layout::FORWARD, &[term], Epilogue::default())?;
        logits.slice(DType::F32).part(0, n * width)
    }

    pub(super) fn logits(&self, queue: Queue<'_>, sizes: &Sizes) -> Result<DeviceBuffer> {
        queue.alloc("the head's logits", ROWS.min(sizes.rows) * TILE.min(sizes.vocabulary), DType::F32)
    }
}

/// Where the results go, each (rows); f32 but `best`, which is u32: the most probable token, the first of equals.
#[derive(Debug)]
pub struct Output<'a> {
    /// Log-probability of the target, nats.
    pub logprobs: SliceMut<'a>,
    /// Entropy, nats, if wanted.
    pub entropy: Option<SliceMut<'a>>,
    /// ln Σ e^z, which the backward pass needs.
    pub lse: SliceMut<'a>,
    /// The most probable token.
    pub best: SliceMut<'a>,
}

/// The softmax of rows over the vocabulary, as far as it has been seen.
struct Running<'a> {
    queue: Queue<'a>,
    out: Output<'a>,
    head: LmHead,
    states: DeviceBuffer,
    rows: usize,
}

impl<'a> Running<'a> {
    fn begin(queue: Queue<'a>, out: Output<'a>, rows: usize, head: &LmHead) -> Result<Running<'a>> {
        for (what, slice) in
            [("logprobs", Some(*out.logprobs)), ("entropy", out.entropy.as_deref().copied()), ("lse", Some(*out.lse))]
        {
            let Some(slice) = slice else { continue };
            slice.expect(OP, what, rows)?;
            slice.expect_dtype(OP, what, DType::F32)?;
        }
        out.best.expect(OP, "best", rows)?;
        out.best.expect_dtype(OP, "best", DType::U32)?;
        let states = queue.alloc("the head's running sums", 4 * rows, DType::F32)?;
        let running = Running { queue, out, head: *head, states, rows };
        let args = [running.states(), running.out.best.arg(), Arg::U32(size(OP, "rows", rows)?)];
        running.launch("lm_head_begin", each(rows), &args)?;
        Ok(running)
    }

    fn states(&self) -> Arg<'static> {
        self.states.slice(DType::F32).arg()
    }

    fn launch(&self, name: &'static str, shape: Shape, args: &[Arg<'_>]) -> Result<()> {
        self.queue.launch(&LM_HEAD, name, &types([("T", DType::F32)]), shape, args)
    }

    /// Takes in the logits of `width` tokens from `v0`, tile by tile, for rows `r0..r0 + n`, `stride` apart.
    fn take(
        &self,
        (logits, stride): (Slice<'_>, usize),
        targets: Slice<'_>,
        (r0, n): (usize, usize),
        (v0, width): (usize, usize),
    ) -> Result<()> {
        let (states, best) = (self.states.slice(DType::F32).part(4 * r0, 4 * n)?, (*self.out.best).part(r0, n)?);
        let [scale, softcap] = self.head.args();
        let [first, width, tile] = [v0, width, TILE].map(|n| Arg::U32(n as u32));
        let targets = targets.part(r0, n)?.arg();
        let stride = Arg::U64(stride as u64);
        let args = [states.arg(), best.arg(), logits.arg(), stride, targets, first, width, tile, scale, softcap];
        self.launch("lm_head_take", Shape::line(n, row_threads(TILE)), &args)
    }

    fn finish(self) -> Result<()> {
        self.finish_rows((0, self.rows))
    }

    /// The results of rows `r0..r0 + n`.
    fn finish_rows(&self, (r0, n): (usize, usize)) -> Result<()> {
        let part = |slice: &SliceMut<'_>, width| Ok::<_, Error>((**slice).part(width * r0, width * n)?.arg());
        let entropy = self.out.entropy.as_ref().map_or(Ok(NULL), |entropy| part(entropy, 1))?;
        let states = self.states.slice(DType::F32).part(4 * r0, 4 * n)?.arg();
        let (logprobs, lse) = (part(&self.out.logprobs, 1)?, part(&self.out.lse, 1)?);
        self.launch("lm_head_finish", each(n), &[logprobs, entropy, lse, states, Arg::U32(size(OP, "rows", n)?)])
    }
}

/// Log-probabilities of the targets.
///
/// # Errors
/// Sizes or types that do not agree; no room for the logits.
pub fn forward(queue: Queue<'_>, out: Output<'_>, of: Rows<'_>, head: &LmHead) -> Result<()> {
    let sizes = of.check()?;
    let running = Running::begin(queue, out, sizes.rows, head)?;
    if sizes.rows == 0 {
        return Ok(());
    }
    let mut logits = of.logits(queue, &sizes)?;
    for r0 in (0..sizes.rows).step_by(ROWS) {
        let n = ROWS.min(sizes.rows - r0);
        of.tiles(queue, &sizes, (r0, n), &mut logits, |logits, v0, width| {
            running.take((logits, width), of.targets, (r0, n), (v0, width))
        })?;
    }
    running.finish()
}

/// As [`forward`], bit for bit, from raw logits W h that decoding has at hand: (rows, vocabulary) f32, made by
/// [`matmul`].
///
/// # Errors
/// Sizes or types that do not agree.
pub fn from_logits(
    queue: Queue<'_>,
    out: Output<'_>,
    logits: Slice<'_>,
    targets: Slice<'_>,
    vocabulary: usize,
    head: &LmHead,
) -> Result<()> {
    logits.expect_dtype(OP, "the logits", DType::F32)?;
    targets.expect_dtype(OP, "targets", DType::U32)?;
    let count = rows(OP, "the vocabulary", logits, vocabulary)?;
    targets.expect(OP, "targets", count)?;
    size(OP, "the vocabulary", vocabulary)?;
    let running = Running::begin(queue, out, count, head)?;
    if count > 0 {
        running.take((logits, vocabulary), targets, (0, count), (0, vocabulary))?;
    }
    running.finish()
}

/// logits = cap(scale logits) in place: (n) f32, for sampling.
///
/// # Errors
/// Another type.
pub fn cap(queue: Queue<'_>, logits: SliceMut<'_>, head: &LmHead) -> Result<()> {
    logits.expect_dtype(OP, "the logits", DType::F32)?;
    let [scale, softcap] = head.args();
    let args = [logits.arg(), scale, softcap, Arg::U64(logits.len() as u64)];
    queue.launch(&LM_HEAD, "lm_head_cap", &types([("T", DType::F32)]), each(logits.len()), &args)
}

/// Rows whose whole logits exist at a time.
fn whole_rows(rows: usize, vocabulary: usize) -> usize {
    let most = (WHOLE_BYTES / (4 * vocabulary.max(1))).clamp(1, ROWS).min(rows);
    // Whole tiles of products, if there are several.
    if most >= 128 && most < rows { most / 128 * 128 } else { most }
}

/// Bytes that are alive within [`forward_with_gradients`], and within it where there is no room for these or within
/// [`backward`], beside arguments and results: of `rows` hidden states of this type.
pub fn scratch_bytes(rows: usize, vocabulary: usize, hidden: DType) -> [[usize; 2]; 2] {
    let whole = whole_rows(rows, vocabulary);
    let (n, tile) = (ROWS.min(rows), TILE.min(vocabulary));
    [[4 * whole * vocabulary, hidden.size() * whole * tile], [4 * n * tile, hidden.size() * n * tile]]
}

/// Where gradients of log-probabilities go, and what they are multiplied with.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Upstream, ∂loss/∂logprob_r: (rows) f32; ones if not given.
    pub dlogprobs: Option<Slice<'a>>,
    /// (rows, size) f32, written.
    pub dhidden: SliceMut<'a>,
    /// (vocabulary, size) f32, added to; none for a frozen head.
    pub dweight: Option<SliceMut<'a>>,
}

impl Gradients<'_> {
    pub(super) fn check(&self, of: &Rows<'_>, sizes: &Sizes) -> Result<()> {
        let d = self.dlogprobs.map(|d| ("dlogprobs", d, sizes.rows));
        let w = self.dweight.as_deref().map(|w| ("the weight's gradient", *w, of.weight.len()));
        for (what, slice, len) in [("dhidden", *self.dhidden, sizes.rows * sizes.size)].into_iter().chain(d).chain(w) {
            slice.expect(OP, what, len)?;
            slice.expect_dtype(OP, what, DType::F32)?;
        }
        Ok(())
    }

    /// What the gradient of a tile of logits of rows `r0..r0 + n`, of `width` tokens from `v0`, adds.
    pub(super) fn take(
        &mut self,
        queue: Queue<'_>,
        dz: Slice<'_>,
        of: &Rows<'_>,
        sizes: &Sizes,
        (r0, n): (usize, usize),
        (v0, width): (usize, usize),
    ) -> Result<()> {
        let size = sizes.size;
        // The first tile writes, the others add.
        let rows = self.dhidden.reborrow().part(r0 * size, n * size)?;
        let term = Term { a: dz, b: of.weight.part(v0 * size, width * size)?, depth: width };
        let add = |add| Epilogue { add, ..Epilogue::default() };
        matmul(queue, rows, [n, size], Layout::INPUT_GRADIENT, &[term], add(v0 > 0))?;
        let Some(dweight) = &mut self.dweight else { return Ok(()) };
        let tile = dweight.reborrow().part(v0 * size, width * size)?;
        let term = Term { a: dz, b: of.hidden.part(r0 * size, n * size)?, depth: n };
        matmul(queue, tile, [width, size], Layout::WEIGHT_GRADIENT, &[term], add(true))
    }
}

/// As [`forward`], bit for bit, and the gradients, of the same logits: two products where [`forward`] and [`backward`] make
/// three, and with a gradient of the weight three where they make four. Without room for whole rows of logits it is
/// these two, with the same bits.
///
/// # Errors
/// As [`forward`].
pub fn forward_with_gradients(
    queue: Queue<'_>,
    out: Output<'_>,
    mut to: Gradients<'_>,
    of: Rows<'_>,
    head: &LmHead,
) -> Result<()> {
    let sizes = of.check()?;
    to.check(&of, &sizes)?;
    if sizes.rows == 0 {
        return forward(queue, out, of, head);
    }
    let most = whole_rows(sizes.rows, sizes.vocabulary);
    let mut whole = match queue.alloc("the head's logits", most * sizes.vocabulary, DType::F32) {
        Ok(logits) => logits,
        Err(Error::NoRoom { .. }) => return twice(queue, out, to, of, head, most),
        Err(error) => return Err(error),
    };
    let mut dz = Dz::new(queue, &of, most, sizes.vocabulary, head)?;
    let running = Running::begin(queue, out, sizes.rows, head)?;
    for r0 in (0..sizes.rows).step_by(most) {
        let n = most.min(sizes.rows - r0);
        let mut logits = whole.slice_mut(DType::F32).part(0, n * sizes.vocabulary)?;
        let term = Term { a: of.hidden.part(r0 * sizes.size, n * sizes.size)?, b: of.weight, depth: sizes.size };
        let shape = [n, sizes.vocabulary];
        matmul(queue, logits.reborrow(), shape, Layout::FORWARD, &[term], Epilogue::default())?;
        let tiles = (0..sizes.vocabulary).step_by(TILE).map(|v0| (v0, TILE.min(sizes.vocabulary - v0)));
        let from = |v0: usize| (*logits).part(v0, logits.len() - v0);
        running.take((from(0)?, sizes.vocabulary), of.targets, (r0, n), (0, sizes.vocabulary))?;
        running.finish_rows((r0, n))?;
        let lse = (*running.out.lse).part(r0, n)?;
        let d = to.dlogprobs.map(|d| d.part(r0, n)).transpose()?;
        for (v0, width) in tiles {
            let dz = dz.of((from(v0)?, sizes.vocabulary), of.targets.part(r0, n)?, lse, d, (v0, width))?;
            to.take(queue, dz, &of, &sizes, (r0, n), (v0, width))?;
        }
    }
    Ok(())
}

/// [`forward_with_gradients`] tile by tile, with the logits made twice; `most` rows at a time, as the sums of a weight's
/// gradient depend on it.
fn twice(queue: Queue<'_>, out: Output<'_>, to: Gradients<'_>, of: Rows<'_>, head: &LmHead, most: usize) -> Result<()> {
    let Output { logprobs, entropy, mut lse, best } = out;
    forward(queue, Output { logprobs, entropy, lse: lse.reborrow(), best }, of, head)?;
    gradients(queue, to, *lse, of, head, most)
}

/// The gradient of a tile of logits, in the type of the hidden states.
struct Dz<'a> {
    queue: Queue<'a>,
    room: DeviceBuffer,
    dtype: DType,
    head: LmHead,
}

impl<'a> Dz<'a> {
    fn new(queue: Queue<'a>, of: &Rows<'_>, rows: usize, vocabulary: usize, head: &LmHead) -> Result<Dz<'a>> {
        let dtype = of.hidden.dtype();
        let room = queue.alloc("the gradient of the head's logits", rows * TILE.min(vocabulary), dtype)?;
        Ok(Dz { queue, room, dtype, head: *head })
    }

    /// Of logits of `width` tokens from `v0` on, `stride` apart, of as many rows as there are targets; times `dlogprobs`,
    /// if given.
    fn of(
        &mut self,
        (logits, stride): (Slice<'_>, usize),
        targets: Slice<'_>,
        lse: Slice<'_>,
        dlogprobs: Option<Slice<'_>>,
        (v0, width): (usize, usize),
    ) -> Result<Slice<'_>> {
        let n = targets.len();
        let [scale, softcap] = self.head.args();
        let (first, columns) = (Arg::U32(v0 as u32), Arg::U32(width as u32));
        let dz = self.room.slice(self.dtype).part(0, n * width)?;
        let (d, stride) = (dlogprobs.map_or(NULL, |d| d.arg()), Arg::U64(stride as u64));
        let args = [dz.arg(), logits.arg(), stride, targets.arg(), lse.arg(), d, first, columns, scale, softcap];
        let shape = Shape::line(n, row_threads(TILE));
        self.queue.launch(&LM_HEAD, "lm_head_gradient", &types([("T", self.dtype)]), shape, &args)?;
        Ok(dz)
    }
}

/// dhidden: (rows, size) f32, and dW: (vocabulary, size) f32 added to if given, from `dlogprobs` and the forward
/// pass's `lse`, both (rows) f32. The logits are made again.
///
/// # Errors
/// As [`forward`].
pub fn backward(queue: Queue<'_>, to: Gradients<'_>, lse: Slice<'_>, of: Rows<'_>, head: &LmHead) -> Result<()> {
    gradients(queue, to, lse, of, head, ROWS)
}

fn gradients(
    queue: Queue<'_>,
    mut to: Gradients<'_>,
    lse: Slice<'_>,
    of: Rows<'_>,
    head: &LmHead,
    most: usize,
) -> Result<()> {
    let sizes = of.check()?;
    to.check(&of, &sizes)?;
    lse.expect(OP, "lse", sizes.rows)?;
    lse.expect_dtype(OP, "lse", DType::F32)?;
    if sizes.rows == 0 {
        return Ok(());
    }
    let mut logits = of.logits(queue, &sizes)?;
    let mut dz = Dz::new(queue, &of, most.min(sizes.rows), sizes.vocabulary, head)?;
    for r0 in (0..sizes.rows).step_by(most) {
        let n = most.min(sizes.rows - r0);
        let (targets, lse) = (of.targets.part(r0, n)?, lse.part(r0, n)?);
        let d = to.dlogprobs.map(|d| d.part(r0, n)).transpose()?;
        of.tiles(queue, &sizes, (r0, n), &mut logits, |logits, v0, width| {
            let dz = dz.of((logits, width), targets, lse, d, (v0, width))?;
            to.take(queue, dz, &of, &sizes, (r0, n), (v0, width))
        })?;
    }
    Ok(())
}
