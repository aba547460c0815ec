//! The optimizer's step and the norm of gradients, on a device. On the processor they are the training layer's own.

use planish_cuda::memory::Slice;
use planish_cuda::ops::adamw as kernel;
pub use planish_cuda::ops::adamw::AdamW;
use planish_cuda::ops::grad_norm;

use super::context::of;
use crate::{DType, Device, Error, Result, Tensor};

/// What an update of AdamW works on; for the formula see `cuda/kernels/adamw.cu`.
#[derive(Debug)]
pub struct Parameter<'a> {
    /// The masters p and the moments m, v: f32, of the gradient's shape.
    pub state: [&'a mut Tensor; 3],
    /// The model's weight, if it is narrower: becomes p rounded.
    pub weight: Option<&'a mut Tensor>,
    /// f32.
    pub gradient: &'a Tensor,
    /// Rates.
    pub settings: AdamW,
}

/// One update of AdamW, number `step` from 1, of many parameters from `grad_scale` times their gradients: a launch for all
/// whose weights are of one type.
///
/// # Errors
/// [`Error::OnlyOnDevice`] for tensors of the processor; shapes, dtypes or devices that do not agree.
pub fn adamw(mut parameters: Vec<Parameter<'_>>, step: u64, grad_scale: f64) -> Result<()> {
    const OP: &str = "adamw";
    fn tensors<'t>(of: &'t Parameter<'_>) -> impl Iterator<Item = &'t Tensor> {
        of.state.iter().map(|t| &**t).chain(of.weight.as_deref())
    }
    for of in &parameters {
        for t in tensors(of) {
            crate::ops::check::shape(OP, "weight and moments against the gradient", t, of.gradient.dims())?;
        }
    }
    let all = parameters.iter().flat_map(|p| tensors(p).chain([p.gradient]));
    let Some(on) = of(OP, all)? else {
        return if parameters.is_empty() { Ok(()) } else { Err(Error::OnlyOnDevice { op: OP }) };
    };
    let gradients = parameters.iter().map(|p| p.gradient.contiguous()).collect::<Result<Vec<_>>>()?;
    // Of a weight in f32 products take a rounded copy: the same launch writes it.
    let taken = parameters.iter_mut().map(|p| if p.weight.is_none() { p.state[0].take_rounded() } else { None });
    let mut rounded: Vec<Option<Tensor>> = taken.collect();
    let mut updates = Vec::with_capacity(parameters.len());
    for ((of, g), rounded) in parameters.iter_mut().zip(&gradients).zip(&mut rounded) {
        let [p, m, v] = &mut of.state;
        let weight = of.weight.as_deref_mut().or(rounded.as_mut()).map(Tensor::cells_mut).transpose()?;
        let (p, m, v, g) = (p.cells_mut()?, m.cells_mut()?, v.cells_mut()?, g.cells()?);
        updates.push((kernel::Parameter { p, weight, m, v, g }, of.settings.update(step, grad_scale, None)));
    }
    kernel::step(on.queue(), &updates, None)?;
    for (of, rounded) in parameters.iter_mut().zip(rounded) {
        if let Some(rounded) = rounded {
            of.state[0].keep_rounded(rounded);
        }
    }
    Ok(())
}

/// Σ x² over all the tensors, in f64 and in a fixed order: for the norm of a gradient. One copy from the device.
///
/// # Errors
/// [`Error::OnlyOnDevice`] for tensors of the processor; tensors of different devices.
pub fn squares(of_all: &[Tensor]) -> Result<f64> {
    const OP: &str = "grad_norm";
    if of_all.is_empty() {
        return Ok(0.0);
    }
    let Some(on) = of(OP, of_all)? else { return Err(Error::OnlyOnDevice { op: OP }) };
    let mut sum = on.zeros(OP, [1], DType::F64)?;
    let dense = of_all.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
    // A launch for all of a type.
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let alike = dense.iter().filter(|t| t.dtype() == dtype && t.numel() > 0);
        let cells: Vec<Slice<'_>> = alike.map(Tensor::cells).collect::<Result<_>>()?;
        grad_norm::add_squares_of_all(on.queue(), sum.cells_mut()?, &cells)?;
    }
    sum.to_device(Device::Cpu)?.item::<f64>()
}

/// The state of a parameter in 8 bits: bytes, of the parameter's shape, and the largest magnitudes of their blocks of 256.
#[derive(Debug)]
pub struct Moment8<'a> {
    /// Indices of codes.
    pub bytes: &'a mut Tensor,
    /// f32.
    pub largest: &'a mut Tensor,
}

/// As [`adamw`], with the moments in 8 bits; `codes` are (2, 256) f32: of the first one and of the second. For the format
/// see `cuda/kernels/adamw.cu`.
///
/// # Errors
/// As [`adamw`].
pub fn adamw8(
    p: &mut Tensor,
    weight: Option<&mut Tensor>,
    [m, v]: [Moment8<'_>; 2],
    g: &Tensor,
    codes: &Tensor,
    settings: &AdamW,
    step: u64,
    grad_scale: f64,
) -> Result<()> {
    const OP: &str = "adamw8";
    for t in [&*p].into_iter().chain(weight.as_deref()) {
        crate::ops::check::shape(OP, "weight against the gradient", t, g.dims())?;
    }
    let all = [&*p, g, codes, m.bytes, m.largest, v.bytes, v.largest];
    let Some(on) = of(OP, all.into_iter().chain(weight.as_deref()))? else {
        return Err(Error::OnlyOnDevice { op: OP });
    };
    let (g, codes) = (g.contiguous()?, codes.contiguous()?);
    let parameter = kernel::Parameter8 {
        p: p.cells_mut()?,
        weight: weight.map(Tensor::cells_mut).transpose()?,
        m: [m.bytes.cells_mut()?, m.largest.cells_mut()?],
        v: [v.bytes.cells_mut()?, v.largest.cells_mut()?],
        g: g.cells()?,
        codes: codes.cells()?,
    };
    Ok(kernel::step8(on.queue(), parameter, &settings.update8(step, grad_scale))?)
}
