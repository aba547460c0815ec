//! Certificates: laws 3 and 5 of the design, measured on a model.
//!
//! **Law 3**: the gradient of an optimizer step does not depend on how the step is cut into
//! micro-batches, in which order its examples come, how they are packed and in what pieces the LM head
//! takes their rows, but for rounding, and [`Check::bound`] says how much rounding that may be.
//! Recomputing activations and the number of threads change no bit. **Law 5**: a token's log-probability
//! is the same bits in the training pass, in scoring and while decoding over a cache.
//!
//! # The bound
//! A weight's gradient is a sum over the T tokens of the step. However the step is cut, the T terms are
//! the same bits (rows do not depend on their company); what differs is the order in which they are added,
//! in n = T + S + M additions at most: a term a token, one more for each of the S supervised tokens where
//! the embedding is the head too, one for each of the M micro-batches. Each addition rounds by at most
//! u = ε/2 of the partial sum at hand, and no partial sum is larger in norm than the norms of the examples'
//! gradients together, Σₑ‖gₑ‖. Rounding errors of n additions that know nothing of each other grow as √n
//! (Higham and Mary, 2019, theorem 2.4), and two sums are compared, so for each tensor
//!
//! ‖g' − g‖ / ‖g‖ ≤ 2 u √n · Σₑ‖gₑ‖ / ‖g‖
//!
//! in the Frobenius norm. The last factor, at least 1, says how much the examples cancel; it is measured.
//! The worst case would have n for √n: a deviation over the bound is therefore not proof of an error, but
//! a term lost, doubled or scaled by the wrong count is thousands of times larger.
//!
//! # Source
//! Higham and Mary, "A New Approach to Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41(5),
//! 2019.

mod gradient;
mod law3;
mod law5;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use planish_nn::adapters::{LoraConfig, Targets, adapter_params, attach_lora};
use planish_nn::decoder::Model;
use planish_tensor::Tensor;
use planish_tensor::rng::{Purpose, Stream};
use serde::Serialize;

use crate::builtin;
use crate::config::WeightDtype;
use crate::data::{EncodeOptions, Encoder, Example, Source, Task, TypedRow};
use crate::models::Opened;
use crate::{Error, Result};

/// How the certificate is made.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Examples of the step: the first of the builtin instructions.
    pub examples: usize,
    /// The largest number of threads.
    pub threads: usize,
    /// Rank of the adapter on all linear modules.
    pub lora_r: usize,
}

impl Default for Options {
    /// 12 examples, as many threads as there are, rank 8.
    fn default() -> Options {
        Options { examples: 12, threads: rayon::current_num_threads(), lora_r: 8 }
    }
}

/// One comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// The law of the design: 3 or 5.
    pub law: u8,
    /// What is trained: `full` or `lora`.
    pub training: &'static str,
    /// What was done differently.
    pub what: String,
    /// The largest deviation, relative to the tensor's norm (law 3) or in nats (law 5).
    pub deviation: f64,
    /// How large it may be; 0 demands the same bits.
    pub bound: f64,
    /// Numbers whose bits differ.
    pub differing: u64,
    /// Numbers compared.
    pub compared: u64,
    /// The tensor nearest to its bound.
    pub tensor: Option<String>,
    /// Whether the bound holds.
    pub passed: bool,
}

impl Check {
    fn new(law: u8, training: &'static str, what: impl Into<String>, found: Found) -> Check {
        let Found { deviation, bound, differing, compared, tensor } = found;
        // Written so that a NaN fails, and so that nothing compared is no success.
        let holds = if bound == 0.0 { differing == 0 } else { deviation <= bound };
        Check {
            law,
            training,
            what: what.into(),
            deviation,
            bound,
            differing,
            compared,
            tensor,
            passed: holds && compared > 0,
        }
    }
}

/// What a comparison found.
#[derive(Debug, Clone, Default)]
struct Found {
    deviation: f64,
    bound: f64,
    differing: u64,
    compared: u64,
    tensor: Option<String>,
}

/// The result.
#[derive(Debug, Clone, Serialize)]
pub struct Certificate {
    /// Examples of the step.
    pub examples: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Those that are supervised.
    pub supervised: usize,
    /// The largest number of threads.
    pub threads: usize,
    /// Numbers in the gradient of full fine-tuning.
    pub parameters: u64,
    /// All comparisons.
    pub checks: Vec<Check>,
}

