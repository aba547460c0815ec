//! ORPO: cross-entropy and the odds ratio of pairs in one, without a reference.
//!
//! Deviations from TRL's `ORPOTrainer`: cross-entropy is a mean over the tokens of the whole optimizer step, not of
//! each micro-batch; prompts and completions are tokenised as for DPO.

use super::preference;
use crate::Result;
use crate::config::{OrpoConfig, OrpoSettings};
use crate::data::DatasetType;
use crate::losses::Orpo;
use crate::preference::{Pairs, Reference};
use crate::run::{Observer, Outcome};
use crate::trainer::router;

/// Rows that this recipe takes.
pub const ACCEPTED: &[DatasetType] = &[DatasetType::Preference];

/// Runs the recipe.
///
/// # Errors
/// As [`super::sft::run`].
pub fn run(config: &OrpoConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    preference::run(config, ACCEPTED, observer, |c, ready, observer| {
        let pairs = Pairs::new(Box::new(loss(&c.orpo)), Reference::Free, !c.dropout.disable_dropout);
        let pairs = pairs.sharing(ready.shares(c.pairs.share_prompts, observer));
        Ok(Box::new(pairs.balanced(router::terms(&c.router, &ready.model.config)?)))
    })
}

/// The loss that the settings ask for.
pub fn loss(settings: &OrpoSettings) -> Orpo {
    Orpo { beta: settings.beta }
}
