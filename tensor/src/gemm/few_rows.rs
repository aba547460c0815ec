//! What products of few rows have of their own: each thread packs the rows for all its tasks, and columns are cut into runs.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::driver::{Product, Term};
use super::kernel::Kernel;
use super::{Mat, Right, Store};

/// Most rows that take a panel of B piece by piece. With more, panels are packed whole.
pub const FEW_ROWS: usize = 32;

/// With few rows: the least columns of a run for each [`FEW_STEP`] rows, and the part of what is left that a run is, where
/// each thread takes one.
const LEAST_COLUMNS: usize = 32;
const FEW_STEP: usize = 8;
const FEW_SHARE: usize = 2;

/// Rows of A that a thread has packed, for all its tasks of one product. Each thread packs for itself: they do so at once, and
/// none waits for lines out of another core's cache.
#[derive(Default)]
pub(super) struct PackedRows<R> {
    pub(super) product: Ticket,
    pub(super) rows: Vec<R>,
}

/// What tells products apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl Ticket {
    pub(crate) fn new() -> Ticket {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Ticket(LAST.fetch_add(1, Relaxed) + 1)
    }
}

/// Cuts the columns of a product (m, k) (k, n) of few rows: W passes once, in runs as long as may be; but threads are never
/// quite equally fast, so each is a part of what is left, and the last are short. `left`: multiply-adds that are not handed
/// out, of this product and of those behind it.
pub(crate) fn few_rows_runs(
    [m, k, n]: [usize; 3],
    threads: usize,
    left: &mut usize,
    mut run: impl FnMut(Range<usize>),
) {
    let column = m * k.max(1);
    let least = LEAST_COLUMNS * m.div_ceil(FEW_STEP);
    let mut from = 0;
    while from < n {
        let cols = (*left / (FEW_SHARE * threads * column)).max(least).next_multiple_of(<f32 as Kernel>::shape().nr);
        let to = n.min(from + cols);
        run(from..to);
        *left -= (to - from) * column;
        from = to;
    }
}

/// A product A B, or A B + U V, of few rows, whose columns are computed run by run.
pub(crate) struct ByColumns<'a, B> {
    pub(crate) a: Mat<'a, f32>,
    pub(crate) b: B,
    pub(crate) update: Option<(Mat<'a, f32>, Mat<'a, f32>)>,
    pub(crate) n: usize,
}

impl<B: Right<f32>> ByColumns<'_, B> {
    /// Computes columns `cols` of C on the calling thread. `ticket`: that of all products of this A.
    ///
    /// # Safety
    /// `c` points to the whole of C, (rows of A, n), of which these columns must be writable by this call alone.
    ///
    /// # Panics
    /// If sizes do not agree.
    pub(crate) unsafe fn columns(&self, cols: Range<usize>, c: *mut f32, ticket: Ticket) {
        let ByColumns { a, b, update, n } = *self;
        assert!(a.cols == b.rows() && n == b.cols() && cols.end <= n, "sizes");
        if let Some((u, v)) = &update {
            assert!(u.rows == a.rows && v.cols == n && u.cols == v.rows, "sizes of the update");
        }
        let update = update.map(|(a, b)| Term { a, b });
        let product = Product { base: Term { a, b }, update, m: a.rows, n, store: Store::Set };
        // SAFETY: the caller's promise.
        unsafe { product.task(Some(ticket), 0..a.rows, cols, c) }
    }
}
