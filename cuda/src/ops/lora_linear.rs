//! A linear map with a low-rank update: y = x Wᵀ + b + h Bᵀ, h = s x Aᵀ; the kernel is `cuda/kernels/matmul.cu`.
//!
//! The update is more steps of the base product's sums, made while the tile of y is in registers: it costs the reading
//! of h and B. With B = 0 the result is the base's, bit for bit. x is what dropout left of the update's input
//! where there is dropout: `update_input`.
//!
//! On tensor cores the rank must be a multiple of 8: a smaller one sends the whole product to the plain kernel. Padding
//! A and B with zeros changes no bit.

use super::matmul::{Epilogue, Layout, Term, matmul};
use super::rows;
use crate::memory::{Slice, SliceMut};
use crate::{Queue, Result};

const OP: &str = "lora_linear";

/// The factors: A: (rank, input), B: (output, rank), and the scale s.
#[derive(Clone, Copy, Debug)]
pub struct Lora<'a> {
    /// A.
    pub a: Slice<'a>,
    /// B.
    pub b: Slice<'a>,
    /// s: alpha / rank, or alpha / √rank for rsLoRA.
    pub scale: f32,
    /// Rank.
    pub rank: usize,
}

/// y and h; x, `update_input`: (rows, input), W: (output, input), h: (rows, rank), y: (rows, output).
///
/// # Errors
/// Sizes or types that do not agree.
pub fn forward(
    queue: Queue<'_>,
    y: SliceMut<'_>,
    mut h: SliceMut<'_>,
    x: Slice<'_>,
    update_input: Slice<'_>,
    weight: Slice<'_>,
    bias: Option<Slice<'_>>,
    lora: Lora<'_>,
    input: usize,
) -> Result<()> {
    let (count, output) = (rows(OP, "the input size", x, input)?, rows(OP, "the input size", weight, input)?);
    let down = Term { a: update_input, b: lora.a, depth: input };
    let scaled = Epilogue { alpha: lora.scale, ..Epilogue::default() };
    matmul(queue, h.reborrow(), [count, lora.rank], Layout::FORWARD, &[down], scaled)?;
    let terms = [Term { a: x, b: weight, depth: input }, Term { a: *h, b: lora.b, depth: lora.rank }];
    matmul(queue, y, [count, output], Layout::FORWARD, &terms, Epilogue { bias, ..Epilogue::default() })
}

/// Gradients, each if wanted. With u = s dy B, written to `u`: (rows, rank): dB += dyᵀ h, dA += uᵀ `update_input`
/// (both f32), dx = dy W + u A.
///
/// With dropout on the update's input dx needs the mask on u A alone; then ask for the two parts by
/// [`matmul`] itself.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    queue: Queue<'_>,
    dx: Option<SliceMut<'_>>,
    da: Option<SliceMut<'_>>,
    db: Option<SliceMut<'_>>,
    mut u: SliceMut<'_>,
    dy: Slice<'_>,
    update_input: Slice<'_>,
    h: Slice<'_>,
    weight: Slice<'_>,
    lora: Lora<'_>,
    input: usize,
) -> Result<()> {
    let count = rows(OP, "the input size", update_input, input)?;
    let output = rows(OP, "the input size", weight, input)?;
    let up = Term { a: dy, b: lora.b, depth: output };
    let scaled = Epilogue { alpha: lora.scale, ..Epilogue::default() };
    matmul(queue, u.reborrow(), [count, lora.rank], Layout::INPUT_GRADIENT, &[up], scaled)?;
    let add = Epilogue { add: true, ..Epilogue::default() };
    if let Some(db) = db {
        let term = Term { a: dy, b: h, depth: count };
        matmul(queue, db, [output, lora.rank], Layout::WEIGHT_GRADIENT, &[term], add)?;
    }
    if let Some(da) = da {
        let term = Term { a: *u, b: update_input, depth: count };
        matmul(queue, da, [lora.rank, input], Layout::WEIGHT_GRADIENT, &[term], add)?;
    }
    if let Some(dx) = dx {
        let terms = [Term { a: dy, b: weight, depth: output }, Term { a: *u, b: lora.a, depth: lora.rank }];
        matmul(queue, dx, [count, input], Layout::INPUT_GRADIENT, &terms, Epilogue::default())?;
    }
    Ok(())
}
