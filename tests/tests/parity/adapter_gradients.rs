//! The gradient of every method's adapter through a whole model, in f64, against central differences.

use std::collections::BTreeMap;
use std::path::Path;

use planish_autograd::{Param, Tape};
use planish_nn::Ctx;
use planish_nn::adapters::{AdapterConfig, adapter_params, load_adapter, resume_adapter};
use planish_nn::decoder::{LoadOptions, Model, Packed};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::weights::WeightsReader;
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor};
use planish_train::losses::cross_entropy;

use crate::adapters::adapters;
use crate::{fixture, ids};

/// The step along a direction whose entries are standard normal.
const STEP: f64 = 1e-6;

/// Of the norm of the gradient, by which a slope along such a direction is about as large. The truncation error is
/// of order step², and here at most 1.2e-7: a tenth of the step makes it a hundredth.
const RELATIVE: f64 = 1e-6;

/// The rounding error of a difference: losses of some 1e2 nats, each off by a few units of its last place, over the step.
const ABSOLUTE: f64 = 1e3 * f64::EPSILON / STEP;

/// Adapters whose gradient is by intent not that of the loss, and what is checked of them instead.
const EXCEPTIONS: [(&str, &str); 1] = [(
    "qwen2_dora",
    "PEFT's gradient takes the norms of the rows for constants: directions of A and B that keep them so, to first order",
)];

fn doubles(t: &Tensor) -> Vec<f64> {
    t.to_vec().unwrap()
}

/// A model with its adapter and what it is asked.
struct Case {
    model: Model,
    config: AdapterConfig,
    /// What is trained.
    params: Vec<Param>,
    batch: Packed,
    mask: Vec<bool>,
}

impl Case {
    fn open(dir: &Path, resume: bool) -> Case {
        let json = read_json(&dir.join("adapter_config.json")).unwrap();
        // Differences want a function without chance.
        let of_dropout = |key: &String| key.contains("dropout");
        let object = json.as_object().unwrap();
        assert!(object.iter().filter(|(key, _)| of_dropout(key)).all(|(_, p)| p.as_f64() == Some(0.0)), "{json}");
        let base = fixture(json["base_model_name_or_path"].as_str().unwrap());
        let options = LoadOptions { dtype: Some(DType::F64), ..LoadOptions::default() };
        let mut model = Pretrained::open(&base).unwrap().load(options).unwrap();
        let load = if resume { resume_adapter } else { load_adapter };
        let config = load(&mut model, dir).unwrap();
        let params: Vec<Param> = model.params().into_iter().filter(Param::is_trainable).collect();
        let names = |params: &[Param]| {
            let mut names: Vec<String> = params.iter().map(|p| p.name().to_owned()).collect();
            names.sort();
            names
        };
        let own: Vec<Param> = adapter_params(&model, 0).into_iter().filter(Param::is_trainable).collect();
        assert_eq!(names(&own), names(&params));
        assert!(!params.is_empty() && params.iter().all(|p| p.value().dtype() == DType::F64));
        let expected = WeightsReader::open(dir.join("expected.safetensors")).unwrap();
        let sequences: Vec<Vec<u32>> = (0..)
            .map_while(|i| expected.contains(&format!("ids.{i}")).then(|| ids(&expected, &format!("ids.{i}"))))
            .collect();
        // Nothing predicts a first token.
        let mask = sequences.iter().flat_map(|s| (0..s.len()).map(|i| i > 0)).collect();
        Case { model, config, params, batch: Packed::new(&sequences), mask }
    }

    /// The summed loss with the method's penalty, weighted as a step weights it; the parameters hold its gradient then.
    fn loss(&self) -> f64 {
        self.params.iter().for_each(Param::clear_grad);
        let ctx = Ctx::training(&Tape::new(), None);
        let sum = cross_entropy(&self.model, &ctx, &self.batch, &self.mask, false).unwrap();
        let weight = sum.count as f64;
        sum.loss + weight * self.config.penalise(&adapter_params(&self.model, 0), weight).unwrap()
    }

    /// Moves the parameters from `from` by `by` times `direction`, which has an entry for each that moves.
    fn put(&self, from: &[Vec<f64>], direction: &BTreeMap<usize, Vec<f64>>, by: f64) {
        for (&i, direction) in direction {
            let moved = from[i].iter().zip(direction).map(|(x, d)| x + by * d).collect();
            let moved = Tensor::from_vec::<f64>(moved, self.params[i].value().dims()).unwrap();
            let done: Result<(), ()> = self.params[i].update(|value| {
                *value = moved;
                Ok(())
            });
            done.unwrap();
        }
    }

