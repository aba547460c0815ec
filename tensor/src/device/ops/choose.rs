//! The largest scores of rows.

use planish_cuda::DType as Type;
use planish_cuda::ops::choose as kernel;

use super::On;
use crate::{DType, Result, Tensor};

/// The places of the k largest scores (+ bias) of each row, in order: (rows · k). `None` if the device's kernel does not take these.
pub(crate) fn choose(on: &On, scores: &Tensor, bias: Option<&Tensor>, k: usize) -> Result<Option<Vec<u32>>> {
    let [rows, experts] = [scores.dims()[0], scores.dims()[1]];
    let wide = bias.is_some_and(|bias| !matches!(bias.dtype(), DType::F32 | DType::BF16 | DType::F16));
    if scores.dtype() != DType::F32 || wide || !(1..=kernel::MOST).contains(&experts) || !(1..=experts).contains(&k) {
        return Ok(None);
    }
    if rows == 0 {
        return Ok(Some(Vec::new()));
    }
    // Of halves no bit is lost.
    let bias = bias.map(|bias| bias.to_dtype(DType::F32)?.contiguous()).transpose()?;
    let (scores, queue) = (scores.contiguous()?, on.queue());
    let mut chosen = queue.alloc("the choice of experts", rows * k, Type::U32)?;
    let bias = bias.as_ref().map(Tensor::cells).transpose()?;
    kernel::choose(queue, chosen.slice_mut(Type::U32), scores.cells()?, bias, experts, k)?;
    let chosen: Vec<u32> = chosen.download()?;
    on.downloaded(size_of_val(&*chosen));
    Ok(Some(chosen))
}
