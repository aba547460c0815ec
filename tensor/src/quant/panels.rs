//! A weight in the order in which products of few rows read it.
//!
//! Nothing is rounded: the elements are those of the weight, 16 rows side by side, element by element of them, the rows
//! that are missing in the last panel filled up with zeros. Floats are held as they are, blocks as small integers with
//! scales in f32: half a byte or one for each element, and 4 for each scale and each offset of 32 (Q6_K: of 16). For
//! decoding, where reading the weights is nearly all there is to do; see the kernel in `gemm/panels.rs`.

use std::ops::Range;

use super::{Layout, Quantized, bytes_of};
use crate::gemm::panels::{DEPTH, Stored, Table, WIDTH, write_lines};
use crate::{DType, Element, Error, Result, Tensor, bf16, f16, parallel};

const OP: &str = "panels";

/// Panels begin at whole cache lines.
const LINE: usize = 64;

/// A weight in panels.
#[derive(Debug, Clone)]
pub struct Panels {
    /// Of u8, flat: perhaps a part of a longer block.
    bytes: Tensor,
    stored: Stored,
    format: &'static str,
}

impl Panels {
    /// Whether this can be laid out: a matrix of f32, bf16, f16 or blocks in the processor's memory. Rows of blocks must
    /// be multiples of 32.
    pub fn takes(weight: &Tensor) -> bool {
        weight.rank() == 2 && weight.context().is_none() && stored(weight).is_ok()
    }

    /// Bytes that a weight takes in panels: those that fill up the last panel besides its own.
    ///
    /// # Panics
    /// If it [can't](Panels::takes) be laid out.
    pub fn bytes(weight: &Tensor) -> usize {
        bytes(stored(weight).expect("what panels take"), weight.dims())
    }

    /// Lays a weight (rows, cols) out.
    ///
    /// # Errors
    /// As [`Panels::together`].
    pub fn of(weight: &Tensor) -> Result<Quantized> {
        Ok(Panels::together(std::slice::from_ref(weight))?.swap_remove(0))
    }

    /// Lays weights (rows, cols) out, one behind the other in one block of memory: if that is long enough for huge
    /// pages, reading it misses the address cache less.
    ///
    /// # Errors
    /// [`Error::Rank`]; [`Error::UnsupportedDType`] for what panels do not [take](Panels::takes); [`Error::NotHere`] on a
    /// device; [`Error::OutOfMemory`].
    pub fn together(weights: &[Tensor]) -> Result<Vec<Quantized>> {
        let mut len = 0;
        let mut all = Vec::with_capacity(weights.len());
        for weight in weights {
            if weight.rank() != 2 {
                return Err(Error::Rank { op: OP, expected: 2, shape: weight.dims().to_vec() });
            }
            if let Some(on) = weight.context() {
                return Err(Error::NotHere { op: OP, device: on.device() });
            }
            let stored = stored(weight)?;
            all.push((weight, stored, len));
            len += bytes(stored, weight.dims());
        }
        let mut block = Tensor::scratch([len], DType::U8)?;
        let mut left = block.as_slice_mut::<u8>()?;
        for &(weight, stored, _) in &all {
            let (part, rest) = left.split_at_mut(bytes(stored, weight.dims()));
            write(weight, stored, part)?;
            left = rest;
        }
        let quantized = |(weight, stored, from): (&Tensor, Stored, usize)| {
            let shape = [weight.dims()[0], weight.dims()[1]];
            let bytes = block.narrow(0, from, bytes(stored, &shape))?;
            let format = weight.quantized().map_or(weight.dtype().name(), Quantized::format);
            Ok(Quantized::new(shape, Layout::Panels(Panels { bytes, stored, format })))
        };
        all.into_iter().map(quantized).collect()
    }

    /// The dtype of the elements: that of floats, and f32 of blocks.
    pub fn dtype(&self) -> DType {
        match self.stored {
            Stored::Bf16 => DType::BF16,
            Stored::F16 => DType::F16,
            _ => DType::F32,
        }
    }

