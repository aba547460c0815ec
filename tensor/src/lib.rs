//! Tensors, dtypes and CPU kernels of planish.
