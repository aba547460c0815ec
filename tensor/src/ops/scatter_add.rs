//! Rows added up by index: y = x, then `y[index[i]] += source[i]` in order of i.
//!
//! x, y: (rows, …), index: (n), source: (n, …). f32 or f64. For each row the additions happen in order of i,
//! on any number of threads.

use super::{check, rows};
use crate::device;
use crate::{Error, Result, Tensor, dispatch_real};

const OP: &str = "scatter_add";

/// x with the rows of `source` added where `index` says.
///
/// # Errors
/// An index that is no row of x; sizes or dtypes that do not agree.
pub fn forward(x: &Tensor, index: &[u32], source: &Tensor) -> Result<Tensor> {
    let Some((&len, rest)) = x.dims().split_first() else {
        return Err(Error::Rank { op: OP, expected: 1, shape: Vec::new() });
    };
    if source.dims().first() != Some(&index.len()) || source.dims()[1..] != *rest {
        let (lhs, rhs) = (source.dims().to_vec(), x.dims().to_vec());
        return Err(Error::ShapeMismatch { op: OP, what: "source (indices, …) against x", lhs, rhs });
    }
    if source.dtype() != x.dtype() {
        return Err(Error::DTypeMismatch { op: OP, expected: x.dtype(), got: source.dtype() });
    }
    check::indices(OP, "row", index, len)?;
    if let Some(on) = device::of(OP, [x, source])? {
        let mut y = x.copied()?;
        device::ops::rows::add(&on, source, index, &mut y)?;
        return Ok(y);
    }
    let width = rest.iter().product();
    let source = source.contiguous()?;
    let mut y = x.copied()?;
    dispatch_real!(OP, x.dtype(), R => {
        rows::add(source.as_slice::<R>()?, width, index, y.as_slice_mut::<R>()?);
    });
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, same_bits_on_any_threads};
    use super::*;
    use crate::DType;

    #[test]
    fn rows_add_up_in_order_on_any_threads() {
        let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2]).unwrap();
        let source = Tensor::from_vec(vec![10.0f32, 20.0, 30.0, 40.0, 50.0, 60.0], [3, 2]).unwrap();
        let y = forward(&x, &[1, 0, 1], &source).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [31.0, 42.0, 63.0, 84.0]);
        assert_eq!(x.to_vec::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0], "x is a value");
        let (x, source) = (random(&[300, 67], DType::F32, 0), random(&[900, 67], DType::F32, 1));
        let index: Vec<u32> = (0..900u32).map(|i| i * 7 % 299).collect();
        same_bits_on_any_threads(|| vec![forward(&x, &index, &source).unwrap()]);
    }

    #[test]
    fn wrong_arguments_are_named() {
        let (x, source) = (random(&[2, 3], DType::F32, 0), random(&[1, 3], DType::F32, 1));
        let bad = [
            forward(&x, &[2], &source),
            forward(&x, &[0, 1], &source),
            forward(&x, &[0], &random(&[1, 2], DType::F32, 1)),
            forward(&x, &[0], &random(&[1, 3], DType::F64, 1)),
            forward(&Tensor::scalar(1.0f32).unwrap(), &[], &source),
            forward(&x, &[], &Tensor::scalar(1.0f32).unwrap()),
        ];
        for result in bad {
            assert!(result.unwrap_err().to_string().starts_with("scatter_add: "));
        }
    }
}
