//! Direct preference optimization and its family, of all weights or of an adapter.
//!
//! Chosen and rejected of a pair are neighbouring segments of one packed batch: one forward and one backward pass
//! for both. The loss ([`Dpo`] has the formulas) is divided once by the number of pairs of the whole optimizer
//! step. Deviations from TRL's `DPOTrainer`: nothing is padded; the term `sft` is a mean over the chosen tokens of
//! the whole step, not of each micro-batch; the losses `aot` and `aot_unpaired` sort within a micro-batch, as there;
//! `label_smoothing` reaches `sigmoid` (cDPO); a pair that teaches nothing is an error unless `drop_unsupervised`.

use super::preference;
use crate::Result;
use crate::config::{DpoConfig, DpoLossType, DpoSettings};
use crate::data::DatasetType;
use crate::losses::{Dpo, PairLoss};
use crate::preference::Pairs;
use crate::run::{Observer, Outcome};
use crate::trainer::router;

/// Rows that this recipe takes.
pub const ACCEPTED: &[DatasetType] = &[DatasetType::Preference];

/// Runs the recipe.
///
/// # Errors
/// Settings, data, models or run directory that are wrong: nothing has been written then, but perhaps the
/// reference's log-probabilities. Later: a full disk, a loss that is no number any more.
pub fn run(config: &DpoConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    preference::run(config, ACCEPTED, observer, |c, ready, observer| {
        let (loss, share) = (loss(&c.dpo, c.reference.reference_free), c.pairs.share_prompts);
        let verbose = loss.verbose_weight();
        let router = router::terms(&c.router, &ready.model.config)?;
        let reference = ready.reference(&c.reference, (&c.model, &c.run, &c.optim), verbose, share, observer)?;
        let pairs = Pairs::new(Box::new(loss), reference, !c.dropout.disable_dropout);
        Ok(Box::new(pairs.sharing(share).balanced(router)))
    })
}

/// The loss that the settings ask for.
pub fn loss(settings: &DpoSettings, reference_free: bool) -> Dpo {
    let weight = |i: usize| settings.loss_weights.get(i).copied().unwrap_or(1.0);
    let mut losses: Vec<(DpoLossType, f64)> =
        settings.loss_type.iter().enumerate().map(|(i, l)| (*l, weight(i))).collect();
    losses.extend(settings.rpo_alpha.filter(|a| *a > 0.0).map(|a| (DpoLossType::Sft, a)));
    Dpo {
        losses,
        beta: settings.beta,
        label_smoothing: settings.label_smoothing,
        f_divergence: settings.f_divergence_type,
        f_alpha: settings.f_alpha_divergence_coef,
        discopop_tau: settings.discopop_tau,
        ld_alpha: settings.ld_alpha,
        use_weighting: settings.use_weighting,
        reference_free,
    }
}
