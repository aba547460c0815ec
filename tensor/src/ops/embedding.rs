//! Rows of a table by token id.
//!
//! weight: (vocabulary, size) in any float dtype, ids: (tokens), result: (tokens, size) in the compute
//! dtype of the weight (f64 for f64, else f32).

use crate::{DType, Error, Float, Result, Tensor, dispatch_float, dispatch_real, parallel};

const OP: &str = "embedding";

/// Result row t = weight row ids\[t\], widened.
///
/// # Errors
/// [`Error::OutOfRange`] for an id that is not a row; a weight that is not two-dimensional or no float.
pub fn forward(weight: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let (rows, size) = check(weight, ids)?;
    let dtype = if weight.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let mut out = Tensor::zeros([ids.len(), size], dtype)?;
    if rows == 0 || size == 0 {
        return Ok(out);
    }
    let weight = weight.contiguous()?;
    dispatch_real!(OP, dtype, R => dispatch_float!(OP, weight.dtype(), W => {
        let table = weight.as_slice::<W>()?;
        parallel::chunks(out.as_slice_mut::<R>()?, size, |start, rows| {
            for (row, &id) in rows.chunks_exact_mut(size).zip(&ids[start / size..]) {
                for (o, x) in row.iter_mut().zip(&table[id as usize * size..]) {
                    *o = x.widen();
                }
            }
        });
    }));
    Ok(out)
}

/// dweight row ids\[t\] += dy row t, token by token in order.
///
/// # Errors
/// As [`forward`].
pub fn backward_add(dy: &Tensor, ids: &[u32], dweight: &mut Tensor) -> Result<()> {
    let (_, size) = check(dweight, ids)?;
    if dy.dims() != [ids.len(), size] {
        let (lhs, rhs) = (dy.dims().to_vec(), vec![ids.len(), size]);
        return Err(Error::ShapeMismatch { op: OP, what: "gradient against (tokens, size)", lhs, rhs });
    }
    let dy = dy.contiguous()?;
    dispatch_real!(OP, dy.dtype(), R => {
        let dy = dy.as_slice::<R>()?;
        let table = dweight.as_slice_mut::<R>()?;
        for (t, &id) in ids.iter().enumerate() {
            for (w, &g) in table[id as usize * size..][..size].iter_mut().zip(&dy[t * size..]) {
                *w += g;
            }
        }
    });
    Ok(())
}

fn check(weight: &Tensor, ids: &[u32]) -> Result<(usize, usize)> {
    if weight.rank() != 2 {
        return Err(Error::Rank { op: OP, expected: 2, shape: weight.dims().to_vec() });
    }
    let (rows, size) = (weight.dims()[0], weight.dims()[1]);
    match ids.iter().find(|&&id| id as usize >= rows) {
        Some(&id) => Err(Error::OutOfRange { op: OP, what: "token id", index: id as i128, len: rows }),
        None => Ok((rows, size)),
    }
}
