//! What a token's experts made of it, weighed and added up: y_t = Σ_j w_tj parts_(places_(t k + j)).
//!
//! parts: (tokens · k, size), a row for each choice in any order; w: (tokens, k); places: (tokens · k), where each choice's row is,
//! each row once; y: (tokens, size). The sum goes by j, so a token's bits depend on its own choices alone (law 5 of the design).
//! On a device parts may be halves, w is f32 and sums are. Bound by memory: parts are read once.

use super::check;
use crate::device;
use crate::{DType, Error, Result, Tensor, dispatch_real, parallel};

const OP: &str = "combine";

/// The size of a row, once everything agrees.
fn check(parts: &Tensor, weights: &Tensor, places: &[u32]) -> Result<usize> {
    for t in [parts, weights] {
        if t.rank() != 2 {
            return Err(Error::Rank { op: OP, expected: 2, shape: t.dims().to_vec() });
        }
    }
    if parts.dims()[0] != weights.numel() || places.len() != weights.numel() {
        let (lhs, rhs) = (vec![parts.dims()[0], places.len()], weights.dims().to_vec());
        return Err(Error::ShapeMismatch {
            op: OP,
            what: "rows of parts and places against weights (tokens, k)",
            lhs,
            rhs,
        });
    }
    let wide = if parts.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    if weights.dtype() != wide {
        return Err(Error::DTypeMismatch { op: OP, expected: wide, got: weights.dtype() });
    }
    check::indices(OP, "row", places, places.len())?;
    let mut seen = vec![false; places.len()];
    for &place in places {
        if std::mem::replace(&mut seen[place as usize], true) {
            let (lhs, rhs) = (vec![place as usize], vec![places.len()]);
            return Err(Error::ShapeMismatch { op: OP, what: "a row that two choices have, of", lhs, rhs });
        }
    }
    Ok(parts.dims()[1])
}

/// y.
///
/// # Errors
/// Shapes or dtypes that do not agree; places that are not each row once.
pub fn forward(parts: &Tensor, weights: &Tensor, places: &[u32]) -> Result<Tensor> {
    let size = check(parts, weights, places)?;
    let (tokens, k) = (weights.dims()[0], weights.dims()[1]);
    if let Some(on) = device::of(OP, [parts, weights])? {
        return device::ops::rows::combine(&on, parts, weights, places);
    }
    let (parts, weights) = (parts.contiguous()?, weights.contiguous()?);
    let mut y = Tensor::zeros([tokens, size], parts.dtype())?;
    dispatch_real!(OP, parts.dtype(), R => {
        let (parts, weights) = (parts.as_slice::<R>()?, weights.as_slice::<R>()?);
        parallel::chunks(y.as_slice_mut::<R>()?, size, |start, rows| {
            for (t, y) in (start / size..).zip(rows.chunks_exact_mut(size)) {
                for c in t * k..(t + 1) * k {
                    let part = &parts[places[c] as usize * size..][..size];
                    y.iter_mut().zip(part).for_each(|(y, &p)| *y += weights[c] * p);
                }
            }
        });
    });
    Ok(y)
}

