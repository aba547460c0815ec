//! What a preference loss compares with.

use std::collections::BTreeMap;
use std::path::Path;

use planish_nn::Ctx;
use planish_nn::decoder::Model;
use planish_nn::tokenizer::Tokenizer;
use planish_nn::weights::{WeightsReader, save_safetensors};
use planish_tensor::ops::elementwise;

use super::precompute::Known;
use crate::data::Batch;
use crate::losses::{Want, token_scores};
use crate::trainer::{REFERENCE_FILE, packed};
use crate::{Error, Result};

/// What a preference loss compares with.
pub enum Reference {
    /// Nothing: every completion has probability 1.
    Free,
    /// The trained model without its adapter: no second copy of anything.
    Base,
    /// A model of its own.
    Model {
        /// It.
        model: Box<Model>,
        /// Whether it follows the trained one.
        follow: Option<Follow>,
    },
    /// Numbers computed beforehand.
    Known(Known),
}

/// π_ref ← α π + (1 - α) π_ref every so many optimizer steps.
///
/// # Source
/// Gorbatovski et al., "Learn your reference model for real good alignment" (TR-DPO), arXiv 2404.09656: the soft
/// update, and the hard one with α = 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Follow {
    /// α.
    pub alpha: f64,
    /// Steps between updates.
    pub every: u64,
}

/// The reference's view of a batch.
pub(super) struct Compared {
    /// Σ weight · log p of each segment's completion, nats.
    pub(super) sums: Vec<f64>,
    /// log p of each token of the completions, where they are at hand.
    pub(super) tokens: Option<Vec<f64>>,
}

impl Reference {
    /// Log-probabilities of the completions of a batch, whose tokens weigh `weights`. Nothing is recorded.
    /// `want` is what of the batch is computed once.
    pub(super) fn compare(
        &self,
        policy: &Model,
        batch: &Batch,
        weights: &[f64],
        held: bool,
        want: Want,
    ) -> Result<Compared> {
        let (model, ctx) = match self {
            Reference::Free => return Ok(Compared { sums: vec![0.0; batch.segments()], tokens: None }),
            Reference::Known(known) => return Ok(Compared { sums: known.sums(batch, held)?, tokens: None }),
            Reference::Base => (policy, Ctx::inference().without_adapters()),
            Reference::Model { model, .. } => (&**model, Ctx::inference()),
        };
        let scores = token_scores(model, &ctx, &packed(batch), &batch.mask, want)?;
        let sum = |s: usize| scores.of(s).map(|i| weights[i] * scores.logprobs[i]).sum();
        Ok(Compared { sums: (0..scores.segments()).map(sum).collect(), tokens: Some(scores.logprobs) })
    }

    /// Lets the reference follow the model, if it is to after step `done`.
    pub(super) fn updated(&mut self, policy: &Model, done: u64) -> Result<()> {
        let Reference::Model { model, follow: Some(follow) } = self else { return Ok(()) };
        if !done.is_multiple_of(follow.every) {
            return Ok(());
        }
        for (reference, policy) in model.params().iter().zip(policy.params()) {
            reference.update(|r| -> Result<()> {
                let (dtype, wide) = (r.dtype(), policy.grad_dtype());
                let kept = elementwise::scale(&r.to_dtype(wide)?, 1.0 - follow.alpha)?;
                let new = elementwise::scale(&policy.value().to_dtype(wide)?, follow.alpha)?;
                *r = elementwise::add(&kept, &new)?.to_dtype(dtype)?;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Writes the weights of a reference that follows the model; others are found again where they came from.
    pub(super) fn save(&self, dir: &Path) -> Result<()> {
        let Reference::Model { model, follow: Some(_) } = self else { return Ok(()) };
        let weights: Vec<_> = model.params().iter().map(|p| (p.name().to_string(), p.value())).collect();
        Ok(save_safetensors(dir.join(REFERENCE_FILE), weights, &BTreeMap::new())?)
    }

    pub(super) fn load(&mut self, dir: &Path) -> Result<()> {
        let Reference::Model { model, follow: Some(_) } = self else { return Ok(()) };
        let bad = |problem: String| Error::Checkpoint { path: dir.to_path_buf(), problem };
        let path = dir.join(REFERENCE_FILE);
        if !path.is_file() {
            return Err(bad(format!("{REFERENCE_FILE} is missing: the run had no reference that follows the model")));
        }
        let reader = WeightsReader::open(path)?;
        for param in model.params() {
            let name = param.name();
            let fits = reader.contains(name).then(|| reader.get(name)).transpose()?;
            let tensor = fits.filter(|t| t.dims() == param.value().dims() && t.dtype() == param.value().dtype());
            let tensor = tensor.ok_or_else(|| bad(format!("{REFERENCE_FILE} has no `{name}` that fits")))?;
            param.update(|t| -> Result<()> {
                // Out of the mapped file, so that it can be written.
                *t = if t.device().is_cpu() { tensor.copied()? } else { tensor.to_device(t.device())? };
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Refuses a reference to which a token id means another text than to the model.
///
/// # Errors
/// [`Error::ReferenceVocabulary`].
pub fn same_vocabulary(name: &str, reference: (&Tokenizer, usize), policy: (&Tokenizer, usize)) -> Result<()> {
    let bad = |what: String| Err(Error::ReferenceVocabulary { reference: name.to_owned(), what });
    if reference.1 != policy.1 {
        return bad(format!("{} tokens against {}", reference.1, policy.1));
    }
    let most = reference.0.vocab_size().max(policy.0.vocab_size()) as u32;
    let [theirs, ours] = [reference.0, policy.0].map(|t| move |id| t.id_to_token(id));
    match (0..most).find(|&id| theirs(id) != ours(id)) {
        None => Ok(()),
        Some(id) => {
            let shown = |token: Option<String>| token.map_or("nothing".to_owned(), |t| format!("{t:?}"));
            bad(format!("token {id} is {} there and {} here", shown(theirs(id)), shown(ours(id))))
        }
    }
}
