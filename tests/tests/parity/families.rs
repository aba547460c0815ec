//! Every model family against transformers.

use planish_autograd::{Tape, Var};
use planish_nn::Ctx;
use planish_nn::config::{ModelConfig, Rope};
use planish_nn::decoder::{LoadOptions, Packed};
use planish_nn::pretrained::{Pretrained, read_json};
use planish_nn::weights::WeightsReader;
use planish_tensor::{DType, Tensor};

use crate::trajectory::{WHOLE, train};
use crate::{difference, fixture, floats, ids, packed_logits};

/// transformers' own f32 logits differ from its f64 ones by up to 2.3e-5 on these models.
const LOGITS: f32 = 1e-4;

fn families() -> Vec<String> {
    let metadata = read_json(&fixture("models/metadata.json")).unwrap();
    metadata["families"].as_array().unwrap().iter().map(|f| f.as_str().unwrap().to_string()).collect()
}

/// Three sequences packed into one batch give the logits and log-probabilities that transformers gives
/// to each alone.
#[test]
fn logits_and_logprobs_are_those_of_transformers() {
    let families = families();
    assert!(families.len() >= 23);
    for family in families {
        let dir = fixture(&format!("models/{family}"));
        let expected = WeightsReader::open(dir.join("expected.safetensors")).unwrap();
        let model = Pretrained::open(&dir).unwrap().load(LoadOptions::default()).unwrap();
        let ctx = Ctx::inference();
        let sequences: Vec<Vec<u32>> = (0..3).map(|i| ids(&expected, &format!("ids.{i}"))).collect();
        for (i, got) in packed_logits(&model, &ctx, &sequences).iter().enumerate() {
            let worst = difference(got, &floats(&expected, &format!("logits.{i}")));
            assert!(worst <= LOGITS, "{family}, sequence {i}: logits differ by {worst}");
        }
        let batch = Packed::new(&sequences);
        let hidden = model.forward(&ctx, &batch, false).unwrap();
        for (i, sequence) in sequences.iter().enumerate() {
            let start = batch.cu_seqlens[i];
            let rows: Vec<u32> = (start..start + sequence.len() as u32 - 1).collect();
            let scores = model.scores(&ctx, &hidden, &rows, &sequence[1..]).unwrap();
            let got = scores.logprobs.value().to_vec::<f32>().unwrap();
            let want = if got.is_empty() { vec![] } else { floats(&expected, &format!("logprobs.{i}")) };
            let worst = difference(&got, &want);
            assert!(worst <= LOGITS, "{family}, sequence {i}: log-probabilities differ by {worst}");
        }
    }
}

/// config.json as transformers 5 writes it means the same as the older form.
#[test]
fn both_forms_of_config_agree() {
    for family in families() {
        let dir = fixture(&format!("models/{family}"));
        let read = |name: &str| {
            let mut config = ModelConfig::from_json(&read_json(&dir.join(name)).unwrap()).unwrap();
            config.source = serde_json::Value::Null;
            config
        };
        assert_eq!(read("config.json"), read("config_v5.json"), "{family}");
    }
}

