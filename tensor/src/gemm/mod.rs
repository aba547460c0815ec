//! Matrix products: C = A B, or C += A B, in f32 or f64, from inputs of any float dtype and stride.
//!
//! B is copied ("packed") block by block into panels that a register-tiled kernel reads in order, and
//! widened on the way: bf16 and f16 weights cost the packing and nothing more. A is read where it lies
//! if its depth is contiguous, and packed if not.
//!
//! # Order of the sum
//! Every output element is, for each block of [`KC`] consecutive `k` in order, one chain of fused
//! multiply-adds over `k` in order from 0, and these block sums are added in order (to the old value
//! first, when accumulating). This order depends on nothing else: not on the other rows or columns,
//! on their number, on the tile, on the vector unit or on the threads. So a row's product has the
//! same bits in a batch of one and in a batch of thousands (law 5 of the design).
//!
//! Bound by arithmetic: 2 m n k operations against (m k + k n + m n) elements moved.

mod driver;
mod few_rows;
#[cfg(target_arch = "x86_64")]
mod gemv;
mod grouped;
mod kernel;
pub(crate) mod pack;
pub(crate) mod panels;
mod right;

pub use grouped::gemm_grouped;
pub use kernel::{Kernel, Mode, Tile, TileShape};
pub use panels::{Stored, Table};
pub use right::{Lines, Right};

use crate::dtype::{Float, Real};
use driver::{Product, Term};
pub use few_rows::FEW_ROWS;
pub(crate) use few_rows::{ByColumns, Ticket, few_rows_runs};

/// Length of the k-blocks. Part of the arithmetic (see the order of the sum), not only a tuning knob:
/// hidden sizes up to it are one chain, and a panel of B of this depth fits the second-level cache.
pub const KC: usize = 768;

/// A matrix view: `data[i * rs + j * cs]` is element (i, j).
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    rs: usize,
    cs: usize,
}

impl<'a, T: Float> Mat<'a, T> {
    /// A row-major matrix.
    ///
    /// # Panics
    /// If `data` is shorter than the matrix.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols, 1)
    }

    /// A matrix of any strides.
    ///
    /// # Panics
    /// If an element lies outside `data`.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, rs: usize, cs: usize) -> Self {
        if rows > 0 && cols > 0 {
            assert!((rows - 1) * rs + (cols - 1) * cs < data.len(), "matrix reaches past its data");
        }
        Mat { data, rows, cols, rs, cs }
    }

    /// Whether the other is the same view.
    fn same(&self, other: &Self) -> bool {
        let place = |m: &Self| (m.data.as_ptr(), m.rows, m.cols, m.rs, m.cs);
        place(self) == place(other)
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Mat { data: self.data, rows: self.cols, cols: self.rows, rs: self.cs, cs: self.rs }
    }

    /// Rows `start..start + len`.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn narrow_rows(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.rows, "rows out of range");
        let skip = if len == 0 || self.cols == 0 { 0 } else { start * self.rs };
        Mat { data: &self.data[skip..], rows: len, ..self }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Asks the processor to fetch it into its second-level cache, where rows are contiguous.
    pub(crate) fn ask(&self) {
        #[cfg(target_arch = "x86_64")]
        if self.cs == 1 {
            for row in 0..self.rows {
                for line in (0..self.cols).step_by((64 / size_of::<T>()).max(1)) {
                    pack::x86::prefetch(self.data.as_ptr().wrapping_add(row * self.rs + line).cast(), 0);
                }
            }
        }
    }

    /// An element.
    ///
    /// # Panics
    /// If there is none.
    pub fn at(&self, i: usize, j: usize) -> T
    where
        T: Copy,
    {
        assert!(i < self.rows && j < self.cols, "no element ({i}, {j}) in {} x {}", self.rows, self.cols);
        self.data[i * self.rs + j * self.cs]
    }
}

/// What happens to the old values of C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// C = A B.
    Set,
    /// C += A B.
    Add,
}

/// C (m, n) = or += A (m, k) B (k, n), C row-major.
///
/// # Panics
/// If the sizes do not agree: callers validate shapes first.
pub fn gemm<R: Real, B: Right<R>>(a: Mat<R>, b: B, c: &mut [R], store: Store) {
    product(a, b, None::<(Mat<R>, Mat<R>)>, c, store);
}

/// C (m, n) = or += A B + U V, with U (m, r) and V (r, n): the second product is one more run of k-blocks,
/// made while the tile of C is in cache. The bits are those of [`gemm`] of A B and then of U V, added.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_update<R: Real, B: Right<R>, V: Right<R>>(a: Mat<R>, b: B, u: Mat<R>, v: V, c: &mut [R], store: Store) {
    product(a, b, Some((u, v)), c, store);
}

fn product<R: Real, B: Right<R>, V: Right<R>>(a: Mat<R>, b: B, update: Option<(Mat<R>, V)>, c: &mut [R], store: Store) {
    let (m, n) = (a.rows, b.cols());
    assert_eq!(a.cols, b.rows(), "inner sizes");
    if let Some((u, v)) = &update {
        assert!(u.rows == m && v.cols() == n && u.cols == v.rows(), "sizes of the update");
    }
    Product { base: Term { a, b }, update: update.map(|(a, b)| Term { a, b }), m, n, store }.run(c);
}

/// As [`gemm`], bit for bit, on the calling thread: for small blocks inside a parallel task.
/// `scratch` is grown as needed and reused from call to call.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_serial<R: Real, B: Right<R>>(a: Mat<R>, b: B, c: &mut [R], store: Store, scratch: &mut Vec<R>) {
    let (m, n) = (a.rows, b.cols());
    assert_eq!(a.cols, b.rows(), "inner sizes");
    assert_eq!(c.len(), m * n, "size of C");
    let c_ptr = c.as_mut_ptr();
    let product = Product { base: Term { a, b }, update: None::<Term<R, Mat<R>>>, m, n, store };
    // SAFETY: c holds m rows of n, and is ours alone.
    unsafe { product.block(0..m, 0..n, c_ptr, scratch) }
}

#[cfg(test)]
mod tests;
