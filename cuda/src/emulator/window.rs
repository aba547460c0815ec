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
