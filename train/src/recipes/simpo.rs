//! SimPO: pairs by the mean log-probability of their tokens, with a margin, without a reference.
//!
//! The loss is CPO's of type `simpo`, here with the paper's settings as defaults.

use super::preference;
use crate::Result;
use crate::config::{CpoLossType, SimpoConfig, SimpoSettings};
use crate::data::DatasetType;
use crate::losses::Cpo;
use crate::preference::{Pairs, Reference};
use crate::run::{Observer, Outcome};
use crate::trainer::router;

/// Rows that this recipe takes.
pub const ACCEPTED: &[DatasetType] = &[DatasetType::Preference];

/// Runs the recipe.
///
/// # Errors
/// As [`super::sft::run`].
pub fn run(config: &SimpoConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    preference::run(config, ACCEPTED, observer, |c, ready, observer| {
        let pairs = Pairs::new(Box::new(loss(&c.simpo)), Reference::Free, !c.dropout.disable_dropout);
        let pairs = pairs.sharing(ready.shares(c.pairs.share_prompts, observer));
        Ok(Box::new(pairs.balanced(router::terms(&c.router, &ready.model.config)?)))
    })
}

/// The loss that the settings ask for.
pub fn loss(settings: &SimpoSettings) -> Cpo {
    Cpo {
        loss_type: CpoLossType::Simpo,
        beta: settings.beta,
        label_smoothing: settings.label_smoothing,
        cpo_alpha: settings.cpo_alpha,
        simpo_gamma: settings.simpo_gamma,
        alpha: settings.alpha,
    }
}
