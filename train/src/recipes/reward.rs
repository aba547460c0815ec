//! Reward models: a decoder with a small head, of which the rows say what it judges.
//!
//! From pairs it learns to rate chosen completions above rejected ones, by one number at the last token. The loss
//! ([`BradleyTerry`] has the formula) is divided once by the number of pairs of the whole optimizer step. The
//! column `margin`, where there is one, says by how much a pair's sides differ. Deviation from TRL's `RewardTrainer`:
//! a side's reward is read at its last token by position; rows longer than `max_length` are dropped, as there, or
//! cut as `truncation_mode` says.
//!
//! From answers in steps it learns to tell right steps from wrong ones, by two logits at the last token of each
//! ([`step_loss`](crate::losses::step_loss)); the loss is divided once by the number of judged steps of the whole optimizer
//! step. Deviation from the `PRMTrainer` of TRL 0.2x, which divided by those of each micro-batch and cut rows longer than
//! `max_length`: that is `truncation_mode` here too.
//!
//! An adapter carries the head with it, as PEFT's of `task_type` SEQ_CLS and TOKEN_CLS do.

use std::path::Path;
use std::sync::Arc;

use planish_nn::adapters::{AdapterConfig, Targets, attach, load_adapter, resume_adapter};
use planish_nn::decoder::Model;
use planish_nn::reward::RewardKind;

use super::inputs::{Inputs, Rows};
use super::preference::{self, Build};
use crate::config::{ConfigError, RewardConfig, RewardSettings};
use crate::data::{DatasetType, Packing, Sampler};
use crate::losses::BradleyTerry;
use crate::models::{self, Opened};
use crate::preference::{Rewards, StepRewards};
use crate::run::{Checkpoint, Observer, Outcome};
use crate::trainer::Objective;
use crate::{Result, adapt};

/// Rows that this recipe takes.
pub const ACCEPTED: &[DatasetType] = &[DatasetType::Preference, DatasetType::Stepwise, DatasetType::Prm800k];

/// Runs the recipe.
///
/// # Errors
/// As [`super::sft::run`]; data of which one part is pairs and another is in steps.
pub fn run(config: &RewardConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    let rows = Rows { steps: config.steps.options(), ..Rows::new(ACCEPTED, Packing::None) };
    let build: Build<'_> = Box::new(|opened, inputs, resume| build(config, opened, kind(config, inputs)?, resume));
    preference::run_with(config, rows, observer, build, |c, ready, _| {
        let (dropout, share) = (!c.dropout.disable_dropout, c.pairs.share_prompts);
        let objective: Box<dyn Objective> = match kind(c, &ready.inputs)? {
            RewardKind::Outcome => Box::new(Rewards::new(loss(&c.reward), dropout).sharing(share)),
            RewardKind::Process => Box::new(StepRewards::new(dropout).sharing(share)),
        };
        Ok(objective)
    })
}

/// What the rows are made to judge.
fn kind(config: &RewardConfig, inputs: &Inputs) -> Result<RewardKind> {
    let conflict = |key, problem| Err(ConfigError::Conflict { key, problem }.into());
    let of = |sampler: &Arc<Sampler>| {
        let files = sampler.view().data().files();
        let in_steps = files.iter().filter(|f| DatasetType::STEPS.contains(&f.kind)).count();
        (in_steps > 0, in_steps < files.len())
    };
    let (mut steps, mut pairs) = of(&inputs.sampler);
    if let Some(held_out) = &inputs.held_out {
        let (other_steps, other_pairs) = of(held_out);
        (steps, pairs) = (steps || other_steps, pairs || other_pairs);
    }
    match (steps, pairs) {
        (true, true) => conflict(
            "dataset",
            "and `eval_dataset` have both pairs and answers in steps: a reward model has one head, so train one on each",
        ),
        (true, false) if config.reward.center_rewards_coefficient.is_some() => conflict(
            "center_rewards_coefficient",
            "is for pairs: the probabilities of steps have a middle of their own; leave it out",
        ),
        (true, false) => Ok(RewardKind::Process),
        (false, _) => Ok(RewardKind::Outcome),
    }
}

/// All weights with a head, or an adapter of which the head is a part: new, given, or that of the checkpoint.
fn build(
    config: &RewardConfig,
    opened: &Opened,
    kind: RewardKind,
    resume: Option<&Checkpoint>,
) -> Result<(Model, Option<AdapterConfig>)> {
    let (c, dtype, seed) = (config, config.model.dtype, config.optim.seed);
    if !c.lora.use_peft && c.model.adapter.is_none() {
        let from = match resume {
            Some(from) => &models::open_path(&from.path)?,
            None => opened,
        };
        return Ok((from.load_reward(dtype, kind, seed, true)?, None));
    }
    let mut model = opened.load_reward(dtype, kind, seed, false)?;
    let adapter = match (resume, &c.model.adapter) {
        (Some(from), _) => resume_adapter(&mut model, &from.path)?,
        (None, Some(dir)) => load_adapter(&mut model, Path::new(dir))?,
        (None, None) => {
            let mut lora = adapt::lora_config(&c.lora, &c.model.model)?;
            if !lora.modules_to_save.iter().any(|name| name == "score") {
                lora.modules_to_save.push("score".to_owned());
            }
            if kind == RewardKind::Process && lora.target_modules == Targets::AllLinear {
                // To PEFT the head of a token classifier is one of all linear modules.
                lora.target_modules = Targets::Names(linear_names(&model));
            }
            lora.others.insert("task_type".to_owned(), kind.task_type().into());
            attach(&mut model, &lora, seed, None)?;
            Arc::new(lora)
        }
    };
    Ok((model, Some(adapter)))
}

/// The last parts of the names of a model's linear modules, each once.
fn linear_names(model: &Model) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for linear in model.layers.iter().flat_map(|layer| layer.linears()) {
        let name = linear.name.rsplit('.').next().unwrap_or(&linear.name);
        if !names.iter().any(|n| n == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// The loss that the settings ask for.
pub fn loss(settings: &RewardSettings) -> BradleyTerry {
    BradleyTerry { center: settings.center_rewards_coefficient.unwrap_or(0.0) }
}
