//! Threads that wait for short work: a kernel's tasks are handed out in about a microsecond.
//!
//! A decoding step is some two hundred products of some tens of microseconds each. A pool that steals work
//! loses ten of them at every one; here the members spin for a moment before they sleep, and take task
//! numbers from one counter. Which member runs a task never matters to its result.
//!
//! One job at a time: work that comes while there is one, from another thread or from inside a task, goes to
//! the general pool or is done where it is.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, TryLockError};

use rayon::prelude::*;

use crate::stream;

/// Looks at the counter before a member sleeps: some tens of microseconds.
const SPINS: u32 = 4096;

/// What is to be done: `f(i)` for each task i. The lifetime is that of the call which waits for it.
#[derive(Clone, Copy)]
struct Job {
    f: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    /// Members below this number take part.
    members: usize,
}

struct Team {
    /// Number of the job, from 1.
    epoch: AtomicU64,
    /// Whether members may still begin with it.
    open: AtomicBool,
    /// Members that look at it.
    inside: AtomicUsize,
    /// Next task.
    next: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    asleep: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
}

// SAFETY: `job` is written only by the thread that holds `LEAD`, while no member is inside; members read it
// only while they are (see `lead` and `member`). The closure it points to is Sync.
unsafe impl Sync for Team {}

static TEAM: Team = Team {
    epoch: AtomicU64::new(0),
    open: AtomicBool::new(false),
    inside: AtomicUsize::new(0),
    next: AtomicUsize::new(0),
    job: UnsafeCell::new(None),
    panic: Mutex::new(None),
    asleep: AtomicUsize::new(0),
    bed: Mutex::new(()),
    bell: Condvar::new(),
};

/// Held while a job is led; how many members have been started.
static LEAD: Mutex<usize> = Mutex::new(0);

thread_local! {
    /// Whether this thread runs a task: work inside it is not handed out again.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// Calls `f(i)` for each i below `n`, on as many threads as the current pool has; returns when all are done.
///
/// # Panics
/// If a call does.
pub(crate) fn for_each(n: usize, f: impl Fn(usize) + Sync) {
    all(n, &f);
}

/// As [`for_each`], compiled once and not for each of some hundred closures: the general pool's code is long.
fn all(n: usize, f: &(dyn Fn(usize) + Sync)) {
    let threads = rayon::current_num_threads().min(n);
    if threads <= 1 || BUSY.get() {
        return (0..n).for_each(f);
    }
    if stream::now(n, f) {
        return;
    }
    match LEAD.try_lock() {
        Ok(mut started) => lead(&mut started, threads - 1, n, f),
        // A task of an earlier job panicked; the job was over by then.
        Err(TryLockError::Poisoned(lock)) => lead(&mut lock.into_inner(), threads - 1, n, f),
        Err(TryLockError::WouldBlock) => (0..n).into_par_iter().with_max_len(1).for_each(f),
    }
}

fn lead(started: &mut usize, members: usize, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
    let job = begin(started, members, tasks, f);
    take_tasks(job.f, tasks);
    drop(job);
    if let Some(panic) = TEAM.panic.lock().unwrap_or_else(|e| e.into_inner()).take() {
        resume_unwind(panic);
    }
}

/// Calls `member(i)` once on up to `members` other threads, i below that, and `lead` on this one; returns when all have
/// returned. Members are not to panic. None, and nothing is called, where there is no other thread, or they have work.
pub(crate) fn beside<T>(members: usize, member: &(dyn Fn(usize) + Sync), lead: impl FnOnce() -> T) -> Option<T> {
    if BUSY.get() {
        return None;
    }
    let mut started = match LEAD.try_lock() {
        Ok(started) => started,
        Err(TryLockError::Poisoned(lock)) => lock.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    let _job = begin(&mut started, members, members, member);
    (*started > 0).then(lead)
}

/// Whether this thread runs a task.
pub(crate) fn is_busy() -> bool {
    BUSY.get()
}

/// Calls `f`; work inside it is not handed out.
pub(crate) fn busy<T>(f: impl FnOnce() -> T) -> T {
    let was = BUSY.replace(true);
    let out = f();
    BUSY.set(was);
    out
}

/// Between two looks at what another thread is about to do, which may have lost its core to another program.
pub(crate) fn pause(spins: &mut u32) {
    *spins = spins.wrapping_add(1);
    if spins.is_multiple_of(SPINS) { std::thread::yield_now() } else { std::hint::spin_loop() }
}

/// A job that members may take part in, until this is dropped; which waits for those who do.
struct Open {
    f: *const (dyn Fn(usize) + Sync),
}

fn begin(started: &mut usize, members: usize, tasks: usize, f: &(dyn Fn(usize) + Sync)) -> Open {
    while *started < members {
        let number = *started;
        let thread = std::thread::Builder::new().name(format!("planish-{number}"));
        // Fewer members than wished for are no harm: the leader does what is left.
        if thread.spawn(move || member(number)).is_err() {
            break;
        }
        *started += 1;
    }
    // SAFETY: only the lifetime changes: nothing reads the job after `open` is false and nobody is inside,
    // which dropping `Open` waits for, also if a task panics.
    let f: *const (dyn Fn(usize) + Sync + 'static) = unsafe { std::mem::transmute(f) };
    // SAFETY: LEAD is held, and the last job was left by all.
    unsafe { *TEAM.job.get() = Some(Job { f, tasks, members }) };
    TEAM.next.store(0, SeqCst);
    TEAM.open.store(true, SeqCst);
    TEAM.epoch.fetch_add(1, SeqCst);
    if TEAM.asleep.load(SeqCst) > 0 {
        drop(TEAM.bed.lock());
        TEAM.bell.notify_all();
    }
    Open { f }
}

impl Drop for Open {
    fn drop(&mut self) {
        TEAM.open.store(false, SeqCst);
        let mut spins = 0;
        while TEAM.inside.load(SeqCst) > 0 {
            pause(&mut spins);
        }
    }
}

/// Runs tasks until none is left. A panic ends them and is kept for the leader.
fn take_tasks(f: *const (dyn Fn(usize) + Sync), tasks: usize) {
    BUSY.set(true);
    let run = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let i = TEAM.next.fetch_add(1, SeqCst);
            if i >= tasks {
                break;
            }
            // SAFETY: the leader waits until nobody is inside, so the closure lives.
            unsafe { (*f)(i) }
        }
    }));
    BUSY.set(false);
    if let Err(panic) = run {
        TEAM.next.store(tasks, SeqCst);
        TEAM.panic.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(panic);
    }
}

