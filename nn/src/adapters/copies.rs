//! Weights that an adapter trains whole: PEFT's `modules_to_save`, and biases.

use std::collections::HashSet;

use super::{AdapterError, Attach, EMBEDDING, HEAD, PREFIX, select};
use crate::Result;
use crate::modules::Weight;
use crate::reward::{SCORE, SCORE_BIAS};

/// Gives `weight` a copy under `name`; of a new adapter it begins with the model's own numbers.
pub(super) fn copy(to: &mut Attach<'_>, name: String, weight: &mut Weight) -> Result<()> {
    let (own, dtype) = (weight.base.value(), to.dtype);
    let param = to.param(name, own.dims(), |_| Ok(own.to_dtype(dtype)?.copied()?))?;
    weight.tuned.set(to.slot, param);
    Ok(())
}

/// Gives the modules of `modules_to_save` their trained copies.
///
/// # Errors
/// A name that no module ends in; a file that lacks the copy.
pub(super) fn modules_to_save(to: &mut Attach<'_>, modules: &[String], ensure_weight_tying: bool) -> Result<()> {
    // PEFT matches the bare end of the name here, without a dot: `norm` is also every layer's norm.
    let wanted = |name: &str| modules.iter().any(|m| name.ends_with(m.as_str()));
    let mut matched = HashSet::new();
    let mut note = |name: &str| {
        matched.extend(modules.iter().filter(|m| name.ends_with(m.as_str())).cloned());
    };
    let slot = to.slot;
    if wanted(EMBEDDING) {
        note(EMBEDDING);
        // The head of a tied model stays what it was, unless the adapter ties it to the copy.
        let untied = to.model.lm_head.is_none() && !ensure_weight_tying;
        if untied && !wanted(HEAD) {
            to.model.lm_head = Some(Weight::new(to.model.embed_tokens.base.clone()));
        }
        let mut weight = to.model.embed_tokens.clone();
        copy(to, format!("{PREFIX}{EMBEDDING}.weight"), &mut weight)?;
        if let Some(head) = to.model.lm_head.as_mut().filter(|_| ensure_weight_tying)
            && to.model.config.tie_word_embeddings
        {
            // Another adapter has split the head off: for this one it is still the embedding.
            head.tuned.set(slot, weight.tuned.get(slot).expect("just made").clone());
        }
        to.model.embed_tokens = weight;
    }
    if wanted(HEAD) {
        note(HEAD);
        let mut head = match &to.model.lm_head {
            Some(head) => head.clone(),
            None => Weight::new(to.model.embed_tokens.base.clone()),
        };
        copy(to, format!("{PREFIX}{HEAD}.weight"), &mut head)?;
        to.model.lm_head = Some(head);
    }
    let mut norm = to.model.norm.clone();
    if wanted(&norm.name) {
        note(&norm.name);
        copy(to, format!("{PREFIX}{}.weight", norm.name), &mut norm.weight)?;
        to.model.norm = norm;
    }
    if to.model.score.is_some() {
        // PEFT names every classifier's head that there might be.
        note("classifier");
        if wanted("score") {
            note("score");
            score(to, PREFIX)?;
        }
    }
    let mut layers = std::mem::take(&mut to.model.layers);
    let mut all = || -> Result<()> {
        for layer in &mut layers {
            for n in layer.norms_mut().into_iter().filter(|n| wanted(&n.name)) {
                note(&n.name);
                copy(to, format!("{PREFIX}{}.weight", n.name), &mut n.weight)?;
            }
            for linear in layer.linears_mut().into_iter().filter(|l| wanted(&l.name)) {
                note(&linear.name);
                linear.adapters.take(slot);
                copy(to, format!("{PREFIX}{}.weight", linear.name), &mut linear.weight)?;
                if let Some(bias) = &mut linear.bias {
                    copy(to, format!("{PREFIX}{}.bias", linear.name), bias)?;
                }
            }
        }
        Ok(())
    };
    let done = all();
    to.model.layers = layers;
    done?;
    match modules.iter().find(|m| !matched.contains(*m)) {
        None => Ok(()),
        Some(missing) => Err(select::no_match(to.model, "modules_to_save", format!("{missing:?}")).into()),
    }
}

/// Gives the head of rewards its trained copy, if there is one.
fn score(to: &mut Attach<'_>, prefix: &str) -> Result<()> {
    let Some(mut weight) = to.model.score.clone() else { return Ok(()) };
    copy(to, format!("{prefix}{SCORE}"), &mut weight)?;
    to.model.score = Some(weight);
    if let Some(mut bias) = to.model.score_bias.clone() {
        copy(to, format!("{prefix}{SCORE_BIAS}"), &mut bias)?;
        to.model.score_bias = Some(bias);
    }
    Ok(())
}

/// What PEFT puts before the head's name where an adapter changes no module, so that it wraps none.
const UNWRAPPED: &str = "base_model.";

/// As [`score`] for methods of virtual tokens, which name no modules: PEFT trains the head beside them in any case. An
/// adapter that has none leaves it as it is.
pub(super) fn score_beside(to: &mut Attach<'_>) -> Result<()> {
    match to.is_fresh() || to.holds(&format!("{UNWRAPPED}{SCORE}")) {
        true => score(to, UNWRAPPED),
        false => Ok(()),
    }
}

/// Whether a parameter is of that copy.
pub(super) fn is_score_beside(name: &str) -> bool {
    name.strip_prefix(UNWRAPPED).is_some_and(|name| name == SCORE || name == SCORE_BIAS)
}

/// Gives biases trained copies: those of adapted modules, or all.
///
/// # Errors
/// A file that lacks one; a model without a bias.
pub(super) fn biases(to: &mut Attach<'_>, all: bool) -> Result<()> {
    let slot = to.slot;
    let mut found = false;
    let mut layers = std::mem::take(&mut to.model.layers);
    let mut each = || -> Result<()> {
        for linear in layers.iter_mut().flat_map(|l| l.linears_mut()) {
            let adapted = linear.adapters.get(slot).is_some();
            let Some(bias) = linear.bias.as_mut().filter(|b| (all || adapted) && b.tuned.get(slot).is_none()) else {
                continue;
            };
            found = true;
            // PEFT wraps what it adapts.
            let wrapped = if adapted { ".base_layer" } else { "" };
            copy(to, format!("{PREFIX}{}{wrapped}.bias", linear.name), bias)?;
        }
        Ok(())
    };
    let done = each();
    to.model.layers = layers;
    done?;
    if found || !to.is_fresh() {
        return Ok(());
    }
    let problem = "trains biases, but the modules it is for have none in this model; leave it out".into();
    Err(AdapterError::Conflict { key: "bias", problem }.into())
}
