//! Work that is handed out before what it needs is there: ops of a step of decoding, one after the other.
//!
//! A step of decoding is some three hundred pieces of work of a few to some tens of microseconds. Handed out one by one, each
//! begins when the thread that asks for them has come back from the last one, has allocated, checked and dispatched; the other
//! threads wait for it, and no weight is read meanwhile. Inside a [`scope`] an op may leave its work here and return at once
//! with a tensor that is not filled yet. What was left is done in the order in which it came, each piece by all threads, and
//! none begins before the one before it is complete.
//!
//! Whoever reads such a tensor waits for it, so that an op which knows nothing of all this computes what it always does: its
//! own work becomes a piece that is waited for. Nothing here has a say in what is computed: tasks and their bits are the same with
//! and without a scope (law 5 of the design).

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use crate::team::pause;
use crate::{Tensor, team};

/// Pieces that there are places for.
const PLACES: usize = 64;

/// Pieces that may wait, beyond which the leader works too: what they fill is to be in a cache still when it is read, and
/// memory is used again.
const AHEAD: usize = 12;

/// Place of a thread that is at no piece.
const NOWHERE: usize = usize::MAX;

/// What is to be done for each task.
enum Run {
    Owned(Box<dyn Fn(usize) + Send + Sync>),
    /// Of a caller that waits for it.
    Borrowed(*const (dyn Fn(usize) + Sync)),
}

/// A piece of work.
struct Work {
    run: Run,
    /// What it writes to: not to be read before it is complete.
    outs: Vec<Tensor>,
}

#[repr(align(128))]
struct Place {
    work: UnsafeCell<Option<Work>>,
    tasks: AtomicUsize,
    /// The first tasks that are taken, a bit each: thread w begins with task w.
    first: AtomicU64,
    /// The next of those behind them.
    next: AtomicUsize,
    done: AtomicUsize,
}

#[repr(align(64))]
struct At(AtomicUsize);

struct Stream {
    places: Box<[Place]>,
    /// Pieces that have come, that are complete, and whose memory is free again.
    published: AtomicUsize,
    complete: AtomicUsize,
    freed: AtomicUsize,
    /// Whether no more is to come.
    closed: AtomicBool,
    /// The piece that each thread is at. A place is not filled anew while a thread is at the piece that it held.
    at: Box<[At]>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `work` of a place is written by the leader alone: before the piece is published, when no thread is at the piece that
// the place held before (see `Stream::publish`), and when it is complete it is taken out. Others read it only for a task that
// they have taken and not yet counted as done, so before the piece is complete. Closures and tensors in `Work` are Send and
// Sync, or borrowed from a leader that waits.
unsafe impl Sync for Stream {}

thread_local! {
    /// The stream that this thread leads.
    static LED: Cell<Option<NonNull<Stream>>> = const { Cell::new(None) };
}

/// Calls `f`, in which ops may leave their work to be done in order, on all threads. All of it is done on return. Where there is
/// one thread, or others lead already, `f` is called and no more.
///
/// # Panics
/// If `f` or a task does.
pub fn scope<T>(f: impl FnOnce() -> T) -> T {
    let threads = rayon::current_num_threads();
    if threads < 2 || LED.get().is_some() {
        return f();
    }
    let (stream, mut f) = (Stream::new(threads), Some(f));
    let led = team::beside(threads - 1, &|i| stream.work(i + 1, || stream.closed.load(SeqCst)), || {
        LED.set(Some(NonNull::from(&stream)));
        // Also if `f` panics.
        let _closing = Closing(&stream);
        f.take().map(|f| f())
    });
    let out = led.flatten();
    stream.pass_panic_on();
    out.unwrap_or_else(|| f.take().expect("not called where nobody leads")())
}

/// The stream that this thread leads, unless it is inside a task.
fn led<T>(f: impl FnOnce(&Stream) -> T) -> Option<T> {
    // SAFETY: it is set while the stream lives, by the thread that has it.
    LED.get().filter(|_| !team::is_busy()).map(|stream| f(unsafe { stream.as_ref() }))
}

/// Whether work can be left.
pub(crate) fn is_open() -> bool {
    LED.get().is_some() && !team::is_busy()
}

/// Calls `run(i)` for each i below `tasks`, some time before `outs` are read; now, if this thread is in no [`scope`].
///
/// Whatever `run` reads is to be its own; what it writes to, storages of `outs`.
pub(crate) fn leave(tasks: usize, outs: Vec<Tensor>, run: impl Fn(usize) + Send + Sync + 'static) {
    if !is_open() {
        return team::for_each(tasks, run);
    }
    if tasks > 0 {
        led(|stream| stream.publish(tasks, Work { run: Run::Owned(Box::new(run)), outs }));
    }
}

/// Calls `f(i)` for each i below `tasks`, when all that was left before is done, and returns when it has been. False if
/// this thread leads no stream.
pub(crate) fn now(tasks: usize, f: &(dyn Fn(usize) + Sync)) -> bool {
    // SAFETY: only the lifetime changes: nothing calls it once the piece is complete, which is waited for.
    let f: *const (dyn Fn(usize) + Sync + 'static) = unsafe { std::mem::transmute(f) };
    led(|stream| {
        let piece = stream.publish(tasks, Work { run: Run::Borrowed(f), outs: vec![] });
        stream.work(0, || stream.complete.load(SeqCst) > piece);
        stream.pass_panic_on();
    })
    .is_some()
}

/// Waits until as many pieces of work that write to a storage as have been counted are done.
#[cold]
pub(crate) fn wait(pending: &AtomicU32) {
    assert!(!team::is_busy(), "a task reads what a later one is to write");
    let is_there = || pending.load(SeqCst) == 0;
    let wait = |stream: &Stream| {
        stream.work(0, is_there);
        // So that the memory is its reader's alone.
        stream.free();
        stream.pass_panic_on();
    };
    if led(wait).is_none() {
        // Another thread: the leader and its members see to it.
        let mut spins = 0;
        while !is_there() {
            pause(&mut spins);
        }
    }
}

struct Closing<'a>(&'a Stream);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let stream = self.0;
        stream.work(0, || stream.complete.load(SeqCst) == stream.published.load(SeqCst));
        stream.free();
        LED.set(None);
        stream.closed.store(true, SeqCst);
    }
}

