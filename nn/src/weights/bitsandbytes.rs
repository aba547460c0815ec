//! Quantised weights in safetensors, as bitsandbytes and transformers write them.
//!
//! A 4-bit weight `W` is `W` (ceil(n / 2), 1) of nibbles, `W.absmax`, `W.quant_map` (16), doubly quantised also
//! `W.nested_absmax` and `W.nested_quant_map` (256), and the rest as JSON in the bytes of
//! `W.quant_state.bitsandbytes__nf4` (or `__fp4`). An int8 weight of the module `M` is `M.weight` (out, in) of integers
//! and `M.SCB` (out), the largest absolute value of each row; `M.weight_format` says that it lies row by row.

use planish_tensor::quant::{FourBit, FourBitKind, Int8, Layout, Nested, Quantized, Scales};
use planish_tensor::{DType, Tensor};
use serde_json::{Map, Value};

use super::{Result, WeightsError, WeightsReader};

const STATE: &str = "quant_state.bitsandbytes__";
const KINDS: [FourBitKind; 2] = [FourBitKind::Nf4, FourBitKind::Fp4];
/// What comes after the name of a 4-bit weight, beside its state.
const PARTS: [&str; 4] = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"];

/// What is wrong with the parts of a quantised weight.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum QuantProblem {
    /// It is of integers, but nothing says what they stand for.
    #[error("is {0}, but neither a quant_state nor an SCB is there to say what that stands for")]
    NoState(DType),
    /// A part is missing.
    #[error("has no `{0}`, which its quant_state calls for")]
    Missing(&'static str),
    /// The JSON of its state cannot be read.
    #[error("has a quant_state that is damaged: {0}")]
    Json(String),
    /// A key of its state is missing or of another type.
    #[error("has a quant_state whose `{key}` is {found}, but it must be {expected}")]
    Key {
        /// The key.
        key: &'static str,
        /// What is there.
        found: String,
        /// What must be.
        expected: &'static str,
    },
    /// Its state contradicts itself or a part.
    #[error("has a quant_state that contradicts {0}")]
    Contradiction(&'static str),
    /// The parts do not fit together.
    #[error("does not fit its quant_state: {0}")]
    Parts(planish_tensor::Error),
    /// An int8 weight that does not lie row by row.
    #[error("has a weight_format of {0}; only row by row (0) is read")]
    Format(u8),
}

impl WeightsReader {
    /// The quantised weight of that name, as a tensor of packed dtype over the mapped file; `None` for a plain tensor.
    ///
    /// # Errors
    /// [`WeightsError::NoSuchTensor`]; [`WeightsError::Quantised`] for parts that are missing, damaged or contradictory.
    pub fn quantized(&self, name: &str) -> Result<Option<Tensor>> {
        let wrong = |problem| self.wrong(name, problem);
        let dtype = match self.meta(name) {
            Some(meta) => meta.dtype,
            None => return self.get(name).map(Some),
        };
        if let Some(kind) = KINDS.into_iter().find(|k| self.contains(&format!("{name}.{STATE}{}", k.name()))) {
            return self.four_bit(name, kind).map(|q| Some(Tensor::packed(q)));
        }
        if dtype == DType::I8
            && let Some(scales) = scb(name).filter(|n| self.contains(n))
        {
            let weight = self.get(name)?;
            let &[rows, cols] = weight.dims() else {
                return Err(wrong(QuantProblem::Contradiction("its own shape, which is no matrix")));
            };
            if let Some(format) = weight_format(name).filter(|n| self.contains(n)) {
                match self.get(&format)?.to_dtype(DType::U8)?.to_vec::<u8>()?.first() {
                    None | Some(0) => {}
                    Some(&other) => return Err(wrong(QuantProblem::Format(other))),
                }
            }
            let made = Int8::from_parts([rows, cols], &weight, &self.get(&scales)?);
            return Ok(Some(Tensor::packed(made.map_err(|e| wrong(QuantProblem::Parts(e)))?)));
        }
        if matches!(dtype, DType::I8 | DType::U8) {
            return Err(wrong(QuantProblem::NoState(dtype)));
        }
        Ok(None)
    }

    fn wrong(&self, name: &str, problem: QuantProblem) -> WeightsError {
        WeightsError::Quantised { path: self.path().into(), name: name.into(), problem: Box::new(problem) }
    }

    fn four_bit(&self, name: &str, kind: FourBitKind) -> Result<Quantized> {
        let wrong = |problem| self.wrong(name, problem);
        let state = self.get(&format!("{name}.{STATE}{}", kind.name()))?;
        let json = state.as_slice::<u8>().map_err(|e| wrong(QuantProblem::Parts(e)))?;
        let state: Map<String, Value> =
            serde_json::from_slice(json).map_err(|e| wrong(QuantProblem::Json(e.to_string())))?;
        let state = State { map: &state };
        let part = |part: &'static str| -> Result<Tensor> {
            let full = format!("{name}.{part}");
            if self.contains(&full) { self.get(&full) } else { Err(wrong(QuantProblem::Missing(part))) }
        };
        if state.text("quant_type").map_err(wrong)? != kind.name() {
            return Err(wrong(QuantProblem::Contradiction("the name that it is stored under")));
        }
        let dtype = state.dtype("dtype").map_err(wrong)?;
        let (block, shape) = (state.count("blocksize").map_err(wrong)?, state.shape().map_err(wrong)?);
        let map = part("quant_map")?;
        if map.dtype() != DType::F32 || !close(map.as_slice::<f32>().unwrap_or_default(), kind.code()) {
            return Err(wrong(QuantProblem::Contradiction("its quant_map, which is not that code")));
        }
        let scales = if self.contains(&format!("{name}.nested_absmax")) {
            let nested = Nested {
                codes: part("absmax")?,
                absmax: part("nested_absmax")?,
                code: part("nested_quant_map")?,
                block: state.count("nested_blocksize").map_err(wrong)?,
                offset: state.number("nested_offset").map_err(wrong)? as f32,
            };
            Scales::Nested(nested)
        } else if state.map.contains_key("nested_offset") {
            return Err(wrong(QuantProblem::Missing("nested_absmax")));
        } else {
            Scales::Plain(part("absmax")?)
        };
        let bytes = as_bytes(&self.get(name)?)?;
        FourBit::from_parts(shape, kind, block, &bytes, scales, dtype).map_err(|e| wrong(QuantProblem::Parts(e)))
    }

    /// Whether a tensor is a part of a quantised weight, and no weight itself.
    pub fn is_quantized_part(&self, name: &str) -> bool {
        let of_four = |base: &str| KINDS.into_iter().any(|k| self.contains(&format!("{base}.{STATE}{}", k.name())));
        if let Some((base, _)) = name.split_once(&format!(".{STATE}")) {
            return self.contains(base);
        }
        if let Some((base, last)) = name.rsplit_once('.') {
            if PARTS.contains(&last) {
                return of_four(base);
            }
            if last == "SCB" || last == "weight_format" {
                return self.contains(&format!("{base}.weight"));
            }
        }
        false
    }
}

