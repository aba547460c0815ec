//! Functions of elements: activations, gated units, elementary functions.

use planish_cuda::ops::{activation, glu, unary};

use super::On;
use crate::ops::glu::Act;
use crate::ops::unary::Unary;
use crate::{Result, Tensor};

fn act(of: Act) -> glu::Act {
    match of {
        Act::Silu => glu::Act::Silu,
        Act::Gelu => glu::Act::Gelu,
        Act::GeluTanh => glu::Act::GeluTanh,
        Act::Relu => glu::Act::Relu,
    }
}

fn function(of: Unary) -> unary::Unary {
    match of {
        Unary::Exp => unary::Unary::Exp,
        Unary::Ln => unary::Unary::Ln,
        Unary::Sqrt => unary::Unary::Sqrt,
        Unary::Tanh => unary::Unary::Tanh,
        Unary::Sigmoid => unary::Unary::Sigmoid,
        Unary::Softcap(c) => unary::Unary::Softcap(c as f32),
    }
}

/// y = act(x).
pub(crate) fn activation_forward(on: &On, of: Act, x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let mut y = on.scratch("activation", x.shape(), x.dtype())?;
    activation::forward(on.queue(), act(of), y.cells_mut()?, x.cells()?)?;
    Ok(y)
}

/// dx = dy act'(x).
pub(crate) fn activation_backward(on: &On, of: Act, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (dy, x) = (dy.contiguous()?, x.contiguous()?);
    let mut dx = on.scratch("activation", x.shape(), x.dtype())?;
    activation::backward(on.queue(), act(of), dx.cells_mut()?, dy.cells()?, x.cells()?)?;
    Ok(dx)
}

/// y = act(gate) up.
pub(crate) fn glu_forward(on: &On, of: Act, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (gate, up) = (gate.contiguous()?, up.contiguous()?);
    let mut y = on.scratch("glu", gate.shape(), gate.dtype())?;
    glu::forward(on.queue(), act(of), y.cells_mut()?, gate.cells()?, up.cells()?)?;
    Ok(y)
}

/// (dgate, dup).
pub(crate) fn glu_backward(on: &On, of: Act, dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(Tensor, Tensor)> {
    let (dy, gate, up) = (dy.contiguous()?, gate.contiguous()?, up.contiguous()?);
    let mut dgate = on.scratch("glu", gate.shape(), gate.dtype())?;
    let mut dup = on.scratch("glu", gate.shape(), gate.dtype())?;
    let (to_gate, to_up) = (dgate.cells_mut()?, dup.cells_mut()?);
    glu::backward(on.queue(), act(of), to_gate, to_up, dy.cells()?, gate.cells()?, up.cells()?)?;
    Ok((dgate, dup))
}

/// y = f(x).
pub(crate) fn unary_forward(on: &On, f: Unary, x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let mut y = on.scratch(f.name(), x.shape(), x.dtype())?;
    unary::forward(on.queue(), function(f), y.cells_mut()?, x.cells()?)?;
    Ok(y)
}

/// dx = dy f'(x).
pub(crate) fn unary_backward(on: &On, f: Unary, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (dy, x) = (dy.contiguous()?, x.contiguous()?);
    let mut dx = on.scratch(f.name(), x.shape(), x.dtype())?;
    unary::backward(on.queue(), function(f), dx.cells_mut()?, dy.cells()?, x.cells()?)?;
    Ok(dx)
}
