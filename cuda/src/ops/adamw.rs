//! AdamW; see `cuda/kernels/adamw.cu`.

use super::{each, or_null, or_null_mut, same, types};
use crate::driver::Arg;
use crate::kernels::ADAMW;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Queue, Result};

const OP: &str = "adamw";

/// An update's numbers, rounded to f32 once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Factor on the gradient: 1 / count.
    pub grad_scale: f32,
    /// Norm to which the scaled gradient is clipped; 0 for none.
    pub max_norm: f32,
    /// 1 - lr λ.
    keep: f32,
    /// 1 - β₁.
    lerp: f32,
    beta2: f32,
    one_minus_beta2: f32,
    /// √(1 - β₂ᵗ).
    root: f32,
    eps: f32,
    /// -lr / (1 - β₁ᵗ).
    step_size: f32,
}

/// AdamW's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub learning_rate: f64,
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub eps: f64,
    /// λ; 0 for norms and biases.
    pub weight_decay: f64,
}

impl AdamW {
    /// The numbers of update t = `step`, from 1.
    pub fn update(&self, step: u64, grad_scale: f64, max_norm: Option<f64>) -> Update {
        let t = step as f64;
        let (c1, c2) = (1.0 - self.beta1.powf(t), 1.0 - self.beta2.powf(t));
        Update {
            grad_scale: grad_scale as f32,
            max_norm: max_norm.unwrap_or(0.0) as f32,
            keep: (1.0 - self.learning_rate * self.weight_decay) as f32,
            lerp: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            one_minus_beta2: (1.0 - self.beta2) as f32,
            root: c2.sqrt() as f32,
            eps: self.eps as f32,
            step_size: (-(self.learning_rate / c1)) as f32,
        }
    }
}

impl Update {
    /// As `struct Coefficients` of the kernel.
    pub fn bytes(&self) -> [u8; 36] {
        let u = self;
        let fields = [u.grad_scale, u.keep, u.lerp, u.beta2, u.one_minus_beta2, u.root, u.eps, u.step_size, u.max_norm];
        let mut bytes = [0; 36];
        for (to, field) in bytes.chunks_exact_mut(4).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

/// What an update works on: the masters p and the moments m, v and the gradient g, all (n) f32; `weight`, if the model's
/// is narrower, becomes p rounded. `squares` is |g|² of all gradients (one f64), for updates that clip.
#[derive(Debug)]
pub struct Parameter<'a> {
    /// Masters.
    pub p: SliceMut<'a>,
    /// The model's weight.
    pub weight: Option<SliceMut<'a>>,
    /// First moment.
    pub m: SliceMut<'a>,
    /// Second moment.
    pub v: SliceMut<'a>,
    /// Gradient.
    pub g: Slice<'a>,
    /// The squared norm.
    pub squares: Option<Slice<'a>>,
}

/// One update of the masters p and the moments m, v from g, all (n) f32; `weight`, if the model's is narrower, becomes
/// p rounded. `squares` is |g|² of all gradients (one f64), asked for only if the update clips.
///
/// # Errors
/// Sizes or types that do not agree; clipping without `squares`.
pub fn step(
    queue: Queue<'_>,
    p: SliceMut<'_>,
    weight: Option<SliceMut<'_>>,
    m: SliceMut<'_>,
    v: SliceMut<'_>,
    g: Slice<'_>,
    squares: Option<Slice<'_>>,
    update: &Update,
) -> Result<()> {
    if squares.is_none() && update.max_norm != 0.0 {
        return Err(crate::Error::Length { op: OP, what: "the squared norm", expected: 1, got: 0 });
    }
    launch(queue, "adamw", &Parameter { p, weight, m, v, g, squares }, Arg::Bytes(&update.bytes()))
}

/// As [`step`], with the update's numbers on the device: [`Update::bytes`], uploaded before. For a step that is recorded
/// and replayed, whose launches cannot say them.
///
/// # Errors
/// Sizes or types that do not agree; no squared norm, which the update might ask for.
pub fn step_recorded(queue: Queue<'_>, of: Parameter<'_>, update: Slice<'_>) -> Result<()> {
    update.expect_dtype(OP, "the update's numbers", DType::F32)?;
    update.expect(OP, "the update's numbers", size_of::<Update>() / 4)?;
    if of.squares.is_none() {
        return Err(crate::Error::Length { op: OP, what: "the squared norm", expected: 1, got: 0 });
    }
    launch(queue, "adamw_recorded", &of, update.arg())
}

fn launch(queue: Queue<'_>, name: &'static str, of: &Parameter<'_>, update: Arg<'_>) -> Result<()> {
    let Parameter { p, weight, m, v, g, squares } = of;
    g.expect_dtype(OP, "the gradient", DType::F32)?;
    same(OP, *g, &[("the masters", **p), ("m", **m), ("v", **v)])?;
    if let Some(weight) = weight {
        weight.expect_compute(OP, "the weight")?;
        weight.expect(OP, "the weight", g.len())?;
    }
    if let Some(squares) = squares {
        squares.expect(OP, "the squared norm", 1)?;
        squares.expect_dtype(OP, "the squared norm", DType::F64)?;
    }
    let dtype = weight.as_ref().map_or(DType::F32, |weight| weight.dtype());
    let args = [
        p.arg(),
        or_null_mut(weight.as_ref()),
        m.arg(),
        v.arg(),
        g.arg(),
        or_null(*squares),
        update,
        Arg::U64(g.len() as u64),
    ];
    queue.launch(&ADAMW, name, &types([("T", dtype)]), each(g.len().div_ceil(4)), &args)
}
