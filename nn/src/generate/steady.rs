//! Steps of decoding that a device has been told once: which are recorded, and when.
//!
//! In a steady batch each step does the same to other numbers. The second that goes through the model with so many sequences
//! and one adapter is recorded; from the third on the host asks for all its layers by one call. Numbers of sequences are
//! rounded up, so that a batch that shrinks needs few recordings; and where the longest cache is long, one that doubles
//! needs another. Recordings end with the call of the generator: weights that
//! change between calls are never mixed with old ones.

use planish_tensor::Tensor;
use planish_tensor::replay::{Recorded, Recorder};

use crate::decoder::{Model, SequenceCache, Steady};
use crate::{Ctx, Result};

/// Recordings that are kept: those used last.
const MOST: usize = 8;

/// Recordings of a call of the generator.
pub(super) struct Recordings<'a> {
    model: &'a Model,
    recorder: Option<Recorder>,
    /// The last used first.
    known: Vec<Known>,
    wanted: bool,
}

/// A kind of steps: adapter, rows, and what is recorded of the longest cache.
type Kind = (Option<usize>, usize, usize);

/// Steps of one kind.
struct Known {
    kind: Kind,
    step: Option<(Steady, Recorded)>,
}

/// Rows of the step that takes so many sequences.
fn rows_for(sequences: usize) -> usize {
    if sequences <= 16 { sequences.next_power_of_two() } else { sequences.next_multiple_of(16) }
}

impl<'a> Recordings<'a> {
    pub(super) fn new(model: &'a Model, wanted: bool) -> Recordings<'a> {
        Recordings { model, recorder: None, known: Vec::new(), wanted: wanted && !model.device().is_cpu() }
    }

    /// Goes on with one token of each sequence, as [`Model::decode`] does and with its bits; `None` if that is for it to do.
    pub(super) fn decode(
        &mut self,
        ctx: &Ctx,
        tokens: &[&[u32]],
        caches: &mut [&mut SequenceCache],
    ) -> Result<Option<Tensor>> {
        let ids: Vec<u32> = tokens.iter().copied().flatten().copied().collect();
        if !self.wanted || tokens.iter().any(|new| new.len() != 1) || !self.model.can_be_steady(ctx) {
            return Ok(None);
        }
        // What is measured launch by launch is launched.
        if self.model.device().is_profiled()? {
            return Ok(None);
        }
        let longest = caches.iter().map(|cache| cache.recorded_for()).max().unwrap_or(0);
        let Some(mut known) = self.take((ctx.adapter(), rows_for(ids.len()), longest)) else { return Ok(None) };
        let done = self.step(&mut known, ctx, &ids, caches);
        self.known.insert(0, known);
        done
    }

    /// The kind, out of the list; `None` if it was not there before.
    fn take(&mut self, kind: Kind) -> Option<Known> {
        let found = self.known.iter().position(|known| known.kind == kind).map(|at| self.known.remove(at));
        if found.is_none() {
            self.known.insert(0, Known { kind, step: None });
            for old in self.known.split_off(self.known.len().min(MOST)) {
                self.forget(old);
            }
        }
        found
    }

    fn forget(&mut self, known: Known) {
        if let (Some((_, recorded)), Some(recorder)) = (known.step, &mut self.recorder) {
            // A device that has failed says so again when it is next asked for something.
            let _ = recorder.forget(recorded);
        }
    }

    fn step(
        &mut self,
        known: &mut Known,
        ctx: &Ctx,
        ids: &[u32],
        caches: &mut [&mut SequenceCache],
    ) -> Result<Option<Tensor>> {
        if let (Some((step, recorded)), Some(recorder)) = (&mut known.step, &mut self.recorder)
            && recorder.has(*recorded)
        {
            step.tell(self.model, ids, caches)?;
            recorder.replay(*recorded)?;
            return step.advance(caches).map(Some);
        }
        known.step = None;
        match self.record(known.kind.1, ctx, ids, caches) {
            Ok((step, recorded)) => {
                let hidden = step.advance(caches)?;
                known.step = Some((step, recorded));
                Ok(Some(hidden))
            }
            // The same once more without recording does no harm, and says what is wrong if anything else is.
            Err(_) => {
                (self.wanted, self.recorder) = (false, None);
                self.known.clear();
                Ok(None)
            }
        }
    }

    fn record(
        &mut self,
        rows: usize,
        ctx: &Ctx,
        ids: &[u32],
        caches: &mut [&mut SequenceCache],
    ) -> Result<(Steady, Recorded)> {
        let mut step = Steady::new(self.model, rows)?;
        step.tell(self.model, ids, caches)?;
        let recorder = match &mut self.recorder {
            Some(recorder) => recorder,
            none => none.insert(Recorder::new(self.model.device())?),
        };
        let recorded = recorder.record(|| step.run(self.model, ctx))?;
        Ok((step, recorded))
    }
}
