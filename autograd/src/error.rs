//! Errors of differentiation.

/// Result of a differentiable operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong when recording or differentiating.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error(transparent)]
    Tensor(#[from] planish_tensor::Error),
    /// An op without a backward rule was applied to a tensor that gradients are wanted for.
    #[error("op `{op}` has no gradient ({reason}), but it was applied to a tensor that requires one; detach it first")]
    NoRule {
        /// Op that was called.
        op: &'static str,
        /// Why the op has no rule, from the registry.
        reason: &'static str,
    },
    /// Two variables of one op belong to different tapes.
    #[error("op `{op}`: its inputs were recorded on different tapes")]
    ForeignTape {
        /// Op that was called.
        op: &'static str,
    },
    /// A rule produced a gradient of the wrong shape or dtype: a bug in the rule.
    #[error("op `{op}`: gradient {got} does not fit input {input}, which is {expected}")]
    GradientShape {
        /// Op whose rule it was.
        op: &'static str,
        /// Which input.
        input: usize,
        /// The gradient, described.
        got: String,
        /// The input, described.
        expected: String,
    },
    /// Backward was called on a variable that no tape tracks.
    #[error("backward: the variable of shape {shape:?} requires no gradient")]
    Untracked {
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Backward without an explicit upstream gradient was called on something that is not one number.
    #[error("backward: the loss must be one number, but its shape is {shape:?}; pass the upstream gradient")]
    NotScalar {
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Analytic and numeric gradients differ.
    #[error("{0}")]
    GradientMismatch(Box<crate::Mismatch>),
}
