//! Elements of each row by index, along the last dimension: `y[r][j] = x[r][index[r][j]]`.
//!
//! x: (…, width), index: (…, picks) of u32, i64 or i32 with the same leading sizes, y like index. f32 or f64.

use super::check;
use crate::device;
use crate::{DType, Error, Result, Tensor, dispatch_real};

const OP: &str = "gather";

/// Indices below `len` as u32, in row-major order.
///
/// # Errors
/// [`Error::OutOfRange`] for a negative or too large one; a tensor that holds no indices, or is on a device: indices
/// are the host's.
pub fn indices(index: &Tensor, len: usize) -> Result<Vec<u32>> {
    let checked = |i: i128| match u32::try_from(i) {
        Ok(small) if (small as usize) < len => Ok(small),
        _ => Err(Error::OutOfRange { op: OP, what: "index", index: i, len }),
    };
    match index.dtype() {
        DType::U32 => index.to_vec::<u32>()?.into_iter().map(|i| checked(i as i128)).collect(),
        DType::I64 => index.to_vec::<i64>()?.into_iter().map(|i| checked(i as i128)).collect(),
        DType::I32 => index.to_vec::<i32>()?.into_iter().map(|i| checked(i as i128)).collect(),
        dtype => Err(Error::UnsupportedDType { op: OP, dtype }),
    }
}

/// (width, picks, indices), once x and index agree.
fn check(x: &Tensor, index: &Tensor) -> Result<(usize, usize, Vec<u32>)> {
    let ((_, width), (_, picks)) = (x.rows(OP)?, index.rows(OP)?);
    let lead = |t: &Tensor| t.dims()[..t.rank() - 1].to_vec();
    if lead(x) != lead(index) {
        let (lhs, rhs) = (index.dims().to_vec(), x.dims().to_vec());
        return Err(Error::ShapeMismatch { op: OP, what: "all sizes of index but the last against x", lhs, rhs });
    }
    Ok((width, picks, indices(index, width)?))
}

/// `y[r][j] = x[r][index[r][j]]`.
///
/// # Errors
/// An index that is none of the row; leading sizes that differ; a scalar; a dtype other than f32 and f64.
pub fn forward(x: &Tensor, index: &Tensor) -> Result<Tensor> {
    let (width, picks, at) = check(x, index)?;
    if let Some(on) = device::of(OP, [x])? {
        return device::ops::gather::forward(&on, x, &at, index.dims());
    }
    let x = x.contiguous()?;
    let mut y = Tensor::zeros(index.shape(), x.dtype())?;
    dispatch_real!(OP, x.dtype(), R => {
        let x = x.as_slice::<R>()?;
        for (i, (y, at)) in y.as_slice_mut::<R>()?.iter_mut().zip(at).enumerate() {
            *y = x[i / picks * width + at as usize];
        }
    });
    Ok(y)
}

/// `dx[r][index[r][j]] += dy[r][j]`, in order of j.
///
/// # Errors
/// As [`forward`]; dy not like index.
pub fn backward_add(dy: &Tensor, index: &Tensor, dx: &mut Tensor) -> Result<()> {
    let (width, picks, at) = check(dx, index)?;
    check::shape(OP, "upstream gradient against index", dy, index.dims())?;
    if let Some(on) = device::of(OP, [dy, &*dx])? {
        return device::ops::gather::backward_add(&on, dy, &at, dx);
    }
    let dy = dy.contiguous()?;
    dispatch_real!(OP, dy.dtype(), R => {
        let dx = dx.as_slice_mut::<R>()?;
        for (i, (&dy, at)) in dy.as_slice::<R>()?.iter().zip(at).enumerate() {
            dx[i / picks * width + at as usize] += dy;
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_come_from_their_own_row() {
        let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3]).unwrap();
        for index in [
            Tensor::from_vec(vec![2u32, 0, 1, 1], [2, 2]).unwrap(),
            Tensor::from_vec(vec![2i64, 0, 1, 1], [2, 2]).unwrap(),
            Tensor::from_vec(vec![2i32, 0, 1, 1], [2, 2]).unwrap(),
        ] {
            assert_eq!(forward(&x, &index).unwrap().to_vec::<f32>().unwrap(), [3.0, 1.0, 5.0, 5.0]);
            let mut dx = Tensor::full(10.0f32, [2, 3]).unwrap();
            backward_add(&Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2]).unwrap(), &index, &mut dx).unwrap();
            assert_eq!(dx.to_vec::<f32>().unwrap(), [12.0, 10.0, 11.0, 10.0, 17.0, 10.0]);
        }
    }

    #[test]
    fn wrong_indices_are_named() {
        let x = Tensor::zeros([2, 3], DType::F32).unwrap();
        let error = |index: Tensor| forward(&x, &index).unwrap_err().to_string();
        assert_eq!(
            error(Tensor::from_vec(vec![0i64, -100], [2, 1]).unwrap()),
            "gather: index -100 is out of range for size 3"
        );
        assert_eq!(
            error(Tensor::from_vec(vec![0u32, 3], [2, 1]).unwrap()),
            "gather: index 3 is out of range for size 3"
        );
        assert!(error(Tensor::zeros([3, 1], DType::U32).unwrap()).contains("[3, 1] does not match [2, 3]"));
        assert!(error(Tensor::zeros([2, 1], DType::F32).unwrap()).contains("float32"));
        assert!(error(Tensor::zeros((), DType::U32).unwrap()).contains("dimension"));
    }
}
