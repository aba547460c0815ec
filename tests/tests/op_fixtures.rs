//! Forward and backward of ops against PyTorch's, in f64 (`tests/fixtures/ops`, made by `generate/ops.py`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use planish_autograd::ops::attention::{Attention, Stem, branched};
use planish_autograd::ops::cayley::{Cayley, cayley};
use planish_autograd::ops::dora_linear::{dora_linear, row_norms};
use planish_autograd::ops::lm_head::{LmHead, lm_head};
use planish_autograd::ops::lm_head_divergence::{Divergence, Teacher, lm_head_divergence};
use planish_autograd::ops::lora_embedding::lora_embedding;
use planish_autograd::ops::lora_linear::{Lora, lora_linear};
use planish_autograd::ops::{
    activation, block_rotate, embedding, gather, glu, layer_norm, linear, lstm, rms_norm, rope, softmax,
};
use planish_autograd::registry::{Fixture, ops};
use planish_autograd::{Tape, Var};
use planish_tensor::{DType, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

type Outputs = BTreeMap<String, Var>;

/// One case of one op: its settings and inputs, floating ones tracked.
struct Case<'a> {
    name: &'a str,
    params: &'a Value,
    inputs: BTreeMap<String, Var>,
}

impl Case<'_> {
    fn var(&self, name: &str) -> &Var {
        self.opt(name).unwrap_or_else(|| panic!("{} has no input {name}", self.name))
    }
    fn opt(&self, name: &str) -> Option<&Var> {
        self.inputs.get(name)
    }
    fn number(&self, name: &str) -> f64 {
        self.params[name].as_f64().unwrap_or_else(|| panic!("{} has no setting {name}", self.name))
    }
    fn ids(&self, name: &str) -> Vec<u32> {
        self.var(name).value().to_dtype(DType::U32).unwrap().to_vec().unwrap()
    }
}

fn one(y: planish_autograd::Result<Var>) -> Outputs {
    Outputs::from([(String::new(), y.unwrap())])
}