/// Gradients of the mean cross-entropy by every parameter, in f64.
#[test]
fn gradients_are_those_of_transformers() {
    let metadata = read_json(&fixture("models/metadata.json")).unwrap();
    for family in metadata["with_grads"].as_array().unwrap() {
        let dir = fixture(&format!("models/{}", family.as_str().unwrap()));
        let expected = WeightsReader::open(dir.join("grads.safetensors")).unwrap();
        let sequence = ids(&WeightsReader::open(dir.join("expected.safetensors")).unwrap(), "ids.2");
        let options = LoadOptions { dtype: Some(DType::F64), trainable: true };
        let model = Pretrained::open(&dir).unwrap().load(options).unwrap();
        for recompute in [false, true] {
            model.params().iter().for_each(|p| p.clear_grad());
            let tape = Tape::new();
            let ctx = Ctx::training(&tape, None);
            let hidden = model.forward(&ctx, &Packed::new(&[&sequence]), recompute).unwrap();
            let n = sequence.len() - 1;
            let rows: Vec<u32> = (0..n as u32).collect();
            let logprobs = model.scores(&ctx, &hidden, &rows, &sequence[1..]).unwrap().logprobs;
            let loss = -logprobs.value().to_vec::<f64>().unwrap().iter().sum::<f64>() / n as f64;
            let want = expected.get("loss.2").unwrap().to_vec::<f64>().unwrap()[0];
            // Both in f64, but transformers takes RoPE's cos and sin, and some norms, through f32.
            assert!((loss - want).abs() <= 1e-6, "{family}: loss {loss}, want {want}");
            backward(&tape, logprobs, n);
            for p in model.params() {
                let got = p.grad().unwrap_or_else(|| panic!("{family}: no gradient for {}", p.name()));
                let got: Vec<f32> = got.to_vec::<f64>().unwrap().iter().map(|&x| x as f32).collect();
                let want = floats(&expected, &format!("grad.2.{}", p.name()));
                let scale = want.iter().fold(0f32, |m, x| m.max(x.abs()));
                let worst = difference(&got, &want);
                // Relative to the largest entry; the f32 parts of the reference leave a few 1e-7.
                assert!(worst <= 1e-5 * scale, "{family}: gradient of {} off by {worst} of {scale}", p.name());
            }
        }
    }
}

fn backward(tape: &Tape, logprobs: Var, n: usize) {
    let upstream = Tensor::full(-1.0 / n as f64, [n]).unwrap();
    tape.backward_from(vec![(logprobs, upstream)]).unwrap();
}

/// Frequencies of every kind of RoPE scaling.
#[test]
fn rope_frequencies_are_those_of_transformers() {
    let rows = read_json(&fixture("ops/rope_tables.json")).unwrap();
    for row in rows.as_array().unwrap() {
        let fields = planish_nn::config::Fields::new(row).unwrap();
        let dim = (row["head_dim"].as_f64().unwrap() * row["partial_rotary_factor"].as_f64().unwrap()) as usize;
        let positions = row["max_position_embeddings"].as_u64().unwrap() as usize;
        let rope = Rope::read(&fields, None, 1e4, dim, positions).unwrap();
        let (got, factor) = rope.frequencies(row["seq_len"].as_u64().unwrap() as usize);
        let want: Vec<f64> = row["inv_freq"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            // The reference computes powers in f32: a few units in the last place.
            let relative = (*got as f64 - want).abs() / want;
            assert!(relative <= 2e-6, "{}: {got} against {want}", row["name"]);
        }
        assert!((factor - row["attention_factor"].as_f64().unwrap()).abs() <= 1e-12, "{}", row["name"]);
    }
}

/// Six steps of all weights, of low-rank updates, of the biases and of the last layer alone.
#[test]
fn trajectories_are_those_of_trl() {
    let runs = read_json(&fixture("families/runs.json")).unwrap();
    let runs = runs.as_object().unwrap();
    assert!(runs.len() >= 14);
    let mut wrong = Vec::new();
    for (name, run) in runs {
        let steps = run["steps"].as_array().unwrap();
        let found = train(run, None, WHOLE);
        assert_eq!((found.len(), steps.len()), (6, 6), "{name}");
        for (s, ((sums, norm), step)) in found.iter().zip(steps).enumerate() {
            assert_eq!(sums.count, step["tokens"].as_f64().unwrap());
            for (what, got) in [("loss", sums.mean()), ("grad_norm", *norm)] {
                let want = step[what].as_f64().unwrap();
                // Trajectories in f32 part slowly: the sums of both sides are in different orders.
                if !((got - want).abs() <= 1e-3 * want) {
                    wrong.push(format!("{name} step {}: {what} {got}, TRL {want}", s + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
