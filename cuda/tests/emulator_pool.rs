//! The emulator's checks see through the allocator: what is lent has the size that was asked for and is new each time.

mod emulator_support;

use std::sync::Arc;

use emulator_support::{STREAM, fault, kernel, kind};
use planish_cuda::Result;
use planish_cuda::driver::{Arg, Driver, Function, Graph, Image, Launch, Stream};
use planish_cuda::emulator::{AccessKind, Emulator, FaultKind};
use planish_cuda::memory::{DeviceBuffer, Pool};

/// %a is the address x + 4t of thread t's word.
const BEGIN: &str = ".reg .b32 %t, %r; .reg .b64 %x, %a, %d; ld.param.u64 %x, [x]; mov.u32 %t, %tid.x;
    mul.wide.u32 %d, %t, 4; add.s64 %a, %x, %d;";
const READ: &str = "ld.global.u32 %r, [%a];";
const WRITE: &str = "st.global.u32 [%a], %t;";

struct Work {
    emulator: Arc<Emulator>,
    pool: Arc<Pool>,
}

impl Work {
    fn new() -> Work {
        let emulator = Arc::new(Emulator::new((8, 0)).unwrap());
        Work { pool: Pool::new(emulator.clone()), emulator }
    }

    fn function(&self, body: &str) -> Function {
        let text = kernel(".param .u64 x", &format!("{BEGIN} {body} ret;"));
        self.emulator.function(self.emulator.load(Image::Ptx(&text)).unwrap(), "k").unwrap()
    }

    fn launch(&self, body: &str, threads: u32, x: Arg<'_>, stream: Stream) -> Result<()> {
        let launch = Launch { grid: [1; 3], block: [threads, 1, 1], cluster: [1; 3], shared_bytes: 0 };
        self.emulator.launch(self.function(body), &launch, &[x], stream)
    }

    fn run(&self, body: &str, threads: u32, x: &DeviceBuffer) -> Result<()> {
        self.launch(body, threads, Arg::Ptr(x.ptr()), STREAM)
    }

    fn alloc(&self, bytes: usize) -> DeviceBuffer {
        self.pool.alloc("a test", bytes, STREAM).unwrap()
    }
}

/// The pool takes 512 bytes for 100.
#[test]
fn past_the_end_within_the_rounding() {
    for body in [WRITE, "st.global.u32 [%a], %t; ld.global.u32 %r, [%a];"] {
        let work = Work::new();
        let x = work.alloc(100);
        work.run(body, 25, &x).unwrap();
        let found = fault(work.run(body, 26, &x));
        assert_eq!(found.thread, [25, 0, 0]);
        let FaultKind::OutOfBounds { space: "global", access: AccessKind::Write, address, near, .. } = found.kind
        else {
            panic!("{found}")
        };
        assert_eq!((address, near), (x.ptr().0 + 100, Some((x.ptr().0, 100))));
    }
    // The driver's own work too.
    let work = Work::new();
    let x = work.alloc(100);
    work.emulator.fill(x.ptr(), 0, 100, STREAM).unwrap();
    assert!(work.emulator.fill(x.ptr(), 0, 101, STREAM).is_err());
    // A smaller block in the same memory ends sooner, a larger one later.
    let before = x.ptr();
    drop(x);
    let x = work.alloc(8);
    assert_eq!(x.ptr(), before);
    assert!(work.emulator.upload(x.ptr(), &[0; 9], STREAM).is_err());
    drop(x);
    let x = work.alloc(512);
    assert_eq!(x.ptr(), before);
    work.run(WRITE, 128, &x).unwrap();
    assert!(matches!(kind(work.run(WRITE, 129, &x)), FaultKind::OutOfBounds { .. }));
}

#[test]
fn a_block_that_is_lent_again_is_unwritten() {
    let work = Work::new();
    let mut x = work.alloc(256);
    let at = x.ptr();
    x.fill(0).unwrap();
    work.run(READ, 64, &x).unwrap();
    drop(x);
    // Half of it is written by whoever has it now.
    let x = work.alloc(256);
    assert_eq!(x.ptr(), at);
    work.run(WRITE, 32, &x).unwrap();
    work.run(READ, 32, &x).unwrap();
    let found = fault(work.run(READ, 33, &x));
    assert_eq!(found.thread, [32, 0, 0]);
    assert!(matches!(found.kind, FaultKind::Unwritten { space: "global", bytes: 4, .. }), "{found}");
}