fn scb(name: &str) -> Option<String> {
    Some(format!("{}.SCB", name.strip_suffix(".weight")?))
}

fn weight_format(name: &str) -> Option<String> {
    Some(format!("{}.weight_format", name.strip_suffix(".weight")?))
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6)
}

/// The bytes of a weight whose nibbles were stored under another dtype (`bnb_4bit_quant_storage`).
fn as_bytes(t: &Tensor) -> Result<Tensor> {
    if t.dtype() == DType::U8 {
        return Ok(t.clone());
    }
    let bytes = planish_tensor::dispatch!(t.dtype(), T => {
        let elements: &[T] = t.as_slice()?;
        bytemuck::cast_slice::<T, u8>(elements).to_vec()
    });
    let n = bytes.len();
    Ok(Tensor::from_vec(bytes, [n])?)
}

/// The state's JSON.
struct State<'a> {
    map: &'a Map<String, Value>,
}

impl State<'_> {
    fn wrong(&self, key: &'static str, expected: &'static str) -> QuantProblem {
        let found =
            self.map.get(key).map_or_else(|| "missing".to_owned(), |v| v.to_string().chars().take(40).collect());
        QuantProblem::Key { key, found, expected }
    }

    fn text(&self, key: &'static str) -> Result<&str, QuantProblem> {
        self.map.get(key).and_then(Value::as_str).ok_or_else(|| self.wrong(key, "a text"))
    }

    fn count(&self, key: &'static str) -> Result<usize, QuantProblem> {
        let n = self.map.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        n.ok_or_else(|| self.wrong(key, "a whole number"))
    }

    fn number(&self, key: &'static str) -> Result<f64, QuantProblem> {
        self.map.get(key).and_then(Value::as_f64).ok_or_else(|| self.wrong(key, "a number"))
    }

    fn dtype(&self, key: &'static str) -> Result<DType, QuantProblem> {
        let dtype = DType::parse(self.text(key)?);
        let dtype = dtype.filter(|d| matches!(d, DType::F32 | DType::BF16 | DType::F16));
        dtype.ok_or_else(|| self.wrong(key, "float32, bfloat16 or float16"))
    }

    fn shape(&self) -> Result<[usize; 2], QuantProblem> {
        let sizes = self.map.get("shape").and_then(Value::as_array);
        let sizes: Option<Vec<usize>> =
            sizes.and_then(|s| s.iter().map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok())).collect());
        sizes.and_then(|s| s.try_into().ok()).ok_or_else(|| self.wrong("shape", "two whole numbers"))
    }
}

