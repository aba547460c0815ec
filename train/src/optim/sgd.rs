//! SGD: g ← g + λ p; b ← μ b + g (b = g at first); p ← p - lr b.
//!
//! # Source
//! torch.optim.SGD; decay is coupled, part of the gradient.

use planish_autograd::Param;
use planish_tensor::Real;

use super::slots::{Rule, Slot, optimizer_of_slots, slots};
use super::{Rates, Update};
use crate::Result;

/// SGD, with its state.
pub struct Sgd {
    momentum: f64,
    weight_decay: f64,
    pub(super) slots: Vec<Slot>,
    pub(super) step: u64,
}

impl Sgd {
    /// Of the trainable ones among `params`. μ = `momentum`, λ = `weight_decay`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(params: &[Param], momentum: f64, weight_decay: f64, rates: &Rates) -> Result<Sgd> {
        let buffers = |shape: &[usize]| if momentum > 0.0 { vec![("momentum", shape.to_vec())] } else { vec![] };
        Ok(Sgd { momentum, weight_decay, slots: slots(params, rates, buffers)?, step: 0 })
    }

    fn rule(&self, slot: &Slot, update: Update) -> Step {
        Step {
            rate: update.learning_rate * slot.rate,
            momentum: self.momentum,
            decay: if slot.decay { self.weight_decay } else { 0.0 },
            first: self.step == 1,
        }
    }
}

struct Step {
    rate: f64,
    momentum: f64,
    decay: f64,
    first: bool,
}

impl Rule for Step {
    fn apply<R: Real>(
        &self,
        _: &[usize],
        w: &mut [R],
        g: &[R],
        buffers: &mut [&mut [R]],
    ) -> planish_tensor::Result<()> {
        let r = R::from_f64;
        let (rate, momentum, decay) = (r(-self.rate), r(self.momentum), r(self.decay));
        match buffers {
            [b] => {
                for ((w, &g), b) in w.iter_mut().zip(g).zip(b.iter_mut()) {
                    let g = g + decay * *w;
                    *b = if self.first { g } else { *b * momentum + g };
                    *w += rate * *b;
                }
            }
            _ => w.iter_mut().zip(g).for_each(|(w, &g)| *w += rate * (g + decay * *w)),
        }
        Ok(())
    }
}

optimizer_of_slots!(Sgd);
