//! What a kernel did wrong, and where.

use std::fmt;

/// A kernel's fault: the first that a run found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Fault {
    /// The kernel.
    pub kernel: String,
    /// The block's index in the grid.
    pub block: [u32; 3],
    /// The thread's index in its block.
    pub thread: [u32; 3],
    /// The instruction.
    pub at: Line,
    /// What happened.
    pub kind: FaultKind,
}

/// A line of PTX.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Line {
    /// Its number, from 1.
    pub line: u32,
    /// Its text.
    pub text: String,
    /// The file and line of CUDA C++ that it comes from, if the PTX says so.
    pub source: Option<(String, u32)>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PTX line {} `{}`", self.line, self.text)?;
        match &self.source {
            Some((file, line)) => write!(f, " ({file}:{line})"),
            None => Ok(()),
        }
    }
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// It reads.
    Read,
    /// It writes.
    Write,
}

impl fmt::Display for AccessKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum FaultKind {
    /// An access outside of all memory of its space.
    OutOfBounds {
        /// `global`, `shared`, `local` or `param`.
        space: &'static str,
        /// Reads or writes.
        access: AccessKind,
        /// The first byte.
        address: u64,
        /// How many bytes.
        bytes: u64,
        /// The nearest allocation before it: its address and size.
        near: Option<(u64, u64)>,
    },
    /// An access to memory that was given back.
    UseAfterFree {
        /// Reads or writes.
        access: AccessKind,
        /// The first byte.
        address: u64,
        /// The allocation's address.
        base: u64,
        /// The allocation's size, bytes.
        bytes: u64,
    },
    /// An access to memory that a [`Pool`](crate::memory::Pool) has back and has lent to nobody.
    UseAfterReclaim {
        /// Reads or writes.
        access: AccessKind,
        /// The first byte.
        address: u64,
        /// The block's address.
        base: u64,
        /// The block's size, bytes.
        bytes: u64,
    },
    /// An address that is no multiple of the access's size.
    Misaligned {
        /// The address in its space.
        address: u64,
        /// The size, bytes.
        bytes: u64,
    },
    /// A write to constants.
    ReadOnly {
        /// The address.
        address: u64,
    },
    /// A read of bytes that nothing wrote.
    Unwritten {
        /// `global` or `shared`.
        space: &'static str,
        /// The first byte.
        address: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// Two threads of a block touch the same bytes of shared memory, one of them writes, and nothing orders them.
    Race {
        /// The address in shared memory.
        address: u64,
        /// What this thread does.
        access: AccessKind,
        /// What the other did before.
        other: AccessKind,
        /// The other thread's number in the block, counted on in whole warps through the blocks of a cluster.
        other_thread: u32,
        /// The other's instruction.
        other_at: Line,
    },
    /// Shared memory is touched whose `cp.async` has not been waited for.
    PendingCopy {
        /// The address in shared memory.
        address: u64,
        /// The thread that copies.
        copier: u32,
        /// The copy.
        copy: Line,
    },
    /// A barrier that a part of a warp's threads reached while others of the warp are elsewhere.
    DivergentBarrier {
        /// The lanes that reached it, a bit each.
        reached: u32,
        /// The lanes that have not finished.
        alive: u32,
    },
    /// A barrier that not every thread reached before the others finished or wait elsewhere.
    BarrierNotReached {
        /// The barrier's number.
        barrier: u32,
        /// Threads that wait at it.
        waiting: u32,
        /// Threads that it needs.
        needed: u32,
        /// Threads of the block that have finished.
        finished: u32,
    },
    /// A barrier's number or number of threads that does not exist.
    BadBarrier {
        /// Its number.
        barrier: u64,
        /// Its number of threads; 0 for all.
        threads: u64,
    },
    /// Lanes that an instruction names never reach it.
    WarpNotJoined {
        /// The lanes that the instruction names.
        named: u32,
        /// Those that wait.
        reached: u32,
    },
    /// A lane runs an instruction whose member mask does not name it.
    NotAMember {
        /// The mask.
        mask: u32,
    },
    /// A shuffle that reads a lane that takes no part.
    ShuffleFromOutside {
        /// The lane that is read.
        source: u32,
        /// The lanes that take part.
        members: u32,
    },
    /// Threads wait for one another at different barriers.
    Deadlock {
        /// The barrier of the first.
        barrier: u32,
        /// One of others.
        other: u32,
    },
    /// More instructions than the emulator's budget: the kernel hangs, or the budget is too small.
    OutOfBudget {
        /// Warp instructions of the block.
        instructions: u64,
    },
    /// `trap`: an assertion of the kernel, perhaps.
    Trap,
    /// An index outside of a branch's table.
    BranchIndex {
        /// The index.
        index: u32,
    },
    /// `wgmma` by a warp that has not three others beside it.
    NoWarpGroup {
        /// Warps of the block.
        warps: u32,
    },
    /// A register that `wgmma` reads or writes in the background, touched before `wgmma.wait_group`.
    ProductInFlight {
        /// What the instruction does to the register.
        access: AccessKind,
        /// The product.
        product: Line,
    },
    /// `wgmma` with a register that was written since the warp's last `wgmma.fence`, or without any fence.
    NoGroupFence {
        /// Whether there was a fence before.
        fenced: bool,
    },
    /// A product or bulk copy reads shared memory that a store wrote, without `fence.proxy.async` between.
    NoProxyFence {
        /// The address in shared memory.
        address: u64,
        /// The thread that wrote.
        writer: u32,
        /// Its instruction.
        write: Line,
    },
    /// Shared memory that `wgmma` or a bulk copy reads was written after that began and before it was waited for.
    OperandOverwritten {
        /// The address in shared memory.
        address: u64,
        /// The thread that wrote.
        writer: u32,
        /// Its instruction.
        write: Line,
    },
    /// `setmaxnreg` of a block's warps together claims more registers than the block began with: on a card they wait forever.
    TooManyRegisters {
        /// Registers that its warps claim.
        claimed: u64,
        /// Registers of the block.
        there: u64,
    },
    /// A matrix descriptor or tile that the layouts of `wgmma` do not have.
    BadDescriptor {
        /// The descriptor.
        descriptor: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// A tensor map that is none, or not for this copy.
    BadTensorMap {
        /// Its address.
        address: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// A rank that the cluster has not.
    NoSuchRank {
        /// The rank.
        rank: u32,
        /// Blocks of the cluster.
        blocks: u32,
    },
    /// A multicast whose mask names no block, or one that the cluster has not.
    BadMulticast {
        /// The mask, a bit for each block.
        mask: u32,
        /// Blocks of the cluster.
        blocks: u32,
    },
    /// A load, store or atomic with an address of another block of the cluster: only arrivals and bulk copies are emulated
    /// there.
    OtherBlock {
        /// What it does.
        access: AccessKind,
        /// The address in that block.
        address: u64,
        /// The block's rank.
        rank: u32,
    },
    /// Shared memory of a block of the cluster that has ended.
    BlockHasEnded {
        /// The block's rank.
        rank: u32,
    },
    /// A block ends, and nothing says that what another of the cluster does to its shared memory is over.
    EndsTooEarly {
        /// The other block's rank.
        rank: u32,
        /// Its arrival or copy.
        reach: Line,
    },
    /// `barrier.cluster` used against its rules.
    BadClusterBarrier {
        /// What is wrong.
        problem: &'static str,
    },
    /// `barrier.cluster` that not every thread of the cluster arrives at, where no thread can go on.
    ClusterNotGathered {
        /// Threads that have arrived.
        arrived: u32,
        /// Threads of the cluster.
        threads: u32,
        /// Of them, those that have finished.
        finished: u32,
    },
    /// An mbarrier that was not initialised, or used against its count.
    BadMbarrier {
        /// Its address in shared memory.
        address: u64,
        /// What is wrong.
        problem: &'static str,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, block: [bx, by, bz], thread: [tx, ty, tz], at, kind } = self;
        write!(f, "kernel {kernel}, block ({bx}, {by}, {bz}), thread ({tx}, {ty}, {tz}), {at}: {kind}")
    }
}

impl std::error::Error for Fault {}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfBounds { space, access, address, bytes, near } => {
                write!(f, "{access} of {bytes} bytes at {address:#x} lies outside of {space} memory")?;
                match near {
                    Some((base, size)) => {
                        let end = base + size;
                        write!(f, ", {} bytes behind the start of {size} bytes at {base:#x}", address - base)?;
                        if *address >= end { write!(f, " ({} past their end)", address - end) } else { Ok(()) }
                    }
                    None => Ok(()),
                }
            }
            Self::UseAfterFree { access, address, base, bytes } => {
                write!(f, "{access} at {address:#x}, in {bytes} bytes at {base:#x} that were given back")
            }
            Self::UseAfterReclaim { access, address, base, bytes } => {
                write!(f, "{access} at {address:#x}, in {bytes} bytes at {base:#x} that the pool has back")
            }
            Self::Misaligned { address, bytes } => {
                write!(f, "the address {address:#x} is no multiple of {bytes}, the bytes of the access")
            }
            Self::ReadOnly { address } => write!(f, "write to constant memory at {address:#x}"),
            Self::Unwritten { space, address, bytes } => {
                write!(f, "read of {bytes} bytes of {space} memory at {address:#x} that nothing wrote")
            }
            Self::Race { address, access, other, other_thread, other_at } => write!(
                f,
                "a race on shared memory at {address:#x}: this {access} and the {other} by thread {other_thread} of the \
                 block, {other_at}, have no barrier between them"
            ),
            Self::PendingCopy { address, copier, copy } => write!(
                f,
                "shared memory at {address:#x} is used before the cp.async of thread {copier}, {copy}, was waited for"
            ),
            Self::DivergentBarrier { reached, alive } => write!(
                f,
                "the barrier needs the whole warp, but of the lanes {alive:#010x} only {reached:#010x} reached it \
                 together"
            ),
            Self::BarrierNotReached { barrier, waiting, needed, finished } => write!(
                f,
                "barrier {barrier} was reached by {waiting} threads of {needed}; {finished} threads of the block have \
                 finished"
            ),
            Self::BadBarrier { barrier, threads } => {
                write!(f, "a barrier {barrier} of {threads} threads does not exist in this block")
            }
            Self::WarpNotJoined { named, reached } => {
                write!(f, "the instruction names the lanes {named:#010x}, but only {reached:#010x} reach it")
            }
            Self::NotAMember { mask } => {
                write!(f, "the lane runs an instruction whose member mask {mask:#010x} does not name it")
            }
            Self::ShuffleFromOutside { source, members } => {
                write!(f, "the shuffle reads lane {source}, which is not among the members {members:#010x}")
            }
            Self::Deadlock { barrier, other } => {
                write!(f, "threads wait at barrier {barrier} and others at barrier {other}, and nothing can wake them")
            }
            Self::OutOfBudget { instructions } => {
                write!(f, "the block ran {instructions} warp instructions and has not finished: it hangs, it seems")
            }
            Self::Trap => f.write_str("the kernel stopped itself by a trap"),
            Self::BranchIndex { index } => write!(f, "the branch's table has no entry {index}"),
            Self::NoWarpGroup { warps } => {
                write!(f, "the instruction is for four warps together, and the block has {warps}")
            }
            Self::BadMbarrier { address, problem } => write!(f, "the mbarrier at {address:#x} {problem}"),
            Self::ProductInFlight { access, product } => {
                write!(f, "{access} of a register of the wgmma of {product}, which no wgmma.wait_group has waited for")
            }
            Self::NoGroupFence { fenced: true } => {
                f.write_str("a register of the product was written since the last wgmma.fence")
            }
            Self::NoGroupFence { fenced: false } => f.write_str("no wgmma.fence comes before the first product"),
            Self::NoProxyFence { address, writer, write } => write!(
                f,
                "shared memory at {address:#x} was written by thread {writer}, {write}, and is read by the asynchronous \
                 proxy without a fence.proxy.async between"
            ),
            Self::OperandOverwritten { address, writer, write } => write!(
                f,
                "shared memory at {address:#x} was overwritten by thread {writer}, {write}, before the product or copy that \
                 reads it was waited for"
            ),
            Self::NoSuchRank { rank, blocks } => write!(f, "the cluster has {blocks} blocks, and none of rank {rank}"),
            Self::BadMulticast { mask, blocks } => {
                write!(
                    f,
                    "the mask {mask:#06x} of the multicast names no block or others than the {blocks} of the cluster"
                )
            }
            Self::OtherBlock { access, address, rank } => write!(
                f,
                "{access} at {address:#x} of the shared memory of block {rank} of the cluster: the emulator knows only \
                 arrivals and bulk copies there"
            ),
            Self::BlockHasEnded { rank } => {
                write!(f, "the shared memory of block {rank} of the cluster, which has ended")
            }
            Self::EndsTooEarly { rank, reach } => write!(
                f,
                "the block ends, and has not waited for what block {rank} of the cluster does to its shared memory, {reach}"
            ),
            Self::BadClusterBarrier { problem } => write!(f, "barrier.cluster {problem}"),
            Self::ClusterNotGathered { arrived, threads, finished } => write!(
                f,
                "barrier.cluster was arrived at by {arrived} threads of {threads}, of which {finished} have finished, and \
                 the others cannot go on"
            ),
            Self::TooManyRegisters { claimed, there } => write!(
                f,
                "setmaxnreg of the block's warps claims {claimed} registers, and the block began with {there}: the last would \
                 wait forever"
            ),
            Self::BadDescriptor { descriptor, problem } => write!(f, "the descriptor {descriptor:#018x} {problem}"),
            Self::BadTensorMap { address, problem } => write!(f, "the tensor map at {address:#x} {problem}"),
        }
    }
}
