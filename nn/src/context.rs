//! [`Ctx`]: how a forward pass is run.

use planish_autograd::{Param, Tape, Var};
use planish_tensor::rng::Rows;

use crate::decoder::Routing;

/// How a forward pass is run: recorded or not, with dropout or not, with adapters or not.
///
/// The same module code serves training, scoring and sampling; only the context differs.
#[derive(Clone, Default)]
pub struct Ctx {
    tape: Option<Tape>,
    dropout: Option<Rows>,
    /// Which adapter takes part; none if `without_adapters`.
    slot: usize,
    without_adapters: bool,
    noise: Option<(f64, Rows)>,
    routing: Option<Routing>,
    lean: bool,
}

impl Ctx {
    /// Nothing recorded, no dropout, adapters on.
    pub fn inference() -> Ctx {
        Ctx::default()
    }

    /// Recorded on `tape`; dropout masks are drawn from `dropout`, a row for each token of the batch.
    pub fn training(tape: &Tape, dropout: Option<Rows>) -> Ctx {
        Ctx { tape: Some(tape.clone()), dropout, ..Ctx::default() }
    }

    /// The same with adapters switched off: the base model, for reference passes.
    pub fn without_adapters(mut self) -> Ctx {
        self.without_adapters = true;
        self
    }

    /// The same with the adapter of this number, as [`crate::adapters::load_adapter_as`] gave it; the first is 0.
    pub fn with_adapter(mut self, slot: usize) -> Ctx {
        (self.slot, self.without_adapters) = (slot, false);
        self
    }

    /// The same with NEFTune's noise of magnitude `alpha` on the embeddings, drawn from `rows`, one
    /// for each token of the batch.
    pub fn with_embedding_noise(mut self, alpha: f64, rows: Rows) -> Ctx {
        self.noise = Some((alpha, rows));
        self
    }

    /// Magnitude of the noise on the embeddings, and where it is drawn from.
    pub fn embedding_noise(&self) -> Option<(f64, &Rows)> {
        self.noise.as_ref().map(|(alpha, rows)| (*alpha, rows))
    }

    /// The same, with the routers of a pass over a packed batch noted in `routing`.
    pub fn with_routing(mut self, routing: &Routing) -> Ctx {
        self.routing = Some(routing.clone());
        self
    }

    /// Where routers are noted.
    pub fn routing(&self) -> Option<&Routing> {
        self.routing.as_ref()
    }

    /// The same, keeping no wide activation of an MLP for the backward pass: there its two projections to the wide side
    /// are computed again, half of a layer's products, where recomputing whole layers makes all of them.
    pub fn lean(mut self, lean: bool) -> Ctx {
        self.lean = lean;
        self
    }

    /// Whether wide activations are made again.
    pub fn is_lean(&self) -> bool {
        self.lean
    }

    /// The same, recorded on another tape or not at all: for recomputation.
    pub fn on(&self, tape: Option<&Tape>) -> Ctx {
        Ctx { tape: tape.cloned(), ..self.clone() }
    }

    /// The same for a pass over these rows of the batch alone.
    ///
    /// # Panics
    /// A row that dropout has no random numbers for.
    pub fn of_rows(&self, rows: &[u32]) -> Ctx {
        Ctx { dropout: self.dropout.as_ref().map(|all| all.select(rows)), ..self.clone() }
    }

    /// The tape, if recording.
    pub fn tape(&self) -> Option<&Tape> {
        self.tape.as_ref()
    }

    /// Number of the adapter that takes part, if one does.
    pub fn adapter(&self) -> Option<usize> {
        (!self.without_adapters).then_some(self.slot)
    }

    /// Where dropout masks are drawn from, when training.
    pub fn dropout(&self) -> Option<&Rows> {
        self.dropout.as_ref()
    }

    /// A parameter's value, tracked if recording and trainable.
    pub fn param(&self, param: &Param) -> Var {
        match &self.tape {
            Some(tape) => tape.param(param),
            None => Var::constant(param.value()),
        }
    }
}
