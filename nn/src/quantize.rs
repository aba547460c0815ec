//! Quantising a model as it is loaded or written: which weights, how, and what config.json says of it.
//!
//! As transformers with bitsandbytes: the linear modules of the layers are quantised; the embedding, the norms, biases
//! and the head keep their dtype.

use std::cell::Cell;

use planish_autograd::Param;
use planish_tensor::quant::{FourBit, FourBitKind, Int8, Layout, Panels, Quantized};
use planish_tensor::{DType, Float, Tensor, dispatch_float, parallel};
use serde_json::{Value, json};

use crate::decoder::{Model, TensorSource};
use crate::modules::Weight;
use crate::{Error, Result};

/// A format to quantise into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantizeAs {
    /// 4 bits, in blocks of so many elements; `double` quantises the scales too.
    FourBit {
        /// The code.
        kind: FourBitKind,
        /// Elements of a block: 32 to 4096, a power of two.
        block: usize,
        /// Whether the scales are quantised too.
        double: bool,
    },
    /// 8 bits, row by row.
    Int8,
}

impl QuantizeAs {
    /// bitsandbytes' block size.
    pub const BLOCK: usize = 64;

    /// The weight in that format.
    ///
    /// # Errors
    /// Those of the kernels: a block size that does not exist, a weight that is no matrix of floats.
    pub fn quantize(&self, weight: &Tensor) -> planish_tensor::Result<Quantized> {
        match *self {
            QuantizeAs::FourBit { kind, block, double } => FourBit::quantize(weight, kind, block, double),
            QuantizeAs::Int8 => Int8::quantize(weight),
        }
    }

    /// As [`QuantizeAs::quantize`], of a weight with a name.
    ///
    /// # Errors
    /// [`Error::NotFinite`]: a code has no word for NaN and the infinities, and would write numbers in their place.
    fn quantize_named(&self, name: &str, weight: &Tensor) -> Result<Quantized> {
        if let Some((value, row, column)) = not_finite(weight)? {
            return Err(Error::NotFinite { name: name.into(), value, row, column });
        }
        Ok(self.quantize(weight)?)
    }

    /// config.json's `quantization_config`. `dtype` is that of the other weights.
    pub fn to_json(&self, dtype: DType) -> Value {
        let (four, kind, double) = match self {
            QuantizeAs::FourBit { kind, double, .. } => (true, kind.name(), *double),
            QuantizeAs::Int8 => (false, "fp4", false),
        };
        json!({
            "_load_in_4bit": four,
            "_load_in_8bit": !four,
            "bnb_4bit_compute_dtype": if four { dtype.name() } else { "float32" },
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": double,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": null,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": four,
            "load_in_8bit": !four,
            "quant_method": "bitsandbytes"
        })
    }

    /// The format that a quantised weight has; `None` for GGUF's blocks and for panels.
    pub fn of(weight: &Quantized) -> Option<QuantizeAs> {
        match weight.layout() {
            Layout::FourBit(f) => Some(QuantizeAs::FourBit {
                kind: f.kind(),
                block: f.block_size(),
                double: matches!(f.scales(), planish_tensor::quant::Scales::Nested(_)),
            }),
            Layout::Int8(_) => Some(QuantizeAs::Int8),
            Layout::Ggml(_) | Layout::Panels(_) => None,
        }
    }
}

/// The first entry of a weight (rows, cols) that is NaN or infinite, with its row and column.
fn not_finite(weight: &Tensor) -> planish_tensor::Result<Option<(f64, usize, usize)>> {
    let weight = weight.contiguous()?;
    let [rows, cols] = *weight.dims() else { return Ok(None) };
    dispatch_float!("quantize", weight.dtype(), W => {
        let data = weight.as_slice::<W>()?;
        let bad = |x: &W| !x.widen::<f64>().is_finite();
        let of_rows = parallel::map(rows, |r| data[r * cols..(r + 1) * cols].iter().position(bad));
        let first = of_rows.into_iter().enumerate().find_map(|(row, column)| Some((row, column?)));
        Ok(first.map(|(row, column)| (data[row * cols + column].widen::<f64>(), row, column)))
    })
}

