//! Schedule-free AdamW: no schedule, because what is evaluated and saved is an average of the iterates.
//!
//! Training sees y; with γ = lr · min(1, t / warm-up), v ← β₂ v + (1 - β₂) g², d = g / (√(v / (1 - β₂ᵗ)) + ε) + λ y:
//!
//! w_t = (max γ)², c = w_t / Σ w; y ← y + c (z - y); y ← y + γ (β₁ (1 - c) - 1) d; z ← z - γ d.
//!
//! What is evaluated is x = z + (y - z) / β₁.
//!
//! # Source
//! Defazio et al., arXiv:2405.15682, algorithm 1; `schedulefree` 1.4's AdamWScheduleFree. The learning rate is what the
//! trainer's schedule says: `constant` or `constant_with_warmup` are those of the paper.

use planish_autograd::Param;
use planish_tensor::{DType, Real, Tensor};

use super::slots::{self, Rule, Slot, slots};
use super::{AdamWSettings, Optimizer, Rates, Update};
use crate::Result;

/// Schedule-free AdamW, with its state.
pub struct ScheduleFree {
    settings: AdamWSettings,
    slots: Vec<Slot>,
    step: u64,
    /// max γ and Σ w.
    sums: [f64; 2],
    /// y, while the parameters hold x.
    kept: Option<Vec<Tensor>>,
}

/// Name of the sums in the state.
const SUMS: &str = "schedule_free.sums";

impl ScheduleFree {
    /// Of the trainable ones among `params`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(params: &[Param], settings: AdamWSettings, rates: &Rates) -> Result<ScheduleFree> {
        let mut slots = slots(params, rates, |shape| vec![("z", shape.to_vec()), ("v", shape.to_vec())])?;
        // z begins at the weights.
        slots.iter_mut().try_for_each(Slot::fill_first)?;
        Ok(ScheduleFree { settings, slots, step: 0, sums: [0.0; 2], kept: None })
    }
}

struct Step {
    rate: f64,
    share: f64,
    decay: f64,
    correction: f64,
    settings: AdamWSettings,
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
        let s = &self.settings;
        let (b2, c2, eps, decay) = (r(s.beta2), r(1.0 - s.beta2), r(s.eps), r(self.decay));
        let (correction, share) = (r(self.correction), r(self.share));
        let (along, rate) = (r(self.rate * (s.beta1 * (1.0 - self.share) - 1.0)), r(self.rate));
        let [z, v] = buffers else { return Ok(()) };
        for (((y, &g), z), v) in w.iter_mut().zip(g).zip(z.iter_mut()).zip(v.iter_mut()) {
            *v = b2 * *v + c2 * g * g;
            let d = g / ((*v / correction).sqrt() + eps) + decay * *y;
            *y += share * (*z - *y);
            *y += along * d;
            *z -= rate * d;
        }
        Ok(())
    }
}

/// From y to x.
struct Average {
    /// 1 / β₁.
    factor: f64,
}

impl Rule for Average {
    fn apply<R: Real>(
        &self,
        _: &[usize],
        w: &mut [R],
        _: &[R],
        buffers: &mut [&mut [R]],
    ) -> planish_tensor::Result<()> {
        let factor = R::from_f64(self.factor);
        let [z, _] = buffers else { return Ok(()) };
        w.iter_mut().zip(z.iter()).for_each(|(w, &z)| *w = z + (*w - z) * factor);
        Ok(())
    }
}

impl Optimizer for ScheduleFree {
    fn params(&self) -> Vec<Param> {
        self.slots.iter().map(|s| s.param.clone()).collect()
    }

    fn step(&mut self, update: Update) -> Result<()> {
        self.step += 1;
        let s = self.settings;
        self.sums[0] = self.sums[0].max(update.learning_rate);
        let weight = self.sums[0] * self.sums[0];
        self.sums[1] += weight;
        let share = if self.sums[1] > 0.0 { weight / self.sums[1] } else { 0.0 };
        for slot in &mut self.slots {
            let decay = if slot.decay { s.weight_decay } else { 0.0 };
            let (rate, correction) = (update.learning_rate * slot.rate, 1.0 - s.beta2.powf(self.step as f64));
            slot.update(update.grad_scale, &Step { rate, share, decay, correction, settings: s })?;
        }
        Ok(())
    }

    fn averaged(&mut self, on: bool) -> Result<()> {
        match (on, self.kept.take()) {
            (true, None) => {
                let mut kept = Vec::with_capacity(self.slots.len());
                for slot in &mut self.slots {
                    // Copies, where gradients were and are not: the parameter's own buffer changes.
                    kept.push(slot.weight().copied()?);
                    slot.change(&Average { factor: 1.0 / self.settings.beta1 })?;
                }
                self.kept = Some(kept);
            }
            (false, Some(kept)) => {
                for (slot, y) in self.slots.iter_mut().zip(kept) {
                    slot.set_weight(y)?;
                }
            }
            (_, kept) => self.kept = kept,
        }
        Ok(())
    }

    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut all: Vec<_> =
            slots::state(&self.slots).into_iter().filter(|(n, _)| !n.starts_with("master.")).collect();
        for (i, slot) in self.slots.iter().enumerate() {
            let y = self.kept.as_ref().map_or_else(|| slot.weight(), |kept| kept[i].clone());
            all.push((format!("y.{}", slot.param.name()), y));
        }
        all.push((SUMS.to_string(), Tensor::from_vec(self.sums.to_vec(), [2])?));
        Ok(all)
    }

    fn restore(&mut self, step: u64, get: &dyn Fn(&str) -> Result<Tensor>) -> Result<()> {
        // What is trained goes on from y, not from the average that the checkpoint's weights are.
        slots::restore(&mut self.slots, &|name| match name.strip_prefix("master.") {
            Some(name) => get(&format!("y.{name}")),
            None => get(name),
        })?;
        for slot in &mut self.slots {
            let y = get(&format!("y.{}", slot.param.name()))?;
            slot.set_weight(y.copied()?)?;
        }
        let sums = get(SUMS)?.to_dtype(DType::F64)?.to_vec::<f64>()?;
        if let [largest, sum] = sums[..] {
            self.sums = [largest, sum];
        }
        self.step = step;
        Ok(())
    }
}
