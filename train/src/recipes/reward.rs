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
//! An adapter of any kind but prefix tuning, which transformers' classifiers cannot have, carries the head with it, as PEFT's
//! of `task_type` SEQ_CLS and TOKEN_CLS do.

use std::sync::Arc;

use planish_nn::reward::RewardKind;

use super::inputs::{Inputs, Rows};
use super::preference::{self, Build};
use crate::config::{ConfigError, RewardConfig, RewardSettings};
use crate::data::{DatasetType, Packing, Sampler};
use crate::losses::BradleyTerry;
use crate::preference::{Rewards, StepRewards};
use crate::run::{Observer, Outcome};
use crate::trainer::{Objective, total_steps};
use crate::{Result, adapt};

/// Rows that this recipe takes.
pub const ACCEPTED: &[DatasetType] = &[DatasetType::Preference, DatasetType::Stepwise, DatasetType::Prm800k];

/// Runs the recipe.
///
/// # Errors
/// As [`super::sft::run`]; data of which one part is pairs and another is in steps.
pub fn run(config: &RewardConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    let rows = Rows { steps: config.steps.options(), ..Rows::new(ACCEPTED, Packing::None) };
    let build: Build<'_> = Box::new(|opened, inputs, resume| {
        let steps = total_steps(&config.optim, inputs.steps_per_epoch);
        let settings = (&config.model, &config.lora, &config.optim);
        adapt::build_reward(opened, settings, kind(config, inputs)?, steps, resume)
    });
    preference::run_with(config, rows, observer, build, |c, ready, observer| {
        let (dropout, share) = (!c.dropout.disable_dropout, ready.shares(c.pairs.share_prompts, observer));
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

/// The loss that the settings ask for.
pub fn loss(settings: &RewardSettings) -> BradleyTerry {
    BradleyTerry { center: settings.center_rewards_coefficient.unwrap_or(0.0) }
}
