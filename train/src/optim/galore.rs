//! GaLore: AdamW in a low-rank subspace of each matrix's gradient, so that its state is small while all weights are
//! trained.
//!
//! Of a matrix of (m, n) with m ≥ n, every `update_proj_gap` updates: P (r, n) = the first r right singular vectors of
//! the gradient G. Then R = G Pᵀ; M ← β₁ M + (1 - β₁) R; V ← β₂ V + (1 - β₂) R²; N = M / (√V + ε);
//! p ← p - lr √(1 - β₂ᵗ) / (1 - β₁ᵗ) · s N P; p ← p (1 - lr λ). With m < n, P (m, r) holds left singular vectors and
//! stands on the other side. Everything else takes the same update without P.
//!
//! # Source
//! Zhao et al., arXiv:2403.03507, algorithm 2; the authors' `galore-torch` 1.0, whose AdamW this is. A singular vector
//! is unique up to its sign, which LAPACK leaves open: here its largest number is above 0. The vectors come from the
//! eigenvectors of the smaller of GᵀG and GGᵀ, in f64.

use std::ops::Range;

use planish_autograd::Param;
use planish_nn::adapters::singular_vectors;
use planish_tensor::ops::linear::matmul;
use planish_tensor::{DType, Real, Tensor};

use super::slots::{self, Rule, Slot, slots};
use super::{AdamWSettings, Optimizer, Rates, Update};
use crate::Result;

/// Which side of a gradient is projected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProjType {
    /// The shorter one.
    #[default]
    Std,
    /// The longer one.
    ReverseStd,
    /// Rows, by right singular vectors.
    Right,
    /// Columns, by left singular vectors.
    Left,
}

/// What a projection is made with, under the names of `optim_args`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GaLoreSettings {
    /// r.
    pub rank: usize,
    /// Updates that a projection stays for.
    pub update_proj_gap: u64,
    /// s.
    pub scale: f64,
    /// The side.
    pub proj_type: ProjType,
}

impl Default for GaLoreSettings {
    /// Those of transformers.
    fn default() -> Self {
        GaLoreSettings { rank: 128, update_proj_gap: 200, scale: 0.25, proj_type: ProjType::Std }
    }
}

impl GaLoreSettings {
    /// Whether right singular vectors are taken of a matrix of this shape.
    fn right(&self, shape: &[usize]) -> bool {
        match self.proj_type {
            ProjType::Std => shape[0] >= shape[1],
            ProjType::ReverseStd => shape[0] < shape[1],
            ProjType::Right => true,
            ProjType::Left => false,
        }
    }

    /// Shapes of the moments and of P.
    pub(super) fn shapes(&self, shape: &[usize]) -> [Vec<usize>; 2] {
        let (m, n) = (shape[0], shape[1]);
        let r = self.rank.min(m).min(n);
        if self.right(shape) { [vec![m, r], vec![r, n]] } else { [vec![r, n], vec![m, r]] }
    }
}

/// Bytes that the projections made at the same time may take for it; what a larger matrix takes, it takes alone.
const WORKSPACE: usize = 256 << 20;

impl GaLoreSettings {
    /// Bytes of making the projection of a matrix of this shape, all in f64: the gradient thrice (as read, as the matrix,
    /// transposed), and beside it five squares of the shorter side while the eigenvectors are found, or one, and the
    /// vectors of both sides on their way.
    fn workspace(&self, shape: &[usize]) -> usize {
        let (m, n) = (shape[0], shape[1]);
        let (square, vectors) = (m.min(n) * m.min(n), self.rank.min(m).min(n) * (m + n));
        // And a few rows and columns.
        8 * (3 * m * n + (5 * square).max(square + 3 * vectors) + 8 * (m + n))
    }

    /// The most bytes that projections of matrices of these shapes take while they are made.
    pub(super) fn working(&self, shapes: &[Vec<usize>]) -> usize {
        let sizes: Vec<usize> = shapes.iter().map(|shape| self.workspace(shape)).collect();
        groups(&sizes).into_iter().map(|group| sizes[group].iter().sum()).max().unwrap_or(0)
    }
}

