//! What the gradients of views need.

use crate::device;
use crate::{Error, Result, Tensor, dispatch_real};

/// Adds dy into the elements `start..start + len` along `axis` of dx, len being dy's size there.
///
/// # Errors
/// Shapes that do not agree; a dtype other than f32 and f64.
pub fn narrow_backward_add(dy: &Tensor, axis: usize, start: usize, dx: &mut Tensor) -> Result<()> {
    let len = dy.dims().get(axis).copied().unwrap_or(0);
    if dx.narrow(axis, start, len)?.dims() != dy.dims() {
        let (lhs, rhs) = (dy.dims().to_vec(), dx.dims().to_vec());
        return Err(Error::ShapeMismatch { op: "narrow", what: "gradient against the narrowed shape", lhs, rhs });
    }
    if let Some(on) = device::of("narrow", [dy, &*dx])? {
        return device::add_into(&on, dy, axis, start, dx);
    }
    let inner: usize = dx.dims()[axis + 1..].iter().product();
    let size = dx.dims()[axis];
    let dy = dy.contiguous()?;
    if dy.numel() == 0 {
        return Ok(());
    }
    dispatch_real!("narrow", dy.dtype(), R => {
        let dx = dx.as_slice_mut::<R>()?.chunks_exact_mut(size * inner);
        for (dx, dy) in dx.zip(dy.as_slice::<R>()?.chunks_exact(len * inner)) {
            for (d, &g) in dx[start * inner..(start + len) * inner].iter_mut().zip(dy) {
                *d += g;
            }
        }
    });
    Ok(())
}
