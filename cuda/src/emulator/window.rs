//! Where the state spaces lie in the generic address space.
//!
//! A global address is itself. The others have a window of 4 GiB each, so the lower half of a generic address is the
//! address in its space, as on hardware.

use super::isa::Space;

/// Where shared variables begin: hardware keeps the first KiB for itself, and no pointer to one is null.
pub(crate) const SHARED_BEGIN: u64 = 1024;
/// Where local variables begin.
pub(crate) const LOCAL_BEGIN: u64 = 64;
/// The first address of global memory.
pub(crate) const GLOBAL_BEGIN: u64 = 1 << 36;

const SHARED: u64 = 1 << 56;
const LOCAL: u64 = 2 << 56;
const PARAM: u64 = 3 << 56;

/// Where an address of shared memory has the block that it is of, as its number in the cluster and 1; 0 for the thread's own.
/// Shared memory ends before.
const RANK: u32 = 24;
/// Blocks of the largest cluster of any device.
const BLOCKS: u64 = 16;

/// The same place in another block of the cluster; the address may be generic.
pub(crate) fn in_block(address: u64, rank: u32) -> u64 {
    address & !(0xff << RANK) | u64::from(rank + 1) << RANK
}

/// The block that an address in the space names, unless it is the thread's own or none.
pub(crate) fn rank(address: u64) -> Option<u32> {
    let rank = (address >> RANK).checked_sub(1)?;
    (rank < BLOCKS).then_some(rank as u32)
}

/// The address as the block that it names has it.
pub(crate) fn within(address: u64) -> u64 {
    if rank(address).is_some() { address & ((1 << RANK) - 1) } else { address }
}

/// The window of a space; 0 for global memory.
#[inline(always)]
pub(crate) fn of(space: Space) -> u64 {
    match space {
        Space::Generic | Space::Global => 0,
        Space::Shared => SHARED,
        Space::Local => LOCAL,
        Space::Param => PARAM,
    }
}

/// The space that a generic address lies in.
#[inline(always)]
pub(crate) fn space(address: u64) -> Space {
    match address >> 32 << 32 {
        SHARED => Space::Shared,
        LOCAL => Space::Local,
        PARAM => Space::Param,
        _ => Space::Global,
    }
}