/// What a weight of that name is stored as: itself, or the parts that bitsandbytes makes of it. GGUF's blocks, which
/// safetensors have no form for, are stored as their values in f32.
///
/// # Errors
/// [`WeightsError::Tensor`] for want of memory.
pub fn stored(name: &str, value: &Tensor) -> Result<Vec<(String, Tensor)>> {
    let Some(weight) = value.quantized() else { return Ok(vec![(name.to_owned(), value.clone())]) };
    let four = match weight.layout() {
        Layout::FourBit(four) => four,
        Layout::Int8(int8) => {
            let mut parts = vec![(name.to_owned(), int8.bytes().reshape(weight.shape().to_vec())?)];
            parts.extend(scb(name).map(|n| (n, int8.scales().clone())));
            if let Some(format) = weight_format(name) {
                parts.push((format, Tensor::scalar(0u8)?));
            }
            return Ok(parts);
        }
        Layout::Ggml(_) => return Ok(vec![(name.to_owned(), weight.dequantize(DType::F32)?)]),
        Layout::Panels(panels) => return Ok(vec![(name.to_owned(), weight.dequantize(panels.dtype())?)]),
    };
    let mut state = Map::new();
    state.insert("quant_type".into(), four.kind().name().into());
    state.insert("blocksize".into(), four.block_size().into());
    state.insert("dtype".into(), four.dtype().name().into());
    state.insert("shape".into(), weight.shape().to_vec().into());
    let n = four.bytes().numel();
    // fp4's second zero is negative when it is read and not in the map: adding zero makes it so.
    let part = |part: &str| format!("{name}.{part}");
    let mut parts = vec![
        (name.to_owned(), four.bytes().reshape([n, 1])?),
        (part("quant_map"), Tensor::from_vec(four.kind().code().iter().map(|c| c + 0.0).collect(), [16])?),
    ];
    match four.scales() {
        Scales::Plain(absmax) => parts.push((part("absmax"), absmax.clone())),
        Scales::Nested(nested) => {
            parts.push((part("absmax"), nested.codes.clone()));
            parts.push((part("nested_absmax"), nested.absmax.clone()));
            parts.push((part("nested_quant_map"), nested.code.clone()));
            state.insert("nested_blocksize".into(), nested.block.into());
            state.insert("nested_dtype".into(), "float32".into());
            state.insert("nested_offset".into(), (nested.offset as f64).into());
        }
    }
    let json = Value::Object(state).to_string().into_bytes();
    let len = json.len();
    parts.push((format!("{name}.{STATE}{}", four.kind().name()), Tensor::from_vec(json, [len])?));
    Ok(parts)
}
