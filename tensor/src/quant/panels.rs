//! A weight in its own dtype, in the order in which products of few rows read it.
//!
//! Nothing is rounded: the elements are those of the weight, 16 rows side by side, element by element of them, the rows
//! that are missing in the last panel filled up with zeros. For decoding, where reading the weights is nearly all there
//! is to do; see the kernel in `gemm/panels.rs`.

use std::ops::Range;

use super::{Layout, Quantized};
use crate::gemm::panels::WIDTH;
use crate::{DType, Error, Float, Result, Tensor, bf16, parallel};

const OP: &str = "panels";

/// A weight in panels.
#[derive(Debug, Clone)]
pub struct Panels {
    /// Flat: (panels · cols · [`WIDTH`]) of f32 or bf16; perhaps a part of a longer block.
    elements: Tensor,
}

impl Panels {
    /// Whether this can be laid out: a matrix of f32 or bf16 in the processor's memory.
    pub fn takes(weight: &Tensor) -> bool {
        weight.rank() == 2 && matches!(weight.dtype(), DType::F32 | DType::BF16) && weight.context().is_none()
    }

    /// Bytes that a weight takes in panels: those that fill up the last panel besides its own.
    pub fn bytes(weight: &Tensor) -> usize {
        elements(weight.dims()[0], weight.dims()[1]) * weight.dtype().size()
    }

    /// Lays a weight (rows, cols) out.
    ///
    /// # Errors
    /// As [`Panels::together`].
    pub fn of(weight: &Tensor) -> Result<Quantized> {
        Ok(Panels::together(std::slice::from_ref(weight))?.swap_remove(0))
    }

    /// Lays weights (rows, cols) of one dtype out, one behind the other in one block of memory: if that is long enough
    /// for huge pages, reading it misses the address cache less.
    ///
    /// # Errors
    /// [`Error::Rank`], [`Error::UnsupportedDType`], [`Error::DTypeMismatch`]; [`Error::OutOfMemory`];
    /// [`Error::NotHere`] on a device.
    pub fn together(weights: &[Tensor]) -> Result<Vec<Quantized>> {
        let dtype = weights.first().map_or(DType::F32, Tensor::dtype);
        let mut len = 0;
        for weight in weights {
            if weight.rank() != 2 {
                return Err(Error::Rank { op: OP, expected: 2, shape: weight.dims().to_vec() });
            }
            if weight.dtype() != dtype {
                return Err(Error::DTypeMismatch { op: OP, expected: dtype, got: weight.dtype() });
            }
            len += elements(weight.dims()[0], weight.dims()[1]);
        }
        let mut block = Tensor::scratch([len], dtype)?;
        match dtype {
            DType::F32 => write_all::<f32>(weights, block.as_slice_mut()?)?,
            DType::BF16 => write_all::<bf16>(weights, block.as_slice_mut()?)?,
            dtype => return Err(Error::UnsupportedDType { op: OP, dtype }),
        }
        let mut from = 0;
        weights
            .iter()
            .map(|weight| {
                let shape = [weight.dims()[0], weight.dims()[1]];
                let len = elements(shape[0], shape[1]);
                from += len;
                let elements = block.narrow(0, from - len, len)?;
                Ok(Quantized::new(shape, Layout::Panels(Panels { elements })))
            })
            .collect()
    }

    /// The dtype of the elements.
    pub fn dtype(&self) -> DType {
        self.elements.dtype()
    }

    pub(super) fn nbytes(&self) -> usize {
        self.elements.nbytes()
    }

    fn elements<T: Float>(&self) -> &[T] {
        self.elements.as_slice().expect("contiguous, of that dtype, and here")
    }

    /// As [`Quantized::read`]; rows are `cols` long.
    pub(super) fn read(&self, cols: usize, start: usize, out: &mut [f32]) {
        fn gather<T: Float>(elements: &[T], cols: usize, start: usize, out: &mut [f32]) {
            let mut at = start;
            let mut left = out;
            while !left.is_empty() {
                let (row, p) = (at / cols, at % cols);
                let (run, rest) = left.split_at_mut(left.len().min(cols - p));
                let column = &elements[(row / WIDTH * cols + p) * WIDTH + row % WIDTH..];
                for (o, x) in run.iter_mut().zip(column.iter().step_by(WIDTH)) {
                    *o = x.widen();
                }
                at += run.len();
                left = rest;
            }
        }
        match self.dtype() {
            DType::BF16 => gather(self.elements::<bf16>(), cols, start, out),
            _ => gather(self.elements::<f32>(), cols, start, out),
        }
    }

