//! The registry of ops: what each one offers, so that tests can hold it to that.

/// Whether an op can be differentiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backward {
    /// It has a hand-written rule, which a gradcheck must cover.
    Rule,
    /// It has none, for this reason. Applying it to a tracked variable is an error.
    None(&'static str),
}

/// Whether an op runs on CUDA devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cuda {
    /// By the kernel file of this stem in `cuda/kernels/`, among others.
    Kernel(&'static str),
    /// By the kernels of other ops, as this says.
    Composed(&'static str),
    /// Not, for this reason.
    CpuOnly(&'static str),
}

/// What an op's numbers are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fixture {
    /// Full tensors computed by PyTorch, in `tests/fixtures/ops/<name>.safetensors`.
    Torch(&'static str),
    /// Nothing, for this reason.
    None(&'static str),
}

/// One op.
#[derive(Debug)]
pub struct Op {
    /// Its stem: the name of its files and the name in errors.
    pub name: &'static str,
    /// Its backward rule.
    pub backward: Backward,
    /// Its CUDA kernel.
    pub cuda: Cuda,
    /// Its fixture.
    pub fixture: Fixture,
}

/// Every op there is.
pub fn ops() -> &'static [&'static Op] {
    use crate::ops::*;
    static OPS: &[&Op] = &[
        &activation::SILU,
        &activation::GELU,
        &activation::RELU,
        &attention::OP,
        &block_rotate::OP,
        &cast::OP,
        &cayley::OP,
        &combine::OP,
        &concat::OP,
        &dora_linear::OP,
        &dropout::OP,
        &elementwise::ADD,
        &elementwise::SUB,
        &elementwise::MUL,
        &elementwise::DIV,
        &elementwise::SCALE,
        &elementwise::ADD_SCALAR,
        &embedding::OP,
        &gather::OP,
        &glu::SWIGLU,
        &glu::GEGLU,
        &grouped_linear::OP,
        &index_select::OP,
        &layer_norm::OP,
        &linear::OP,
        &lm_head::OP,
        &lm_head_divergence::OP,
        &lora_embedding::OP,
        &lora_linear::OP,
        &lstm::OP,
        &reduction::SUM,
        &reduction::MEAN,
        &reduction::MAX,
        &reduction::ARGMAX,
        &rms_norm::OP,
        &rope::OP,
        &scatter_add::OP,
        &softmax::SOFTMAX,
        &softmax::LOG_SOFTMAX,
        &softmax::LOGSUMEXP,
        &unary::EXP,
        &unary::LN,
        &unary::SQRT,
        &unary::TANH,
        &unary::SIGMOID,
        &unary::SOFTCAP,
        &view::BROADCAST_TO,
        &view::NARROW,
        &view::RESHAPE,
        &view::TRANSPOSE,
        &crate::checkpoint::OP,
    ];
    OPS
}

/// The op of that name.
pub fn find(name: &str) -> Option<&'static Op> {
    ops().iter().copied().find(|op| op.name == name)
}