/// Whether a weight is one of the linear modules of the layers.
pub fn is_quantizable(name: &str) -> bool {
    let ends = ["_proj.weight", "_proj_with_mqa.weight", ".w1.weight", ".w2.weight", ".w3.weight"];
    name.starts_with("model.layers.") && ends.iter().any(|end| name.ends_with(end))
}

/// A source whose linear modules are quantised one by one as they are asked for.
pub struct Quantizing<'a> {
    inner: &'a dyn TensorSource,
    how: QuantizeAs,
    /// Dtype that a weight is rounded to first; as in the file if `None`.
    dtype: Option<DType>,
}

impl<'a> Quantizing<'a> {
    /// Quantises what `inner` gives.
    pub fn new(inner: &'a dyn TensorSource, how: QuantizeAs, dtype: Option<DType>) -> Quantizing<'a> {
        Quantizing { inner, how, dtype }
    }
}

impl TensorSource for Quantizing<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        let Some(tensor) = self.inner.tensor(name, shape)? else { return Ok(None) };
        if !is_quantizable(name) || tensor.rank() != 2 {
            return Ok(Some(tensor));
        }
        if let Some(weight) = tensor.quantized() {
            return match QuantizeAs::of(weight) {
                Some(how) if how == self.how => Ok(Some(tensor)),
                _ => Err(Error::AlreadyQuantized { name: name.into(), format: weight.format() }),
            };
        }
        if !tensor.dtype().is_float() {
            return Err(Error::TensorDtype { name: name.into(), found: tensor.dtype() });
        }
        let tensor = match self.dtype {
            Some(dtype) => tensor.to_dtype(dtype)?,
            None => tensor,
        };
        Ok(Some(Tensor::packed(self.how.quantize_named(name, &tensor)?)))
    }

    fn names(&self) -> Vec<String> {
        self.inner.names()
    }
}

/// Calls `f` with each weight of the model that may be quantised in a file.
fn each_weight(model: &mut Model, mut f: impl FnMut(&mut Weight) -> Result<()>) -> Result<()> {
    f(&mut model.embed_tokens)?;
    model.linears_mut().into_iter().try_for_each(|linear| f(&mut linear.weight))?;
    model.lm_head.iter_mut().try_for_each(f)
}

/// The format of the model's weights, if bitsandbytes' is among them.
pub fn format_of(model: &Model) -> Option<QuantizeAs> {
    model.base_params().iter().find_map(|p| QuantizeAs::of(p.value().quantized()?))
}

/// Puts the values of quantised weights in their place, and rounds those of the layers to `dtype`, quantised or, as they
/// are after merging, f32.
///
/// # Errors
/// [`planish_tensor::Error::OutOfMemory`].
pub fn unpack(model: &mut Model, dtype: DType) -> Result<()> {
    each_weight(model, |weight| {
        let value = weight.base.value();
        if value.quantized().is_some() || (is_quantizable(weight.base.name()) && value.dtype() == DType::F32) {
            weight.base = Param::frozen(weight.base.name(), value.to_dtype(dtype)?);
        }
        Ok(())
    })
}

/// Quantises those linear modules of the layers that are not.
///
/// # Errors
/// [`Error::NotFinite`]; those of the kernels.
pub fn requantize(model: &mut Model, how: QuantizeAs) -> Result<()> {
    each_weight(model, |weight| {
        let value = weight.base.value();
        if is_quantizable(weight.base.name()) && value.quantized().is_none() {
            let packed = how.quantize_named(weight.base.name(), &value)?;
            weight.base = Param::frozen(weight.base.name(), Tensor::packed(packed));
        }
        Ok(())
    })
}

