//! Gated linear units. Each saves its gate and its input, or how they are made again.

use planish_tensor::ops::glu::{Act, backward, forward};

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry of SwiGLU.
pub static SWIGLU: Op =
    Op { name: "swiglu", backward: Backward::Rule, cuda: Cuda::Kernel("glu"), fixture: Fixture::Torch("swiglu") };
/// Registry entry of GeGLU, in both its forms.
pub static GEGLU: Op =
    Op { name: "geglu", backward: Backward::Rule, cuda: Cuda::Kernel("glu"), fixture: Fixture::Torch("geglu") };

/// y = silu(gate) · up. Saves gate and up, over which backward writes their gradients where nothing else holds them.
///
/// # Errors
/// Shapes or dtypes that differ.
pub fn swiglu(gate: &Var, up: &Var) -> Result<Var> {
    gated(&SWIGLU, Act::Silu, gate, up)
}

/// y = gelu(gate) · up, with the error function. Saves gate and up.
///
/// # Errors
/// Shapes or dtypes that differ.
pub fn geglu(gate: &Var, up: &Var) -> Result<Var> {
    gated(&GEGLU, Act::Gelu, gate, up)
}

/// y = gelu(gate) · up, with the tanh approximation. Saves gate and up.
///
/// # Errors
/// Shapes or dtypes that differ.
pub fn geglu_tanh(gate: &Var, up: &Var) -> Result<Var> {
    gated(&GEGLU, Act::GeluTanh, gate, up)
}

fn gated(op: &'static Op, act: Act, gate: &Var, up: &Var) -> Result<Var> {
    let y = forward(act, gate.value(), up.value())?;
    let y = record1(op, &[gate, up], y, || {
        let (gate, up) = (gate.saved(), up.saved());
        move |grads: &mut Grads<'_>| {
            let (dgate, dup) = backward(act, grads.upstream(), gate.take()?, up.take()?)?;
            grads.add(0, dgate)?;
            grads.add(1, dup)
        }
    })?;
    Ok(y.remade(|| {
        let (gate, up) = (gate.saved(), up.saved());
        move || Ok(forward(act, &gate.get()?, &up.get()?)?)
    }))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use planish_tensor::Tensor;

    use super::*;
    use crate::Tape;

    static SPY: Op = Op {
        name: "spy",
        backward: Backward::Rule,
        cuda: Cuda::CpuOnly("a test"),
        fixture: Fixture::None("only in this test"),
    };

    fn address(t: &Tensor) -> usize {
        t.as_slice::<f64>().unwrap().as_ptr() as usize
    }

    /// Passes `value` on and says where its gradient lay.
    fn spy(x: &Var, value: Tensor, seen: &Rc<Cell<usize>>) -> Var {
        let seen = seen.clone();
        let rule = || {
            move |grads: &mut Grads<'_>| {
                seen.set(address(grads.upstream()));
                grads.add(0, grads.upstream().clone())
            }
        };
        record1(&SPY, &[x], value, rule).unwrap()
    }

    /// Backward copies neither gate nor up: kept, made again, or made again by another rule before.
    #[test]
    fn gradients_lie_where_gate_and_up_were() {
        for (remade, made_before) in [(false, false), (true, false), (true, true)] {
            let (tape, seen) = (Tape::new(), [Rc::new(Cell::new(0)), Rc::new(Cell::new(0))]);
            let made = [Rc::new(Cell::new(0)), Rc::new(Cell::new(0))];
            let x = tape.leaf(Tensor::full(0.5f64, [3, 4]).unwrap());
            let inputs = [0, 1].map(|i| {
                let value = Tensor::full(i as f64 + 0.25, [3, 4]).unwrap();
                made[i].set(address(&value));
                let var = spy(&x, value, &seen[i]);
                if !remade {
                    return var;
                }
                let made = made[i].clone();
                var.remade(|| {
                    move || {
                        let again = Tensor::full(i as f64 + 0.25, [3, 4])?;
                        made.set(address(&again));
                        Ok(again)
                    }
                })
            });
            let y = swiglu(&inputs[0], &inputs[1]).unwrap();
            drop(inputs);
            // As the rule of a product whose input y is: it wants y, which wants gate and up.
            let saved = y.saved();
            let last = record1(&SPY, &[&y], y.value().clone(), || {
                move |grads: &mut Grads<'_>| {
                    if made_before {
                        saved.get()?;
                    }
                    grads.add(0, grads.upstream().clone())
                }
            });
            let (last, ones) = (last.unwrap(), Tensor::full(1.0f64, [3, 4]).unwrap());
            drop(y);
            tape.backward_from(vec![(last, ones)]).unwrap();
            for i in 0..2 {
                assert_eq!(seen[i].get(), made[i].get(), "{remade} {made_before} {i}");
            }
        }
    }
}
