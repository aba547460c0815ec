//! [`PackedMat`]: a quantised weight, or its transpose, as the right-hand matrix of a product.

use std::ops::Range;

use super::{Layout, Panels, Quantized};
use crate::Tensor;
use crate::gemm::pack::{Part, pack};
use crate::gemm::{Lines, Right};
use crate::scratch;

/// Depth of the pieces in which lines are dequantised: those of a panel stay in the first-level cache until they are
/// transposed.
const PIECE: usize = 128;

/// Columns that are dequantised at a time for products of few rows.
const LINES: usize = 32;

/// Lines as they are dequantised, kept by each thread.
#[derive(Default)]
struct Made(Vec<f32>);

impl Made {
    fn get(&mut self, len: usize) -> &mut [f32] {
        if self.0.len() < len {
            self.0.resize(len, 0.0);
        }
        &mut self.0[..len]
    }
}

/// A view of a quantised weight. Element (i, j) is that of W at `start + i * width + j`, or if it is transposed at
/// `start + j * width + i`.
#[derive(Debug, Clone, Copy)]
pub struct PackedMat<'a> {
    weight: &'a Quantized,
    start: usize,
    rows: usize,
    cols: usize,
    transposed: bool,
}

impl<'a> PackedMat<'a> {
    /// The view that a two-dimensional tensor is, if that is one of a quantised weight.
    ///
    /// # Panics
    /// If it is not two-dimensional.
    pub fn of(t: &'a Tensor) -> Option<PackedMat<'a>> {
        let weight = t.quantized()?;
        let (rows, cols) = (t.dims()[0], t.dims()[1]);
        let transposed = t.strides()[1] != 1 && t.strides()[0] == 1;
        Some(PackedMat { weight, start: t.offset(), rows, cols, transposed })
    }

    /// The panels that its columns lie in, the row of W that its column 0 is, and the column that its row 0 is.
    fn panels(&self) -> Option<(&'a Panels, usize, usize)> {
        let width = self.weight.shape()[1].max(1);
        match self.weight.layout() {
            Layout::Panels(panels) if self.transposed => Some((panels, self.start / width, self.start % width)),
            _ => None,
        }
    }

    /// Element `(i, j)` on, along W's rows.
    fn at(&self, i: usize, j: usize) -> usize {
        let width = self.weight.shape()[1];
        self.start + if self.transposed { j * width + i } else { i * width + j }
    }
}

impl Right<f32> for PackedMat<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn t(self) -> Self {
        PackedMat { rows: self.cols, cols: self.rows, transposed: !self.transposed, ..self }
    }

    fn narrow_rows(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.rows, "rows out of range");
        PackedMat { start: self.at(start, 0), rows: len, ..self }
    }

    fn read_row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.rows && out.len() == self.cols && !self.transposed, "no such row");
        self.weight.read(self.at(i, 0), out);
    }

    fn pack(&self, panel: &mut [f32], width: usize, cols: Range<usize>, depth: &Range<usize>) {
        let lines = cols.len();
        assert!(panel.len() == width * depth.len() && lines <= width, "a panel of another size");
        if lines < width {
            panel.fill(0.0);
        }
        if !self.transposed {
            for (row, p) in panel.chunks_exact_mut(width.max(1)).zip(depth.clone()) {
                self.weight.read(self.at(p, cols.start), &mut row[..lines]);
            }
            return;
        }
        if let Some((panels, row, col)) = self.panels() {
            let (rows, depth) = (row + cols.start..row + cols.end, col + depth.start..col + depth.end);
            if panels.pack(panel, width, self.weight.shape()[1], rows, depth) {
                return;
            }
        }
        scratch::with(|made: &mut Made| {
            for p in depth.clone().step_by(PIECE) {
                let piece = p..depth.end.min(p + PIECE);
                let made = made.get(lines * piece.len());
                self.write_lines(cols.clone(), &piece, made);
                let kc = piece.len();
                let part = Part { data: &*made, l0: 0, lines, k0: 0, kc, line_stride: kc, depth_stride: 1 };
                let from = (p - depth.start) * width;
                pack(&mut panel[from..from + kc * width], width, part);
            }
        });
    }

    fn pack_panels(&self, panels: &mut [f32], nr: usize, lanes: usize, cols: Range<usize>, depth: &Range<usize>) {
        let kc = depth.len();
        let ends = |j: usize| (cols.end.min(j + nr), (cols.end.min(j + nr) - j).next_multiple_of(lanes));
        if self.transposed {
            let mut at = 0;
            for j in cols.clone().step_by(nr) {
                let (end, width) = ends(j);
                self.pack(&mut panels[at..at + width * kc], width, j..end, depth);
                at += width * kc;
            }
            return;
        }
        // A row of W crosses all panels: it is dequantised once, and not in pieces of a panel's width.
        scratch::with(|made: &mut Made| {
            let row = made.get(cols.len());
            for (p, k) in depth.clone().enumerate() {
                self.weight.read(self.at(k, cols.start), row);
                let mut at = 0;
                for j in cols.clone().step_by(nr) {
                    let (end, width) = ends(j);
                    let panel = &mut panels[at + p * width..][..width];
                    let (live, padding) = panel.split_at_mut(end - j);
                    live.copy_from_slice(&row[j - cols.start..end - cols.start]);
                    padding.fill(0.0);
                    at += width * kc;
                }
            }
        });
    }

    fn panel(&self, _row: usize, _col: usize) -> Option<(*const f32, usize)> {
        None
    }

    fn lines(&self, cols: &Range<usize>, depth: &Range<usize>) -> Lines {
        if let Some((panels, row, col)) = self.panels()
            && let Some((at, distance)) =
                panels.at(self.weight.shape()[1], row + cols.start, col + depth.start..col + depth.end)
        {
            return Lines::Panels(at, distance, panels.stored());
        }
        if self.transposed { Lines::Made(LINES) } else { Lines::No }
    }

    fn write_lines(&self, cols: Range<usize>, depth: &Range<usize>, out: &mut [f32]) {
        assert!(out.len() == cols.len() * depth.len() && self.transposed, "lines of another size");
        for (line, j) in out.chunks_exact_mut(depth.len().max(1)).zip(cols) {
            self.weight.read(self.at(depth.start, j), line);
        }
    }
}
