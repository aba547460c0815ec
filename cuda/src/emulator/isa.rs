//! Decoded instructions: what the interpreter runs.
//!
//! A kernel's registers live in three banks: 32-bit words (which hold 8- and 16-bit values with zeros above), 64-bit
//! words, and predicates. An instruction names its registers by slot numbers in a shared pool, destinations first.
//! Immediates, special registers and addresses of variables are registers too, filled before the first instruction.

/// A type of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ty {
    Pred,
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    F32,
    F64,
    Tf32,
}

impl Ty {
    pub(crate) fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "pred" => Self::Pred,
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" => Self::B32,
            "b64" => Self::B64,
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "f16x2" => Self::F16x2,
            "bf16x2" => Self::Bf16x2,
            "f32" => Self::F32,
            "f64" => Self::F64,
            "tf32" => Self::Tf32,
            _ => return None,
        })
    }

    /// Bits of a value; 1 for a predicate.
    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Pred => 1,
            Self::B8 | Self::U8 | Self::S8 => 8,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 16,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 64,
            _ => 32,
        }
    }

    pub(crate) fn bank(self) -> Bank {
        match self.bits() {
            1 => Bank::Pred,
            64 => Bank::Wide,
            _ => Bank::Word,
        }
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F16x2 | Self::Bf16x2 | Self::F32 | Self::F64 | Self::Tf32)
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }
}

/// Where a register lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bank {
    Word,
    Wide,
    Pred,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IntOp {
    Add,
    AddSat,
    Sub,
    SubSat,
    MulLo,
    MulHi,
    MulWide,
    MadLo,
    MadHi,
    MadWide,
    Mul24Lo,
    Mad24Lo,
    Div,
    Rem,
    Abs,
    Neg,
    Min,
    Max,
    And,
    Or,
    Xor,
    Not,
    Cnot,
    Shl,
    Shr,
    Brev,
    Clz,
    Popc,
    Bfind,
    BfindShift,
    Bfe,
    Bfi,
    Prmt,
    FunnelLeftWrap,
    FunnelLeftClamp,
    FunnelRightWrap,
    FunnelRightClamp,
    Lop3(u8),
    Sad,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatOp {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    DivApprox,
    Rcp,
    RcpApprox,
    Sqrt,
    SqrtApprox,
    RsqrtApprox,
    Abs,
    Neg,
    Min,
    Max,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
    Copysign,
}

/// How a float's last bit is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Round {
    /// To nearest, ties to even.
    #[default]
    Nearest,
    /// To nearest, ties away from zero.
    NearestAway,
    Zero,
    Down,
    Up,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct FloatMods {
    pub(crate) round: Round,
    /// Subnormal inputs and results count as zeros of their sign.
    pub(crate) ftz: bool,
    /// The result is clamped to [0, 1].
    pub(crate) sat: bool,
    /// The result is clamped to at least 0.
    pub(crate) relu: bool,
    /// A NaN operand makes the result of min or max NaN.
    pub(crate) nan: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// True also if an operand is NaN.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    /// Neither is NaN.
    Num,
    /// One is NaN.
    Nan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
    Not,
    Mov,
    True,
    False,
}

/// State spaces as instructions name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    Generic,
    /// Constants too: they live in read-only allocations.
    Global,
    Shared,
    Local,
    Param,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Add,
    Inc,
    Dec,
    Min,
    Max,
}

/// A load's or store's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) space: Space,
    /// Bytes of an element.
    pub(crate) bytes: u8,
    /// Elements of a lane.
    pub(crate) count: u8,
    /// Sign-extended when loaded.
    pub(crate) signed: bool,
    /// Bits of the registers, at least the element's.
    pub(crate) register_bits: u8,
    /// Volatile or relaxed and stronger: no race with its like.
    pub(crate) strong: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduce {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

/// Operand types of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F16,
    Bf16,
    Tf32,
}

/// How a barrier is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barrier {
    Sync,
    Arrive,
    /// `bar.red.popc`
    Popc,
    And,
    Or,
}