fn run(op: &str, c: &Case<'_>) -> Outputs {
    let gated = |erf: fn(&Var, &Var) -> _, tanh: fn(&Var, &Var) -> _| {
        one(if c.name == "tanh" { tanh } else { erf }(c.var("gate"), c.var("up")))
    };
    match op {
        "attention" => {
            let options = Attention {
                scale: c.number("scale"),
                causal: c.params["causal"].as_bool().unwrap(),
                window: c.params["window"].as_u64().map(|w| w as usize),
                softcap: c.params["softcap"].as_f64(),
            };
            let [cu_q, cu_k]: [Arc<[u32]>; 2] = ["cu_seqlens_q", "cu_seqlens_k"].map(|n| c.ids(n).into());
            let stem = |s: &Value| Some(Stem { of: s[0].as_u64()? as u32, len: s[1].as_u64()? as u32 });
            let stems = c.params["stems"].as_array().map_or(Vec::new(), |stems| stems.iter().map(stem).collect());
            let (q, k, v) = (c.var("q"), c.var("k"), c.var("v"));
            let out = branched(q, k, v, &cu_q, &cu_k, &stems.into(), &options).unwrap();
            Outputs::from([("out".into(), out)])
        }
        "block_rotate" => one(block_rotate::block_rotate(c.var("x"), c.var("r"))),
        "cayley" => {
            let kind = match c.number("terms") as usize {
                0 => Cayley::Exact,
                terms => Cayley::Series(terms),
            };
            one(cayley(c.var("q"), c.number("n") as usize, kind))
        }
        "dora_linear" => {
            let lora = Lora { scale: c.number("scale"), dropout: None };
            let weight = c.var("weight").detach();
            let (a, b) = (c.var("lora_a"), c.var("lora_b"));
            let norms = row_norms(weight.value(), a.value(), b.value(), lora.scale).unwrap();
            one(dora_linear(c.var("x"), &weight, c.opt("bias"), (a, b), (c.var("magnitude"), &norms), &lora))
        }
        "lstm" => one(lstm::lstm(c.var("gates"), c.var("w_hh"), c.params["reverse"].as_bool().unwrap())),
        "lora_embedding" => {
            let weight = c.var("weight").detach();
            one(lora_embedding(&weight, c.var("lora_a"), c.var("lora_b"), &c.ids("ids"), c.number("scale")))
        }
        "embedding" => one(embedding::embedding(c.var("weight"), &c.ids("ids"))),
        "gather" => one(gather::gather(c.var("x"), c.var("index").value())),
        "geglu" => gated(glu::geglu, glu::geglu_tanh),
        "swiglu" => gated(glu::swiglu, glu::swiglu),
        "gelu" if c.name == "tanh" => one(activation::gelu_tanh(c.var("x"))),
        "gelu" => one(activation::gelu(c.var("x"))),
        "silu" => one(activation::silu(c.var("x"))),
        "layer_norm" => one(layer_norm::layer_norm(c.var("x"), c.var("weight"), c.opt("bias"), c.number("eps"))),
        "linear" => one(linear::linear(c.var("x"), c.var("weight"), c.opt("bias"))),
        "lm_head" => {
            let options = LmHead { scale: c.number("scale"), softcap: c.params["softcap"].as_f64() };
            let scores = lm_head(c.var("hidden"), c.var("weight"), &c.ids("target"), &options).unwrap();
            Outputs::from([("logprobs".into(), scores.logprobs), ("entropy".into(), Var::constant(scores.entropy))])
        }
        "lm_head_divergence" => {
            let plain = |softcap| LmHead { scale: 1.0, softcap };
            let what = Divergence { beta: c.number("beta"), temperature: c.number("temperature") };
            let fixed = |name: &str| c.var(name).value().clone();
            let teacher = match c.params["k"].as_u64().unwrap() as usize {
                0 => {
                    let (hidden, weight) = (fixed("teacher_hidden"), fixed("teacher_weight"));
                    Teacher::Head { hidden, weight, options: plain(None) }
                }
                k => {
                    let (ids, logprobs) = (c.ids("top_ids").into(), f64s(&fixed("top_logprobs")).into());
                    Teacher::Top { ids, logprobs, k }
                }
            };
            let options = plain(c.params["softcap"].as_f64());
            let out = lm_head_divergence(c.var("hidden"), c.var("weight"), &options, &teacher, &what).unwrap();
            Outputs::from([("divergence".into(), out.divergence)])
        }
        "log_softmax" => one(softmax::log_softmax(c.var("x"))),
        "softmax" => one(softmax::softmax(c.var("x"))),
        "lora_linear" => {
            let lora = Lora { scale: c.number("scale"), dropout: None };
            // The base is frozen under an adapter: this op has no gradient for it.
            let weight = c.var("weight").detach();
            one(lora_linear(c.var("x"), &weight, c.opt("bias"), c.var("lora_a"), c.var("lora_b"), &lora))
        }
        "rms_norm" => {
            let offset = if c.params["unit_offset"].as_bool().unwrap() { 1.0 } else { 0.0 };
            let normed = |x: &Var| rms_norm::rms_norm(x, c.var("weight"), c.number("eps"), offset);
            match c.opt("residual") {
                None => one(normed(c.var("x"))),
                Some(residual) => {
                    let (sum, normed) =
                        rms_norm::rms_norm_added(c.var("x"), residual, c.var("weight"), c.number("eps"), offset)
                            .unwrap();
                    Outputs::from([("normed".into(), normed), ("residual".into(), sum)])
                }
            }
        }
        "rope" => {
            let positions: Vec<i64> = c.var("positions").value().to_vec().unwrap();
            let frequencies: Vec<f64> = c.var("inv_freq").value().to_vec().unwrap();
            let factor = c.number("attention_factor");
            let table = |f: fn(f64) -> f64| {
                let angles = positions.iter().flat_map(|&p| frequencies.iter().map(move |w| p as f64 * w));
                let values: Vec<f64> = angles.map(|a| factor * f(a)).collect();
                Tensor::from_vec(values, [positions.len(), frequencies.len()]).unwrap()
            };
            one(rope::rope(c.var("x"), &table(f64::cos), &table(f64::sin)))
        }
        _ => panic!("no test for the fixture of {op}"),
    }
}

/// Ops with a fixture, each with the tolerance for |a - b| ≤ tol · (1 + the largest |b| of the tensor).
///
/// Both sides compute in f64 by the same formula, so they differ by the order of sums and by the last bits of
/// exp, tanh and erf: a few dozen roundings of 1.1e-16 of numbers of the size of the largest.
const TABLE: &[(&str, f64)] = &[
    ("attention", 1e-13),
    ("block_rotate", 1e-14),
    // The exact transform solves with a matrix of condition up to about 2.
    ("cayley", 1e-14),
    ("dora_linear", 1e-14),
    ("embedding", 0.0),
    ("gather", 0.0),
    ("geglu", 1e-14),
    ("gelu", 1e-14),
    ("layer_norm", 1e-13),
    ("linear", 1e-14),
    ("lm_head", 1e-13),
    ("lm_head_divergence", 1e-13),
    // `far` stands at ±1e4, where a rounding is 2e-12 of 1; it is what is left of x - m - ln s.
    ("log_softmax", 1e-13),
    ("lora_embedding", 1e-14),
    ("lstm", 1e-14),
    ("lora_linear", 1e-14),
    // The gradient of a row scaled by 1e-3 is a thousand times larger than its parts' differences.
    ("rms_norm", 1e-13),
    ("rope", 1e-14),
    ("silu", 1e-14),
    ("softmax", 1e-14),
    ("swiglu", 1e-14),
];

/// Cases that ask for what the op does not offer, and why.
const SKIPPED: &[(&str, &str, &str)] = &[
    ("lm_head", "bias", "no family supported has a bias on its LM head"),
    ("lm_head", "entropy", "entropy is a measurement here: no gradient flows through it"),
];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/ops")
}

