//! [`Right`]: the right-hand matrix of a product, as the loops around the kernels ask for it.
//!
//! A plain matrix ([`Mat`]) is widened while it is packed; a quantised one
//! ([`PackedMat`](crate::quant::PackedMat)) is dequantised. Either way panels of the same numbers come out, so a
//! product with a quantised matrix has the bits of the product with its values.

use std::ops::Range;

use super::Mat;
use super::pack::{Part, pack};
use super::panels::Stored;
use crate::DType;
use crate::dtype::{Float, Real};

/// How the lines of a matrix, its columns, can be read where they are contiguous along the depth.
pub enum Lines {
    /// Not at all.
    No,
    /// Where they lie: the first element, the distance of lines in elements, and the dtype.
    Whole(*const u8, usize, DType),
    /// In panels, where they lie: the first unit, the distance of panels in bytes, and how they are stored. The panels
    /// are whole, whatever part of the columns is asked for, and so are the units along the depth.
    Panels(*const u8, usize, Stored),
    /// Made by [`Right::write_lines`], so many at a time.
    Made(usize),
}

/// The right-hand matrix B (k, n) of a product A B in R.
pub trait Right<R: Real>: Copy + Send + Sync {
    /// Rows: the depth of the product.
    fn rows(&self) -> usize;

    /// Columns.
    fn cols(&self) -> usize;

    /// The transposed view.
    fn t(self) -> Self;

    /// Rows `start..start + len`.
    ///
    /// # Panics
    /// If there are not that many.
    fn narrow_rows(self, start: usize, len: usize) -> Self;

    /// Row `i`, widened. Meant for matrices as they are stored, not for transposed ones.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as one.
    fn read_row(&self, i: usize, out: &mut [R]);

    /// Writes one panel: `panel[p * width + c]` = element (`depth.start + p`, `cols.start + c`), 0 beyond the columns.
    ///
    /// # Panics
    /// If the panel is not of that size, or reaches past the matrix.
    fn pack(&self, panel: &mut [R], width: usize, cols: Range<usize>, depth: &Range<usize>);

    /// Writes the panels of `nr` columns (the last of a multiple of `lanes`), one after the other.
    ///
    /// # Panics
    /// As [`Right::pack`].
    fn pack_panels(&self, panels: &mut [R], nr: usize, lanes: usize, cols: Range<usize>, depth: &Range<usize>) {
        let mut at = 0;
        for j in cols.clone().step_by(nr) {
            let end = cols.end.min(j + nr);
            let width = (end - j).next_multiple_of(lanes);
            self.pack(&mut panels[at..at + width * depth.len()], width, j..end, depth);
            at += width * depth.len();
        }
    }

    /// Where element (row, col) and those after it in its row lie, and the distance of rows, if rows are contiguous
    /// and of R already.
    fn panel(&self, row: usize, col: usize) -> Option<(*const R, usize)>;

    /// How columns `cols` can be read along `depth`.
    fn lines(&self, cols: &Range<usize>, depth: &Range<usize>) -> Lines;

    /// Writes columns `cols` along `depth`, one after the other: what [`Lines::Made`] promises.
    ///
    /// # Panics
    /// If `out` is not as long as they are together.
    fn write_lines(&self, cols: Range<usize>, depth: &Range<usize>, out: &mut [R]);
}

impl<R: Real, T: Float> Right<R> for Mat<'_, T> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn t(self) -> Self {
        Mat::t(self)
    }

    fn narrow_rows(self, start: usize, len: usize) -> Self {
        Mat::narrow_rows(self, start, len)
    }

    fn read_row(&self, i: usize, out: &mut [R]) {
        assert!(i < self.rows && out.len() == self.cols, "no such row");
        for (j, o) in out.iter_mut().enumerate() {
            *o = self.data[i * self.rs + j * self.cs].widen();
        }
    }

    fn pack(&self, panel: &mut [R], width: usize, cols: Range<usize>, depth: &Range<usize>) {
        let part = Part {
            data: self.data,
            l0: cols.start,
            lines: cols.len(),
            k0: depth.start,
            kc: depth.len(),
            line_stride: self.cs,
            depth_stride: self.rs,
        };
        pack(panel, width, part);
    }

    fn panel(&self, row: usize, col: usize) -> Option<(*const R, usize)> {
        let whole = T::DTYPE == R::DTYPE && self.cs == 1;
        whole.then(|| (self.data[row * self.rs + col..].as_ptr().cast(), self.rs))
    }

    fn lines(&self, cols: &Range<usize>, depth: &Range<usize>) -> Lines {
        if self.rs != 1 || !matches!(T::DTYPE, DType::F32 | DType::BF16 | DType::F16) {
            return Lines::No;
        }
        let first = self.data[cols.start * self.cs + depth.start..].as_ptr();
        Lines::Whole(first.cast(), self.cs, T::DTYPE)
    }

    fn write_lines(&self, cols: Range<usize>, depth: &Range<usize>, out: &mut [R]) {
        assert_eq!(out.len(), cols.len() * depth.len(), "lines of another size");
        for (line, j) in out.chunks_exact_mut(depth.len().max(1)).zip(cols) {
            for (o, p) in line.iter_mut().zip(depth.clone()) {
                *o = self.data[p * self.rs + j * self.cs].widen();
            }
        }
    }
}
