//! Adafactor: the second moment of a matrix as the product of a column and a row, so that its state is small.
//!
//! With β_t = 1 - t^-0.8 and u = g² + 10⁻³⁰: rows r ← β_t r + (1 - β_t) mean_j u, columns c ← β_t c + (1 - β_t) mean_i u,
//! d = g / √(r_i / mean r) / √c_j; of vectors v ← β_t v + (1 - β_t) u, d = g / √v. Then d ← d / max(1, RMS(d)),
//! p ← p (1 - lr λ) - lr d.
//!
//! # Source
//! Shazeer and Stern, arXiv:1804.04235, algorithms 4 and 5; transformers' Adafactor as its trainer uses it: a given
//! learning rate, no scaling by the parameter's size, no first moment.

use planish_autograd::Param;
use planish_tensor::Real;

use super::slots::{Rule, Slot, optimizer_of_slots, slots};
use super::{Rates, Update};
use crate::Result;

/// Adafactor, with its state.
pub struct Adafactor {
    weight_decay: f64,
    pub(super) slots: Vec<Slot>,
    pub(super) step: u64,
}

impl Adafactor {
    /// Of the trainable ones among `params`. λ = `weight_decay`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(params: &[Param], weight_decay: f64, rates: &Rates) -> Result<Adafactor> {
        let buffers = |shape: &[usize]| match *shape {
            [rows, cols] => vec![("row", vec![rows]), ("column", vec![cols])],
            _ => vec![("v", shape.to_vec())],
        };
        Ok(Adafactor { weight_decay, slots: slots(params, rates, buffers)?, step: 0 })
    }

    fn rule(&self, slot: &Slot, update: Update) -> Step {
        let rate = update.learning_rate * slot.rate;
        let decay = if slot.decay { self.weight_decay } else { 0.0 };
        Step { rate, beta: 1.0 - (self.step as f64).powf(-0.8), keep: 1.0 - rate * decay }
    }
}

struct Step {
    rate: f64,
    beta: f64,
    keep: f64,
}

/// Added to squares.
const EPS: f64 = 1e-30;

impl Rule for Step {
    fn apply<R: Real>(
        &self,
        shape: &[usize],
        w: &mut [R],
        g: &[R],
        buffers: &mut [&mut [R]],
    ) -> planish_tensor::Result<()> {
        let r = R::from_f64;
        let (beta, fresh, eps) = (r(self.beta), r(1.0 - self.beta), r(EPS));
        let mut d = g.to_vec();
        match buffers {
            [rows, columns] => {
                let cols = shape[1];
                let mut sums = vec![R::ZERO; cols];
                for (row, g) in rows.iter_mut().zip(g.chunks_exact(cols.max(1))) {
                    let mut sum = R::ZERO;
                    for (&g, s) in g.iter().zip(&mut sums) {
                        let square = g * g + eps;
                        sum += square;
                        *s += square;
                    }
                    *row = beta * *row + fresh * (sum / r(cols as f64));
                }
                for (column, sum) in columns.iter_mut().zip(sums) {
                    *column = beta * *column + fresh * (sum / r(shape[0] as f64));
                }
                let mean = rows.iter().fold(R::ZERO, |s, &x| s + x) / r(shape[0] as f64);
                let of_columns: Vec<R> = columns.iter().map(|&c| R::ONE / c.sqrt()).collect();
                for (&row, d) in rows.iter().zip(d.chunks_exact_mut(cols.max(1))) {
                    let of_row = R::ONE / (row / mean).sqrt();
                    d.iter_mut().zip(&of_columns).for_each(|(d, &c)| *d = of_row * c * *d);
                }
            }
            [v] => {
                for (d, v) in d.iter_mut().zip(v.iter_mut()) {
                    *v = beta * *v + fresh * (*d * *d + eps);
                    *d = *d / v.sqrt();
                }
            }
            _ => {}
        }
        let squares: f64 = d.iter().map(|x| x.to_f64() * x.to_f64()).sum();
        let size = (squares / d.len().max(1) as f64).sqrt().max(1.0);
        let (factor, keep) = (r(self.rate / size), r(self.keep));
        w.iter_mut().zip(&d).for_each(|(w, &d)| *w = *w * keep - factor * d);
        Ok(())
    }
}

optimizer_of_slots!(Adafactor);
