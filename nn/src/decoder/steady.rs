//! The steady step of decoding, in which only numbers change: what a device can record and do again.

use planish_autograd::Var;
use planish_tensor::ops::attention::Standing;
use planish_tensor::ops::embedding;
use planish_tensor::replay::Table;
use planish_tensor::{DType, Tensor};

use super::rotary::{Rotations, table};
use super::{Model, SequenceCache};
use crate::{Ctx, Result};

/// A step of up to so many sequences with one new token each. All that differs from step to step lies in tables at fixed
/// places: token ids, rotations, where the caches are and how much they hold.
///
/// Rows that no sequence has taken compute all the same, with a token and a cache of their own. No other row's bits depend
/// on them (law 5 of the design).
pub(crate) struct Steady {
    rows: usize,
    ids: Table,
    rotations: Vec<Table>,
    caches: Standing,
    hidden: Table,
}

impl Model {
    /// Whether a step of decoding in this context is launches on a device alone: nothing of it is decided on the host, or
    /// made there anew.
    pub(crate) fn can_be_steady(&self, ctx: &Ctx) -> bool {
        !self.device().is_cpu()
            && self.virtual_tokens.active(ctx).is_none()
            && self.embed_lora.active(ctx).is_none()
            && self.layers.iter().all(|layer| layer.experts().is_none())
    }
}

impl Steady {
    /// With room for `rows` sequences.
    ///
    /// # Errors
    /// No room.
    pub(crate) fn new(model: &Model, rows: usize) -> Result<Steady> {
        let (device, config) = (model.device(), &model.config);
        let rotations =
            config.ropes.iter().map(|rope| Table::new(device, [2, rows, rope.rotary_dim / 2], model.dtype()));
        Ok(Steady {
            rows,
            ids: Table::new(device, [rows], DType::U32)?,
            rotations: rotations.collect::<planish_tensor::Result<_>>()?,
            caches: Standing::new(model.cache().memory(), rows)?,
            hidden: Table::new(device, [rows, config.hidden_size], model.activations())?,
        })
    }

    /// Says which token each of the sequences goes on with, and where its keys and values are. There must be a row for each.
    ///
    /// # Errors
    /// A token id outside the vocabulary; no room for another key.
    pub(crate) fn tell(&mut self, model: &Model, ids: &[u32], caches: &mut [&mut SequenceCache]) -> Result<()> {
        model.check_ids(ids)?;
        let held: Vec<usize> = caches.iter().map(|cache| cache.rows()).collect();
        self.caches.tell(caches.iter_mut().map(|cache| cache.memory()).collect(), &held)?;
        let mut all = ids.to_vec();
        all.resize(self.rows, 0);
        self.ids.tell(&Tensor::from_vec(all, [self.rows])?)?;
        let positions: Vec<u32> = self.caches.held().iter().map(|&held| held as u32).collect();
        let cu: Vec<u32> = (0..=self.rows as u32).collect();
        for (rope, told) in model.config.ropes.iter().zip(&mut self.rotations) {
            told.tell(&table(rope, &positions, &cu, model.dtype())?)?;
        }
        Ok(())
    }

    /// Runs the tokens through the model. Doing so again changes nothing: [`Steady::advance`] does.
    ///
    /// # Errors
    /// Those of the kernels; what cannot be recorded.
    pub(crate) fn run(&mut self, model: &Model, ctx: &Ctx) -> Result<()> {
        let ctx = ctx.on(None);
        let rows = embedding::forward_at(model.embed_tokens.var(&ctx).value(), self.ids.tensor())?;
        let x = model.embedded(Var::constant(rows))?;
        let (rotations, mut pass) = (Rotations::standing(&self.rotations)?, self.caches.pass());
        let (x, added) = model.through_layers(&ctx, x, &rotations, &mut pass, &[])?;
        Ok(self.hidden.take(model.normed(&ctx, x, added, None)?.value())?)
    }

    /// The caches hold their new keys, and these are the hidden states after the final norm, (sequences, hidden): until the
    /// step is run again.
    ///
    /// # Errors
    /// More caches than rows.
    pub(crate) fn advance(&self, caches: &mut [&mut SequenceCache]) -> Result<Tensor> {
        let hidden = self.hidden.tensor().narrow(0, 0, caches.len())?;
        caches.iter_mut().for_each(|cache| cache.advance(1));
        Ok(hidden)
    }
}
