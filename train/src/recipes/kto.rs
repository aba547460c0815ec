//! KTO: learning from completions that are each good or bad.
//!
//! The loss ([`Kto`] has the formulas) is divided once by the number of completions of the whole optimizer step.
//! Its estimate of the KL divergence is that of a micro-batch, from its prompts with each other's completions, as in
//! TRL's `KTOTrainer`: the micro-batch size matters, and 1 is refused. `loss_type: bco` is the `BCOTrainer` of TRL before
//! 1.0. Deviations from TRL: rows are shuffled unless
//! `shuffle` is false, where TRL goes through the data in order; a pair is one row of two completions of a micro-batch,
//! where TRL makes two rows of it.

use super::preference;
use crate::Result;
use crate::config::{KtoConfig, KtoSettings};
use crate::data::DatasetType;
use crate::losses::Kto;
use crate::preference::Unpaired;
use crate::run::{Observer, Outcome};
use crate::trainer::router;

/// Rows that this recipe takes.
pub const ACCEPTED: &[DatasetType] = &[DatasetType::Labelled, DatasetType::Preference];

/// Runs the recipe.
///
/// # Errors
/// As [`super::dpo::run`].
pub fn run(config: &KtoConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    preference::run(config, ACCEPTED, observer, |c, ready, observer| {
        let router = router::terms(&c.router, &ready.model.config)?;
        let reference = ready.reference(&c.reference, (&c.model, &c.run, &c.optim), 1.0, false, observer)?;
        let dropout = !c.dropout.disable_dropout;
        Ok(Box::new(Unpaired::new(loss(&c.kto), reference, dropout, ready.max_length()).balanced(router)))
    })
}

/// The loss that the settings ask for.
pub fn loss(settings: &KtoSettings) -> Kto {
    Kto {
        loss_type: settings.loss_type,
        beta: settings.beta,
        desirable_weight: settings.desirable_weight,
        undesirable_weight: settings.undesirable_weight,
    }
}
