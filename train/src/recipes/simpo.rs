//! SimPO: pairs by the mean log-probability of their tokens, with a margin, without a reference.
//!
//! The loss is CPO's of type `simpo`, here with the paper's settings as defaults.

use super::preference::{Blocks, ready};
use crate::Result;
use crate::config::{CpoLossType, SimpoConfig, SimpoSettings};
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
pub fn run(config: &SimpoConfig, observer: &mut dyn Observer) -> Result<Outcome> {
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
    let objective = Pairs::new(Box::new(loss(&config.simpo)), Reference::Free, dropout);
    let (eval, run) = (config.eval.clone(), config.run.clone());
    ready.train(&mut config, |c| &mut c.optim, (&eval, &run), Box::new(objective), observer)
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
