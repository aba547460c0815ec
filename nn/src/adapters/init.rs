//! How a new LoRA adapter begins.

use planish_tensor::rng::Stream;
use planish_tensor::{DType, Tensor};
use serde_json::Value;

use super::AdapterError;
use super::json::Fields;
use super::linalg::{Matrix, qr, svd};
use crate::Result;

/// Name of what an initialisation leaves of a weight: a copy of the adapter's own, which is made again when it is
/// loaded and never saved.
pub(super) const RESIDUAL: &str = "residual:";

/// PEFT's `init_lora_weights`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoraInit {
    /// `true`: A uniform in ±1/√in (Kaiming's with a = √5), B zero.
    Default,
    /// `false`: both uniform in ±1/√in of their own: not the identity.
    Random,
    /// `gaussian`: A normal with deviation 1/r, B zero.
    Gaussian,
    /// `pissa`: the top r singular triples of W; what is left of W stays frozen in its place.
    Pissa,
    /// `pissa_niter_…`: the same. PEFT then finds them approximately; here they are exact.
    PissaIterated(String),
    /// `olora`: the first r columns of Q and rows of R with W = Q R; likewise.
    Olora,
    /// `orthogonal`: A and B from orthogonal rows, with B A = 0.
    Orthogonal,
    /// Another that leaves the base as it is: only adapters that are loaded have it.
    Other(Value),
}

impl LoraInit {
    pub(super) fn read(f: &Fields<'_>) -> Result<LoraInit, AdapterError> {
        Ok(match f.get("init_lora_weights") {
            None | Some(Value::Bool(true)) => LoraInit::Default,
            Some(Value::Bool(false)) => LoraInit::Random,
            Some(Value::String(name)) => match name.as_str() {
                // These change the base in ways that depend on data or on quantisation.
                "loftq" | "corda" | "lora_ga" => {
                    return Err(AdapterError::Unsupported { what: format!("init_lora_weights {name:?}") });
                }
                other => LoraInit::parse(other).unwrap_or_else(|| LoraInit::Other(Value::String(other.into()))),
            },
            Some(other) => LoraInit::Other(other.clone()),
        })
    }

    /// By its name in settings; `None` if there is none of that name.
    pub fn parse(name: &str) -> Option<LoraInit> {
        Some(match name {
            "true" => LoraInit::Default,
            "false" => LoraInit::Random,
            "gaussian" => LoraInit::Gaussian,
            "pissa" => LoraInit::Pissa,
            "olora" => LoraInit::Olora,
            "orthogonal" => LoraInit::Orthogonal,
            _ => {
                let n = name.strip_prefix("pissa_niter_")?;
                n.parse::<u32>().ok().filter(|n| *n > 0)?;
                LoraInit::PissaIterated(name.into())
            }
        })
    }

    pub(super) fn to_json(&self) -> Value {
        match self {
            LoraInit::Default => Value::Bool(true),
            LoraInit::Random => Value::Bool(false),
            LoraInit::Gaussian => "gaussian".into(),
            LoraInit::Pissa => "pissa".into(),
            LoraInit::PissaIterated(name) => name.clone().into(),
            LoraInit::Olora => "olora".into(),
            LoraInit::Orthogonal => "orthogonal".into(),
            LoraInit::Other(value) => value.clone(),
        }
    }

    /// A and B taken out of W (out, in), and what is left, W - s·B A, rounded to W's dtype; `None` for
    /// initialisations that leave W whole.
    ///
    /// PiSSA: B = U √(Σ/s), A = √(Σ/s) Vᵀ of the top r; OLoRA: B = Q_r, A = R_r.
    ///
    /// # Source
    /// Meng et al., "PiSSA", arXiv:2404.02948, equations 2 to 4; Büyükakyüz, "OLoRA", arXiv:2406.01775, algorithm 1.
    pub(super) fn taken(&self, weight: &Tensor, r: usize, scale: f64, dtype: DType) -> Result<Option<Taken>> {
        let takes = matches!(self, LoraInit::Pissa | LoraInit::PissaIterated(_) | LoraInit::Olora);
        if takes && weight.quantized().is_some() {
            let what =
                format!("init_lora_weights {} on a quantised weight, which what is left could not be", self.to_json());
            return Err(AdapterError::Unsupported { what }.into());
        }
        let (out, input) = (weight.dims()[0], weight.dims()[1]);
        let wide = || -> Result<Matrix> { Ok(Matrix::new(out, input, weight.to_dtype(DType::F64)?.to_vec::<f64>()?)) };
        let (a, b, w) = match self {
            LoraInit::Pissa | LoraInit::PissaIterated(_) => {
                let w = wide()?;
                let (mut u, s, mut vt) = svd(&w, r);
                let roots: Vec<f64> = s.iter().map(|s| (s / scale).sqrt()).collect();
                u.data.iter_mut().enumerate().for_each(|(i, x)| *x *= roots[i % s.len()]);
                vt.data.iter_mut().enumerate().for_each(|(i, x)| *x *= roots[i / input]);
                (vt, u, w)
            }
            LoraInit::Olora => {
                let w = wide()?;
                let (q, upper) = qr(&w, r);
                (upper, q, w)
            }
            _ => return Ok(None),
        };
        let product = b.times(&a);
        let rest: Vec<f64> = w.data.iter().zip(&product.data).map(|(w, p)| w - scale * p).collect();
        Ok(Some(Taken {
            a: Tensor::from_vec(a.data, [a.rows, input])?.to_dtype(dtype)?,
            b: Tensor::from_vec(b.data, [out, b.cols])?.to_dtype(dtype)?,
            rest: Tensor::from_vec(rest, [out, input])?.to_dtype(weight.dtype())?,
        }))
    }
}

/// What an initialisation takes out of a weight.
pub(super) struct Taken {
    /// A: (r, in).
    pub(super) a: Tensor,
    /// B: (out, r).
    pub(super) b: Tensor,
    /// W - s·B A, in W's dtype.
    pub(super) rest: Tensor,
}

/// A (r, in) and B (out, r) with B A = 0: random combinations of the odd and of the even rows of a random
/// orthogonal matrix, divided by 10.
///
/// # Source
/// PEFT's `init_lora_weights="orthogonal"`; r must be even.
pub(super) fn orthogonal(stream: Stream, out: usize, input: usize, r: usize, dtype: DType) -> Result<[Tensor; 2]> {
    if !r.is_multiple_of(2) {
        let (value, expected) = (r.to_string(), "even with init_lora_weights orthogonal");
        return Err(AdapterError::Value { key: "lora_r", value, expected }.into());
    }
    let random = |rows: usize, cols: usize, salt: u64| {
        let s = stream.substream(salt);
        Matrix::new(rows, cols, (0..rows * cols).map(|i| s.normal(i as u64)).collect())
    };
    let (q, _) = qr(&random(r, r, 0), r);
    let half = |first: usize| {
        let rows = (first..r).step_by(2).flat_map(|i| q.data[i * r..(i + 1) * r].to_vec()).collect();
        Matrix::new(r / 2, r, rows)
    };
    let a = half(0).t().times(&random(r / 2, input, 1));
    let b = random(out, r / 2, 2).times(&half(1));
    let tensor = |m: Matrix| -> Result<Tensor> {
        let data = m.data.iter().map(|x| x / 10.0).collect::<Vec<f64>>();
        Ok(Tensor::from_vec(data, [m.rows, m.cols])?.to_dtype(dtype)?)
    };
    Ok([tensor(a)?, tensor(b)?])
}
