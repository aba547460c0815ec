//! AdamW; see `cuda/kernels/adamw.cu`.

use super::{each, or_null, or_null_mut, same, size, types};
use crate::driver::Arg;
use crate::kernels::ADAMW;
use crate::memory::{Slice, SliceMut};
use crate::{DType, Queue, Result, Shape};

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

/// Warps of a block of threads where state is in 8 bits.
const WARPS: usize = 8;

/// Numbers of a block of a state in 8 bits.
pub const BLOCK: usize = 256;

/// What an update with state in 8 bits works on, of n numbers: the masters p and the gradient g, (n) f32; the moments, (n) u8,
/// with the largest magnitudes of their blocks, (⌈n / 256⌉) f32; and the codes of both, (2, 256) f32, sorted. `weight`, if
/// the model's is narrower, becomes p rounded.
#[derive(Debug)]
pub struct Parameter8<'a> {
    /// Masters.
    pub p: SliceMut<'a>,
    /// The model's weight.
    pub weight: Option<SliceMut<'a>>,
    /// First moment, and its largest.
    pub m: [SliceMut<'a>; 2],
    /// Second moment, and its largest.
    pub v: [SliceMut<'a>; 2],
    /// Gradient.
    pub g: Slice<'a>,
    /// Codes of the moments.
    pub codes: Slice<'a>,
}

impl AdamW {
    /// The numbers of update t = `step`, from 1, of a state in 8 bits: `struct Coefficients8` of the kernel.
    pub fn update8(&self, step: u64, grad_scale: f64) -> [u8; 36] {
        let u = self.update(step, grad_scale, None);
        let beta1 = self.beta1 as f32;
        let fields = [u.grad_scale, u.keep, beta1, u.lerp, u.beta2, u.one_minus_beta2, u.root, u.eps, u.step_size];
        let mut bytes = [0; 36];
        for (to, field) in bytes.chunks_exact_mut(4).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }
}

/// One update with state in 8 bits; `update` is [`AdamW::update8`].
///
/// # Errors
/// Sizes or types that do not agree.
pub fn step8(queue: Queue<'_>, of: Parameter8<'_>, update: &[u8; 36]) -> Result<()> {
    let Parameter8 { p, weight, m, v, g, codes } = of;
    g.expect_dtype(OP, "the gradient", DType::F32)?;
    same(OP, g, &[("the masters", *p)])?;
    for [bytes, largest] in [&m, &v] {
        bytes.expect(OP, "a moment", g.len())?;
        bytes.expect_dtype(OP, "a moment", DType::U8)?;
        largest.expect(OP, "the largest of blocks", g.len().div_ceil(BLOCK))?;
        largest.expect_dtype(OP, "the largest of blocks", DType::F32)?;
    }
    codes.expect(OP, "the codes", 2 * BLOCK)?;
    codes.expect_dtype(OP, "the codes", DType::F32)?;
    if let Some(weight) = &weight {
        weight.expect_compute(OP, "the weight")?;
        weight.expect(OP, "the weight", g.len())?;
    }
    let blocks = g.len().div_ceil(BLOCK);
    if blocks == 0 {
        return Ok(());
    }
    size(OP, "the blocks", blocks)?;
    let dtype = weight.as_ref().map_or(DType::F32, |weight| weight.dtype());
    let args = [
        p.arg(),
        or_null_mut(weight.as_ref()),
        m[0].arg(),
        m[1].arg(),
        v[0].arg(),
        v[1].arg(),
        g.arg(),
        codes.arg(),
        Arg::Bytes(update),
        Arg::U64(g.len() as u64),
    ];
    // A warp a block of numbers; so many blocks of threads that each fills its table of codes for many.
    let properties = queue.device.driver().properties();
    let most = 8 * properties.multiprocessors.max(1) as usize;
    let shape = Shape::line(blocks.div_ceil(WARPS).min(most), 32 * WARPS as u32);
    queue.launch(&ADAMW, "adamw8", &types([("T", dtype)]), shape, &args)
}
