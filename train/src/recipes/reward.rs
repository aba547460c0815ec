//! Reward models: a decoder with a head of one number, trained to rate chosen completions above rejected ones.
//!
//! The loss ([`BradleyTerry`] has the formula) is divided once by the number of pairs of the whole optimizer step. The
//! column `margin`, where there is one, says by how much a pair's sides differ. Deviation from TRL's `RewardTrainer`:
//! a side's reward is read at its last token by position; rows longer than `max_length` are dropped, as there, or
//! cut as `truncation_mode` says. An adapter carries the head with it, as PEFT's of `task_type` SEQ_CLS do.

use std::path::Path;
use std::sync::Arc;

use planish_nn::adapters::{AdapterConfig, attach, load_adapter, resume_adapter};
use planish_nn::decoder::Model;

use super::preference::{self, Build};
use crate::config::{RewardConfig, RewardSettings};
use crate::data::DatasetType;
use crate::losses::BradleyTerry;
use crate::models::{self, Opened};
use crate::preference::Rewards;
use crate::run::{Checkpoint, Observer, Outcome};
use crate::{Result, adapt};

/// Rows that this recipe takes.
pub const ACCEPTED: &[DatasetType] = &[DatasetType::Preference];

/// Runs the recipe.
///
/// # Errors
/// As [`super::sft::run`].
pub fn run(config: &RewardConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    let build: Build<'_> = Box::new(|opened, _, resume| build(config, opened, resume));
    preference::run_with(config, ACCEPTED, observer, build, |c, _, _| {
        let rewards = Rewards::new(loss(&c.reward), !c.dropout.disable_dropout);
        Ok(Box::new(rewards.sharing(c.pairs.share_prompts)))
    })
}

/// All weights with a head, or an adapter of which the head is a part: new, given, or that of the checkpoint.
fn build(
    config: &RewardConfig,
    opened: &Opened,
    resume: Option<&Checkpoint>,
) -> Result<(Model, Option<AdapterConfig>)> {
    let (c, dtype, seed) = (config, config.model.dtype, config.optim.seed);
    if !c.lora.use_peft && c.model.adapter.is_none() {
        let from = match resume {
            Some(from) => &models::open_path(&from.path)?,
            None => opened,
        };
        return Ok((from.load_reward(dtype, seed, true)?, None));
    }
    let mut model = opened.load_reward(dtype, seed, false)?;
    let adapter = match (resume, &c.model.adapter) {
        (Some(from), _) => resume_adapter(&mut model, &from.path)?,
        (None, Some(dir)) => load_adapter(&mut model, Path::new(dir))?,
        (None, None) => {
            let mut lora = adapt::lora_config(&c.lora, &c.model.model)?;
            if !lora.modules_to_save.iter().any(|name| name == "score") {
                lora.modules_to_save.push("score".to_owned());
            }
            lora.others.insert("task_type".to_owned(), "SEQ_CLS".into());
            attach(&mut model, &lora, seed, None)?;
            Arc::new(lora)
        }
    };
    Ok((model, Some(adapter)))
}

/// The loss that the settings ask for.
pub fn loss(settings: &RewardSettings) -> BradleyTerry {
    BradleyTerry { center: settings.center_rewards_coefficient.unwrap_or(0.0) }
}