/// Lays the frozen weights of the embedding, the linear modules and the head out in [`Panels`], floats and blocks, one
/// after the other: decoding on the processor then reads them as fast as memory is read. Nothing changes but the time: every op has
/// the bits that it has with the weights as they were. Weights mapped from a file come into memory of their own.
///
/// # Errors
/// [`planish_tensor::Error::OutOfMemory`].
pub fn lay_out(model: &mut Model) -> Result<()> {
    /// Bytes of a block, which several weights share: enough for huge pages, and little to be in memory twice.
    const BLOCK: usize = 32 << 20;
    loop {
        // The next weights that are not laid out.
        let mut next: Vec<Tensor> = Vec::new();
        let mut bytes = 0;
        each_weight(model, |weight| {
            let value = weight.base.value();
            if bytes < BLOCK && !weight.base.is_trainable() && Panels::takes(&value) {
                bytes += Panels::bytes(&value);
                next.push(value);
            }
            Ok(())
        })?;
        if next.is_empty() {
            return Ok(());
        }
        let mut laid_out = next.iter().zip(Panels::together(&next)?);
        let mut now = laid_out.next();
        each_weight(model, |weight| {
            if let Some((_, panels)) = now.take_if(|(value, _)| weight.base.value().shares_storage(value)) {
                weight.base = Param::frozen(weight.base.name(), Tensor::packed(panels));
                now = laid_out.next();
            }
            Ok(())
        })?;
    }
}

/// Writes into a model's config.json what its weights are: `quantization_config` if some are bitsandbytes', none if
/// none are; and the dtype of the others.
pub(crate) fn describe(model: &Model, config: &mut Value) {
    let params = model.base_params();
    let dtype = params.iter().map(|p| p.value().dtype()).find(|d| d.is_float()).unwrap_or(DType::F32);
    config["torch_dtype"] = dtype.name().into();
    if config.get("dtype").is_some() {
        config["dtype"] = dtype.name().into();
    }
    match format_of(model) {
        Some(how) if config["quantization_config"].is_null() => config["quantization_config"] = how.to_json(dtype),
        Some(_) => {}
        None => {
            if let Some(config) = config.as_object_mut() {
                config.remove("quantization_config");
            }
        }
    }
}

/// A model's weights as its file has them, quantised on the way, for [`save_sharded`](crate::weights::save_sharded): one
/// is in memory at a time, apart from what the shard holds. `done` hears each name, what was made of it, and its error.
pub struct QuantizedTensors<'a> {
    source: &'a dyn TensorSource,
    how: QuantizeAs,
    names: std::vec::IntoIter<String>,
    ready: std::vec::IntoIter<(String, Tensor)>,
    failed: &'a Cell<Option<Error>>,
    done: &'a mut dyn FnMut(&str, &Quantized, f64),
}

impl<'a> QuantizedTensors<'a> {
    /// Of all tensors of `source`. The iterator ends early at what goes wrong, which is then in `failed`.
    pub fn new(
        source: &'a dyn TensorSource,
        how: QuantizeAs,
        failed: &'a Cell<Option<Error>>,
        done: &'a mut dyn FnMut(&str, &Quantized, f64),
    ) -> QuantizedTensors<'a> {
        let names = source.names().into_iter();
        QuantizedTensors { source, how, names, ready: Vec::new().into_iter(), failed, done }
    }

    fn make(&mut self, name: &str) -> Result<Vec<(String, Tensor)>> {
        let missing = || Error::MissingTensor { name: name.into() };
        let tensor = self.source.tensor(name, &[])?.ok_or_else(missing)?;
        if let Some(weight) = tensor.quantized() {
            return Err(Error::AlreadyQuantized { name: name.into(), format: weight.format() });
        }
        if !is_quantizable(name) || tensor.rank() != 2 {
            return Ok(vec![(name.to_owned(), tensor)]);
        }
        if !tensor.dtype().is_float() {
            return Err(Error::TensorDtype { name: name.into(), found: tensor.dtype() });
        }
        let weight = self.how.quantize_named(name, &tensor)?;
        (self.done)(name, &weight, weight.relative_rms(&tensor)?);
        Ok(crate::weights::stored(name, &Tensor::packed(weight))?)
    }
}

impl Iterator for QuantizedTensors<'_> {
    type Item = (String, Tensor);

    fn next(&mut self) -> Option<(String, Tensor)> {
        loop {
            if let Some(part) = self.ready.next() {
                return Some(part);
            }
            let name = self.names.next()?;
            match self.make(&name) {
                Ok(parts) => self.ready = parts.into_iter(),
                Err(error) => {
                    self.failed.set(Some(error));
                    return None;
                }
            }
        }
    }
}
