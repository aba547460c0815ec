//! y = x Wᵀ + b.

use planish_tensor::ops::linear as kernel;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op =
    Op { name: "linear", backward: Backward::Rule, cuda: Cuda::Kernel("matmul"), fixture: Fixture::Torch("linear") };

/// y = x Wᵀ + b, with x: (…, in), W: (out, in) in any float dtype, b: (out), y: (…, out).
///
/// Backward: dx = dy W; dW += dyᵀ x; db += Σ dy over rows. Saves x and W.
///
/// # Errors
/// Shapes that do not agree; x of a dtype other than f32 and f64.
pub fn linear(x: &Var, weight: &Var, bias: Option<&Var>) -> Result<Var> {
    let y = kernel::forward(x.value(), weight.value(), bias.map(Var::value))?;
    let mut inputs = vec![x, weight];
    inputs.extend(bias);
    record1(&OP, &inputs, y, || {
        let (xv, wv) = (weight.is_tracked().then(|| x.saved()), weight.value().clone());
        let has_bias = bias.is_some();
        move |grads: &mut Grads<'_>| {
            let dy = grads.upstream().clone();
            if grads.wants(0) {
                grads.add(0, kernel::backward_input(&dy, &wv)?)?;
            }
            if let Some(x) = xv {
                let x = x.get()?;
                grads.add_with(1, |dw| kernel::backward_weight_add(&dy, &x, dw))?;
            }
            if has_bias {
                grads.add_with(2, |db| kernel::backward_bias_add(&dy, db))?;
            }
            Ok(())
        }
    })
}
