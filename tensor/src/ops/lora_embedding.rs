//! Rows of a table by token id, with a low-rank update: y_t = W\[ids_t\] + s·A\[:, ids_t\]ᵀ Bᵀ.
//!
//! W: (vocabulary, size) in any float dtype, A: (r, vocabulary), B: (size, r), ids: (tokens), y: (tokens, size) in
//! the compute dtype. Bound by memory: the rows of W and the columns of A that the ids name, and 2 r size operations
//! a token.
//!
//! # Source
//! Hu et al., "LoRA", arXiv:2106.09685, equation 3, with a one-hot input; layout as in PEFT.

use super::elementwise::{add_assign, scale as scaled};
use super::linear::{matmul, matmul_into};
use super::{embedding, index_select};
use crate::device;
use crate::gemm::Store;
use crate::{Element, Error, Result, Tensor, dispatch_real, parallel};

const OP: &str = "lora_embedding";

/// Returns (y, h) with h = s·A\[:, ids\]ᵀ: (tokens, r), which the backward pass needs.
///
/// # Errors
/// Shapes that do not agree; an id that is no row of W; A of a dtype other than f32 and f64.
pub fn forward(weight: &Tensor, a: &Tensor, b: &Tensor, ids: &[u32], scale: f64) -> Result<(Tensor, Tensor)> {
    let mut y = embedding::forward(weight, ids)?;
    let (vocabulary, size) = (weight.dims()[0], weight.dims()[1]);
    if a.rank() != 2 || b.rank() != 2 || a.dims()[1] != vocabulary || b.dims() != [size, a.dims()[0]] {
        let (lhs, rhs) = (a.dims().to_vec(), b.dims().to_vec());
        return Err(Error::ShapeMismatch {
            op: OP,
            what: "A (r, vocabulary) and B (size, r) against weight",
            lhs,
            rhs,
        });
    }
    let r = a.dims()[0];
    if device::of(OP, [weight, a, b])?.is_some() {
        let h = scaled(&index_select::forward(&a.transpose(0, 1)?, ids)?, scale)?;
        matmul_into(&h, &b.transpose(0, 1)?, &mut y, Store::Add)?;
        return Ok((y, h));
    }
    let a = a.contiguous()?;
    let mut h = Tensor::scratch([ids.len(), r], y.dtype())?;
    dispatch_real!(OP, a.dtype(), R => {
        let (a, s) = (a.as_slice::<R>()?, <R as Element>::from_f64(scale));
        parallel::chunks(h.as_slice_mut::<R>()?, r, |start, h| {
            for (h, &id) in h.chunks_exact_mut(r.max(1)).zip(&ids[start / r.max(1)..]) {
                for (k, h) in h.iter_mut().enumerate() {
                    *h = s * a[k * vocabulary + id as usize];
                }
            }
        });
    });
    matmul_into(&h, &b.transpose(0, 1)?, &mut y, Store::Add)?;
    Ok((y, h))
}

/// dB += dyᵀ h, into (size, r).
///
/// # Errors
/// As [`forward`].
pub fn backward_b_add(dy: &Tensor, h: &Tensor, db: &mut Tensor) -> Result<()> {
    matmul_into(&dy.transpose(0, 1)?, h, db, Store::Add)
}

/// dA\[:, ids_t\] += s·(dy_t B), token by token, into (r, vocabulary).
///
/// # Errors
/// As [`forward`].
pub fn backward_a_add(dy: &Tensor, b: &Tensor, ids: &[u32], scale: f64, da: &mut Tensor) -> Result<()> {
    let dh = matmul(dy, b, dy.dtype())?;
    let (r, vocabulary) = (da.dims()[0], da.dims()[1]);
    if device::of(OP, [&dh, &*da])?.is_some() {
        // Rows add up in a fixed order; columns have no kernel of their own.
        let mut columns = Tensor::zeros_on(dh.device(), [vocabulary, r], dh.dtype())?;
        index_select::backward_add(&scaled(&dh, scale)?, ids, &mut columns)?;
        return add_assign(da, &columns.transpose(0, 1)?);
    }
    dispatch_real!(OP, da.dtype(), R => {
        let (dh, s) = (dh.as_slice::<R>()?, <R as Element>::from_f64(scale));
        parallel::chunks(da.as_slice_mut::<R>()?, vocabulary, |start, da| {
            for (row, da) in da.chunks_exact_mut(vocabulary.max(1)).enumerate() {
                let k = start / vocabulary.max(1) + row;
                for (t, &id) in ids.iter().enumerate() {
                    da[id as usize] += s * dh[t * r + k];
                }
            }
        });
    });
    Ok(())
}
