//! Updates that go number by number or block by block, so that any run of whole blocks can be updated alone: those of
//! [`super::Blockwise`].
//!
//! Where a state is kept in 8 bits it is widened, updated in f32 and rounded again, 256 numbers at a time, with the
//! operations, fused or not, of bitsandbytes 0.50 on a CPU:
//!
//! - AdamW: m ← β₁ m + (1 - β₁) g; v ← β₂ v + (1 - β₂) g²; p ← p (1 - lr λ); p ← p - lr / (1 - β₁ᵗ) m / (√v / √(1 - β₂ᵗ) + ε)
//! - Lion: p ← p (1 - lr λ); p ← p - lr sign(β₁ m + (1 - β₁) g); m ← β₂ m + (1 - β₂) g
//! - SGD: g ← g + λ p; m ← μ m + g (m = g at first); p ← p - lr m
//!
//! # Source
//! Dettmers et al., arXiv:2110.02861.

use bytemuck::{cast_slice, cast_slice_mut};
use planish_tensor::{DType, Real};

use super::codes::{BLOCK, Codes, Rounding, signed, unsigned};
use super::{AdamWSettings, adamw, lion};

/// Numbers in a tensor below which its state is kept in full, as in bitsandbytes.
const LEAST: usize = 4096;

/// One array of a parameter's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    /// What it is called in checkpoints, before the parameter's name.
    pub(super) name: &'static str,
    pub(super) dtype: DType,
    /// Numbers of the parameter that it has one of its own for: 1 or [`BLOCK`].
    pub(super) per: usize,
}

impl Field {
    pub(super) const fn full(name: &'static str, dtype: DType) -> Field {
        Field { name, dtype, per: 1 }
    }

    /// Elements of it for `n` numbers.
    pub(super) fn len(&self, n: usize) -> usize {
        n.div_ceil(self.per)
    }

    /// Bytes of it for `n` numbers.
    pub(super) fn bytes(&self, n: usize) -> usize {
        self.len(n) * self.dtype.size()
    }
}

/// An optimizer's rule, with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// AdamW.
    AdamW(AdamWSettings),
    /// Lion, with β₁, β₂ and λ.
    Lion {
        /// β₁ and β₂.
        betas: (f64, f64),
        /// λ.
        weight_decay: f64,
    },
    /// Gradient descent with momentum.
    Sgd {
        /// μ.
        momentum: f64,
        /// λ, part of the gradient.
        weight_decay: f64,
    },
}

/// What an update of one parameter is done with.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    /// Learning rate.
    pub(super) rate: f64,
    /// Factor on the gradient.
    pub(super) scale: f64,
    /// Whether weight decay applies.
    pub(super) decays: bool,
    /// Updates with this one.
    pub(super) step: u64,
    pub(super) rounding: Rounding,
}

impl Rule {
    /// The state of a parameter of `n` numbers that is trained in `wide`: in 8 bits, if that is wanted and the tensor
    /// is neither small nor an embedding, as in bitsandbytes and transformers.
    pub(super) fn fields(&self, n: usize, wide: DType, name: &str, eight_bits: bool) -> Vec<Field> {
        let names: &[[&str; 2]] = match self {
            Rule::AdamW(_) => &[["m", "m_absmax"], ["v", "v_absmax"]],
            Rule::Lion { .. } => &[["m", "m_absmax"]],
            Rule::Sgd { .. } => &[["momentum", "momentum_absmax"]],
        };
        let narrow = eight_bits && wide == DType::F32 && n >= LEAST && !name.ends_with("embed_tokens.weight");
        let of = |[name, largest]: &[&'static str; 2]| match narrow {
            true => vec![Field::full(name, DType::U8), Field { name: largest, dtype: DType::F32, per: BLOCK }],
            false => vec![Field::full(name, wide)],
        };
        names.iter().flat_map(of).collect()
    }

    /// Updates a run of numbers that begins at a whole block.
    pub(super) fn apply<R: Real>(&self, how: &How, w: &mut [R], g: &[R], state: &mut [&mut [u8]]) {
        match (self, state) {
            (Rule::AdamW(s), [m, v]) => {
                let decay = if how.decays { s.weight_decay } else { 0.0 };
                let update = super::Update { learning_rate: how.rate, grad_scale: how.scale };
                let c = adamw::Coefficients::<R>::new(s, decay, how.step, update);
                c.run(w, g, cast_slice_mut(m), cast_slice_mut(v));
            }
            (Rule::Lion { betas, weight_decay }, [m]) => {
                let keep = if how.decays { 1.0 - how.rate * weight_decay } else { 1.0 };
                lion::run(how.rate, *betas, keep, w, &scaled(g, how.scale), cast_slice_mut(m));
            }
            (Rule::Sgd { momentum, weight_decay }, [m]) => {
                let r = R::from_f64;
                let decay = if how.decays { *weight_decay } else { 0.0 };
                let (rate, momentum, decay) = (r(-how.rate), r(*momentum), r(decay));
                let m: &mut [R] = cast_slice_mut(m);
                for ((w, g), m) in w.iter_mut().zip(scaled(g, how.scale)).zip(m) {
                    let g = g + decay * *w;
                    *m = if how.step == 1 { g } else { *m * momentum + g };
                    *w += rate * *m;
                }
            }
            // In 8 bits there is f32 only: `fields` sees to it.
            (rule, state) => narrow(rule, how, cast_slice_mut(w), cast_slice(g), state),
        }
    }
}

fn scaled<R: Real>(g: &[R], scale: f64) -> Vec<R> {
    let scale = R::from_f64(scale);
    g.iter().map(|&g| g * scale).collect()
}

