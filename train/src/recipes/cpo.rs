//! CPO: contrastive preference optimization, without a reference.
//!
//! Deviations from TRL's `CPOTrainer`: cross-entropy is a mean over the tokens of the whole optimizer step, not of
//! each micro-batch; prompts and completions are tokenised as for DPO; `loss_type: alphapo` is `planish simpo` with
//! an `alpha`.

use super::preference::{Blocks, ready};
use crate::Result;
use crate::config::{CpoConfig, CpoSettings};
use crate::data::DatasetType;
use crate::losses::Cpo;
use crate::preference::{Pairs, Reference};
use crate::run::{Observer, Outcome};

/// Rows that this recipe takes.
pub const ACCEPTED: &[DatasetType] = &[DatasetType::Preference];

/// Runs the recipe.
///
/// # Errors
/// As [`super::sft::run`].
pub fn run(config: &CpoConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    let mut config = config.clone();
    let blocks = Blocks {
        model: &config.model,
        data: &mut config.data,
        optim: &config.optim,
        lora: &config.lora,
        eval: &config.eval,
        run: &config.run,
    };
    let ready = ready(blocks, ACCEPTED, observer)?;
    let dropout = !config.dropout.disable_dropout;
    let objective = Pairs::new(Box::new(loss(&config.cpo)), Reference::Free, dropout);
    let (eval, run) = (config.eval.clone(), config.run.clone());
    ready.train(&mut config, |c| &mut c.optim, (&eval, &run), Box::new(objective), observer)
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
