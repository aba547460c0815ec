//! Matrix products; see `cuda/kernels/matmul.cu` and `matmul_hopper.cu`.

use super::{matmul_hopper, or_null, size, types, with};
use crate::cache::Defines;
use crate::driver::Arg;
use crate::kernels::MATMUL;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Error, Queue, Result, Shape};

const OP: &str = "matmul";

/// One product of a sum of products: A (m, depth) times B (depth, n), both without gaps.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a> {
    /// A, stored as [`Layout::a_transposed`] says.
    pub a: Slice<'a>,
    /// B, stored as [`Layout::b_transposed`] says.
    pub b: Slice<'a>,
    /// Elements of a sum.
    pub depth: usize,
}

/// How the factors are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Layout {
    /// A as (depth, m) in place of (m, depth).
    pub a_transposed: bool,
    /// B as (depth, n) in place of (n, depth), which is how weights are stored.
    pub b_transposed: bool,
}

impl Layout {
    /// y = x Wᵀ with W: (n, depth).
    pub const FORWARD: Layout = Layout { a_transposed: false, b_transposed: false };
    /// dx = dy W with W: (depth, n).
    pub const INPUT_GRADIENT: Layout = Layout { a_transposed: false, b_transposed: true };
    /// dW = dyᵀ x with dy: (depth, m), x: (depth, n).
    pub const WEIGHT_GRADIENT: Layout = Layout { a_transposed: true, b_transposed: true };
}

/// What else happens to the product.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// Factor on the sums.
    pub alpha: f32,
    /// Added to each row: (n).
    pub bias: Option<Slice<'a>>,
    /// Whether C is added to in place of written.
    pub add: bool,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Epilogue { alpha: 1.0, bias: None, add: false }
    }
}

/// A tile of C and what makes it: part of the speed, not of the arithmetic.
#[derive(Clone, Copy)]
struct Tile {
    m: usize,
    n: usize,
    depth: usize,
    warps: [usize; 2],
    stages: usize,
}

/// Hundreds of rows: training, prefill.
const LARGE: Tile = Tile { m: 128, n: 128, depth: 32, warps: [2, 4], stages: 4 };
/// A few rows: decoding, where reading B is all.
const SMALL: Tile = Tile { m: 16, n: 64, depth: 64, warps: [1, 4], stages: 6 };
/// Up to this many rows the small tile reads B no more often than the large one.
const FEW_ROWS: usize = 32;

/// Rows of C that a block of the plain kernel takes, columns, and rows where there are few.
const PLAIN_ROWS: usize = 64;
const PLAIN_COLUMNS: usize = 64;
const PLAIN_FEW: usize = 16;

impl Tile {
    fn defines(self, mut defines: Defines) -> Defines {
        let [wm, wn] = self.warps;
        for (name, value) in
            [("BM", self.m), ("BN", self.n), ("BK", self.depth), ("WM", wm), ("WN", wn), ("STAGES", self.stages)]
        {
            defines = with(defines, name, value);
        }
        defines
    }

    fn shape(self, m: usize, n: usize) -> Shape {
        let blocks = m.div_ceil(self.m) * n.div_ceil(self.n);
        let threads = (self.warps[0] * self.warps[1] * 32) as u32;
        Shape::line(blocks, threads).shared(self.stages * (self.m + self.n) * self.depth * 2)
    }
}

/// Whether tensor cores take a term as it lies in memory.
pub(super) fn fits_tensor_cores(term: &Term<'_>, [m, n]: [usize; 2], layout: Layout) -> bool {
    let stored = |x: Slice<'_>, transposed, across| {
        let row = if transposed { across } else { term.depth };
        row.is_multiple_of(8) && x.ptr().0.is_multiple_of(16)
    };
    let halves = term.a.dtype() != DType::F32 && term.b.dtype() == term.a.dtype();
    halves && stored(term.a, layout.a_transposed, m) && stored(term.b, layout.b_transposed, n)
}

