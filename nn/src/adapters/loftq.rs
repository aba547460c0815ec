//! LoftQ on a base that is quantised as it is loaded: LoRA begins with what that lost.

use planish_tensor::{DType, Tensor};

use super::init::{LoraInit, halves};
use super::linalg::Matrix;
use super::{AdapterError, LoraConfig};
use crate::Result;
use crate::decoder::{Layer, Model};
use crate::pretrained::Pretrained;

/// Makes A and B of a LoRA adapter (number 0) those whose s·B A is nearest to W - Q, with Q the quantised weight under them
/// and W that of the model's files: PEFT's function of this name. The result is plain LoRA for a base that is quantised in
/// the same way. Modules that are not quantised keep what they have.
///
/// Deviation from PEFT, whose B A is nearest to W - Q whatever the scale s is.
///
/// # Errors
/// [`AdapterError::Conflict`] if the files hold quantised weights themselves, if no weight under the adapter is quantised,
/// and for DoRA, whose magnitudes would be those of other weights.
///
/// # Source
/// Li et al., "LoftQ", arXiv:2310.08659, algorithm 1 with T = 1.
pub fn replace_lora_weights_loftq(model: &Model, config: &LoraConfig, files: &Pretrained) -> Result<()> {
    let conflict = |problem: &str| AdapterError::Conflict { key: "init_lora_weights", problem: problem.into() };
    if config.use_dora {
        return Err(conflict("loftq on a quantised base goes without use_dora").into());
    }
    let mut found = false;
    files.unquantized(|source| {
        for linear in model.layers.iter().flat_map(Layer::linears) {
            let Some(adapter) = linear.adapters.get(0) else { continue };
            let (base, params) = (linear.weight.base.value(), adapter.params());
            let ([a, b], Some(quantised)) = (&params[..], base.quantized()) else { continue };
            let whole = source.tensor(linear.weight.base.name(), base.dims())?;
            let Some(whole) = whole.filter(|w| w.quantized().is_none() && w.dims() == base.dims()) else {
                return Err(LoraInit::LoftQ { bits: 4, iterations: 1 }.of_quantised().into());
            };
            let (r, scale) = config.rank_and_scale(&linear.name)?;
            let numbers = |t: Tensor| -> Result<Vec<f64>> { Ok(t.to_dtype(DType::F64)?.to_vec::<f64>()?) };
            let kept = quantised.dequantize(DType::F64)?.to_vec::<f64>()?;
            let lost = numbers(whole)?.iter().zip(&kept).map(|(w, q)| w - q).collect();
            let (wide, tall) = halves(&Matrix::new(base.dims()[0], base.dims()[1], lost), r, scale);
            for (param, made) in [(a, wide), (b, tall)] {
                param.update(|value| -> Result<()> {
                    *value = Tensor::from_vec(made.data, value.dims())?.to_dtype(value.dtype())?;
                    Ok(())
                })?;
            }
            found = true;
        }
        Ok(())
    })?;
    match found {
        true => Ok(()),
        false => Err(conflict("loftq is for quantised weights, and none of those that the adapter is on is").into()),
    }
}