    /// A direction in each group of parameters that are checked together: each for itself, and all at once.
    fn directions(&self, at: &[Vec<f64>], dora: bool, scale: f64) -> Vec<BTreeMap<usize, Vec<f64>>> {
        let drawn = |i: usize, of: usize| -> Vec<f64> {
            let stream = Stream::new(7, Purpose::Init, (1000 * of + i) as u64);
            (0..at[i].len() as u64).map(|k| stream.normal(k)).collect()
        };
        let index = |name: &str| self.params.iter().position(|p| p.name() == name).unwrap();
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (i, param) in self.params.iter().enumerate() {
            match param.name().strip_suffix(".lora_A.weight") {
                Some(stem) if dora => groups.push(vec![i, index(&format!("{stem}.lora_B.weight"))]),
                _ if dora && param.name().ends_with(".lora_B.weight") => {}
                _ => groups.push(vec![i]),
            }
        }
        groups.push((0..self.params.len()).collect());
        let directions = groups.iter().enumerate().map(|(of, group)| {
            let mut direction: BTreeMap<_, _> = group.iter().map(|&i| (i, drawn(i, of))).collect();
            for &a in group.iter().filter(|_| dora) {
                let Some(stem) = self.params[a].name().strip_suffix(".lora_A.weight") else { continue };
                let b = index(&format!("{stem}.lora_B.weight"));
                self.keep_norms(stem, [(a, &at[a]), (b, &at[b])], scale, &mut direction);
            }
            direction
        });
        directions.collect()
    }

    /// Changes the direction of B (out, r) so that no row of W + scale·BA changes its norm, to first order: for each row
    /// v the derivative of ½‖v‖² is scale·(dB·Av + B·dA·v), and dB gets a multiple of Av.
    fn keep_norms(
        &self,
        stem: &str,
        [(a, at_a), (b, at_b)]: [(usize, &[f64]); 2],
        scale: f64,
        direction: &mut BTreeMap<usize, Vec<f64>>,
    ) {
        let name = format!("{}.weight", stem.trim_start_matches("base_model.model."));
        let w = doubles(&self.model.base_params().into_iter().find(|p| p.name() == name).unwrap().value());
        let (r, n) = (self.params[a].value().dims()[0], self.params[a].value().dims()[1]);
        let times = |m: &[f64], v: &[f64]| -> Vec<f64> {
            m.chunks(n).map(|row| row.iter().zip(v).map(|(x, y)| x * y).sum()).collect()
        };
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let da = direction[&a].clone();
        for (row, db) in direction.get_mut(&b).unwrap().chunks_mut(r).enumerate() {
            let of_b = &at_b[row * r..(row + 1) * r];
            let v: Vec<f64> = (0..n)
                .map(|j| w[row * n + j] + scale * (0..r).map(|k| of_b[k] * at_a[k * n + j]).sum::<f64>())
                .collect();
            let (av, dav) = (times(at_a, &v), times(&da, &v));
            let off = (dot(db, &av) + dot(of_b, &dav)) / dot(&av, &av);
            db.iter_mut().zip(&av).for_each(|(d, u)| *d -= off * u);
        }
    }
}

/// For every adapter of PEFT in the fixtures, as it is used and as it is trained: the slope of cross-entropy and penalty
/// along a random direction of each trained tensor, and of all together, is that of the gradient.
#[test]
fn gradients_of_every_method_are_those_of_differences() {
    let (mut methods, mut checked) = (BTreeMap::<_, f64>::new(), 0);
    for dir in adapters() {
        let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let trained = dir.join("adapter_training.safetensors").exists();
        for resume in [false, true].into_iter().filter(|resume| !resume || trained) {
            let case = Case::open(&dir, resume);
            let json = case.config.to_json();
            let dora = json["use_dora"] == true;
            assert_eq!(dora, EXCEPTIONS.iter().any(|(exception, _)| *exception == name), "{name}");
            let scale = json["lora_alpha"].as_f64().unwrap_or(0.0) / json["r"].as_f64().unwrap_or(1.0);
            let at: Vec<Vec<f64>> = case.params.iter().map(|p| doubles(&p.value())).collect();
            let penalty = case.config.penalise(&case.params, 0.0).unwrap();
            assert_eq!(penalty > 0.1, case.config.peft_type() == "ADALORA", "{name}: {penalty}");
            case.loss();
            let gradient: Vec<Vec<f64>> = case.params.iter().map(|p| doubles(&p.take_grad().unwrap())).collect();
            for direction in case.directions(&at, dora, scale) {
                let (mut analytic, mut squares) = (0.0, 0.0);
                for (&i, d) in &direction {
                    analytic += gradient[i].iter().zip(d).map(|(g, d)| g * d).sum::<f64>();
                    squares += gradient[i].iter().map(|g| g * g).sum::<f64>();
                }
                let [up, down] = [STEP, -STEP].map(|by| {
                    case.put(&at, &direction, by);
                    case.loss()
                });
                case.put(&at, &direction, 0.0);
                let numeric = (up - down) / (2.0 * STEP);
                let which: Vec<&str> = direction.keys().map(|&i| case.params[i].name()).collect();
                let (off, size) = ((numeric - analytic).abs(), squares.sqrt());
                // Of a gradient near 0 the rounding error would be all that is seen.
                assert!(size > 1e5 * ABSOLUTE, "{name}: {which:?} has a gradient of {size}");
                assert!(
                    off <= RELATIVE * size + ABSOLUTE,
                    "{name}, trained {resume}: {which:?}: slope {numeric}, by the gradient {analytic}, whose norm is {size}"
                );
                let worst = methods.entry(case.config.peft_type()).or_default();
                *worst = worst.max(off / size);
                checked += 1;
            }
        }
    }
    assert!(methods.len() == 10 && checked > 400, "{checked}: {methods:?}");
}