impl Stream {
    fn new(threads: usize) -> Stream {
        let place = |_| Place {
            work: UnsafeCell::new(None),
            tasks: AtomicUsize::new(0),
            first: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
        };
        Stream {
            places: (0..PLACES).map(place).collect(),
            published: AtomicUsize::new(0),
            complete: AtomicUsize::new(0),
            freed: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            at: (0..threads).map(|_| At(AtomicUsize::new(NOWHERE))).collect(),
            panic: Mutex::new(None),
        }
    }

    fn place(&self, piece: usize) -> &Place {
        &self.places[piece % PLACES]
    }

    /// By the leader: a piece that comes after all others. Its number.
    fn publish(&self, tasks: usize, work: Work) -> usize {
        let piece = self.published.load(SeqCst);
        self.work(0, || piece - self.complete.load(SeqCst) < AHEAD);
        self.free();
        let mut spins = 0;
        let held = piece.checked_sub(PLACES);
        // The piece that the place held is complete: a thread that comes to it now sees that, and goes.
        while held.is_some_and(|held| self.at.iter().any(|at| at.0.load(SeqCst) <= held)) {
            pause(&mut spins);
        }
        work.outs.iter().for_each(Tensor::count_pending);
        let place = self.place(piece);
        // SAFETY: nobody is at the piece that the place held, so nobody reads here; see `Sync`.
        unsafe { *place.work.get() = Some(work) }
        place.tasks.store(tasks, SeqCst);
        place.first.store(0, SeqCst);
        place.next.store(0, SeqCst);
        place.done.store(0, SeqCst);
        self.published.store(piece + 1, SeqCst);
        piece
    }

