//! [`Param`]: a weight that outlives tapes.

use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockWriteGuard};

use planish_tensor::{DType, Tensor};

use crate::Result;

/// A named weight with its gradient, shared by everything that uses it.
///
/// The trainer and the sampler hold the same `Param`, so they read the same buffer. Its gradient is
/// accumulated in place (`+=`) by every backward pass until [`Param::take_grad`] or
/// [`Param::clear_grad`]; it is kept in the compute dtype (f64 for f64 weights, else f32).
#[derive(Clone)]
pub struct Param(Arc<Inner>);

struct Inner {
    name: String,
    trainable: bool,
    value: RwLock<Tensor>,
    grad: Mutex<Option<Tensor>>,
}

impl Param {
    /// A weight that gradients are wanted for.
    pub fn trainable(name: impl Into<String>, value: Tensor) -> Param {
        Param::new(name.into(), value, true)
    }

    /// A weight that stays as it is.
    pub fn frozen(name: impl Into<String>, value: Tensor) -> Param {
        Param::new(name.into(), value, false)
    }

    fn new(name: String, value: Tensor, trainable: bool) -> Param {
        Param(Arc::new(Inner { name, trainable, value: RwLock::new(value), grad: Mutex::new(None) }))
    }

    /// Its name, as in the weights file.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether gradients are wanted.
    pub fn is_trainable(&self) -> bool {
        self.0.trainable
    }

    /// The value: a handle to the shared buffer, not a copy.
    pub fn value(&self) -> Tensor {
        self.0.value.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Changes the value in place. A handle from [`Param::value`] that is still alive keeps the old
    /// numbers (and makes this copy the buffer).
    ///
    /// # Errors
    /// Those of `f`.
    pub fn update<E>(&self, f: impl FnOnce(&mut Tensor) -> std::result::Result<(), E>) -> std::result::Result<(), E> {
        f(&mut self.write())
    }

    /// The value, to be changed as by [`Param::update`]: for changes of several at once. Nobody reads it meanwhile.
    pub fn write(&self) -> RwLockWriteGuard<'_, Tensor> {
        self.0.value.write().unwrap_or_else(|e| e.into_inner())
    }

    /// Dtype that gradients are kept in.
    pub fn grad_dtype(&self) -> DType {
        grad_dtype(self.value().dtype())
    }

    /// The gradient accumulated so far.
    pub fn grad(&self) -> Option<Tensor> {
        self.lock_grad().clone()
    }

    /// The gradient accumulated so far, leaving none.
    pub fn take_grad(&self) -> Option<Tensor> {
        self.lock_grad().take()
    }

    /// Forgets the gradient.
    pub fn clear_grad(&self) {
        self.take_grad();
    }

    /// Sets the gradient, e.g. to reuse a buffer.
    pub fn set_grad(&self, grad: Option<Tensor>) {
        *self.lock_grad() = grad;
    }

    pub(crate) fn lock_grad(&self) -> MutexGuard<'_, Option<Tensor>> {
        self.0.grad.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Whether two handles are the same weight.
    pub fn same(&self, other: &Param) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for Param {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Param({}, {:?}, trainable: {})", self.name(), self.value(), self.is_trainable())
    }
}

/// Gradients are kept in the compute dtype: f64 for f64, f32 for everything else.
pub(crate) fn grad_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// The same in f32 if it is of a half: what sums are kept in.
pub(crate) fn widened(grad: Tensor) -> Result<Tensor> {
    match grad.dtype() {
        DType::BF16 | DType::F16 => Ok(grad.to_dtype(DType::F32)?),
        _ => Ok(grad),
    }
}

/// Adds `grad` into `slot`, in place where the slot already holds a gradient.
pub(crate) fn accumulate(slot: &mut Option<Tensor>, grad: Tensor) -> Result<()> {
    match slot {
        None => *slot = Some(grad),
        Some(_) => {
            let mut sum = widened(slot.take().expect("just seen"))?;
            planish_tensor::ops::elementwise::add_assign(&mut sum, &grad)?;
            *slot = Some(sum);
        }
    }
    Ok(())
}
