//! AdamW; see `cuda/kernels/adamw.cu`.

use std::collections::BTreeMap;

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
/// is narrower, becomes p rounded.
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
}

impl Parameter<'_> {
    /// Checks sizes and types, and gives the type of the weight.
    fn check(&self) -> Result<DType> {
        let Parameter { p, weight, m, v, g } = self;
        g.expect_dtype(OP, "the gradient", DType::F32)?;
        same(OP, *g, &[("the masters", **p), ("m", **m), ("v", **v)])?;
        let Some(weight) = weight else { return Ok(DType::F32) };
        weight.expect_compute(OP, "the weight")?;
        weight.expect(OP, "the weight", g.len())?;
        Ok(weight.dtype())
    }

    /// Where its five arrays are, in the kernel's order; 0 for a weight that there is not.
    fn addresses(&self) -> [u64; 5] {
        let weight = self.weight.as_ref().map_or(0, |weight| weight.address());
        [self.p.address(), weight, self.m.address(), self.v.address(), self.g.address()]
    }
}

fn check_norm(squares: Option<Slice<'_>>, asked_for: bool) -> Result<()> {
    let Some(squares) = squares else {
        let none = crate::Error::Length { op: OP, what: "the squared norm", expected: 1, got: 0 };
        return if asked_for { Err(none) } else { Ok(()) };
    };
    squares.expect(OP, "the squared norm", 1)?;
    squares.expect_dtype(OP, "the squared norm", DType::F64)
}

/// Elements that a block of threads takes.
const STRETCH: usize = 4096;

/// As `struct Row` of the kernel, in words of 8 bytes: five addresses, the number of elements, the stretches before, and
/// [`Update::bytes`] with 4 bytes behind them.
type Row = [u64; 12];

/// An update of each of many parameters, by a launch and an upload for all whose weights are of one type. `squares` is |g|²
/// of all gradients (one f64), asked for only if an update clips.
///
/// # Errors
/// Sizes or types that do not agree; clipping without `squares`; no room for the table of parameters.
pub fn step(queue: Queue<'_>, of: &[(Parameter<'_>, Update)], squares: Option<Slice<'_>>) -> Result<()> {
    check_norm(squares, of.iter().any(|(_, update)| update.max_norm != 0.0))?;
    let mut tables: BTreeMap<&str, (DType, Vec<Row>, usize)> = BTreeMap::new();
    for (parameter, update) in of {
        let (dtype, n) = (parameter.check()?, parameter.g.len());
        if n == 0 {
            continue;
        }
        let (_, rows, stretches) = tables.entry(dtype.name()).or_insert((dtype, Vec::new(), 0));
        let mut row = [0; 12];
        row[..5].copy_from_slice(&parameter.addresses());
        row[5..7].copy_from_slice(&[n as u64, *stretches as u64]);
        let coefficients = update.bytes();
        for (to, from) in row[7..].iter_mut().zip(coefficients.chunks(8)) {
            let mut word = [0; 8];
            word[..from.len()].copy_from_slice(from);
            *to = u64::from_le_bytes(word);
        }
        rows.push(row);
        *stretches += n.div_ceil(STRETCH);
    }
    for (dtype, rows, stretches) in tables.into_values() {
        let parameters = Arg::U32(size(OP, "parameters", rows.len())?);
        let table = queue.upload("a table of parameters", rows.as_flattened())?;
        let args = [Arg::Ptr(table.ptr()), or_null(squares), parameters];
        let shape = Shape::line(stretches, 256);
        queue.launch(&ADAMW, "adamw_of_all", &types([("T", dtype)]), shape, &args)?;
    }
    Ok(())
}

/// As [`step`] of one parameter, with the update's numbers on the device: [`Update::bytes`], uploaded before. For a step that
/// is recorded and replayed, whose launches cannot say them.
///
/// # Errors
/// Sizes or types that do not agree.
pub fn step_recorded(queue: Queue<'_>, of: Parameter<'_>, squares: Slice<'_>, update: Slice<'_>) -> Result<()> {
    update.expect_dtype(OP, "the update's numbers", DType::F32)?;
    update.expect(OP, "the update's numbers", size_of::<Update>() / 4)?;
    check_norm(Some(squares), true)?;
    let dtype = of.check()?;
    let Parameter { p, weight, m, v, g } = &of;
    let args = [
        p.arg(),
        or_null_mut(weight.as_ref()),
        m.arg(),
        v.arg(),
        g.arg(),
        squares.arg(),
        update.arg(),
        Arg::U64(g.len() as u64),
    ];
    queue.launch(&ADAMW, "adamw_recorded", &types([("T", dtype)]), each(g.len().div_ceil(4)), &args)
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
