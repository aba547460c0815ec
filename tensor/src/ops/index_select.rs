//! Rows by index.
//!
//! x: (rows, …), index: (n), result: (n, …).

use crate::{Error, Result, Tensor, dispatch_real};

const OP: &str = "index_select";

fn width(x: &Tensor, index: &[u32]) -> Result<usize> {
    let Some((&rows, rest)) = x.dims().split_first() else {
        return Err(Error::Rank { op: OP, expected: 1, shape: Vec::new() });
    };
    match index.iter().find(|&&i| i as usize >= rows) {
        Some(&i) => Err(Error::OutOfRange { op: OP, what: "row", index: i as i128, len: rows }),
        None => Ok(rest.iter().product()),
    }
}

/// Result row i = x row index\[i\].
///
/// # Errors
/// [`Error::OutOfRange`] for an index that is no row; a scalar x; a dtype other than f32 and f64.
pub fn forward(x: &Tensor, index: &[u32]) -> Result<Tensor> {
    let width = width(x, index)?;
    let x = x.contiguous()?;
    let mut dims = x.dims().to_vec();
    dims[0] = index.len();
    let mut out = Tensor::zeros(dims, x.dtype())?;
    dispatch_real!(OP, x.dtype(), R => {
        let data = x.as_slice::<R>()?;
        if width > 0 {
            for (row, &i) in out.as_slice_mut::<R>()?.chunks_exact_mut(width).zip(index) {
                row.copy_from_slice(&data[i as usize * width..][..width]);
            }
        }
    });
    Ok(out)
}

/// dx row index\[i\] += dy row i, in order.
///
/// # Errors
/// As [`forward`].
pub fn backward_add(dy: &Tensor, index: &[u32], dx: &mut Tensor) -> Result<()> {
    let width = width(dx, index)?;
    if dy.dims().first() != Some(&index.len()) || dy.numel() != index.len() * width {
        let (lhs, rhs) = (dy.dims().to_vec(), vec![index.len(), width]);
        return Err(Error::ShapeMismatch { op: OP, what: "gradient against (n, …)", lhs, rhs });
    }
    let dy = dy.contiguous()?;
    dispatch_real!(OP, dy.dtype(), R => {
        let dy = dy.as_slice::<R>()?;
        let dx = dx.as_slice_mut::<R>()?;
        for (i, &at) in index.iter().enumerate() {
            for (d, &g) in dx[at as usize * width..][..width].iter_mut().zip(&dy[i * width..]) {
                *d += g;
            }
        }
    });
    Ok(())
}