/// The tensors of a file, in its own dtypes, and the settings by case.
fn read(op: &str) -> (BTreeMap<String, Tensor>, Value) {
    let bytes = std::fs::read(folder().join(format!("{op}.safetensors"))).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let params = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["params"]).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        let dtype = match view.dtype() {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            Dtype::I64 => DType::I64,
            Dtype::I32 => DType::I32,
            other => panic!("{name} has dtype {other:?}"),
        };
        let data = view.data();
        let tensor = planish_tensor::dispatch!(dtype, T => {
            let values: Vec<T> = data.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect();
            Tensor::from_vec(values, view.shape()).unwrap()
        });
        (name, tensor)
    });
    (tensors.collect(), params)
}

fn f64s(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().to_vec().unwrap()
}

fn compare(what: &str, got: &Tensor, want: &Tensor, tol: f64) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let want = f64s(want);
    let size = want.iter().fold(1.0f64, |m, w| m.max(w.abs()));
    for (i, (got, want)) in f64s(got).iter().zip(&want).enumerate() {
        assert!((got - want).abs() <= tol * (1.0 + size), "{what}, element {i}: {got:e} is not {want:e}");
    }
}

/// Runs every case of `op`; in f64, or in the dtypes of the file where these are narrower.
fn check(op: &str, tol: f64, in_f64: bool) -> usize {
    let (tensors, params) = read(op);
    let mut checked = 0;
    for (name, params) in params.as_object().unwrap() {
        if SKIPPED.iter().any(|(o, n, _)| (*o, *n) == (op, name.as_str())) {
            continue;
        }
        let of = |kind: &str| -> BTreeMap<String, Tensor> {
            let prefix = format!("{name}/{kind}");
            let named = tensors.iter().filter_map(|(k, t)| Some((k.strip_prefix(&prefix)?, t.clone())));
            named
                .filter(|(k, _)| k.is_empty() || k.starts_with('.'))
                .map(|(k, t)| (k.trim_start_matches('.').into(), t))
                .collect()
        };
        let narrow = of("input").values().any(|t| t.dtype().is_float() && t.dtype() != DType::F64);
        if !in_f64 && !narrow {
            continue;
        }
        let tape = Tape::new();
        let inputs: BTreeMap<String, Var> = of("input")
            .into_iter()
            .map(|(k, t)| match t.dtype() {
                dtype if !dtype.is_float() => (k, Var::constant(t)),
                dtype => (k, tape.leaf(t.to_dtype(if in_f64 { DType::F64 } else { dtype }).unwrap())),
            })
            .collect();
        let case = Case { name, params, inputs };
        let outputs = run(op, &case);
        let (want, upstream, gradients) = (of("output"), of("grad_output"), of("grad"));
        let mut seeds = Vec::new();
        for (k, y) in outputs {
            compare(&format!("{op}/{name} output {k}"), y.value(), &want[&k], tol);
            if let Some(dy) = upstream.get(&k) {
                let dy = dy.to_dtype(y.value().dtype()).unwrap();
                seeds.push((y, dy));
            }
        }
        assert_eq!(seeds.len(), upstream.len(), "{op}/{name}: every upstream gradient is used");
        let found = tape.backward_from(seeds).unwrap();
        for (k, want) in &gradients {
            match found.get(case.var(k)) {
                Some(got) => compare(&format!("{op}/{name} gradient of {k}"), got, want, tol),
                // Frozen, or a table that the op takes as it is.
                None => assert!(
                    matches!(
                        (op, k.as_str()),
                        ("lora_linear" | "dora_linear" | "lora_embedding", "weight") | ("rope", "inv_freq")
                    ),
                    "{op}/{name}: no gradient of {k}"
                ),
            }
        }
        checked += 1;
    }
    checked
}

#[test]
fn ops_agree_with_pytorch() {
    for &(op, tol) in TABLE {
        assert!(check(op, tol, true) > 0, "{op} has cases");
    }
}

/// Weights of 16 bits in f32 arithmetic: sums of 7 products, each rounded to 6e-8.
#[test]
fn narrow_weights_agree_with_pytorch() {
    assert_eq!(check("linear", 2e-6, false), 2);
}

#[test]
fn every_fixture_that_the_registry_names_is_there_and_used() {
    let named: BTreeSet<String> = ops()
        .iter()
        .filter_map(|op| match op.fixture {
            Fixture::Torch(name) => Some(name.to_string()),
            Fixture::None(reason) => {
                assert!(!reason.is_empty(), "{} has neither a fixture nor a reason", op.name);
                None
            }
        })
        .collect();
    let used: BTreeSet<String> = TABLE.iter().map(|(op, _)| op.to_string()).collect();
    let files: BTreeSet<String> = std::fs::read_dir(folder())
        .unwrap()
        .filter_map(|f| Some(f.unwrap().file_name().to_str()?.strip_suffix(".safetensors")?.to_string()))
        .collect();
    assert_eq!(named, used, "fixtures that the registry names, and those in the table");
    assert_eq!(files, used, "files of fixtures, and those in the table");
    for (op, case, reason) in SKIPPED {
        assert!(read(op).1.get(case).is_some() && !reason.is_empty(), "{op}/{case} exists");
    }
}
