//! How a new LoRA adapter begins.

use planish_tensor::quant::{FourBit, FourBitKind, Int8};
use planish_tensor::rng::Stream;
use planish_tensor::{DType, Tensor};
use serde_json::{Value, json};

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
    /// `pissa`: the top r singular triples of W; what is left of W stays frozen in its place. `pissa_niter_N`, with which
    /// PEFT draws approximate ones anew whenever it loads the adapter, is this too, and is saved under this name: what was
    /// trained beside the exact remainder is to be loaded beside it.
    Pissa,
    /// `olora`: the first r columns of Q and rows of R with W = Q R; likewise.
    Olora,
    /// `orthogonal`: A and B from orthogonal rows, with B A = 0.
    Orthogonal,
    /// `loftq`: W quantised to `bits` (4: NF4 in blocks of 64; 8: int8 by rows) stays frozen in its place, A and B begin
    /// as what that lost; both are found in turn, `iterations` times. PEFT's `loftq_config`.
    LoftQ {
        /// 4 or 8.
        bits: usize,
        /// At least 1.
        iterations: usize,
    },
    /// Another that leaves the base as it is: only adapters that are loaded have it.
    Other(Value),
}

impl LoraInit {
    pub(super) fn read(f: &Fields<'_>) -> Result<LoraInit, AdapterError> {
        Ok(match f.get("init_lora_weights") {
            None | Some(Value::Bool(true)) => LoraInit::Default,
            Some(Value::Bool(false)) => LoraInit::Random,
            Some(Value::String(name)) => match name.as_str() {
                "loftq" => {
                    let config = f.object("loftq_config")?;
                    let at = |key| config.as_ref().map_or(Ok(None), |config| config.opt_whole(key));
                    let (bits, iterations) = (at("loftq_bits")?.unwrap_or(4), at("loftq_iter")?.unwrap_or(1));
                    LoraInit::LoftQ { bits, iterations }
                }
                // These change the base in ways that depend on data.
                "corda" | "lora_ga" => {
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
            "loftq" => LoraInit::LoftQ { bits: 4, iterations: 1 },
            _ => {
                let n = name.strip_prefix("pissa_niter_")?;
                n.parse::<u32>().ok().filter(|n| *n > 0)?;
                LoraInit::Pissa
            }
        })
    }

    pub(super) fn to_json(&self) -> Value {
        match self {
            LoraInit::Default => Value::Bool(true),
            LoraInit::Random => Value::Bool(false),
            LoraInit::Gaussian => "gaussian".into(),
            LoraInit::Pissa => "pissa".into(),
            LoraInit::Olora => "olora".into(),
            LoraInit::Orthogonal => "orthogonal".into(),
            LoraInit::LoftQ { .. } => "loftq".into(),
            LoraInit::Other(value) => value.clone(),
        }
    }

    /// Whether it leaves something else in W's place.
    pub(super) fn takes(&self) -> bool {
        use LoraInit::*;
        matches!(self, Pissa | Olora | LoftQ { .. })
    }

    /// PEFT's `loftq_config`, if it has one.
    pub(super) fn loftq_config(&self) -> Option<Value> {
        match self {
            LoraInit::LoftQ { bits, iterations } => Some(json!({ "loftq_bits": bits, "loftq_iter": iterations })),
            _ => None,
        }
    }

    /// Checks the numbers.
    pub(super) fn validate(&self) -> Result<(), AdapterError> {
        let LoraInit::LoftQ { bits, iterations } = self else { return Ok(()) };
        let bad = |key, value: &usize, expected| Err(AdapterError::Value { key, value: value.to_string(), expected });
        match (bits, iterations) {
            (4 | 8, 1..) => Ok(()),
            (4 | 8, _) => bad("loftq_iter", iterations, "at least 1"),
            _ => bad("loftq_bits", bits, "4 or 8"),
        }
    }

    /// That a weight is quantised already.
    pub(super) fn of_quantised(&self) -> AdapterError {
        let name = self.to_json().as_str().unwrap_or_default().to_owned();
        let problem = match self {
            LoraInit::LoftQ { .. } => format!(
                "is {name}, which begins with what quantising loses, and these weights were quantised before: give the model as it was then (with load_in_4bit or load_in_8bit), or choose true, gaussian or orthogonal"
            ),
            _ => format!(
                "is {name}, which changes the weights that it begins from, and these are quantised: choose true, gaussian or orthogonal, or open the model as it was before (without load_in_4bit and load_in_8bit)"
            ),
        };
        AdapterError::Conflict { key: "init_lora_weights", problem }
    }

    /// A and B taken out of W (out, in), and what is left in its place; `None` for initialisations that leave W whole.
    ///
    /// PiSSA: B = U √(Σ/s), A = √(Σ/s) Vᵀ of the top r; OLoRA: B = Q_r, A = R_r; in both W - s·B A is left, rounded to
    /// W's dtype. LoftQ: Q = quantised(W - s·B A), from B A = 0 on, then B and A as PiSSA's of W - Q, in turn; Q is
    /// left. Deviation from PEFT, whose A and B do not know the scale: s·B A, not B A, is what Q lacks.
    ///
    /// # Source
    /// Meng et al., "PiSSA", arXiv:2404.02948, equations 2 to 4; Büyükakyüz, "OLoRA", arXiv:2406.01775, algorithm 1;
    /// Li et al., "LoftQ", arXiv:2310.08659, algorithm 1.
    pub(super) fn taken(&self, weight: &Tensor, r: usize, scale: f64, dtype: DType) -> Result<Option<Taken>> {
        if self.takes() && weight.quantized().is_some() {
            return Err(self.of_quantised().into());
        }
        let (out, input) = (weight.dims()[0], weight.dims()[1]);
        let wide = || -> Result<Matrix> { Ok(Matrix::new(out, input, weight.to_dtype(DType::F64)?.to_vec::<f64>()?)) };
        let factors = |a: Matrix, b: Matrix, rest: Tensor| -> Result<Option<Taken>> {
            let a = Tensor::from_vec(a.data, [a.rows, input])?.to_dtype(dtype)?;
            let b = Tensor::from_vec(b.data, [out, b.cols])?.to_dtype(dtype)?;
            Ok(Some(Taken { a, b, rest }))
        };
        let left = |w: &Matrix, a: &Matrix, b: &Matrix| -> Result<Tensor> {
            Ok(Tensor::from_vec(less(w, a, b, scale), [out, input])?.to_dtype(weight.dtype())?)
        };
        match self {
            LoraInit::Pissa => {
                let w = wide()?;
                let (a, b) = halves(&w, r, scale);
                let rest = left(&w, &a, &b)?;
                factors(a, b, rest)
            }
            LoraInit::Olora => {
                let w = wide()?;
                let (b, a) = qr(&w, r);
                let rest = left(&w, &a, &b)?;
                factors(a, b, rest)
            }
            LoraInit::LoftQ { bits, iterations } => {
                let w = wide()?;
                let mut target = w.data.clone();
                let mut at = 1;
                loop {
                    let narrow = Tensor::from_vec(target, [out, input])?.to_dtype(DType::F32)?;
                    let quantised = match bits {
                        4 => FourBit::quantize(&narrow, FourBitKind::Nf4, LOFTQ_BLOCK, false)?,
                        _ => Int8::quantize(&narrow)?,
                    };
                    let q = quantised.dequantize(DType::F64)?.to_vec::<f64>()?;
                    let lost = w.data.iter().zip(&q).map(|(w, q)| w - q).collect();
                    let (a, b) = halves(&Matrix::new(out, input, lost), r, scale);
                    if at >= *iterations {
                        return factors(a, b, Tensor::packed(quantised));
                    }
                    target = less(&w, &a, &b, scale);
                    at += 1;
                }
            }
            _ => Ok(None),
        }
    }
}

/// Elements that share a scale where LoftQ quantises, as bitsandbytes has it when it is not told.
const LOFTQ_BLOCK: usize = 64;

/// A = √(Σ/s) Vᵀ (r, in) and B = U √(Σ/s) (out, r) of the r largest singular values.
pub(super) fn halves(w: &Matrix, r: usize, scale: f64) -> (Matrix, Matrix) {
    let (mut u, s, mut vt) = svd(w, r);
    let roots: Vec<f64> = s.iter().map(|s| (s / scale).sqrt()).collect();
    let input = w.cols;
    u.data.iter_mut().enumerate().for_each(|(i, x)| *x *= roots[i % s.len()]);
    vt.data.iter_mut().enumerate().for_each(|(i, x)| *x *= roots[i / input]);
    (vt, u)
}

/// W - s·B A.
fn less(w: &Matrix, a: &Matrix, b: &Matrix, scale: f64) -> Vec<f64> {
    w.data.iter().zip(&b.times(a).data).map(|(w, p)| w - scale * p).collect()
}

/// What an initialisation takes out of a weight.
pub(super) struct Taken {
    /// A: (r, in).
    pub(super) a: Tensor,
    /// B: (out, r).
    pub(super) b: Tensor,
    /// What is left in W's place.
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

#[cfg(test)]
mod tests {
    use planish_tensor::rng::Purpose;

    use super::*;

    fn distance(w: &Tensor, taken: &Taken, scale: f64) -> f64 {
        let matrix = |t: &Tensor| {
            let t = t.to_dtype(DType::F64).unwrap();
            Matrix::new(t.dims()[0], t.dims()[1], t.to_vec::<f64>().unwrap())
        };
        let (w, rest) = (matrix(w), matrix(&taken.rest));
        let lacks = Matrix::new(w.rows, w.cols, w.data.iter().zip(&rest.data).map(|(w, q)| w - q).collect());
        less(&lacks, &matrix(&taken.a), &matrix(&taken.b), scale).iter().map(|x| x * x).sum::<f64>().sqrt()
    }

    /// PEFT draws `pissa_niter_N` anew when it loads the adapter, and would put another remainder beside what was trained.
    #[test]
    fn an_exact_decomposition_is_saved_as_one() {
        let init = LoraInit::parse("pissa_niter_16").unwrap();
        assert_eq!((init.clone(), init.to_json()), (LoraInit::Pissa, json!("pissa")));
        assert!(LoraInit::parse("pissa_niter_0").is_none() && LoraInit::parse("pissa_niter_").is_none());
    }

    #[test]
    fn loftq_comes_nearer_to_the_weight_with_each_turn() {
        let stream = Stream::new(3, Purpose::Init, 0);
        let data: Vec<f32> = (0..48 * 64).map(|i| stream.normal(i) as f32).collect();
        let w = Tensor::from_vec(data, [48, 64]).unwrap();
        for bits in [4, 8] {
            let plain = match bits {
                4 => FourBit::quantize(&w, FourBitKind::Nf4, 64, false).unwrap(),
                _ => Int8::quantize(&w).unwrap(),
            };
            let taken = |iterations: usize, scale: f64| {
                LoraInit::LoftQ { bits, iterations }.taken(&w, 8, scale, DType::F32).unwrap().unwrap()
            };
            let zero = Taken {
                a: Tensor::full(0f32, [8, 64]).unwrap(),
                b: Tensor::full(0f32, [48, 8]).unwrap(),
                rest: Tensor::packed(plain.clone()),
            };
            let (none, one, five) =
                (distance(&w, &zero, 2.0), distance(&w, &taken(1, 2.0), 2.0), distance(&w, &taken(5, 2.0), 2.0));
            assert!(one < 0.9 * none && five < one, "{bits} bits: {none}, {one}, {five}");
            // The first turn's Q is that of the weight alone, whatever the scale is.
            let bits_of = |t: &Tensor| t.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap();
            assert_eq!(bits_of(&taken(1, 1.0).rest), bits_of(&zero.rest));
            assert!(taken(1, 1.0).rest.quantized().is_some());
        }
    }

    /// At scale 1, which PEFT's does not know.
    #[test]
    fn loftq_is_that_of_peft() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/loftq.json");
        let all: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let numbers = |v: &Value| -> Vec<f64> { v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect() };
        let at = |v: &Value| v.as_u64().unwrap() as usize;
        let shape = [at(&all["shape"][0]), at(&all["shape"][1])];
        let w = Tensor::from_vec(numbers(&all["weight"]), shape).unwrap().to_dtype(DType::F32).unwrap();
        let cases = all["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 4);
        for case in cases {
            let init = LoraInit::LoftQ { bits: at(&case["bits"]), iterations: at(&case["iterations"]) };
            let taken = init.taken(&w, at(&all["rank"]), 1.0, DType::F64).unwrap().unwrap();
            let q = taken.rest.to_dtype(DType::F64).unwrap().to_vec::<f64>().unwrap();
            let matrix = |t: &Tensor| Matrix::new(t.dims()[0], t.dims()[1], t.to_vec::<f64>().unwrap());
            let update = matrix(&taken.b).times(&matrix(&taken.a));
            for (found, want) in [(&q, numbers(&case["q"])), (&update.data, numbers(&case["update"]))] {
                assert_eq!(found.len(), want.len());
                for (a, b) in found.iter().zip(&want) {
                    // torch's decomposition is in f32: its rounding, some ten times over.
                    assert!((a - b).abs() <= 1e-5, "{init:?}: {a} and {b}");
                }
            }
        }
    }
}
