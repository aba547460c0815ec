//! Rows of a table by token id.
//!
//! weight: (vocabulary, size) in any float dtype or [quantised](crate::quant), ids: (tokens), result: (tokens, size) in the compute
//! dtype of the weight (f64 for f64, else f32).

use super::{check, rows};
use crate::gemm::Right;
use crate::quant::PackedMat;
use crate::{DType, Error, Result, Tensor, device, dispatch_float, dispatch_real, parallel};

const OP: &str = "embedding";

/// Result row t = weight row ids\[t\], widened.
///
/// # Errors
/// [`Error::OutOfRange`] for an id that is not a row; a weight that is not two-dimensional or no float.
pub fn forward(weight: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let size = width(weight, ids)?;
    if let Some(on) = device::of(OP, [weight])? {
        return device::ops::rows::embedding_forward(&on, weight, ids);
    }
    let dtype = if weight.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let mut out = Tensor::scratch([ids.len(), size], dtype)?;
    if let Some(packed) = PackedMat::of(weight) {
        parallel::chunks(out.as_slice_mut::<f32>()?, size, |start, out| {
            for (row, &id) in out.chunks_exact_mut(size).zip(&ids[start / size..]) {
                packed.read_row(id as usize, row);
            }
        });
        return Ok(out);
    }
    let weight = weight.contiguous()?;
    dispatch_real!(OP, dtype, R => dispatch_float!(OP, weight.dtype(), W => {
        rows::take(weight.as_slice::<W>()?, size, ids, out.as_slice_mut::<R>()?);
    }));
    Ok(out)
}

/// As [`forward`] with ids that are on the weight's device, (tokens) u32, where nothing checks that they are rows of it.
///
/// # Errors
/// [`Error::OnlyOnDevice`]; as [`forward`] but for the ids.
pub fn forward_at(weight: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let Some(on) = device::of(OP, [weight, ids])? else { return Err(Error::OnlyOnDevice { op: OP }) };
    width(weight, &[])?;
    if ids.dtype() != DType::U32 {
        return Err(Error::DTypeMismatch { op: OP, expected: DType::U32, got: ids.dtype() });
    }
    if ids.rank() != 1 {
        return Err(Error::Rank { op: OP, expected: 1, shape: ids.dims().to_vec() });
    }
    device::ops::rows::embedding_at(&on, weight, ids.contiguous()?.cells()?)
}

/// dweight row ids\[t\] += dy row t, for each row of the table in order of t.
///
/// # Errors
/// As [`forward`].
pub fn backward_add(dy: &Tensor, ids: &[u32], dweight: &mut Tensor) -> Result<()> {
    let size = width(dweight, ids)?;
    if dy.dims() != [ids.len(), size] {
        let (lhs, rhs) = (dy.dims().to_vec(), vec![ids.len(), size]);
        return Err(Error::ShapeMismatch { op: OP, what: "gradient against (tokens, size)", lhs, rhs });
    }
    if let Some(on) = device::of(OP, [dy, &*dweight])? {
        return device::ops::rows::add(&on, dy, ids, dweight);
    }
    let dy = dy.contiguous()?;
    dispatch_real!(OP, dy.dtype(), R => {
        rows::add(dy.as_slice::<R>()?, size, ids, dweight.as_slice_mut::<R>()?);
    });
    Ok(())
}

fn width(weight: &Tensor, ids: &[u32]) -> Result<usize> {
    if weight.rank() != 2 {
        return Err(Error::Rank { op: OP, expected: 2, shape: weight.dims().to_vec() });
    }
    check::indices(OP, "token id", ids, weight.dims()[0])?;
    Ok(weight.dims()[1])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{random, same_bits_on_any_threads};
    use super::*;
    use crate::bf16;

    #[test]
    fn rows_come_out_widened() {
        let table = random(&[5, 3], DType::BF16, 0);
        let y = forward(&table, &[4, 0, 4]).unwrap();
        assert_eq!(y.dtype(), DType::F32);
        let want: Vec<f32> = [4, 0, 4]
            .iter()
            .flat_map(|&i| table.narrow(0, i, 1).unwrap().to_vec::<bf16>().unwrap())
            .map(bf16::to_f32)
            .collect();
        assert_eq!(y.to_vec::<f32>().unwrap(), want);
        assert_eq!(forward(&table, &[]).unwrap().dims(), [0, 3]);
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_named_with_it() {
        let error = forward(&random(&[5, 3], DType::F32, 0), &[1, 7]).unwrap_err();
        assert_eq!(error.to_string(), "embedding: token id 7 is out of range for size 5");
        let mut dw = Tensor::zeros([5, 3], DType::F32).unwrap();
        assert!(backward_add(&random(&[1, 3], DType::F32, 0), &[5], &mut dw).is_err());
        assert!(forward(&random(&[5], DType::F32, 0), &[0]).is_err());
        assert!(forward(&Tensor::zeros([5, 3], DType::U8).unwrap(), &[0]).is_err());
    }

    #[test]
    fn gradients_add_up_in_token_order_on_any_threads() {
        let ids: Vec<u32> = (0..900u32).map(|i| i * i % 331).collect();
        let dy = random(&[900, 67], DType::F32, 1);
        same_bits_on_any_threads(|| {
            let mut dw = random(&[331, 67], DType::F32, 2);
            backward_add(&dy, &ids, &mut dw).unwrap();
            vec![dw]
        });
        let mut dw = random(&[331, 67], DType::F32, 2);
        let mut want = dw.to_vec::<f32>().unwrap();
        backward_add(&dy, &ids, &mut dw).unwrap();
        for (t, &id) in ids.iter().enumerate() {
            for c in 0..67 {
                want[id as usize * 67 + c] += dy.as_slice::<f32>().unwrap()[t * 67 + c];
            }
        }
        assert_eq!(dw.to_vec::<f32>().unwrap(), want, "the order is that of the tokens");
    }
}