fn member(number: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while TEAM.epoch.load(SeqCst) == seen {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            let mut bed = TEAM.bed.lock().unwrap_or_else(|e| e.into_inner());
            TEAM.asleep.fetch_add(1, SeqCst);
            while TEAM.epoch.load(SeqCst) == seen {
                bed = TEAM.bell.wait(bed).unwrap_or_else(|e| e.into_inner());
            }
            TEAM.asleep.fetch_sub(1, SeqCst);
        }
        seen = TEAM.epoch.load(SeqCst);
        // Inside first, then a look whether the job is still this one and open: the leader closes first, then
        // looks who is inside. One of the two sees the other.
        TEAM.inside.fetch_add(1, SeqCst);
        if TEAM.open.load(SeqCst) && TEAM.epoch.load(SeqCst) == seen {
            // SAFETY: the job is open and this thread inside, so the leader does not write it.
            if let Some(job) = unsafe { *TEAM.job.get() }.filter(|job| number < job.members) {
                take_tasks(job.f, job.tasks);
            }
        }
        TEAM.inside.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once_from_any_thread_and_inside_tasks() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
                    pool.install(|| {
                        for n in (0..200).chain([10_000]) {
                            let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                            let inner = AtomicUsize::new(0);
                            for_each(n, |i| {
                                counts[i].fetch_add(1, SeqCst);
                                if i < 3 {
                                    for_each(5, |_| {
                                        inner.fetch_add(1, SeqCst);
                                    });
                                }
                            });
                            assert!(counts.iter().all(|c| c.load(SeqCst) == 1), "{n}");
                            assert_eq!(inner.load(SeqCst), 5 * n.min(3));
                        }
                    });
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        // Through the team itself: `for_each` would go to the general pool while another test leads.
        let team = |n: usize, f: &(dyn Fn(usize) + Sync)| {
            let mut started = LEAD.lock().unwrap_or_else(|e| e.into_inner());
            lead(&mut started, 1, n, f);
        };
        for _ in 0..50 {
            let run = || team(20, &|i| assert_ne!(i, 7, "task seven"));
            let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            assert!(text.contains("task seven"), "{text}");
            let done = AtomicUsize::new(0);
            team(9, &|_| {
                done.fetch_add(1, SeqCst);
            });
            assert_eq!(done.load(SeqCst), 9);
        }
        // After a panic under the lock, work still goes to the team and not past it.
        assert!(LEAD.is_poisoned());
        assert!(matches!(LEAD.try_lock(), Err(TryLockError::Poisoned(_) | TryLockError::WouldBlock)));
    }
}