    /// By the leader: panics if a task has.
    fn pass_panic_on(&self) {
        let panic = self.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// By the leader: gives back the memory of what is complete. Blocks go to the thread that takes the next ones.
    fn free(&self) {
        let complete = self.complete.load(SeqCst);
        for piece in self.freed.load(SeqCst)..complete {
            // SAFETY: the piece is complete: nobody else looks at its work.
            drop(unsafe { (*self.place(piece).work.get()).take() });
        }
        self.freed.store(complete, SeqCst);
    }

    /// Does what is there to be done as thread `worker`, until `is_over`.
    fn work(&self, worker: usize, is_over: impl Fn() -> bool) {
        let at = &self.at[worker].0;
        let mut spins = 0;
        while !is_over() {
            let piece = self.complete.load(SeqCst);
            if piece == self.published.load(SeqCst) {
                pause(&mut spins);
                continue;
            }
            at.store(piece, SeqCst);
            // Still the one to do: then its place is not filled anew while this thread is at it.
            if self.complete.load(SeqCst) == piece {
                let place = self.place(piece);
                while let Some(task) = place.take(worker, self.at.len()) {
                    self.run(place, piece, task);
                }
                while self.complete.load(SeqCst) == piece && !is_over() {
                    pause(&mut spins);
                }
            }
            at.store(NOWHERE, SeqCst);
        }
    }

    /// Runs a task that was taken. A panic is kept for the leader.
    fn run(&self, place: &Place, piece: usize, task: usize) {
        // SAFETY: the piece is not complete before this task is counted.
        let work = unsafe { (*place.work.get()).as_ref() }.expect("a piece that is published has work");
        let run = AssertUnwindSafe(|| match &work.run {
            Run::Owned(run) => run(task),
            // SAFETY: whoever lent it waits until the piece is complete.
            Run::Borrowed(run) => unsafe { (**run)(task) },
        });
        if let Err(panic) = team::busy(|| catch_unwind(run)) {
            self.panic.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(panic);
        }
        if place.done.fetch_add(1, SeqCst) + 1 == place.tasks.load(SeqCst) {
            work.outs.iter().for_each(Tensor::count_filled);
            self.complete.store(piece + 1, SeqCst);
        }
    }
}

impl Place {
    /// A task for thread `worker` of so many: its own first, then the next that nobody's first is, then what others have
    /// not come for.
    fn take(&self, worker: usize, workers: usize) -> Option<usize> {
        let tasks = self.tasks.load(SeqCst);
        let own = workers.min(64).min(tasks);
        let claim = |task: usize| self.first.fetch_or(1 << task, SeqCst) & (1 << task) == 0;
        if worker < own && claim(worker) {
            return Some(worker);
        }
        if own + self.next.load(SeqCst) < tasks {
            let task = own + self.next.fetch_add(1, SeqCst);
            if task < tasks {
                return Some(task);
            }
        }
        (0..own).find(|&task| claim(task))
    }
}

/// [`scope`], as soon as no other test leads where there are several threads.
#[cfg(test)]
pub(crate) fn opened<T>(mut f: impl FnMut() -> T) -> T {
    loop {
        if let Some(out) = scope(|| (is_open() || rayon::current_num_threads() == 1).then(&mut f)) {
            return out;
        }
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bits, random};
    use crate::ops::{elementwise, glu, linear, rms_norm};
    use crate::parallel::later;
    use crate::{DType, Result};
    use std::time::Duration;

    /// In a pool of so many threads.
    fn on<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
    }

    /// x + 1, slowly.
    fn plus_one(x: &Tensor) -> Result<Tensor> {
        let mut out = Tensor::scratch(x.shape(), DType::F32)?;
        let x = x.clone();
        later::<f32, 1>([(&mut out, 1)], move |first, [out]| {
            std::thread::yield_now();
            out.iter_mut().zip(&x.checked::<f32>()[first..]).for_each(|(out, x)| *out = x + 1.0);
        })?;
        Ok(out)
    }

    #[test]
    fn pieces_are_done_in_order_and_read_when_they_are_there() {
        for threads in [1, 2, 3, 5] {
            on(threads, || {
                for pieces in [0, 1, AHEAD, PLACES + 1, 3 * PLACES] {
                    let run = || {
                        let mut x = Tensor::zeros([70_000], DType::F32).unwrap();
                        for i in 0..pieces {
                            x = plus_one(&x).unwrap();
                            if i % 50 == 49 {
                                assert_eq!(x.as_slice::<f32>().unwrap()[69_999], (i + 1) as f32);
                            }
                        }
                        x
                    };
                    let x = opened(run);
                    assert!(x.to_vec::<f32>().unwrap().iter().all(|&x| x == pieces as f32), "{threads}, {pieces}");
                }
            });
        }
    }

