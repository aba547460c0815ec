//! Tensors joined along an axis.
//!
//! All have one dtype (any) and one shape but for the axis, whose sizes add up.

use super::check;
use crate::device;
use crate::{Element, Error, Result, Tensor, dispatch};

const OP: &str = "concat";

/// The tensors one after the other along `axis`.
///
/// # Errors
/// No tensor at all; an axis that they do not have; other sizes or dtypes that differ.
pub fn forward(tensors: &[&Tensor], axis: usize) -> Result<Tensor> {
    let Some((first, rest)) = tensors.split_first() else {
        return Err(Error::InvalidValue { op: OP, name: "number of tensors", value: 0.0, expected: "at least 1" });
    };
    check::axis(OP, first, axis)?;
    let mut dims = first.dims().to_vec();
    for t in rest {
        if t.dtype() != first.dtype() {
            return Err(Error::DTypeMismatch { op: OP, expected: first.dtype(), got: t.dtype() });
        }
        let fits = t.rank() == first.rank() && (0..t.rank()).all(|i| i == axis || t.dims()[i] == first.dims()[i]);
        if !fits {
            let (lhs, rhs) = (t.dims().to_vec(), first.dims().to_vec());
            return Err(Error::ShapeMismatch { op: OP, what: "all sizes but that of the axis", lhs, rhs });
        }
        // Broadcast views may be larger than memory: their sizes need not add up in a usize.
        dims[axis] = dims[axis]
            .checked_add(t.dims()[axis])
            .ok_or_else(|| Error::TooLarge { shape: t.dims().to_vec(), dtype: t.dtype() })?;
    }
    if let Some(_on) = device::of(OP, tensors.iter().copied())? {
        let mut out = first.scratch_beside(OP, dims, first.dtype())?;
        let mut at = 0;
        for t in tensors {
            out.write(axis, at, t)?;
            at += t.dims()[axis];
        }
        return Ok(out);
    }
    dispatch!(first.dtype(), T => join::<T>(tensors, dims, axis))
}

fn join<T: Element>(tensors: &[&Tensor], dims: Vec<usize>, axis: usize) -> Result<Tensor> {
    let mut out = Tensor::zeros(dims, T::DTYPE)?;
    let (_, n, inner) = check::around(out.dims(), axis);
    let run = n * inner;
    let data = out.as_slice_mut::<T>()?;
    let mut at = 0;
    for t in tensors {
        let width = t.dims()[axis] * inner;
        if width == 0 || data.is_empty() {
            continue;
        }
        let t = t.contiguous()?;
        for (to, from) in data.chunks_exact_mut(run).zip(t.as_slice::<T>()?.chunks_exact(width)) {
            to[at..at + width].copy_from_slice(from);
        }
        at += width;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    fn iota(shape: [usize; 2], start: i64) -> Tensor {
        Tensor::from_vec((start..start + (shape[0] * shape[1]) as i64).collect(), shape).unwrap()
    }

    #[test]
    fn any_axis_and_any_sizes_join() {
        let (a, b) = (iota([2, 2], 0), iota([2, 1], 10));
        let joined = |ts: &[&Tensor], axis| forward(ts, axis).unwrap().to_vec::<i64>().unwrap();
        assert_eq!(joined(&[&a, &b, &a], 1), [0, 1, 10, 0, 1, 2, 3, 11, 2, 3]);
        assert_eq!(joined(&[&a, &iota([1, 2], 20)], 0), [0, 1, 2, 3, 20, 21]);
        assert_eq!(joined(&[&a.transpose(0, 1).unwrap(), &b], 1), [0, 2, 10, 1, 3, 11]);
        assert_eq!(joined(&[&iota([2, 0], 0), &b, &iota([2, 0], 0)], 1), [10, 11]);
        assert_eq!(forward(&[&iota([0, 2], 0), &iota([0, 2], 0)], 1).unwrap().dims(), [0, 4]);
    }

    #[test]
    fn wrong_arguments_are_named() {
        let a = iota([2, 2], 0);
        for result in [
            forward(&[], 0),
            forward(&[&a], 2),
            forward(&[&a, &iota([3, 2], 0)], 1),
            forward(&[&a, &a.reshape([4]).unwrap()], 0),
            forward(&[&a, &a.to_dtype(DType::F32).unwrap()], 0),
        ] {
            assert!(result.unwrap_err().to_string().starts_with("concat: "));
        }
    }
}
