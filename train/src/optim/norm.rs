//! The norm of a gradient.

use planish_autograd::Param;
use planish_tensor::{Element, Tensor, dispatch_real, parallel};

use crate::Result;

/// Norm of all accumulated gradients together, times `scale`; summed in f64, in a fixed order.
///
/// # Errors
/// Those of the kernels.
pub fn grad_norm<'a>(params: impl IntoIterator<Item = &'a Param>, scale: f64) -> Result<f64> {
    const BLOCK: usize = 1 << 14;
    let grads: Vec<Tensor> = params.into_iter().filter_map(Param::grad).collect();
    if grads.iter().any(|g| !g.device().is_cpu()) {
        return Ok(planish_tensor::optim::squares(&grads)?.sqrt() * scale);
    }
    let mut total = 0.0;
    for grad in grads {
        let squares = |t: &Tensor| -> planish_tensor::Result<f64> {
            dispatch_real!("grad_norm", t.dtype(), R => {
                let g = t.as_slice::<R>()?;
                // Blocks in parallel, added in order: the same bits on any number of threads.
                let blocks = parallel::map(g.len().div_ceil(BLOCK), |b| {
                    g[b * BLOCK..g.len().min((b + 1) * BLOCK)].iter().map(|x| x.to_f64() * x.to_f64()).sum::<f64>()
                });
                Ok(blocks.iter().sum())
            })
        };
        total += squares(&grad)?;
    }
    Ok(total.sqrt() * scale)
}