/// Matrices whose projections are made at the same time, from what each takes: the same whatever threads there are.
fn groups(sizes: &[usize]) -> Vec<Range<usize>> {
    let (mut all, mut start, mut sum) = (Vec::new(), 0, 0);
    for (i, &size) in sizes.iter().enumerate() {
        if i > start && sum + size > WORKSPACE {
            all.push(start..i);
            (start, sum) = (i, 0);
        }
        sum += size;
    }
    all.push(start..sizes.len());
    all
}

/// Name of P in the state.
const PROJECTION: &str = "projection";

/// GaLore's AdamW, with its state.
pub struct GaLore {
    adam: AdamWSettings,
    settings: GaLoreSettings,
    targets: Vec<Slot>,
    rest: Vec<Slot>,
    step: u64,
}

impl GaLore {
    /// Of the trainable ones among `params`; `is_target` says which are projected, of the matrices.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        params: &[Param],
        adam: AdamWSettings,
        settings: GaLoreSettings,
        is_target: impl Fn(&Param) -> bool,
        rates: &Rates,
    ) -> Result<GaLore> {
        let target = |p: &Param| p.value().rank() == 2 && is_target(p);
        let (targets, rest): (Vec<Param>, Vec<Param>) = params.iter().cloned().partition(target);
        let low = |shape: &[usize]| {
            let [moments, projection] = settings.shapes(shape);
            vec![("m", moments.clone()), ("v", moments), (PROJECTION, projection)]
        };
        let full = |shape: &[usize]| vec![("m", shape.to_vec()), ("v", shape.to_vec())];
        Ok(GaLore { adam, settings, targets: slots(&targets, rates, low)?, rest: slots(&rest, rates, full)?, step: 0 })
    }

    /// Makes the projections anew, from the gradients; as many at a time as [`WORKSPACE`] is for.
    fn project(&mut self) -> Result<()> {
        let settings = self.settings;
        let one = |slot: &Slot| -> Result<Option<Tensor>> {
            let Some(grad) = slot.param.grad() else { return Ok(None) };
            let shape = grad.dims().to_vec();
            let g = grad.to_dtype(DType::F64)?.to_vec::<f64>()?;
            let [_, projection] = settings.shapes(&shape);
            let r = if settings.right(&shape) { projection[0] } else { projection[1] };
            let vectors = singular_vectors(shape[0], shape[1], g, r, settings.right(&shape));
            Ok(Some(Tensor::from_vec(vectors, projection)?.to_dtype(grad.dtype())?))
        };
        use rayon::prelude::*;
        let sizes: Vec<usize> = self.targets.iter().map(|slot| settings.workspace(slot.param.value().dims())).collect();
        for group in groups(&sizes) {
            let targets = &mut self.targets[group];
            let made: Vec<Result<Option<Tensor>>> = targets.par_iter().map(one).collect();
            for (slot, made) in targets.iter_mut().zip(made) {
                if let Some(projection) = made? {
                    slot.set_buffer(PROJECTION, projection);
                }
            }
        }
        Ok(())
    }
}

struct Step {
    adam: AdamWSettings,
    rate: f64,
    decay: f64,
    step: u64,
    scale: f64,
    right: bool,
}

impl Step {
    /// Updates the moments by `g`; gives M / (√V + ε).
    fn normalised<R: Real>(&self, g: &[R], m: &mut [R], v: &mut [R]) -> Vec<R> {
        let r = R::from_f64;
        let s = &self.adam;
        let (b1, c1) = (r(s.beta1), r(1.0 - s.beta1));
        let (b2, c2, eps) = (r(s.beta2), r(1.0 - s.beta2), r(s.eps));
        let one = |((&g, m), v): ((&R, &mut R), &mut R)| {
            *m = b1 * *m + c1 * g;
            *v = b2 * *v + c2 * g * g;
            *m / (v.sqrt() + eps)
        };
        g.iter().zip(m).zip(v).map(one).collect()
    }

