//! Lion: p ← p (1 - lr λ); p ← p - lr sign(β₁ m + (1 - β₁) g); m ← β₂ m + (1 - β₂) g.
//!
//! # Source
//! Chen et al., arXiv:2302.06675, program 1; bitsandbytes' Lion in 32 bits.

use planish_autograd::Param;
use planish_tensor::Real;

use super::slots::{Rule, Slot, optimizer_of_slots, slots};
use super::{Rates, Update};
use crate::Result;

/// Lion, with its state.
pub struct Lion {
    betas: (f64, f64),
    weight_decay: f64,
    pub(super) slots: Vec<Slot>,
    pub(super) step: u64,
}

impl Lion {
    /// Of the trainable ones among `params`. `betas` are β₁ and β₂, λ = `weight_decay`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(params: &[Param], betas: (f64, f64), weight_decay: f64, rates: &Rates) -> Result<Lion> {
        let slots = slots(params, rates, |shape| vec![("m", shape.to_vec())])?;
        Ok(Lion { betas, weight_decay, slots, step: 0 })
    }

    fn rule(&self, slot: &Slot, update: Update) -> Step {
        let rate = update.learning_rate * slot.rate;
        Step { rate, betas: self.betas, keep: if slot.decay { 1.0 - rate * self.weight_decay } else { 1.0 } }
    }
}

struct Step {
    rate: f64,
    betas: (f64, f64),
    keep: f64,
}

impl Rule for Step {
    fn apply<R: Real>(
        &self,
        _: &[usize],
        w: &mut [R],
        g: &[R],
        buffers: &mut [&mut [R]],
    ) -> planish_tensor::Result<()> {
        run(self.rate, self.betas, self.keep, w, g, &mut *buffers[0]);
        Ok(())
    }
}

/// Updates a run of numbers; `keep` is 1 - lr λ.
pub(super) fn run<R: Real>(rate: f64, betas: (f64, f64), keep: f64, w: &mut [R], g: &[R], m: &mut [R]) {
    let r = R::from_f64;
    let (rate, keep) = (r(rate), r(keep));
    let (b1, c1) = (r(betas.0), r(1.0 - betas.0));
    let (b2, c2) = (r(betas.1), r(1.0 - betas.1));
    for ((w, &g), m) in w.iter_mut().zip(g).zip(m) {
        let direction = b1 * *m + c1 * g;
        *w *= keep;
        if direction > R::ZERO {
            *w -= rate;
        } else if direction < R::ZERO {
            *w += rate;
        }
        *m = b2 * *m + c2 * g;
    }
}

optimizer_of_slots!(Lion);
