//! y_r = x_r W_gᵀ for the rows of run g.

use planish_tensor::Tensor;
use planish_tensor::ops::{grouped_linear as kernel, linear};

use crate::registry::{Backward, Cuda, Fixture, Op};
use crate::tape::Grads;
use crate::{Result, Var, record};

/// Registry entry.
pub static OP: Op = Op {
    name: "grouped_linear",
    backward: Backward::Rule,
    cuda: Cuda::Kernel("matmul"),
    fixture: Fixture::None("it is `linear` run by run, to the bit: its unit tests say so"),
};

/// Rows `starts[g]..starts[g + 1]` of x by matrix g, with x: (rows, in), each W: (out, in) in any float dtype, y: (rows, out).
///
/// Backward, run by run: dx = dy W; dW += dyᵀ x. Saves x and the weights.
///
/// # Errors
/// Shapes that do not agree; runs that are not those of x; x of a dtype other than f32 and f64.
pub fn grouped_linear(x: &Var, weights: &[Var], starts: &[usize]) -> Result<Var> {
    let values: Vec<Tensor> = weights.iter().map(|w| w.value().clone()).collect();
    let y = kernel::forward(x.value(), &values, starts)?;
    let inputs: Vec<&Var> = std::iter::once(x).chain(weights).collect();
    let mut outputs = record(&OP, &inputs, vec![y], || {
        let (xv, starts) = (weights.iter().any(Var::is_tracked).then(|| x.saved()), starts.to_vec());
        move |grads: &mut Grads<'_>| {
            let dy = grads.upstream().clone();
            if grads.wants(0) {
                grads.add(0, kernel::backward_input(&dy, &values, &starts)?)?;
            }
            let Some(x) = xv else { return Ok(()) };
            let x = x.get()?;
            for (g, run) in starts.windows(2).enumerate() {
                let rows = |t: &Tensor| t.narrow(0, run[0], run[1] - run[0]);
                let (dy, x) = (rows(&dy)?, rows(&x)?);
                grads.add_with(1 + g, |dw| linear::backward_weight_add(&dy, &x, dw))?;
            }
            Ok(())
        }
    })?;
    Ok(outputs.pop().expect("one output"))
}
