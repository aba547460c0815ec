//! Static splitting of outputs over threads.
//!
//! Work is split over *outputs* only, and each output's arithmetic is the same wherever the split
//! falls: results do not depend on the number of threads (law 5 of the design).

use crate::{Element, Result, Tensor, stream, team};

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
    if a.is_empty() || a_width == 0 || b_width == 0 {
        return;
    }
    let rows = a.len() / a_width;
    debug_assert!(rows == b.len() / b_width);
    let (threads, most) = (rayon::current_num_threads(), a.len().max(b.len()));
    if threads == 1 || most < GRAIN {
        return f(0, a, b);
    }
    let run = rows_of_run(rows, most, threads);
    let (a, b) = (Disjoint::new(a), Disjoint::new(b));
    team::for_each(rows.div_ceil(run), |i| {
        let (first, n) = (i * run, run.min(rows - i * run));
        // SAFETY: runs do not overlap.
        unsafe { f(first, a.part(first * a_width, n * a_width), b.part(first * b_width, n * b_width)) }
    });
}

/// Elements of a task that is left to a stream, at least.
const LEFT_GRAIN: usize = 1 << 12;

/// As [`chunks`], over rows of N tensors, each with its width, calling `f(first_row, runs)`: some time before they are read, where
/// this thread is in a [`scope`](stream::scope).
///
/// # Errors
/// Outputs of another dtype.
pub(crate) fn later<T: Element, const N: usize>(
    outs: [(&mut Tensor, usize); N],
    f: impl Fn(usize, [&mut [T]; N]) + Send + Sync + 'static,
) -> Result<()> {
    let (mut tensors, mut rows, mut most) = (Vec::with_capacity(N), usize::MAX, 0);
    let mut parts = [(); N].map(|()| (Filled::<T>::nothing(), 0));
    for (part, (out, width)) in parts.iter_mut().zip(outs) {
        rows = rows.min(out.numel().checked_div(width).unwrap_or(0));
        most = most.max(out.numel());
        *part = (Filled::of(out)?, width);
        tensors.push(out.clone());
    }
    if rows == 0 {
        return Ok(());
    }
    let threads = rayon::current_num_threads();
    let run = match () {
        () if stream::is_open() => rows.div_ceil((most / LEFT_GRAIN).clamp(1, threads * RUNS)),
        () if threads == 1 || most < GRAIN => rows,
        () => rows_of_run(rows, most, threads),
    };
    let task = move |i: usize| {
        let (first, n) = (i * run, run.min(rows - i * run));
        // SAFETY: runs do not overlap.
        f(first, parts.each_ref().map(|(part, width)| unsafe { part.part(first * width, n * width) }));
    };
    stream::leave(rows.div_ceil(run), tensors, task);
    Ok(())
}

/// The elements of a tensor that work which was left is going to fill: it sees to it that the tensor lives.
#[derive(Debug)]
pub(crate) struct Filled<T> {
    ptr: *mut T,
    len: usize,
}

// SAFETY: tasks reach elements only through `part` and `ptr`, whose callers promise disjoint elements.
unsafe impl<T: Send> Send for Filled<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Filled<T> {}

impl<T: Element> Filled<T> {
    /// Of a tensor that is copied first if another shares its storage.
    ///
    /// # Errors
    /// Another dtype.
    pub(crate) fn of(out: &mut Tensor) -> Result<Self> {
        let slice = out.as_slice_mut::<T>()?;
        Ok(Filled { ptr: slice.as_mut_ptr(), len: slice.len() })
    }

    fn nothing() -> Self {
        Filled { ptr: std::ptr::NonNull::dangling().as_ptr(), len: 0 }
    }
}

impl<T> Filled<T> {
    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// The tensor must live, and while the part does no other may overlap it.
    ///
    /// # Panics
    /// If it reaches past the tensor.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "part out of range");
        // SAFETY: inside the tensor by the assertion, exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }

    /// The same elements, to be read.
    ///
    /// # Safety
    /// The tensor must live, and nobody may write to them meanwhile.
    ///
    /// # Panics
    /// If they reach past the tensor.
    pub(crate) unsafe fn read(&self, start: usize, len: usize) -> &[T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "part out of range");
        // SAFETY: inside the tensor by the assertion, unchanged by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.ptr.add(start), len) }
    }

    /// The first element, for parts that are no ranges, such as blocks of a matrix. Whoever writes through it sees to it
    /// that no other task reaches the same elements.
    pub(crate) fn ptr(&self) -> *mut T {
        self.ptr
    }

    /// The same memory as bytes.
    pub(crate) fn bytes(&self) -> Filled<u8> {
        Filled { ptr: self.ptr.cast(), len: self.len * size_of::<T>() }
    }
}

impl Filled<u8> {
    /// The elements that [`Filled::bytes`] was made of.
    ///
    /// # Panics
    /// If T's are aligned otherwise, or no whole number of them.
    pub(crate) fn elements<T: Element>(&self) -> Filled<T> {
        let ptr = self.ptr.cast::<T>();
        assert!(ptr.is_aligned() && self.len.is_multiple_of(size_of::<T>()), "other elements");
        Filled { ptr, len: self.len / size_of::<T>() }
    }
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
    all: Filled<T>,
    of: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: as `Filled`: the rest is a borrow.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Disjoint { all: Filled { ptr: slice.as_mut_ptr(), len: slice.len() }, of: std::marker::PhantomData }
    }
}

/// The slice lives as long as this does.
impl<T> std::ops::Deref for Disjoint<'_, T> {
    type Target = Filled<T>;

    fn deref(&self) -> &Filled<T> {
        &self.all
    }
}
