//! Static splitting of outputs over threads.
//!
//! Work is split over *outputs* only, and each output's arithmetic is the same wherever the split
//! falls: results do not depend on the number of threads (law 5 of the design).

use crate::team;

/// Elements below which a split costs more than it saves.
const GRAIN: usize = 1 << 14;

/// Runs for each thread where there are enough elements: threads are never quite equally fast.
const RUNS: usize = 4;

/// Rows of each run, where `rows` rows have `elements` together.
fn rows_of_run(rows: usize, elements: usize, threads: usize) -> usize {
    rows.div_ceil((elements / (GRAIN / 2)).clamp(threads, threads * RUNS))
}

/// Splits `out` into runs of whole rows of `width` elements, one run a thread, and calls
/// `f(first_element, run)` on each in parallel.
pub fn chunks<T: Send>(out: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync + Send) {
    if out.is_empty() || width == 0 {
        return;
    }
    let threads = rayon::current_num_threads();
    if threads == 1 || out.len() < GRAIN {
        return f(0, out);
    }
    let rows = out.len().div_ceil(width);
    let (run, len) = (rows_of_run(rows, out.len(), threads) * width, out.len());
    let parts = Disjoint::new(out);
    team::for_each(len.div_ceil(run), |i| {
        // SAFETY: runs do not overlap.
        f(i * run, unsafe { parts.part(i * run, run.min(len - i * run)) });
    });
}

/// As [`chunks`], over rows of two outputs of `a_width` and `b_width` elements a row, calling
/// `f(first_row, a_run, b_run)`.
pub fn chunks2<A: Send, B: Send>(
    a: &mut [A],
    a_width: usize,
    b: &mut [B],
    b_width: usize,
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync + Send,
) {
    let rows = a.len().checked_div(a_width).unwrap_or(0);
    chunks3((a, a_width), (b, b_width), (&mut vec![(); rows], 1), |first, a, b, _| f(first, a, b));
}

/// As [`chunks2`] over three outputs, each with its width.
pub fn chunks3<A: Send, B: Send, C: Send>(
    (a, a_width): (&mut [A], usize),
    (b, b_width): (&mut [B], usize),
    (c, c_width): (&mut [C], usize),
    f: impl Fn(usize, &mut [A], &mut [B], &mut [C]) + Sync + Send,
) {
    if a.is_empty() || a_width == 0 || b_width == 0 || c_width == 0 {
        return;
    }
    let rows = a.len() / a_width;
    debug_assert!(rows == b.len() / b_width && rows == c.len() / c_width);
    let (threads, most) = (rayon::current_num_threads(), a.len().max(b.len()).max(c.len()));
    if threads == 1 || most < GRAIN {
        return f(0, a, b, c);
    }
    let run = rows_of_run(rows, most, threads);
    let (a, b, c) = (Disjoint::new(a), Disjoint::new(b), Disjoint::new(c));
    team::for_each(rows.div_ceil(run), |i| {
        let (first, n) = (i * run, run.min(rows - i * run));
        // SAFETY: runs do not overlap.
        unsafe {
            let (a, b) = (a.part(first * a_width, n * a_width), b.part(first * b_width, n * b_width));
            f(first, a, b, c.part(first * c_width, n * c_width));
        }
    });
}

/// Calls `f(i)` for each task `0..n` in parallel. For tasks that write nothing shared.
pub fn map<R: Send>(n: usize, f: impl Fn(usize) -> R + Sync + Send) -> Vec<R> {
    let mut out: Vec<Option<R>> = (0..n).map(|_| None).collect();
    let slots = Disjoint::new(&mut out);
    team::for_each(n, |i| {
        // SAFETY: a task has its own slot.
        let slot = unsafe { slots.part(i, 1) };
        slot[0] = Some(f(i));
    });
    out.into_iter().map(|r| r.expect("every task has run")).collect()
}

/// A slice that tasks write in disjoint parts, where these are not runs that [`chunks`] could cut.
pub(crate) struct Disjoint<'a, T> {
    ptr: *mut T,
    len: usize,
    of: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: tasks reach elements only through `part` and `ptr`, whose callers promise disjoint elements.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Disjoint { ptr: slice.as_mut_ptr(), len: slice.len(), of: std::marker::PhantomData }
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// While the part lives no other may overlap it.
    ///
    /// # Panics
    /// If it reaches past the slice.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "part out of range");
        // SAFETY: inside the slice by the assertion; exclusive by the caller's promise and the borrow `'a`.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }

    /// The first element, for parts that are no ranges, such as blocks of a matrix. Whoever writes through it sees to it
    /// that no other task reaches the same elements.
    pub(crate) fn ptr(&self) -> *mut T {
        self.ptr
    }
}