/// What an instruction does. Registers are `defs` then `uses`, in the order of PTX's operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Op {
    Mov,
    MovWide,
    /// Parts of so many bits, lowest first, into a word or a wide word.
    Pack {
        part: u8,
        wide: bool,
    },
    Unpack {
        part: u8,
        wide: bool,
    },
    Logic(Logic),
    Select,
    SelectWide,
    Int(IntOp, Ty),
    Float(FloatOp, Ty, FloatMods),
    /// `fma` with f32 accumulator and half operands has no own form; conversions do the rest.
    Compare(Compare, Ty, bool),
    Convert {
        to: Ty,
        from: Ty,
        register_bits: u8,
        mods: FloatMods,
        integral: bool,
    },
    /// Two f32 to a pair of halves; the first operand is the upper.
    ConvertPair(Ty, FloatMods),
    /// Dot product of four bytes; whether each operand is signed.
    Dp4a(bool, bool),
    Clock,
    ClockWide,

    Load(Access),
    Store(Access),
    /// From the arguments, at the instruction's offset.
    Param(Access),
    /// To the generic address, or back.
    ToGeneric(Space),
    FromGeneric(Space),
    IsSpace(Space),
    /// Whether the old value is wanted.
    Atomic {
        space: Space,
        op: AtomicOp,
        ty: Ty,
        count: u8,
        returns: bool,
    },
    CopyAsync {
        bytes: u8,
        ignore: bool,
        sized: bool,
    },
    CopyCommit,
    CopyWait,
    CopyWaitAll,
    LoadMatrix {
        count: u8,
        transposed: bool,
    },
    StoreMatrix {
        count: u8,
        transposed: bool,
    },
    Mma {
        k: u8,
        a: Element,
        wide: bool,
    },
    /// `wgmma`; the registers of the sums come twice, as destinations and first sources.
    GroupMma {
        n: u16,
        element: Element,
        wide: bool,
        in_registers: bool,
        negate: bool,
        transpose_a: bool,
        transpose_b: bool,
    },
    /// `multicast`: to all blocks of a mask, the source behind the mbarrier.
    BulkLoad {
        multicast: bool,
    },
    BulkStore,
    /// `cp.async.bulk.commit_group`, `.wait_group`; of the latter the number is how many may be left.
    BulkCommit,
    BulkWait,
    /// `cp.async.bulk.tensor`; coordinates are the last sources.
    TensorLoad {
        multicast: bool,
    },
    TensorStore,
    MapPrefetch,
    /// `wgmma.fence`, `.commit_group`, `.wait_group`; of the last the instruction's number is how many may be left.
    GroupFence,
    GroupCommit,
    GroupWait,
    /// `fence.proxy.async`
    ProxyFence,
    /// `setmaxnreg`; the instruction's number is of registers a thread.
    SetRegisters,

    Shuffle(Shuffle, bool),
    Vote(Vote),
    Match {
        all: bool,
        wide: bool,
        pred: bool,
    },
    Redux(Reduce, Ty),
    Elect,
    ActiveMask,
    WarpSync,
    /// `aligned`: all of a warp must come together. `counted`: the number of threads is an operand.
    Barrier {
        kind: Barrier,
        aligned: bool,
        counted: bool,
    },

    /// `mapa`
    MapAddress {
        wide: bool,
    },
    /// `barrier.cluster`
    ClusterArrive {
        aligned: bool,
        release: bool,
    },
    ClusterWait {
        aligned: bool,
    },

    MbarrierInit,
    MbarrierInvalidate,
    /// `remote`: the mbarrier may lie in another block of the cluster.
    MbarrierExpect {
        remote: bool,
    },
    /// `count`: how many arrivals is an operand; `expect`: so many bytes are awaited besides. `orders`: what came before is
    /// in order for other blocks too.
    MbarrierArrive {
        count: bool,
        expect: bool,
        returns: bool,
        remote: bool,
        orders: bool,
    },
    MbarrierArriveCopies {
        noinc: bool,
    },
    /// `parity`: the phase is named by its parity, not by a state. `orders`: what came before arrivals of other blocks too.
    MbarrierTest {
        parity: bool,
        orders: bool,
    },

    Branch,
    BranchIndexed,
    Exit,
    Trap,
    Nothing,
}

/// An instruction, ready to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    /// The predicate's slot; `u16::MAX` for none.
    pub(crate) guard: u16,
    pub(crate) negated: bool,
    /// The address operand is 64 bits wide.
    pub(crate) wide: bool,
    pub(crate) defs: u8,
    pub(crate) uses: u8,
    /// Where its slots begin in the pool.
    pub(crate) at: u32,
    /// An offset, a branch's target or table.
    pub(crate) imm: i64,
}

/// Special registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Laneid,
    Warpid,
    Nwarpid,
    Smid,
    Nsmid,
    Gridid,
    MaskEq,
    MaskLt,
    MaskLe,
    MaskGt,
    MaskGe,
    DynamicShared,
    TotalShared,
    Clusterid(u8),
    Nclusterid(u8),
    ClusterCtaid(u8),
    ClusterNctaid(u8),
    ClusterCtarank,
    ClusterNctarank,
}

/// What a register holds when a warp begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Init {
    Value(u64),
    Special(Special),
}

/// A line of PTX and the line of CUDA C++ that it came from.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    pub(crate) line: u32,
    /// File number and line; line 0 for unknown.
    pub(crate) source: (u32, u32),
}

/// A kernel, ready to run.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    pub(crate) code: Vec<Inst>,
    pub(crate) pool: Vec<u16>,
    /// Of each slot in the pool, whether it is a word.
    pub(crate) words: Vec<bool>,
    pub(crate) places: Vec<Place>,
    /// Targets of indexed branches.
    pub(crate) tables: Vec<Vec<u32>>,
    /// Slots of the three banks: words, wide words, predicates.
    pub(crate) slots: [usize; 3],
    pub(crate) init: Vec<(Bank, u16, Init)>,
    /// Offset and bytes of each parameter.
    pub(crate) parameters: Vec<(u32, u32)>,
    pub(crate) parameter_bytes: u32,
    pub(crate) static_shared: u32,
    pub(crate) local_bytes: u32,
    pub(crate) required_threads: Option<[u32; 3]>,
    pub(crate) most_threads: Option<u64>,
    /// The smallest access to shared memory, bytes: what the race detector tells apart.
    pub(crate) granule: u32,
    /// Blocks must run one after another, for the order of atomics to be the same each time.
    pub(crate) ordered: bool,
    /// The lines of PTX that instructions stand on, and the names of source files.
    pub(crate) text: std::collections::HashMap<u32, String>,
    pub(crate) sources: std::collections::HashMap<u32, String>,
}
