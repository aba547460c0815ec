//! CPO: contrastive preference optimization, without a reference.
//!
//! Deviations from TRL's `CPOTrainer`: cross-entropy is a mean over the tokens of the whole optimizer step, not of
//! each micro-batch; `loss_type: rrhf`, which it has not; prompts and completions are tokenised as for DPO; `loss_type: alphapo` is `planish simpo` with
//! an `alpha`.

use super::preference;
use crate::Result;
use crate::config::{CpoConfig, CpoSettings};
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
pub fn run(config: &CpoConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    preference::run(config, ACCEPTED, observer, |c, ready, _| {
        let pairs = Pairs::new(Box::new(loss(&c.cpo)), Reference::Free, !c.dropout.disable_dropout);
        let pairs = pairs.sharing(c.pairs.share_prompts);
        Ok(Box::new(pairs.balanced(router::terms(&c.router, &ready.model.config)?)))
    })
}

/// The loss that the settings ask for.
pub fn loss(settings: &CpoSettings) -> Cpo {
    Cpo {
        loss_type: settings.loss_type,
        beta: settings.beta,
        label_smoothing: settings.label_smoothing,
        cpo_alpha: settings.cpo_alpha,
        simpo_gamma: settings.simpo_gamma,
        alpha: settings.alpha,
    }
}