    /// Where rows `row..` begin from column `col` on, and the distance of panels; none unless a panel begins there.
    pub(super) fn at(&self, cols: usize, row: usize, col: usize) -> Option<(*const u8, usize)> {
        let from = (row / WIDTH * cols + col) * WIDTH;
        let whole = row.is_multiple_of(WIDTH) && from < self.elements.numel();
        // `from` is inside, so the product is the offset of an element.
        whole.then(|| (self.first().wrapping_add(from * self.dtype().size()), cols * WIDTH))
    }

    fn first(&self) -> *const u8 {
        match self.dtype() {
            DType::BF16 => self.elements::<bf16>().as_ptr().cast(),
            _ => self.elements::<f32>().as_ptr().cast(),
        }
    }

    /// `panel[p * width + l]` = element (row `rows.start + l`, column `depth.start + p`), widened, 0 beyond the rows;
    /// false, and nothing done, unless a panel begins at the first row.
    ///
    /// # Panics
    /// If the rows or the depth reach past the weight.
    pub(super) fn pack(
        &self,
        panel: &mut [f32],
        width: usize,
        cols: usize,
        rows: Range<usize>,
        depth: Range<usize>,
    ) -> bool {
        fn copy<T: Float>(
            elements: &[T],
            panel: &mut [f32],
            width: usize,
            cols: usize,
            rows: Range<usize>,
            depth: Range<usize>,
        ) {
            for l in (0..width).step_by(WIDTH) {
                let live = rows.len().saturating_sub(l).min(WIDTH);
                let from = ((rows.start + l) / WIDTH * cols + depth.start) * WIDTH;
                let lines = &elements[if live == 0 { 0..0 } else { from..from + depth.len() * WIDTH }];
                if live == WIDTH {
                    for (line, out) in lines.chunks_exact(WIDTH).zip(panel.chunks_exact_mut(width)) {
                        for (o, x) in out[l..l + WIDTH].iter_mut().zip(line) {
                            *o = x.widen();
                        }
                    }
                    continue;
                }
                let end = width.min(l + WIDTH);
                for (p, out) in panel.chunks_exact_mut(width).enumerate() {
                    for (i, o) in out[l..end].iter_mut().enumerate() {
                        *o = if i < live { lines[p * WIDTH + i].widen() } else { 0.0 };
                    }
                }
            }
        }
        if !rows.start.is_multiple_of(WIDTH) {
            return false;
        }
        match self.dtype() {
            DType::BF16 => copy(self.elements::<bf16>(), panel, width, cols, rows, depth),
            _ => copy(self.elements::<f32>(), panel, width, cols, rows, depth),
        }
        true
    }
}

/// Elements of the panels of a weight, up to a whole number of cache lines.
fn elements(rows: usize, cols: usize) -> usize {
    (rows.div_ceil(WIDTH) * cols * WIDTH).next_multiple_of(2 * WIDTH)
}

/// The panels of `weights`, one after the other, each up to [`elements`].
fn write_all<T: Float>(weights: &[Tensor], block: &mut [T]) -> Result<()> {
    let mut left = block;
    for weight in weights {
        let &[rows, cols] = weight.dims() else { unreachable!("checked by the caller") };
        let (part, rest) = left.split_at_mut(elements(rows, cols));
        let (panels, padding) = part.split_at_mut(rows.div_ceil(WIDTH) * cols * WIDTH);
        write(weight.contiguous()?.as_slice()?, [rows, cols], panels);
        padding.fill(T::from_f64(0.0));
        left = rest;
    }
    Ok(())
}

/// Rows of `from` (rows, cols) into panels.
fn write<T: Float>(from: &[T], [rows, cols]: [usize; 2], to: &mut [T]) {
    /// Elements of each row that are moved together: whole cache lines are read and written.
    const TOGETHER: usize = 32;
    if cols == 0 {
        return;
    }
    parallel::chunks(to, cols * WIDTH, |start, panels| {
        for (i, panel) in panels.chunks_exact_mut(cols * WIDTH).enumerate() {
            let first = start / cols + i * WIDTH;
            let live = WIDTH.min(rows - first);
            if live < WIDTH {
                panel.fill(T::from_f64(0.0));
            }
            for p0 in (0..cols).step_by(TOGETHER) {
                let depth = p0..cols.min(p0 + TOGETHER);
                for l in 0..live {
                    let line = &from[(first + l) * cols..][depth.clone()];
                    for (out, &x) in panel[p0 * WIDTH + l..].iter_mut().step_by(WIDTH).zip(line) {
                        *out = x;
                    }
                }
            }
        }
    });
}