impl Certificate {
    /// The check of law 3 that came nearest to its bound, and the share of the bound it used.
    pub fn nearest(&self) -> Option<(&Check, f64)> {
        let bounded = self.checks.iter().filter(|check| check.bound > 0.0);
        bounded.map(|check| (check, check.deviation / check.bound)).max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// Whether every bound holds.
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.passed)
    }
}

/// Measures both laws on a model in f32, for full fine-tuning and for LoRA without dropout.
/// `progress` hears what is about to be measured.
///
/// # Errors
/// A model that cannot be loaded or run; examples that its template refuses.
pub fn certify(opened: &Opened, options: Options, progress: &mut dyn FnMut(&str)) -> Result<Certificate> {
    let examples = examples(opened, options.examples)?;
    let mut checks = Vec::new();
    let mut parameters = 0;
    for training in ["full", "lora"] {
        let model = if training == "full" {
            let model = opened.load(WeightDtype::Float32, true)?;
            parameters = model.num_params() as u64;
            model
        } else {
            let mut model = opened.load(WeightDtype::Float32, false)?;
            attach_random_lora(&mut model, options.lora_r)?;
            model
        };
        law3::checks(&model, training, &examples, options.threads, progress, &mut checks)?;
        law5::checks(&model, training, &examples, options.threads, progress, &mut checks)?;
    }
    Ok(Certificate {
        examples: examples.len(),
        tokens: examples.iter().map(|e| e.ids.len()).sum(),
        supervised: examples.iter().map(Example::supervised).sum(),
        threads: options.threads,
        parameters,
        checks,
    })
}

/// The first rows of the builtin instructions, as this model's tokenizer and template have them.
fn examples(opened: &Opened, n: usize) -> Result<Vec<Example>> {
    let vocab_size = Some(opened.pretrained.config.vocab_size);
    let options = EncodeOptions { vocab_size, ..EncodeOptions::default() };
    let encoder = Encoder::new(Arc::new(opened.tokenizer.clone()), options)?;
    let file: Arc<std::path::Path> = std::path::Path::new(crate::models::BUILTIN).into();
    let mut examples = Vec::new();
    for (i, line) in builtin::instructions().lines().enumerate().take(n) {
        let row: serde_json::Value = serde_json::from_str(line).expect("the program's own rows are JSON");
        let text = |key: &str| row[key][0]["content"].as_str().expect("they are conversations").to_owned();
        let user = text("prompt");
        let task = Task { plain: user.clone(), user, answer: text("completion"), separator: "\n" };
        let source = Source { file: file.clone(), line: i as u64 + 1, row: i as u64 };
        if let Ok(example) = encoder.encode(&TypedRow::Task(task), source)?.example {
            examples.push(example);
        }
    }
    Ok(examples)
}

/// An adapter on every linear module whose B is not zero, as it would be after some training: with B = 0
/// the gradient of A is.
fn attach_random_lora(model: &mut Model, r: usize) -> Result<()> {
    let config = LoraConfig { r, target_modules: Targets::AllLinear, lora_dropout: 0.0, ..LoraConfig::default() };
    attach_lora(model, &config, 0)?;
    for (i, b) in adapter_params(model, 0).into_iter().filter(|p| p.name().ends_with("lora_B.weight")).enumerate() {
        let (dims, stream) = (b.value().dims().to_vec(), Stream::new(0, Purpose::Init, 1 + i as u64));
        let count = dims.iter().product::<usize>() as u64;
        let values: Vec<f64> = (0..count).map(|k| 0.02 * stream.normal(k)).collect();
        let values = Tensor::from_vec(values, dims)?.to_dtype(b.value().dtype())?;
        b.update(|b| -> Result<(), Error> {
            *b = values;
            Ok(())
        })?;
    }
    Ok(())
}

/// Runs `f` with that many threads.
fn on_threads<T: Send>(threads: usize, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    match rayon::ThreadPoolBuilder::new().num_threads(threads).build() {
        Ok(pool) => pool.install(f),
        // A system that gives no more threads: the pool that is there is what can be measured.
        Err(_) => f(),
    }
}