    #[test]
    fn each_task_is_run_once_whoever_takes_part() {
        on(3, || {
            opened(|| {
                for tasks in [1usize, 2, 3, 4, 63, 64, 65, 200] {
                    let out = Tensor::zeros([tasks], DType::F32).unwrap();
                    let counts: std::sync::Arc<Vec<AtomicUsize>> =
                        std::sync::Arc::new((0..tasks).map(|_| AtomicUsize::new(0)).collect());
                    let shared = counts.clone();
                    leave(tasks, vec![out.clone()], move |i| {
                        // Long enough that who does not wait comes too early.
                        std::thread::sleep(Duration::from_micros(200));
                        shared[i].fetch_add(1, SeqCst);
                    });
                    // Reading waits.
                    out.as_slice::<f32>().unwrap();
                    assert!(counts.iter().all(|count| count.load(SeqCst) == 1), "{tasks}");
                }
                // What an op hands out itself comes in its turn.
                let sum = AtomicUsize::new(0);
                team::for_each(100, |i| {
                    sum.fetch_add(i, SeqCst);
                });
                assert_eq!(sum.load(SeqCst), 4950);
            });
        });
    }

    #[test]
    fn ops_have_the_same_bits_inside_and_outside() {
        let layer = || -> Result<Vec<Tensor>> {
            let mut all = vec![];
            for rows in [1, 3, 16] {
                let x = random(&[rows, 96], DType::F32, 1);
                let (w, bias) = (random(&[96], DType::BF16, 2), random(&[160], DType::F32, 3));
                let maps = [random(&[160, 96], DType::F32, 4), random(&[160, 96], DType::BF16, 5)];
                let (sum, y, _) = rms_norm::forward_added(&x, &x, &w, 1e-6, 1.0)?;
                let both = linear::forward_together(&y, &[(&maps[0], Some(&bias)), (&maps[1], None)])?;
                let gated = glu::forward(glu::Act::Silu, &both[0], &both[1])?;
                let down = linear::forward(&gated, &random(&[96, 160], DType::F32, 6), None)?;
                let mut last = elementwise::add(&sum, &elementwise::scale(&down, 0.5)?)?;
                // In place, in what may still be written to.
                last.as_slice_mut::<f32>()?[0] += 1.0;
                all.extend([last, down, gated]);
            }
            Ok(all)
        };
        let want: Vec<_> = layer().unwrap().iter().map(bits).collect();
        for threads in 1..=4 {
            let got = on(threads, || opened(layer).unwrap().iter().map(bits).collect::<Vec<_>>());
            assert_eq!(got, want, "{threads} threads");
        }
    }

    #[test]
    fn another_thread_waits_for_what_it_reads() {
        on(2, || {
            opened(|| {
                let mut x = Tensor::zeros([100_000], DType::F32).unwrap();
                later::<f32, 1>([(&mut x, 1)], |_, [x]| {
                    // Long after the other thread has begun.
                    std::thread::sleep(Duration::from_millis(30));
                    x.fill(1.0);
                })
                .unwrap();
                std::thread::scope(|threads| {
                    threads.spawn(|| assert!(x.as_slice::<f32>().unwrap().iter().all(|&x| x == 1.0)));
                });
            });
        });
    }

    #[test]
    fn a_panic_of_a_task_or_of_the_leader_reaches_the_caller() {
        on(2, || {
            let text = |panic: Box<dyn Any + Send>| panic.downcast_ref::<&str>().map(|text| text.to_string());
            for _ in 0..20 {
                let task = catch_unwind(|| {
                    opened(|| {
                        let out = Tensor::zeros([4], DType::F32).unwrap();
                        leave(4, vec![out], |i| {
                            if i == 2 {
                                panic!("task two")
                            }
                        });
                    });
                });
                assert_eq!(text(task.unwrap_err()).as_deref(), Some("task two"));
                let awaited = catch_unwind(|| {
                    opened(|| {
                        team::for_each(4, |i| {
                            if i == 2 {
                                panic!("task two")
                            }
                        });
                        unreachable!("nobody goes on with what is not there");
                    })
                });
                assert_eq!(text(awaited.unwrap_err()).as_deref(), Some("task two"));
                let leader = catch_unwind(|| {
                    opened(|| {
                        plus_one(&Tensor::zeros([9], DType::F32).unwrap()).unwrap();
                        panic!("leader");
                    });
                });
                assert_eq!(text(leader.unwrap_err()).as_deref(), Some("leader"));
                assert!(!is_open());
                assert_eq!(opened(|| 7), 7);
            }
        });
    }
}
