//! How much memory a thread's tensors take at most.
//!
//! Every owned buffer is counted where it is allocated and where it is freed, for the thread that does it:
//! kernels allocate on the thread that calls them and split only the work. Two additions a buffer.

use std::cell::Cell;

thread_local! {
    /// Bytes alive, relative to the thread's start, and the most there ever were.
    static USE: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// Notes an allocation.
pub(crate) fn allocated(bytes: usize) {
    // Not counted while the thread ends.
    let _ = USE.try_with(|u| {
        let (live, peak) = u.get();
        let live = live + bytes as isize;
        u.set((live, peak.max(live)));
    });
}

/// Notes that a buffer was freed.
pub(crate) fn freed(bytes: usize) {
    let _ = USE.try_with(|u| {
        let (live, peak) = u.get();
        u.set((live - bytes as isize, peak));
    });
}

/// Runs `f`, and says how many bytes of tensors were alive at most during it beyond those alive before,
/// counting those that this thread allocates.
///
/// ```
/// use planish_tensor::{DType, Tensor, memory::peak_of};
/// let (kept, peak) = peak_of(|| {
///     drop(Tensor::zeros([1000], DType::F32));
///     Tensor::zeros([10], DType::F64)
/// });
/// assert_eq!((kept?.numel(), peak), (10, 4000));
/// # Ok::<(), planish_tensor::Error>(())
/// ```
pub fn peak_of<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let (before, outer) = USE.get();
    USE.set((before, before));
    let result = f();
    let (live, peak) = USE.get();
    USE.set((live, outer.max(peak)));
    (result, (peak - before).max(0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Tensor};

    #[test]
    fn peaks_nest_and_views_cost_nothing() {
        let bytes = |n: usize| Tensor::zeros([n], DType::U8).unwrap();
        let old = bytes(5000);
        let (inner, outer) = peak_of(|| {
            let a = bytes(300);
            let view = a.narrow(0, 10, 100).unwrap();
            let (_, inner) = peak_of(|| drop((bytes(70), bytes(80))));
            drop((a, view));
            drop(bytes(200));
            inner
        });
        assert_eq!((inner, outer), (150, 450));
        // What was there before may go; the peak is never below nothing.
        assert_eq!(peak_of(|| drop(old)).1, 0);
    }
}
