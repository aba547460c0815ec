//! Direct preference optimization and its family, of all weights or of an adapter.
//!
//! Chosen and rejected of a pair are neighbouring segments of one packed batch: one forward and one backward pass
//! for both. The loss ([`Dpo`] has the formulas) is divided once by the number of pairs of the whole optimizer
//! step. Deviations from TRL's `DPOTrainer`: nothing is padded; the term `sft` is a mean over the chosen tokens of
//! the whole step, not of each micro-batch; the losses `aot` and `aot_unpaired` sort within a micro-batch, as there;
//! `label_smoothing` reaches `sigmoid` (cDPO); a pair that teaches nothing is an error unless `drop_unsupervised`.

use super::preference;
use crate::Result;
use crate::config::{ConfigError, DpoConfig, DpoLossType, DpoSettings};
use crate::data::DatasetType;
use crate::losses::{Dpo, Nca, PairLoss};
use crate::preference::{Pairs, Ranked};
use crate::run::{Observer, Outcome};
use crate::trainer::router;

/// Rows that this recipe takes.
pub const ACCEPTED: &[DatasetType] = &[DatasetType::Preference];

/// Rows that the losses `nca` and `info_nca` take.
pub const RANKED: &[DatasetType] = &[DatasetType::Preference, DatasetType::Ranked];

/// Runs the recipe.
///
/// # Errors
/// Settings, data, models or run directory that are wrong: nothing has been written then, but perhaps the
/// reference's log-probabilities. Later: a full disk, a loss that is no number any more.
pub fn run(config: &DpoConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    let accepted = if nca(&config.dpo, false).is_some() { RANKED } else { ACCEPTED };
    preference::run(config, accepted, observer, |c, ready, observer| {
        let dropout = !c.dropout.disable_dropout;
        let ranked = nca(&c.dpo, c.reference.reference_free).filter(|_| ready.has(DatasetType::Ranked));
        if ranked.is_some() {
            of_pairs_only(c)?;
        }
        let loss = loss(&c.dpo, c.reference.reference_free);
        let share = ready.shares(c.pairs.share_prompts, observer);
        let verbose = loss.verbose_weight();
        let router = router::terms(&c.router, &ready.model.config)?;
        let reference = ready.reference(&c.reference, (&c.model, &c.run, &c.optim), verbose, share, observer)?;
        if let Some(nca) = ranked {
            return Ok(Box::new(Ranked::new(Box::new(nca), reference, dropout).sharing(share).balanced(router)));
        }
        let pairs = Pairs::new(Box::new(loss), reference, dropout);
        Ok(Box::new(pairs.sharing(share).balanced(router)))
    })
}

/// What rows of answers with scores cannot have.
fn of_pairs_only(c: &DpoConfig) -> Result<()> {
    let conflict = |key, problem| Err(ConfigError::Conflict { key, problem }.into());
    if c.reference.precompute_ref_log_probs {
        return conflict(
            "precompute_ref_log_probs",
            "is for pairs, and there are rows of several answers; leave it out",
        );
    }
    if c.dpo.ld_alpha.is_some() {
        return conflict(
            "ld_alpha",
            "compares the two sides of pairs, and there are rows of several answers; leave it out",
        );
    }
    match c.dpo.use_weighting {
        true => conflict("use_weighting", "weighs pairs, and there are rows of several answers; leave it out"),
        false => Ok(()),
    }
}

/// The loss of answers with scores, if the settings ask for one, alone or with cross-entropy.
pub fn nca(settings: &DpoSettings, reference_free: bool) -> Option<Nca> {
    let Dpo { losses, .. } = loss(settings, reference_free);
    let (nll, others): (Vec<_>, Vec<_>) = losses.into_iter().partition(|(loss_type, _)| *loss_type == DpoLossType::Sft);
    let [(loss_type @ (DpoLossType::Nca | DpoLossType::InfoNca), weight)] = others[..] else { return None };
    Some(Nca {
        info: loss_type == DpoLossType::InfoNca,
        beta: settings.beta,
        alpha: settings.nca_alpha,
        weight,
        nll: nll.iter().map(|(_, weight)| weight).sum(),
        reference_free,
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
        nca_alpha: settings.nca_alpha,
        use_weighting: settings.use_weighting,
        reference_free,
    }
}
