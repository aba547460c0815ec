//! Supervised fine-tuning, of all weights, a part of them or an adapter.
//!
//! The loss is the cross-entropy of the supervised tokens, divided once by their number over the whole
//! optimizer step, as TRL's `SFTTrainer` does. Deviations from it: no padding exists, so
//! `per_device_train_batch_size` examples are one flat stream; examples without a supervised token are
//! an error unless `drop_unsupervised`; dropout masks go by the example and the position in it, so that
//! micro-batch size and packing do not change them.

use planish_nn::adapters::AdapterConfig;
use planish_nn::decoder::Model;
use planish_tensor::Device;

use super::inputs;
use crate::config::SftConfig;
use crate::data::{DatasetType, Preflight};
use crate::device::{self, Demands};
use crate::models::Opened;
use crate::plan::{self, Forecast};
use crate::run::{Checkpoint, Observer, Outcome};
use crate::trainer::{CrossEntropy, Trainer, router};
use crate::{Result, adapt};

/// Rows that this recipe takes.
pub const ACCEPTED: &[DatasetType] = &[
    DatasetType::Messages,
    DatasetType::PromptCompletion,
    DatasetType::Text,
    DatasetType::Alpaca,
    DatasetType::ShareGpt,
    DatasetType::QuestionAnswer,
    DatasetType::Tokenized,
];

/// Runs the recipe.
///
/// # Errors
/// Settings, data, model or run directory that are wrong: nothing has been written then. Later: a full
/// disk, a loss that is no number any more.
pub fn run(config: &SftConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    let demands = Demands::none().training(&config.optim).bf16(config.run.bf16);
    device::choose(config.run.device, &demands)?;
    let opened = Opened::by(&config.model, &mut |p| observer.downloading(&p))?;
    let tokenizer = opened.tokenizer.clone();
    // What can be refused is refused before anything is written.
    let resume = inputs::checkpoint(&config.run)?;
    let mut config = config.clone();
    config.data.template_time = inputs::template_time(&config.data, resume.as_ref())?;
    let inputs = read(&config, &opened)?;
    config.data.template_time = inputs.sampler.encoder().options().template_time;
    let (mut model, adapter) = build(&config, &opened, inputs.steps_per_epoch, resume.as_ref())?;
    drop(opened);
    device::place(&mut model, config.run.device, &demands)?;
    let router = router::terms(&config.router, &model.config)?;
    let share = config.sharing.share_prompts && !adapter.as_ref().is_some_and(|a| drops_out(&a.to_json()));
    inputs::fit(&inputs, &model, &mut config.optim, resume.as_ref())?;
    let (dir, resume) = inputs::begin(&config, &config.run, &inputs.report, observer)?;
    Trainer {
        model,
        adapter,
        objective: Box::new(CrossEntropy::new(share, router)),
        rates: adapt::rates(&config.lora, &config.optim),
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

/// Whether an adapter drops anything out, by whatever name.
fn drops_out(adapter: &serde_json::Value) -> bool {
    let fields = adapter.as_object().into_iter().flatten();
    fields.filter(|(key, _)| key.ends_with("dropout")).any(|(_, p)| p.as_f64() != Some(0.0))
}

fn read(config: &SftConfig, opened: &Opened) -> Result<inputs::Inputs> {
    inputs::open(
        &config.data,
        &config.optim,
        config.eval.per_device_eval_batch_size,
        &opened.tokenizer,
        &opened.pretrained.config,
        inputs::Rows::new(ACCEPTED, inputs::packing(&config.data)),
    )
}

/// The report on the data that a run with these settings begins with.
///
/// # Errors
/// As [`run`], as far as the model's files and the data are concerned.
pub fn preview(config: &SftConfig) -> Result<Preflight> {
    let opened = Opened::by(&config.model, &mut |_| {})?;
    Ok(read(config, &opened)?.report)
}

/// Steps, memory and time of a run with these settings.
///
/// # Errors
/// As [`run`], but for the run directory, which is not touched.
pub fn plan(config: &SftConfig) -> Result<Forecast> {
    let demands = Demands::none().training(&config.optim).bf16(config.run.bf16);
    device::choose(config.run.device, &demands)?;
    let opened = Opened::by(&config.model, &mut |_| {})?;
    let inputs = read(config, &opened)?;
    let (mut model, _) = build(config, &opened, inputs.steps_per_epoch, None)?;
    drop(opened);
    device::place(&mut model, config.run.device, &demands)?;
    let mut optim = config.optim.clone();
    let trial = match model.device() {
        Device::Cpu => plan::TIMED_TOKENS,
        Device::Cuda(_) => plan::TIMED_ON_DEVICES[0],
        Device::Emulator(_) => plan::TIMED_ON_DEVICES[1],
    };
    let (memory, costs) = inputs::foreseen(&inputs, &model, &mut optim, trial)?;
    let o = &optim;
    let total_steps = crate::trainer::total_steps(o, inputs.steps_per_epoch);
    let report = &inputs.report;
    let mean = report.tokens as f64 / report.examples.max(1) as f64;
    let examples = report.epoch_len as f64 * inputs.lengths.kept;
    let tokens_per_step = examples * mean / inputs.steps_per_epoch.max(1) as f64;
    let supervised = tokens_per_step * report.supervised_share;
    let operations_per_step = plan::operations(&model, tokens_per_step as u64, supervised as u64, mean, o);
    let seconds = total_steps as f64 * costs.seconds(tokens_per_step, o.gradient_accumulation_steps as f64);
    let steps_per_epoch = inputs.steps_per_epoch;
    let device = model.device().to_string();
    let recomputes = o.gradient_checkpointing.then(|| o.recompute_granularity.to_string());
    Ok(Forecast {
        device,
        total_steps,
        steps_per_epoch,
        tokens_per_step,
        memory,
        recomputes,
        operations_per_step,
        seconds,
    })
}

/// The model, with a fresh adapter, a given one, or that of the checkpoint.
fn build(
    config: &SftConfig,
    opened: &Opened,
    steps_per_epoch: u64,
    resume: Option<&Checkpoint>,
) -> Result<(Model, Option<AdapterConfig>)> {
    let steps = crate::trainer::total_steps(&config.optim, steps_per_epoch);
    adapt::build(opened, &config.model, &config.lora, &config.optim, steps, resume)
}