#[test]
fn use_after_it_was_given_back() {
    for (body, access) in [(READ, AccessKind::Read), (WRITE, AccessKind::Write)] {
        let work = Work::new();
        let mut x = work.alloc(100);
        x.fill(0).unwrap();
        work.run(body, 25, &x).unwrap();
        let at = x.ptr();
        drop(x);
        let error = work.emulator.download(&mut [0; 4], at, STREAM).unwrap_err().to_string();
        assert!(error.contains("that the pool has back"), "{error}");
        let found = kind(work.launch(body, 25, Arg::Ptr(at), STREAM));
        assert_eq!(found, FaultKind::UseAfterReclaim { access, address: at.0, base: at.0, bytes: 512 });
    }
    // Given back to the driver, it is gone for good.
    let work = Work::new();
    let at = work.alloc(100).ptr();
    work.pool.release().unwrap();
    assert_eq!(work.emulator.free_memory().unwrap(), work.emulator.properties().memory_bytes);
    let found = kind(work.launch(READ, 1, Arg::Ptr(at), STREAM));
    assert_eq!(found, FaultKind::UseAfterFree { access: AccessKind::Read, address: at.0, base: at.0, bytes: 512 });
}

type Again<'a> = &'a dyn Fn(&Work, DeviceBuffer, Stream) -> Result<()>;

/// Whether a fault is the one to be found.
type Is = fn(&FaultKind) -> bool;

/// Records that a block is lent and written, and what comes then.
fn record(work: &Work, again: Again<'_>) -> (Stream, Graph) {
    let stream = work.emulator.create_stream().unwrap();
    // There before the recording, as `Queue::record` sees to.
    drop(work.pool.alloc("a test", 100, stream).unwrap());
    work.emulator.begin_capture(stream).unwrap();
    let x = work.pool.alloc("a test", 100, stream).unwrap();
    work.launch(WRITE, 25, Arg::Ptr(x.ptr()), stream).unwrap();
    // Nothing runs yet, so nothing is wrong yet.
    again(work, x, stream).unwrap();
    (stream, work.emulator.end_capture(stream).unwrap())
}

#[test]
fn recorded_work_lends_and_reclaims_each_time() {
    let work = Work::new();
    // The block is used while it is lent, given back, and lent again within one recording.
    let (stream, graph) = record(&work, &|work, x, stream| {
        work.launch(READ, 25, Arg::Ptr(x.ptr()), stream)?;
        drop(x);
        let y = work.pool.alloc("a test", 8, stream)?;
        work.launch("st.global.u32 [%a], %t; ld.global.u32 %r, [%a];", 2, Arg::Ptr(y.ptr()), stream)
    });
    for _ in 0..2 {
        work.emulator.launch_graph(graph, stream).unwrap();
    }
    // Whoever gets it between two runs gets it as new.
    let x = work.pool.alloc("a test", 100, stream).unwrap();
    assert!(matches!(kind(work.launch(READ, 1, Arg::Ptr(x.ptr()), stream)), FaultKind::Unwritten { .. }));
}

#[test]
fn recorded_work_is_checked_when_it_runs() {
    let wrong: [(Again<'_>, Is); 3] = [
        // After it was given back.
        (
            &|work, x, stream| {
                let at = x.ptr();
                drop(x);
                work.launch(READ, 1, Arg::Ptr(at), stream)
            },
            |kind| matches!(kind, FaultKind::UseAfterReclaim { .. }),
        ),
        // Lent again, what it held before counts for nothing.
        (
            &|work, x, stream| {
                drop(x);
                let y = work.pool.alloc("a test", 100, stream)?;
                work.launch(READ, 1, Arg::Ptr(y.ptr()), stream)
            },
            |kind| matches!(kind, FaultKind::Unwritten { .. }),
        ),
        // Lent again for less.
        (
            &|work, x, stream| {
                drop(x);
                let y = work.pool.alloc("a test", 96, stream)?;
                work.launch(WRITE, 25, Arg::Ptr(y.ptr()), stream)
            },
            |kind| matches!(kind, FaultKind::OutOfBounds { .. }),
        ),
    ];
    for (again, is) in wrong {
        let work = Work::new();
        let (stream, graph) = record(&work, again);
        let found = kind(work.emulator.launch_graph(graph, stream));
        assert!(is(&found), "{found}");
    }
}
