//! Training on plain text: a new model from random weights, or more training of an existing one.
//!
//! Weights of a new model are drawn as transformers' Llama does: normal with `initializer_range`
//! (0.02), norms one, biases zero.

use planish_nn::config::ModelConfig;
use planish_nn::decoder::{LoadOptions, Model, TensorSource};
use planish_nn::pretrained::read_json;
use planish_nn::tokenizer::Tokenizer;
use planish_tensor::rng::{Purpose, Stream};
use planish_tensor::{DType, Tensor};
use std::cell::Cell;
use std::path::Path;

use super::inputs;
use crate::Result;
use crate::builtin;
use crate::config::{DataSettings, PretrainConfig};
use crate::data::{Dataset, DatasetSpec, DatasetType};
use crate::device::{self, Demands};
use crate::models;
use crate::run::{Observer, Outcome};
use crate::sources::BySource;
use crate::trainer::{Trainer, router};

/// Rows that this recipe takes.
pub const ACCEPTED: &[DatasetType] = &[DatasetType::Text, DatasetType::Messages, DatasetType::Tokenized];

/// Runs the recipe.
///
/// # Errors
/// As [`super::sft::run`].
pub fn run(config: &PretrainConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    let demands = Demands::none().training(&config.optim).bf16(config.run.bf16);
    device::choose(config.run.device, &demands)?;
    let resume = inputs::checkpoint(&config.run)?;
    let mut config = config.clone();
    config.data.template_time = inputs::template_time(&config.data, resume.as_ref())?;
    let m = &config.model;
    let (mut model, tokenizer) = if let Some(from) = &resume {
        let opened = models::open_path(&from.path)?;
        (opened.load(m.dtype, true)?, opened.tokenizer)
    } else if let Some(model) = &m.model {
        let opened = models::open(model, &m.model_revision, &mut |p| observer.downloading(&p))?;
        (opened.load(m.dtype, true)?, opened.tokenizer)
    } else {
        let named = |name: &Option<String>| name.clone().expect("checked together with the settings");
        new_model(Path::new(&named(&m.config_name)), Path::new(&named(&m.tokenizer_name)), &config)?
    };
    let inputs = inputs::open(
        &with_replay(&config)?,
        &config.optim,
        config.eval.per_device_eval_batch_size,
        &tokenizer,
        &model.config,
        inputs::Rows::new(ACCEPTED, inputs::packing(&config.data)),
    )?;
    device::place(&mut model, config.run.device, &demands)?;
    let router = router::terms(&config.router, &model.config)?;
    inputs::fit(&inputs, &model, &mut config.optim, resume.as_ref())?;
    config.data.template_time = inputs.sampler.encoder().options().template_time;
    let (dir, resume) = inputs::begin(&config, &config.run, &inputs.report, observer)?;
    Trainer {
        model,
        adapter: None,
        objective: Box::new(BySource::new(router)),
        rates: crate::optim::Rates::default(),
        tokenizer,
        sampler: inputs.sampler,
        held_out: inputs.held_out,
        steps_per_epoch: inputs.steps_per_epoch,
        optim: &config.optim,
        eval: &config.eval,
        run: &config.run,
        dir,
    }
    .train(resume.as_ref(), observer)
}

/// The settings of the data with the replayed files among it, weighted so that they have their share of an epoch.
fn with_replay(config: &PretrainConfig) -> Result<DataSettings> {
    let mut data = config.data.clone();
    if config.replay.replay_dataset.is_empty() {
        return Ok(data);
    }
    let draws = |files: &[String], weights: &[f64]| -> Result<f64> {
        let columns = inputs::columns(&data);
        let opened = Dataset::open(&inputs::specs(files, weights, builtin::instructions())?, &columns, ACCEPTED)?;
        Ok(opened.files().iter().map(|file| file.rows as f64 * file.weight).sum())
    };
    let own = draws(&data.dataset, &data.dataset_weights)?;
    let replayed = draws(&config.replay.replay_dataset, &[])?;
    let share = config.replay.replay_share;
    let factor = share / (1.0 - share) * own / replayed;
    for name in &config.replay.replay_dataset {
        let spec = DatasetSpec::parse(name)?;
        data.dataset.push(format!("{}@{}", spec.path.display(), spec.weight * factor));
    }
    Ok(data)
}

fn new_model(config_path: &Path, tokenizer: &Path, config: &PretrainConfig) -> Result<(Model, Tokenizer)> {
    let inside = |path: &Path, name: &str| if path.is_dir() { path.join(name) } else { path.to_path_buf() };
    let tokenizer_dir = if tokenizer.is_dir() { tokenizer } else { tokenizer.parent().unwrap_or(Path::new(".")) };
    let tokenizer = Tokenizer::from_dir(tokenizer_dir).map_err(planish_nn::Error::from)?;
    let json = read_json(&inside(config_path, "config.json"))?;
    let parsed = ModelConfig::from_json(&json).map_err(planish_nn::Error::from)?;
    let (model, rows) = (parsed.vocab_size, tokenizer.vocab_size());
    if rows > model {
        return Err(planish_nn::Error::TokenizerTooLarge { tokenizer: rows, model }.into());
    }
    let source = RandomWeights {
        std: json["initializer_range"].as_f64().unwrap_or(0.02),
        stream: Stream::new(config.optim.seed, Purpose::Init, 0),
        shapes: Cell::new(0),
        offset: parsed.norm_offset,
    };
    let dtype = models::storage(config.model.dtype).or(Some(DType::F32));
    Ok((Model::load(parsed, &source, LoadOptions { dtype, trainable: true })?, tokenizer))
}

/// Random weights by name.
struct RandomWeights {
    std: f64,
    stream: Stream,
    shapes: Cell<u64>,
    offset: f64,
}

impl TensorSource for RandomWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> planish_nn::Result<Option<Tensor>> {
        // One after the other in the fixed order of the modules: each gets a stream of its own.
        let stream = self.stream.substream(self.shapes.replace(self.shapes.get() + 1));
        let n: usize = shape.iter().product();
        let constant = |x: f32| Tensor::full(x, shape);
        Ok(Some(match shape.len() {
            1 if name.ends_with("bias") => constant(0.0)?,
            // A norm multiplies by its weight plus the offset.
            1 => constant((1.0 - self.offset) as f32)?,
            _ => Tensor::from_vec((0..n).map(|i| (stream.normal(i as u64) * self.std) as f32).collect(), shape)?,
        }))
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}