/// With vector instructions where there are any; the same arithmetic either way.
fn narrow(rule: &Rule, how: &How, w: &mut [f32], g: &[f32], state: &mut [&mut [u8]]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn avx2(rule: &Rule, how: &How, w: &mut [f32], g: &[f32], state: &mut [&mut [u8]]) {
            blocks(rule, how, w, g, state);
        }
        if planish_tensor::simd::level() >= planish_tensor::simd::Simd::Avx2 {
            // SAFETY: level() says that this machine has AVX2 and FMA.
            return unsafe { avx2(rule, how, w, g, state) };
        }
    }
    blocks(rule, how, w, g, state);
}

#[inline(always)]
fn blocks(rule: &Rule, how: &How, w: &mut [f32], g: &[f32], state: &mut [&mut [u8]]) {
    let scale = how.scale as f32;
    let mut gradient = [0f32; BLOCK];
    let all = w.chunks_mut(BLOCK).zip(g.chunks(BLOCK)).enumerate();
    for (i, (w, g)) in all {
        let n = w.len();
        gradient.iter_mut().zip(g).for_each(|(to, g)| *to = g * scale);
        let g = &mut gradient[..n];
        match (rule, &mut *state) {
            (Rule::AdamW(s), [m, m_largest, v, v_largest]) => {
                let (m, v) = (&mut m[i * BLOCK..][..n], &mut v[i * BLOCK..][..n]);
                let largest = (&mut cast_slice_mut(m_largest)[i], &mut cast_slice_mut(v_largest)[i]);
                adamw_block(s, how, w, g, (m, largest.0), (v, largest.1));
            }
            (Rule::Lion { betas, weight_decay }, [m, largest]) => {
                let keep = if how.decays { (1.0 - how.rate * weight_decay) as f32 } else { 1.0 };
                let largest = &mut cast_slice_mut(largest)[i];
                let m = (&mut m[i * BLOCK..][..n], largest);
                lion_block(*betas, how, keep, w, g, m);
            }
            (Rule::Sgd { momentum, weight_decay }, [m, largest]) => {
                let decay = if how.decays { *weight_decay as f32 } else { 0.0 };
                let largest = &mut cast_slice_mut(largest)[i];
                let m = (&mut m[i * BLOCK..][..n], largest);
                sgd_block(*momentum, how, decay, w, g, m);
            }
            _ => debug_assert!(false, "fields of another rule"),
        }
    }
}

/// The bytes of a block and the largest magnitude in it.
type Kept<'a> = (&'a mut [u8], &'a mut f32);

#[inline(always)]
fn wide(codes: &Codes, kept: &Kept<'_>) -> [f32; BLOCK] {
    let mut x = [0f32; BLOCK];
    codes.read(kept.0, *kept.1, &mut x);
    x
}

#[inline(always)]
fn adamw_block(s: &AdamWSettings, how: &How, w: &mut [f32], g: &[f32], m8: Kept<'_>, v8: Kept<'_>) {
    let (mut m, mut v) = (wide(signed(), &m8), wide(unsigned(), &v8));
    let t = how.step as f64;
    let (b1, c1) = (s.beta1 as f32, (1.0 - s.beta1) as f32);
    let (b2, c2) = (s.beta2 as f32, (1.0 - s.beta2) as f32);
    let root = (1.0 - s.beta2.powf(t)).sqrt() as f32;
    let along = (-how.rate / (1.0 - s.beta1.powf(t))) as f32;
    let keep = if how.decays { (1.0 - how.rate * s.weight_decay) as f32 } else { 1.0 };
    let eps = s.eps as f32;
    let n = w.len();
    for (((w, &g), m), v) in w.iter_mut().zip(g).zip(&mut m).zip(&mut v) {
        *m = g.mul_add(c1, *m * b1);
        *v = (c2 * g).mul_add(g, *v * b2);
        let denominator = v.sqrt() / root + eps;
        *w = *w * keep + along * *m / denominator;
    }
    *m8.1 = signed().write(&m[..n], how.rounding, m8.0);
    *v8.1 = unsigned().write(&v[..n], how.rounding, v8.0);
}

#[inline(always)]
fn lion_block(betas: (f64, f64), how: &How, keep: f32, w: &mut [f32], g: &[f32], m8: Kept<'_>) {
    let mut m = wide(signed(), &m8);
    let (b1, c1) = (betas.0 as f32, (1.0 - betas.0) as f32);
    let (b2, c2) = (betas.1 as f32, (1.0 - betas.1) as f32);
    let rate = how.rate as f32;
    let n = w.len();
    for ((w, &g), m) in w.iter_mut().zip(g).zip(&mut m) {
        let direction = *m * b1 + g * c1;
        let sign = if direction > 0.0 {
            1.0
        } else if direction < 0.0 {
            -1.0
        } else {
            0.0
        };
        *w = *w * keep - rate * sign;
        *m = g.mul_add(c2, *m * b2);
    }
    *m8.1 = signed().write(&m[..n], how.rounding, m8.0);
}

#[inline(always)]
fn sgd_block(momentum: f64, how: &How, decay: f32, w: &mut [f32], g: &[f32], m8: Kept<'_>) {
    let mut m = wide(signed(), &m8);
    let (momentum, rate) = (momentum as f32, -how.rate as f32);
    let n = w.len();
    for ((w, &g), m) in w.iter_mut().zip(g).zip(&mut m) {
        let g = w.mul_add(decay, g);
        *m = if how.step == 1 { g } else { *m * momentum + g };
        *w = m.mul_add(rate, *w);
    }
    *m8.1 = signed().write(&m[..n], how.rounding, m8.0);
}