/// (dparts, if it is wanted, and dw): dparts_(places_c) = w_c dy_t, dw_c = parts_(places_c) · dy_t for each choice c of token t.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    dy: &Tensor,
    parts: &Tensor,
    weights: &Tensor,
    places: &[u32],
    wants_parts: bool,
) -> Result<(Option<Tensor>, Tensor)> {
    let size = check(parts, weights, places)?;
    check::shape(OP, "upstream gradient against y", dy, &[weights.dims()[0], size])?;
    if let Some(on) = device::of(OP, [dy, parts, weights])? {
        return device::ops::rows::combine_backward(&on, dy, parts, weights, places, wants_parts);
    }
    let k = weights.dims()[1];
    let (dy, parts, weights) = (dy.contiguous()?, parts.contiguous()?, weights.contiguous()?);
    let mut dw = Tensor::zeros(weights.shape(), weights.dtype())?;
    let mut dparts = if wants_parts { Some(Tensor::zeros(parts.shape(), parts.dtype())?) } else { None };
    dispatch_real!(OP, parts.dtype(), R => {
        let (dy, all, w) = (dy.as_slice::<R>()?, parts.as_slice::<R>()?, weights.as_slice::<R>()?);
        let of_token = |c: usize| &dy[c / k * size..][..size];
        // A choice is little work: a row's worth of it is what a split counts.
        let dots = |first: usize, dw: &mut [R]| {
            for (c, dw) in (first..).zip(dw) {
                let part = &all[places[c] as usize * size..][..size];
                *dw = crate::reduce::dot(part, of_token(c));
            }
        };
        parallel::chunks(dw.as_slice_mut::<R>()?, 1, dots);
        if let Some(dparts) = &mut dparts {
            let mut choice = vec![0; places.len()];
            (0..).zip(places).for_each(|(c, &place)| choice[place as usize] = c);
            parallel::chunks(dparts.as_slice_mut::<R>()?, size, |start, rows| {
                for (place, row) in (start / size..).zip(rows.chunks_exact_mut(size)) {
                    let c: usize = choice[place];
                    row.iter_mut().zip(of_token(c)).for_each(|(to, &d)| *to = w[c] * d);
                }
            });
        }
    });
    Ok((dparts, dw))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, same_bits_on_any_threads};
    use super::*;

    #[test]
    fn choices_add_up_in_order_on_any_threads() {
        let parts = Tensor::from_vec(vec![1.0f32, 2.0, 10.0, 20.0, 100.0, 200.0, 1000.0, 2000.0], [4, 2]).unwrap();
        let weights = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2]).unwrap();
        let places = [3, 0, 1, 2];
        let y = forward(&parts, &weights, &places).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [1002.0, 2004.0, 430.0, 860.0]);
        let dy = Tensor::from_vec(vec![1.0f32, 0.0, 0.0, 1.0], [2, 2]).unwrap();
        let (dparts, dw) = backward(&dy, &parts, &weights, &places, true).unwrap();
        assert_eq!(dw.to_vec::<f32>().unwrap(), [1000.0, 1.0, 20.0, 200.0]);
        assert_eq!(dparts.unwrap().to_vec::<f32>().unwrap(), [2.0, 0.0, 0.0, 3.0, 0.0, 4.0, 1.0, 0.0]);
        assert!(backward(&dy, &parts, &weights, &places, false).unwrap().0.is_none());

        let (tokens, k, size) = (150, 3, 67);
        let (parts, weights) = (random(&[tokens * k, size], DType::F32, 0), random(&[tokens, k], DType::F32, 1));
        let (dy, rows) = (random(&[tokens, size], DType::F32, 2), (tokens * k) as u32);
        let places: Vec<u32> = (0..rows).map(|c| c * 7 % rows).collect();
        same_bits_on_any_threads(|| {
            let (dparts, dw) = backward(&dy, &parts, &weights, &places, true).unwrap();
            vec![forward(&parts, &weights, &places).unwrap(), dparts.unwrap(), dw]
        });
    }

    #[test]
    fn wrong_arguments_are_named() {
        let (parts, weights) = (random(&[4, 3], DType::F32, 0), random(&[2, 2], DType::F32, 1));
        let bad = [
            forward(&parts, &weights, &[0, 1, 2]),
            forward(&parts, &weights, &[0, 1, 2, 4]),
            forward(&parts, &weights, &[0, 1, 2, 2]),
            forward(&parts, &random(&[2, 3], DType::F32, 1), &[0, 1, 2, 3]),
            forward(&parts, &random(&[2, 2], DType::F64, 1), &[0, 1, 2, 3]),
            forward(&parts, &random(&[4], DType::F32, 1), &[0, 1, 2, 3]),
            backward(&random(&[2, 4], DType::F32, 3), &parts, &weights, &[0, 1, 2, 3], true).map(|(_, dw)| dw),
        ];
        for result in bad {
            assert!(result.unwrap_err().to_string().starts_with("combine: "));
        }
    }
}
