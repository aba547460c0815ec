//! LayerNorm.

use planish_tensor::ops::layer_norm as kernel;
use planish_tensor::ops::linear::backward_bias_add;

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record1};

/// Registry entry.
pub static OP: Op = Op {
    name: "layer_norm",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("layer_norm"),
    fixture: Fixture::Torch("layer_norm"),
};

/// y = (x - mean x) / sqrt(var x + ε) · w + b over the last dimension; see [`kernel`].
///
/// Saves x, w and two numbers a row.
///
/// # Errors
/// Shapes that do not agree; ε that is negative or not finite; x of a dtype other than f32 and f64.
pub fn layer_norm(x: &Var, weight: &Var, bias: Option<&Var>, eps: f64) -> Result<Var> {
    let (y, stats) = kernel::forward(x.value(), weight.value(), bias.map(Var::value), eps)?;
    let mut inputs = vec![x, weight];
    inputs.extend(bias);
    record1(&OP, &inputs, y, || {
        let (x, w, has_bias) = (x.value().clone(), weight.value().clone(), bias.is_some());
        move |grads: &mut Grads<'_>| {
            let dy = grads.take_upstream();
            grads.add_with(1, |dw| kernel::backward_weight_add(&dy, &x, &stats, dw))?;
            if has_bias {
                grads.add_with(2, |db| backward_bias_add(&dy, db))?;
            }
            if grads.wants(0) {
                grads.add(0, kernel::backward_input(&dy, &x, &w, &stats)?)?;
            }
            Ok(())
        }
    })
}
