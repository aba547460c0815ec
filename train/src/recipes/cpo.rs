//! CPO: contrastive preference optimization, without a reference.
//!
//! Deviations from TRL's `CPOTrainer`: cross-entropy is a mean over the tokens of the whole optimizer step, not of
//! each micro-batch; `loss_type: rrhf`, which it has not, takes rows of several answers with scores as well; prompts and
//! completions are tokenised as for DPO.

use super::preference;
use crate::Result;
use crate::config::{CpoConfig, CpoLossType, CpoSettings};
use crate::data::DatasetType;
use crate::losses::{AllPairs, Cpo};
use crate::preference::{Pairs, Ranked, Reference};
use crate::run::{Observer, Outcome};
use crate::trainer::router;

/// Rows that this recipe takes.
pub const ACCEPTED: &[DatasetType] = &[DatasetType::Preference];

/// Rows that the loss `rrhf` takes.
pub const RANKED: &[DatasetType] = &[DatasetType::Preference, DatasetType::Ranked];

/// Runs the recipe.
///
/// # Errors
/// As [`super::sft::run`].
pub fn run(config: &CpoConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    let accepted = if config.cpo.loss_type == CpoLossType::Rrhf { RANKED } else { ACCEPTED };
    preference::run(config, accepted, observer, |c, ready, observer| {
        let router = router::terms(&c.router, &ready.model.config)?;
        let (loss, dropout) = (Box::new(loss(&c.cpo)), !c.dropout.disable_dropout);
        let share = ready.shares(c.pairs.share_prompts, observer);
        if ready.has(DatasetType::Ranked) {
            let ranked = Ranked::new(Box::new(AllPairs::new(loss)), Reference::Free, dropout);
            return Ok(Box::new(ranked.sharing(share).balanced(router)));
        }
        Ok(Box::new(Pairs::new(loss, Reference::Free, dropout).sharing(share).balanced(router)))
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
