//! Several objectives in one run: rows to imitate, pairs and labelled completions in one batch, each with its own loss.
//!
//! The loss of a step is Σ w S / C over the objectives ([`Mixed`] has the formula): each sum is divided once, by what its
//! own objective counts over the whole optimizer step. Rows of all data sets are drawn together, as often as their weights
//! say, and go through the model in one packed batch. TRL has no such trainer; each objective by itself is that of its
//! recipe, but for what looks at a micro-batch as a whole: `kto` estimates the KL divergence from its own rows of a
//! micro-batch, as 0 where there are fewer than two, and `aot` is not mixed.

use super::inputs::Rows;
use super::{cpo, dpo, kto, orpo, preference, sft, simpo};
use crate::Result;
use crate::config::{IngredientLoss, MixConfig};
use crate::data::{DatasetType, Packing, Sampler};
use crate::preference::{Member, MemberLoss, Mixed, Origins, Reference};
use crate::run::{Observer, Outcome};
use crate::trainer::router;

/// Runs the recipe.
///
/// # Errors
/// As [`super::sft::run`].
pub fn run(config: &MixConfig, observer: &mut dyn Observer) -> Result<Outcome> {
    let accepted = config.mix.objectives.0.iter().map(|one| accepted(&one.loss)).collect();
    let rows = Rows { accepted, ..Rows::new(&[], Packing::None) };
    preference::run_rows(config, rows, observer, |c, ready, observer| {
        let (objectives, router) = (&c.mix.objectives.0, router::terms(&c.router, &ready.model.config)?);
        let reference = match objectives.iter().any(|one| one.loss.has_reference()) {
            true => ready.reference(&c.reference, (&c.model, &c.run, &c.optim), 1.0, false, observer)?,
            false => Reference::Free,
        };
        let members: Vec<Member> = objectives
            .iter()
            .map(|one| Member {
                name: one.name.clone(),
                weight: one.weight,
                loss: loss(&one.loss, c.reference.reference_free),
            })
            .collect();
        let origins = |sampler: &Sampler| Origins::new(sampler.view().data().clone(), (0..members.len()).collect());
        let (train, held_out) = (origins(&ready.inputs.sampler), ready.inputs.held_out.as_deref().map(origins));
        let dropout = !c.dropout.disable_dropout;
        let mixed = Mixed::new(members, reference, dropout, ready.max_length(), train, held_out);
        Ok(Box::new(mixed.sharing(ready.shares(c.pairs.share_prompts, observer)).balanced(router)))
    })
}

/// Rows that an objective takes.
fn accepted(loss: &IngredientLoss) -> &'static [DatasetType] {
    match loss {
        IngredientLoss::Sft => sft::ACCEPTED,
        IngredientLoss::Dpo(_) => dpo::ACCEPTED,
        IngredientLoss::Kto(_) => kto::ACCEPTED,
        IngredientLoss::Orpo(_) => orpo::ACCEPTED,
        IngredientLoss::Cpo(_) => cpo::ACCEPTED,
        IngredientLoss::Simpo(_) => simpo::ACCEPTED,
    }
}

/// The loss that an objective's settings ask for.
pub fn loss(loss: &IngredientLoss, reference_free: bool) -> MemberLoss {
    match loss {
        IngredientLoss::Sft => MemberLoss::CrossEntropy,
        IngredientLoss::Dpo(s) => MemberLoss::Pairs(Box::new(dpo::loss(s, reference_free))),
        IngredientLoss::Kto(s) => MemberLoss::Labelled(kto::loss(s)),
        IngredientLoss::Orpo(s) => MemberLoss::Pairs(Box::new(orpo::loss(s))),
        IngredientLoss::Cpo(s) => MemberLoss::Pairs(Box::new(cpo::loss(s))),
        IngredientLoss::Simpo(s) => MemberLoss::Pairs(Box::new(simpo::loss(s))),
    }
}