    /// The format of the weight that was laid out.
    pub fn format(&self) -> &'static str {
        self.format
    }

    /// The memory that products read.
    pub fn memory(&self) -> &[u8] {
        bytes_of(&self.bytes)
    }

    pub(super) fn nbytes(&self) -> usize {
        self.bytes.nbytes()
    }

    pub(super) fn stored(&self) -> Stored {
        self.stored
    }

    /// The panel that row `row` is in, and those behind it.
    fn panel(&self, cols: usize, row: usize) -> &[u8] {
        &bytes_of(&self.bytes)[row / WIDTH * panel_bytes(self.stored, cols)..]
    }

    /// As [`Quantized::read`]; rows are `cols` long.
    pub(super) fn read(&self, cols: usize, start: usize, out: &mut [f32]) {
        let mut at = start;
        let mut left = out;
        while !left.is_empty() {
            let (row, p) = (at / cols, at % cols);
            let (run, rest) = left.split_at_mut(left.len().min(cols - p));
            self.stored.read(self.panel(cols, row), row % WIDTH, p, run);
            at += run.len();
            left = rest;
        }
    }

    /// Where rows `row..` begin, from the first of columns `depth` on, and the distance of panels in bytes; none unless a
    /// panel begins there, and units are whole.
    pub(super) fn at(&self, cols: usize, row: usize, depth: Range<usize>) -> Option<(*const u8, usize)> {
        let (depths, unit) = self.stored.unit();
        let (distance, whole) = (panel_bytes(self.stored, cols), |x: usize| x.is_multiple_of(depths));
        let from = row / WIDTH * distance + depth.start / depths * unit;
        let here = row.is_multiple_of(WIDTH) && whole(depth.start) && whole(depth.len());
        (here && from < self.bytes.numel()).then(|| (bytes_of(&self.bytes)[from..].as_ptr(), distance))
    }

    /// `panel[p * width + l]` = element (row `rows.start + l`, column `depth.start + p`), widened, 0 beyond the rows;
    /// nothing, and false, unless a panel begins at these rows.
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
        if !rows.start.is_multiple_of(WIDTH) {
            return false;
        }
        for l in (0..width).step_by(WIDTH) {
            let live = rows.len().saturating_sub(l).min(WIDTH);
            // Panels behind the last row that there is.
            let from = if live == 0 { &[] } else { self.panel(cols, rows.start + l) };
            let depth = if live == 0 { 0..0 } else { depth.clone() };
            write_lines(self.stored, from, depth, live, panel, width, l..width.min(l + WIDTH));
        }
        true
    }
}

/// How a weight is stored in panels.
fn stored(weight: &Tensor) -> Result<Stored> {
    let refused = || Error::UnsupportedDType { op: OP, dtype: weight.dtype() };
    match weight.dtype() {
        DType::F32 => Ok(Stored::F32),
        DType::BF16 => Ok(Stored::Bf16),
        DType::F16 => Ok(Stored::F16),
        DType::Packed => {
            // All of a weight, as it is stored.
            let whole = weight.quantized().filter(|of| weight.is_contiguous() && weight.dims() == of.shape());
            let blocks = whole.filter(|of| of.shape()[1].is_multiple_of(DEPTH)).ok_or_else(refused)?;
            match blocks.layout() {
                Layout::Ggml(x) => Ok(x.stored()),
                Layout::FourBit(x) => Ok(Stored::Codes(Table::new(x.kind().code()))),
                Layout::Int8(_) => Ok(Stored::Bytes),
                Layout::Panels(_) => Err(refused()),
            }
        }
        _ => Err(refused()),
    }
}

/// Bytes of a panel of rows of `cols` elements, which are whole units.
fn panel_bytes(stored: Stored, cols: usize) -> usize {
    let (depths, unit) = stored.unit();
    cols / depths * unit
}

/// Bytes of a weight's panels, up to a whole number of cache lines.
fn bytes(stored: Stored, dims: &[usize]) -> usize {
    (dims[0].div_ceil(WIDTH) * panel_bytes(stored, dims[1])).next_multiple_of(LINE)
}

/// The panels of a weight, and zeros behind them.
fn write(weight: &Tensor, stored: Stored, to: &mut [u8]) -> Result<()> {
    let &[rows, cols] = weight.dims() else { unreachable!("checked by the caller") };
    let size = panel_bytes(stored, cols);
    let (panels, padding) = to.split_at_mut(rows.div_ceil(WIDTH) * size);
    padding.fill(0);
    if panels.is_empty() {
        return Ok(());
    }
    match stored {
        Stored::F32 => write_floats::<f32>(weight, bytemuck::cast_slice_mut(panels)),
        Stored::Bf16 => write_floats::<bf16>(weight, bytemuck::cast_slice_mut(panels)),
        Stored::F16 => write_floats::<f16>(weight, bytemuck::cast_slice_mut(panels)),
        _ => {
            let weight = weight.quantized().expect("stored as blocks");
            parallel::chunks(panels, size, |start, panels| {
                for (i, panel) in panels.chunks_exact_mut(size).enumerate() {
                    let first = (start / size + i) * WIDTH;
                    panel.fill(0);
                    for (u, unit) in panel.chunks_exact_mut(size / (cols / DEPTH)).enumerate() {
                        for row in first..rows.min(first + WIDTH) {
                            stored.put(row - first, &weight.unit(row * cols + u * DEPTH), unit);
                        }
                    }
                }
            });
            Ok(())
        }
    }
}

/// Rows of floats into panels.
fn write_floats<T: Element>(weight: &Tensor, to: &mut [T]) -> Result<()> {
    /// Elements of each row that are moved together: whole cache lines are read and written.
    const TOGETHER: usize = 32;
    let &[rows, cols] = weight.dims() else { unreachable!("checked by the caller") };
    let weight = weight.contiguous()?;
    let from = weight.as_slice::<T>()?;
    parallel::chunks(to, cols * WIDTH, |start, panels| {
        for (i, panel) in panels.chunks_exact_mut(cols * WIDTH).enumerate() {
            let first = start / cols + i * WIDTH;
            let live = WIDTH.min(rows - first);
            if live < WIDTH {
                panel.fill(T::zeroed());
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
    Ok(())
}
