//! Reward models: a decoder with a head of one number, trained to rate chosen completions above rejected ones.
//!
//! The loss ([`BradleyTerry`] has the formula) is divided once by the number of pairs of the whole optimizer step. The
//! column `margin`, where there is one, says by how much a pair's sides differ. Deviation from TRL's `RewardTrainer`:
//! a side's reward is read at its last token by position; rows longer than `max_length` are dropped, as there, or
//! cut as `truncation_mode` says. All weights are trained.

use super::preference::{self, Build};
use crate::Result;
use crate::config::{RewardConfig, RewardSettings};
use crate::data::DatasetType;
use crate::losses::BradleyTerry;
use crate::models;
use crate::preference::Rewards;
use crate::run::{Observer, Outcome};

/// Rows that this recipe takes.
pub const ACCEPTED: &[DatasetType] = &[DatasetType::Preference];

/// Runs the recipe.
///
/// # Errors
/// As [`super::sft::run`].
pub fn run(config: &RewardConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    let (dtype, seed) = (config.model.dtype, config.optim.seed);
    let build: Build<'_> = Box::new(move |opened, _, resume| {
        let model = match resume {
            Some(from) => models::open_path(&from.path)?.load_reward(dtype, seed)?,
            None => opened.load_reward(dtype, seed)?,
        };
        Ok((model, None))
    });
    preference::run_with(config, ACCEPTED, observer, build, |c, _, _| {
        let rewards = Rewards::new(loss(&c.reward), !c.dropout.disable_dropout);
        Ok(Box::new(rewards.sharing(c.pairs.share_prompts)))
    })
}

/// The loss that the settings ask for.
pub fn loss(settings: &RewardSettings) -> BradleyTerry {
    BradleyTerry { center: settings.center_rewards_coefficient.unwrap_or(0.0) }
}
