//! Reward models: a decoder with a head of one number, trained to rate chosen completions above rejected ones.
//!
//! The loss ([`BradleyTerry`] has the formula) is divided once by the number of pairs of the whole optimizer step. The
//! column `margin`, where there is one, says by how much a pair's sides differ. Deviation from TRL's `RewardTrainer`:
//! a side's reward is read at its last token by position; rows longer than `max_length` are dropped, as there, or
//! cut as `truncation_mode` says. All weights are trained.

use super::preference::{Blocks, ready_with};
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
    let mut config = config.clone();
    let (dtype, seed) = (config.model.dtype, config.optim.seed);
    let blocks = Blocks {
        model: &config.model,
        data: &mut config.data,
        optim: &config.optim,
        lora: &config.lora,
        eval: &config.eval,
        run: &config.run,
    };
    let ready = ready_with(blocks, ACCEPTED, observer, |opened, _, resume| {
        let model = match resume {
            Some(from) => models::open_path(&from.path)?.load_reward(dtype, seed)?,
            None => opened.load_reward(dtype, seed)?,
        };
        Ok((model, None))
    })?;
    let objective = Rewards::new(loss(&config.reward), !config.dropout.disable_dropout);
    let (eval, run) = (config.eval.clone(), config.run.clone());
    ready.train(&mut config, |c| &mut c.optim, (&eval, &run), Box::new(objective), observer)
}

/// The loss that the settings ask for.
pub fn loss(settings: &RewardSettings) -> BradleyTerry {
    BradleyTerry { center: settings.center_rewards_coefficient.unwrap_or(0.0) }
}
