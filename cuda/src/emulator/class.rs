//! Groups of instructions, for reports.

use super::isa::{FloatOp, Op, Space, Ty};

/// Groups of instructions in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Class {
    /// Integers, bits, predicates and moves.
    Integer,
    /// f32 arithmetic.
    F32,
    /// f64 arithmetic.
    F64,
    /// f16 and bf16 arithmetic.
    Half,
    /// Square roots, exponentials and their like.
    Special,
    /// Conversions between types.
    Convert,
    /// Products of small matrices.
    Matrix,
    /// Global and constant memory, and generic accesses.
    Global,
    /// Shared memory.
    Shared,
    /// Local memory and arguments.
    Local,
    /// Atomics.
    Atomic,
    /// Shuffles, votes, matches and reductions in a warp.
    Warp,
    /// Barriers and waits.
    Barrier,
    /// Branches and exits.
    Control,
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Padded as the caller wants it.
        f.pad(&format!("{self:?}").to_lowercase())
    }
}

impl Op {
    pub(crate) fn class(self) -> Class {
        match self {
            Self::Float(op, ty, _) => match (op, ty) {
                (
                    FloatOp::Ex2
                    | FloatOp::Lg2
                    | FloatOp::Sin
                    | FloatOp::Cos
                    | FloatOp::Tanh
                    | FloatOp::RcpApprox
                    | FloatOp::SqrtApprox
                    | FloatOp::RsqrtApprox
                    | FloatOp::Sqrt
                    | FloatOp::Rcp
                    | FloatOp::Div
                    | FloatOp::DivApprox,
                    _,
                ) => Class::Special,
                (_, Ty::F64) => Class::F64,
                (_, Ty::F32) => Class::F32,
                _ => Class::Half,
            },
            Self::Convert { .. } | Self::ConvertPair(..) => Class::Convert,
            Self::Mma { .. } | Self::GroupMma { .. } => Class::Matrix,
            Self::Load(access) | Self::Store(access) => match access.space {
                Space::Shared => Class::Shared,
                Space::Local | Space::Param => Class::Local,
                _ => Class::Global,
            },
            Self::Param(_) => Class::Local,
            Self::Atomic { .. } => Class::Atomic,
            Self::CopyAsync { .. }
            | Self::BulkLoad { .. }
            | Self::BulkStore
            | Self::TensorLoad { .. }
            | Self::TensorStore
            | Self::MapPrefetch => Class::Global,
            Self::LoadMatrix { .. } | Self::StoreMatrix { .. } => Class::Shared,
            Self::Shuffle(..)
            | Self::Vote(_)
            | Self::Match { .. }
            | Self::Redux(..)
            | Self::Elect
            | Self::ActiveMask => Class::Warp,
            Self::WarpSync
            | Self::Barrier { .. }
            | Self::ClusterArrive { .. }
            | Self::ClusterWait { .. }
            | Self::CopyCommit
            | Self::BulkCommit
            | Self::BulkWait
            | Self::GroupFence
            | Self::GroupCommit
            | Self::GroupWait
            | Self::ProxyFence
            | Self::SetRegisters
            | Self::CopyWait
            | Self::CopyWaitAll
            | Self::MbarrierInit
            | Self::MbarrierInvalidate
            | Self::MbarrierExpect { .. }
            | Self::MbarrierArrive { .. }
            | Self::MbarrierArriveCopies { .. }
            | Self::MbarrierTest { .. } => Class::Barrier,
            Self::Branch | Self::BranchIndexed | Self::Exit | Self::Trap => Class::Control,
            _ => Class::Integer,
        }
    }
}
