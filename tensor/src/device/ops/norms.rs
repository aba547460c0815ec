//! RMSNorm and LayerNorm.

use planish_cuda::ops::layer_norm;
use planish_cuda::ops::rms_norm::{self, RmsNorm};

use super::On;
use crate::{DType, Result, Tensor};

/// (y, r); r: (rows).
pub(crate) fn rms_forward(on: &On, x: &Tensor, weight: &Tensor, eps: f64, offset: f64) -> Result<(Tensor, Tensor)> {
    let (rows, _) = x.rows("rms_norm")?;
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let mut y = on.scratch("rms_norm", x.shape(), x.dtype())?;
    let mut r = on.scratch("rms_norm", [rows], DType::F32)?;
    if y.numel() > 0 {
        let norm = RmsNorm { eps: eps as f32, offset: offset as f32 };
        let (to_y, to_r) = (y.cells_mut()?, r.cells_mut()?);
        rms_norm::forward(on.queue(), to_y, to_r, x.cells()?, weight.cells()?, None, norm)?;
    }
    Ok((y, r))
}

/// (x + added, y and r of it).
pub(crate) fn rms_forward_added(
    on: &On,
    x: &Tensor,
    added: &Tensor,
    weight: &Tensor,
    eps: f64,
    offset: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let (rows, _) = x.rows("rms_norm")?;
    let (x, added, weight) = (x.contiguous()?, added.contiguous()?, weight.contiguous()?);
    let mut sum = on.scratch("rms_norm", x.shape(), x.dtype())?;
    let mut y = on.scratch("rms_norm", x.shape(), x.dtype())?;
    let mut r = on.scratch("rms_norm", [rows], DType::F32)?;
    if y.numel() > 0 {
        let norm = RmsNorm { eps: eps as f32, offset: offset as f32 };
        let residual = Some((added.cells()?, sum.cells_mut()?));
        let (to_y, to_r) = (y.cells_mut()?, r.cells_mut()?);
        rms_norm::forward(on.queue(), to_y, to_r, x.cells()?, weight.cells()?, residual, norm)?;
    }
    Ok((sum, y, r))
}

/// dx, with what reaches x past the norm; dw added to `dweight`.
pub(crate) fn rms_backward(
    on: &On,
    [dy, x, weight, r]: [&Tensor; 4],
    past: Option<&Tensor>,
    offset: f64,
    dweight: Option<&mut Tensor>,
) -> Result<Tensor> {
    let (dy, x, weight, r) = (dy.contiguous()?, x.contiguous()?, weight.contiguous()?, r.contiguous()?);
    let past = past.map(Tensor::contiguous).transpose()?;
    let mut dx = on.scratch("rms_norm", x.shape(), x.dtype())?;
    if dx.numel() > 0 {
        // ε is in r.
        let norm = RmsNorm { eps: 0.0, offset: offset as f32 };
        let dweight = dweight.map(Tensor::cells_mut).transpose()?;
        let (to, dy, x, weight, r) = (dx.cells_mut()?, dy.cells()?, x.cells()?, weight.cells()?, r.cells()?);
        let past = past.as_ref().map(Tensor::cells).transpose()?;
        rms_norm::backward(on.queue(), to, dweight, dy, x, weight, r, past, norm)?;
    }
    Ok(dx)
}

/// (y, stats); stats: (rows, 2).
pub(crate) fn layer_forward(
    on: &On,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    let (rows, _) = x.rows("layer_norm")?;
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let bias = bias.map(|b| b.to_dtype(weight.dtype())?.contiguous()).transpose()?;
    let mut y = on.scratch("layer_norm", x.shape(), x.dtype())?;
    let mut stats = on.scratch("layer_norm", [rows, 2], DType::F32)?;
    if y.numel() > 0 {
        let (to_y, to_stats) = (y.cells_mut()?, stats.cells_mut()?);
        let bias = bias.as_ref().map(Tensor::cells).transpose()?;
        layer_norm::forward(on.queue(), to_y, to_stats, x.cells()?, weight.cells()?, bias, eps as f32)?;
    }
    Ok((y, stats))
}

/// dx.
pub(crate) fn layer_backward_input(
    on: &On,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    stats: &Tensor,
) -> Result<Tensor> {
    layer_backward(on, dy, x, weight, stats, None)
}

/// dw += Σ dy x̂.
pub(crate) fn layer_backward_weight_add(
    on: &On,
    dy: &Tensor,
    x: &Tensor,
    stats: &Tensor,
    dweight: &mut Tensor,
) -> Result<()> {
    let size = dweight.numel();
    // The kernel makes the gradients of weight and bias together.
    let mut both = on.zeros("layer_norm", [2, size], DType::F32)?;
    let any = on.zeros("layer_norm", [size], DType::F32)?;
    layer_backward(on, dy, x, &any, stats, Some(&mut both))?;
    super::elementwise::add_assign(on, dweight, &both.narrow(0, 0, 1)?.reshape([size])?)
}

fn layer_backward(
    on: &On,
    dy: &Tensor,
    x: &Tensor,
    weight: &Tensor,
    stats: &Tensor,
    gradients: Option<&mut Tensor>,
) -> Result<Tensor> {
    let (dy, x, weight, stats) = (dy.contiguous()?, x.contiguous()?, weight.contiguous()?, stats.contiguous()?);
    let mut dx = on.scratch("layer_norm", x.shape(), x.dtype())?;
    if dx.numel() > 0 {
        let gradients = gradients.map(Tensor::cells_mut).transpose()?;
        let (to, dy, x, weight, stats) = (dx.cells_mut()?, dy.cells()?, x.cells()?, weight.cells()?, stats.cells()?);
        layer_norm::backward(on.queue(), to, gradients, dy, x, weight, stats)?;
    }
    Ok(dx)
}