/// C = α Σ A B + bias, or C += that; C: (m, n), one term or two (a low-rank update).
///
/// bf16 and f16 factors of one type go to tensor cores if every stored row is a multiple of 8 elements; f32, an A and
/// a B of different types, and other sizes go to the plain kernel. Which of them is a matter of the weight's shape,
/// never of the number of rows. C is of any type. On Hopper the products of halves are `matmul_hopper.cu`, elsewhere
/// `matmul.cu`.
///
/// # Errors
/// Sizes or types that do not agree; no term or more than two.
pub fn matmul(
    queue: Queue<'_>,
    c: SliceMut<'_>,
    [m, n]: [usize; 2],
    layout: Layout,
    terms: &[Term<'_>],
    epilogue: Epilogue<'_>,
) -> Result<()> {
    let (first, second) = match terms {
        [first] => (first, None),
        [first, second] => (first, Some(second)),
        _ => return Err(Error::Size { op: OP, what: "the number of products", expected: "1 or 2", got: terms.len() }),
    };
    let dtype = first.a.dtype();
    for term in terms {
        for (what, slice, len) in [("A", term.a, m * term.depth), ("B", term.b, n * term.depth)] {
            slice.expect_compute(OP, what)?;
            slice.expect(OP, what, len)?;
        }
        term.a.expect_dtype(OP, "A", dtype)?;
    }
    c.expect_compute(OP, "C")?;
    c.expect(OP, "C", m * n)?;
    if let Some(bias) = epilogue.bias {
        bias.expect(OP, "the bias", n)?;
        bias.expect_dtype(OP, "the bias", dtype)?;
    }
    let lda = |depth| if layout.a_transposed { m } else { depth };
    let ldb = |depth| if layout.b_transposed { n } else { depth };
    let (k, k2) = (first.depth, second.map_or(0, |term| term.depth));
    let mut args = vec![c.arg(), first.a.arg(), first.b.arg()];
    args.extend([second.map_or(super::NULL, |term| term.a.arg()), second.map_or(super::NULL, |term| term.b.arg())]);
    args.extend([or_null(epilogue.bias), Arg::F32(epilogue.alpha)]);
    for (what, n) in [
        ("m", m),
        ("n", n),
        ("the depth", k),
        ("the depth", k2),
        ("a row of A", lda(k)),
        ("a row of B", ldb(k)),
        ("a row of A", lda(k2)),
        ("a row of B", ldb(k2)),
        ("a row of C", n),
    ] {
        args.push(Arg::U32(size(OP, what, n)?));
    }
    let mut defines = types([("T", dtype), ("O", c.dtype())]);
    for (name, flag) in [("A_T", layout.a_transposed), ("B_T", layout.b_transposed), ("ADD", epilogue.add)] {
        defines = with(defines, name, u8::from(flag));
    }
    if !terms.iter().all(|term| fits_tensor_cores(term, [m, n], layout)) {
        for (name, term) in ["TB", "TB2"].into_iter().zip(terms) {
            if term.b.dtype() != dtype {
                defines = with(defines, name, term.b.dtype());
            }
        }
        let rows = if m <= PLAIN_FEW { PLAIN_FEW } else { PLAIN_ROWS };
        let blocks = m.div_ceil(rows) * n.div_ceil(PLAIN_COLUMNS);
        return queue.launch(&MATMUL, "matmul_plain", &with(defines, "PM", rows), Shape::line(blocks, 256), &args);
    }
    // An op for all numbers of rows: on Hopper that kernel, whose sums may differ by a bit from those of this one.
    if matmul_hopper::is_for(queue) && k > 0 {
        let end = (epilogue.alpha, or_null(epilogue.bias));
        return matmul_hopper::launch(queue, &c, [m, n], layout, [Some(first), second], end, defines);
    }
    let tile = if m <= FEW_ROWS && !layout.a_transposed { SMALL } else { LARGE };
    queue.launch(&MATMUL, "matmul", &tile.defines(defines), tile.shape(m, n), &args)
}