    fn apply_to<R: Real>(&self, w: &mut [R], direction: &[R]) {
        let t = self.step as f64;
        let (c1, c2) = (1.0 - self.adam.beta1.powf(t), 1.0 - self.adam.beta2.powf(t));
        let (along, keep) = (R::from_f64(-self.rate * c2.sqrt() / c1), R::from_f64(1.0 - self.rate * self.decay));
        w.iter_mut().zip(direction).for_each(|(w, &d)| *w = (*w + along * d) * keep);
    }
}

impl Rule for Step {
    fn apply<R: Real>(
        &self,
        shape: &[usize],
        w: &mut [R],
        g: &[R],
        buffers: &mut [&mut [R]],
    ) -> planish_tensor::Result<()> {
        match buffers {
            [m, v, projection] => {
                let r = projection.len() / if self.right { shape[1] } else { shape[0] }.max(1);
                let g = Tensor::from_slice(g, shape)?;
                let sides = if self.right { [r, shape[1]] } else { [shape[0], r] };
                let p = Tensor::from_slice(projection, sides)?;
                let back = p.transpose(0, 1)?;
                let low = if self.right { matmul(&g, &back, R::DTYPE)? } else { matmul(&back, &g, R::DTYPE)? };
                let normalised = self.normalised(low.contiguous()?.as_slice::<R>()?, m, v);
                let n = Tensor::from_vec(normalised, low.dims())?;
                let full = if self.right { matmul(&n, &p, R::DTYPE)? } else { matmul(&p, &n, R::DTYPE)? };
                let scale = R::from_f64(self.scale);
                let direction: Vec<R> = full.to_vec::<R>()?.into_iter().map(|x| x * scale).collect();
                self.apply_to(w, &direction);
            }
            [m, v] => {
                let direction = self.normalised(g, m, v);
                self.apply_to(w, &direction);
            }
            _ => {}
        }
        Ok(())
    }
}

impl Optimizer for GaLore {
    fn params(&self) -> Vec<Param> {
        self.targets.iter().chain(&self.rest).map(|s| s.param.clone()).collect()
    }

    fn step(&mut self, update: Update) -> Result<()> {
        if self.step.is_multiple_of(self.settings.update_proj_gap.max(1)) {
            self.project()?;
        }
        self.step += 1;
        let (adam, step, scale, settings) = (self.adam, self.step, self.settings.scale, self.settings);
        for slot in self.targets.iter_mut().chain(&mut self.rest) {
            let rate = update.learning_rate * slot.rate;
            let decay = if slot.decay { adam.weight_decay } else { 0.0 };
            let value = slot.param.value();
            let right = value.rank() == 2 && settings.right(value.dims());
            drop(value);
            slot.update(update.grad_scale, &Step { adam, rate, decay, step, scale, right })?;
        }
        Ok(())
    }

    fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut all = slots::state(&self.targets);
        all.extend(slots::state(&self.rest));
        Ok(all)
    }

    fn restore(&mut self, step: u64, get: &dyn Fn(&str) -> Result<Tensor>) -> Result<()> {
        self.step = step;
        slots::restore(&mut self.targets, get)?;
        slots::restore(&mut self.rest, get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projections_are_made_in_groups_that_fit() {
        let part = WORKSPACE / 4;
        assert_eq!(groups(&[part; 3]), vec![0..3]);
        assert_eq!(groups(&[part; 6]), vec![0..4, 4..6]);
        // One that is too large for all is alone.
        assert_eq!(groups(&[part, 9 * part, part, 3 * part, part]), vec![0..1, 1..2, 2..4, 4..5]);
        assert_eq!(groups(&[]), vec![0..0]);
        let settings = GaLoreSettings::default();
        let (small, large) = (vec![16, 16], vec![4096, 4096]);
        let of = |shape: &Vec<usize>| settings.workspace(shape);
        assert!(of(&large) > WORKSPACE);
        assert_eq!(settings.working(&[large.clone(), large.clone(), small.clone()]), of(&large));
        assert_eq!(settings.working(&[small.clone(), small.clone()]), 2 * of(&small));
    }
}
