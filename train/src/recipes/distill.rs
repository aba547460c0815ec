//! Distillation of a teacher into a student of the same vocabulary.
//!
//! The loss is the divergence of the two predictions, summed over the supervised tokens and divided once by their
//! number over the whole optimizer step ([`Distill`] has the formula). Deviations from TRL's `GKDTrainer`: examples
//! are those of `sft`, with its masks; only the data's own answers are trained on (`lmbda` 0); `temperature` divides
//! the logits of the loss, where TRL's is that of sampling; a teacher may be known by its stored predictions; the losses
//! of a student's routers, which TRL leaves out here, are those of `sft`.

use std::path::Path;

use planish_autograd::ops::lm_head_divergence::Divergence;
use planish_nn::adapters::load_adapter;
use planish_nn::tokenizer::Tokenizer;

use super::inputs;
use crate::config::{ConfigError, DistillConfig};
use crate::data::DatasetType;
use crate::device::{self, Demands};
use crate::distill::{Distill, Features, Guide, StoredTeacher};
use crate::models::{self, Opened};
use crate::preference::same_vocabulary;
use crate::run::{Observer, Outcome};
use crate::trainer::{Trainer, router, total_steps};
use crate::{Error, Result, adapt};

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
/// Settings, data, models or run directory that are wrong, and a teacher of another vocabulary: nothing has been
/// written then. Later: stored predictions that are not of the data; a full disk; a loss that is no number any more.
pub fn run(config: &DistillConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    let demands = Demands::none().training(&config.optim).bf16(config.run.bf16);
    device::choose(config.run.device, &demands)?;
    let opened = Opened::by(&config.model, &mut |p| observer.downloading(&p))?;
    let (tokenizer, vocabulary) = (opened.tokenizer.clone(), opened.pretrained.config.vocab_size);
    let resume = inputs::checkpoint(&config.run)?;
    let mut config = config.clone();
    config.data.template_time = inputs::template_time(&config.data, resume.as_ref())?;
    let mut guide = guide(&config, (&tokenizer, vocabulary), observer)?;
    let inputs = inputs::open(
        &config.data,
        &config.optim,
        config.eval.per_device_eval_batch_size,
        &tokenizer,
        &opened.pretrained.config,
        inputs::Rows::new(ACCEPTED, inputs::packing(&config.data)),
    )?;
    config.data.template_time = inputs.sampler.encoder().options().template_time;
    let steps = total_steps(&config.optim, inputs.steps_per_epoch);
    let (mut model, adapter) =
        adapt::build(&opened, &config.model, &config.lora, &config.optim, steps, resume.as_ref())?;
    drop(opened);
    device::place(&mut model, config.run.device, &demands)?;
    if let Guide::Model(teacher) = &mut guide {
        device::beside(teacher, &model)?;
    }
    let d = &config.distill;
    let features = match &guide {
        Guide::Model(teacher) if !d.feature_layers.is_empty() => {
            Some(Features::new(&mut model, teacher, &d.feature_layers, d.feature_weight, config.optim.seed)?)
        }
        _ => None,
    };
    let router = router::terms(&config.router, &model.config)?;
    // The teacher is in memory by now, and so in the plan.
    inputs::fit(&inputs, &model, &mut config.optim, resume.as_ref())?;
    let (dir, resume) = inputs::begin(&config, &config.run, &inputs.report, observer)?;
    let what = Divergence { beta: config.distill.beta, temperature: config.distill.temperature };
    let mut objective = Distill::new(guide, what, config.distill.hard_weight).balanced(router);
    if let Some(features) = features {
        objective = objective.matching(features);
    }
    Trainer {
        model,
        adapter,
        objective: Box::new(objective),
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

/// Opens the teacher, or its predictions.
fn guide(config: &DistillConfig, student: (&Tokenizer, usize), observer: &mut dyn Observer) -> Result<Guide> {
    let d = &config.distill;
    if let Some(path) = &d.teacher_scores {
        let stored = StoredTeacher::open(Path::new(path))?;
        if stored.temperature() != d.temperature {
            return Err(ConfigError::Conflict {
                key: "temperature",
                problem: "is not that of `teacher_scores`; write them with `planish score --top-k K --temperature T` of the same T",
            }
            .into());
        }
        return Ok(Guide::Stored(stored));
    }
    let name = d.teacher_model.as_deref().unwrap_or_default();
    let opened = models::open(name, &d.teacher_model_revision, &mut |p| observer.downloading(&p))?;
    let theirs = (&opened.tokenizer, opened.pretrained.config.vocab_size);
    same_vocabulary(name, theirs, student).map_err(|e| match e {
        Error::ReferenceVocabulary { reference, what } => Error::TeacherVocabulary { teacher: reference, what },
        other => other,
    })?;
    let mut model = opened.load(config.model.dtype, false)?;
    if let Some(adapter) = &d.teacher_adapter {
        load_adapter(&mut model, Path::new(adapter))?;
    }
    Ok(Guide::Model(Box::new(model)))
}
