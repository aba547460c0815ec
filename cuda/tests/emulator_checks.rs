//! Each check of the emulator catches a broken kernel, and lets its correct twin pass.

mod emulator_support;

use emulator_support::{Device, fault, kernel, kind};
use planish_cuda::driver::{Arg, DevicePtr, Driver};
use planish_cuda::emulator::{AccessKind, Emulator, FaultKind};

/// Registers, the argument `x` in %x, the thread's number in %t and its address x + 4t in %a, a word in shared memory.
const BEGIN: &str = "
    .reg .pred %p, %q;
    .reg .b16 %h;
    .reg .b32 %t, %s, %r<9>;
    .reg .b64 %x, %y, %a, %d;
    .shared .align 16 .b8 words[1024];
    ld.param.u64 %x, [x];
    mov.u32 %t, %tid.x;
    mul.wide.u32 %d, %t, 4;
    add.s64 %a, %x, %d;
    mov.u32 %s, words;
    shl.b32 %r8, %t, 2;
    add.u32 %s, %s, %r8;
";

fn module(body: &str) -> String {
    kernel(".param .u64 x", &format!("{BEGIN}{body}\nret;"))
}

/// Runs a body in one block on an array of 64 written words.
fn run(body: &str, threads: u32) -> planish_cuda::Result<()> {
    let device = Device::new(&module(body));
    let x = device.u32s(&(0..64).collect::<Vec<u32>>());
    device.launch("k", [1; 3], [threads, 1, 1], 0, &[Arg::Ptr(x)])
}

/// Runs a body that must pass, and gives what it left in the array.
fn passes(body: &str, threads: u32) -> Vec<u32> {
    let device = Device::new(&module(body));
    let x = device.u32s(&(0..64).collect::<Vec<u32>>());
    device.launch("k", [1; 3], [threads, 1, 1], 0, &[Arg::Ptr(x)]).unwrap();
    device.read_u32(x, 64)
}

#[test]
fn global_bounds() {
    let body = "ld.global.u32 %r1, [%a+4]; st.global.u32 [%a], %r1;";
    passes(body, 63);
    let found = fault(run(body, 64));
    assert_eq!((found.thread, found.block, found.kernel.as_str()), ([63, 0, 0], [0; 3], "k"));
    assert!(found.at.text.starts_with("ld.global.u32 %r1, [%a+4]"), "{found}");
    let FaultKind::OutOfBounds { space: "global", access: AccessKind::Read, address, bytes: 4, near } = found.kind
    else {
        panic!("{found}")
    };
    let (base, size) = near.unwrap();
    assert_eq!((address - base, size), (256, 256));
    // Before the beginning, and a null pointer.
    assert!(matches!(
        kind(run("st.global.u32 [%x+-4], %t;", 1)),
        FaultKind::OutOfBounds { access: AccessKind::Write, .. }
    ));
    let null = "mov.u64 %x, 0; ld.u32 %r1, [%x];";
    assert!(matches!(kind(run(null, 1)), FaultKind::OutOfBounds { near: None, .. }));
    // The very end of all addresses.
    for body in [
        "mov.u64 %x, -1; ld.global.u8 %r1, [%x];",
        "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%x];",
        "atom.global.add.u64 %d, [%x], 1;",
        "cp.async.cg.shared.global [words], [%x], 16;",
        "st.shared.u64 [%x], %d;",
        "ld.u64 %d, [%x];",
        "ld.local.u64 %d, [%x];",
    ] {
        let body = format!("mov.u64 %x, -16; {body}");
        assert!(matches!(kind(run(&body, 1)), FaultKind::OutOfBounds { .. }), "{body}");
    }
    // A vector that only begins inside.
    let device = Device::new(&module("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%x];"));
    let x = device.u32s(&[1, 2, 3]);
    let found = kind(device.launch("k", [1; 3], [1; 3], 0, &[Arg::Ptr(x)]));
    assert!(matches!(found, FaultKind::OutOfBounds { bytes: 16, .. }), "{found}");
}

#[test]
fn a_fault_ends_everything() {
    let device = Device::new(&module("st.global.u32 [%a], %t;"));
    let x = device.empty(4);
    let first = device.launch("k", [1; 3], [2, 1, 1], 0, &[Arg::Ptr(x)]).unwrap_err();
    assert_eq!(device.emulator.synchronize(emulator_support::STREAM).unwrap_err(), first);
    assert_eq!(device.emulator.alloc(4, emulator_support::STREAM).unwrap_err(), first);
}

#[test]
fn use_after_free() {
    let device = Device::new(&module("ld.global.u32 %r1, [%a];"));
    let x = device.u32s(&[1, 2]);
    device.launch("k", [1; 3], [2, 1, 1], 0, &[Arg::Ptr(x)]).unwrap();
    device.emulator.free(x, emulator_support::STREAM).unwrap();
    let found = kind(device.launch("k", [1; 3], [2, 1, 1], 0, &[Arg::Ptr(x)]));
    assert!(matches!(found, FaultKind::UseAfterFree { bytes: 8, .. }), "{found}");
}

#[test]
fn misalignment() {
    let misaligned = |body| matches!(kind(run(body, 1)), FaultKind::Misaligned { .. });
    assert!(misaligned("ld.global.u32 %r1, [%x+2];"));
    assert!(misaligned("ld.global.v2.u32 {%r1, %r2}, [%x+4];"));
    assert!(misaligned("st.shared.u32 [words+1], %t;"));
    assert!(misaligned("st.shared.u32 [words], %t; st.shared.u32 [words+4], %t; ld.shared.u64 %d, [words+4];"));
    assert!(misaligned("cp.async.ca.shared.global [words], [%x+2], 4;"));
    passes("ld.global.v2.u32 {%r1, %r2}, [%x+8]; ld.global.u16 %h, [%x+2]; st.shared.u8 [words+1], %t;", 1);
}

#[test]
fn unwritten_global_memory() {
    let device = Device::new(&module("ld.global.u32 %r1, [%a]; st.global.u32 [%a], %r1;"));
    let x = device.empty(256);
    device.emulator.fill(x, 0, 128, emulator_support::STREAM).unwrap();
    device.launch("k", [1; 3], [32, 1, 1], 0, &[Arg::Ptr(x)]).unwrap();
    let found = fault(device.launch("k", [1; 3], [33, 1, 1], 0, &[Arg::Ptr(x)]));
    assert_eq!(found.thread, [32, 0, 0]);
    assert!(matches!(found.kind, FaultKind::Unwritten { space: "global", bytes: 4, .. }), "{found}");
    // What a kernel writes counts, and a copy takes it along.
    let device = Device::new(&module("st.global.u16 [%a], %t; @%p bra END; ld.global.u16 %h, [%a]; END:"));
    let (x, y) = (device.empty(256), device.empty(256));
    device.launch("k", [1; 3], [64, 1, 1], 0, &[Arg::Ptr(x)]).unwrap();
    device.emulator.copy(y, x, 256, emulator_support::STREAM).unwrap();
    let reader = device.emulator.load(planish_cuda::driver::Image::Ptx(&module("ld.global.u16 %h, [%a];"))).unwrap();
    let upper = device.emulator.load(planish_cuda::driver::Image::Ptx(&module("ld.global.u16 %h, [%a+2];"))).unwrap();
    let device = Device { module: reader, ..device };
    device.launch("k", [1; 3], [64, 1, 1], 0, &[Arg::Ptr(y)]).unwrap();
    let device = Device { module: upper, ..device };
    let found = kind(device.launch("k", [1; 3], [64, 1, 1], 0, &[Arg::Ptr(y)]));
    assert!(matches!(found, FaultKind::Unwritten { .. }), "{found}");
    // The check can be off.
    let device = Device::unchecked(&module("ld.global.u32 %r1, [%a];"), |checks| checks.unwritten = false);
    let x = device.empty(4);
    device.launch("k", [1; 3], [1; 3], 0, &[Arg::Ptr(x)]).unwrap();
}

#[test]
fn unwritten_shared_memory() {
    let found = kind(run("ld.shared.u32 %r1, [%s];", 1));
    assert!(matches!(found, FaultKind::Unwritten { space: "shared", .. }), "{found}");
    passes("st.shared.u32 [%s], %t; ld.shared.u32 %r1, [%s];", 64);
    let found = kind(run("ld.shared.u32 %r1, [words+1024];", 1));
    assert!(matches!(found, FaultKind::OutOfBounds { space: "shared", .. }), "{found}");
}

/// Each thread writes a word and reads its neighbour's (thread ^ 32, of another warp, or ^ 1, of its own).
fn exchange(between: &str, xor: u32) -> String {
    format!(
        "st.shared.u32 [%s], %t; {between} xor.b32 %r1, %t, {xor}; mov.u32 %r2, words; shl.b32 %r3, %r1, 2;
         add.u32 %r2, %r2, %r3; ld.shared.u32 %r4, [%r2]; st.global.u32 [%a], %r4;"
    )
}

#[test]
fn races_between_warps() {
    let got = passes(&exchange("bar.sync 0;", 32), 64);
    assert_eq!(got, (0..64).map(|t| t ^ 32).collect::<Vec<u32>>());
    // A warp's own sync does not order another warp. (What comes before makes every word written.)
    let body = format!("st.shared.u32 [%s], %t; bar.sync 0; {}", exchange("bar.warp.sync -1;", 32));
    let found = fault(run(&body, 64));
    let FaultKind::Race { access, other, other_thread, other_at, .. } = &found.kind else { panic!("{found}") };
    // One warp writes what the other has read.
    assert_eq!((*access, *other), (AccessKind::Write, AccessKind::Read));
    assert_eq!(found.thread[0], other_thread ^ 32);
    assert!(found.at.text.contains("st.shared.u32") && other_at.text.contains("ld.shared.u32"), "{found}");
    assert!(found.to_string().contains("no barrier between them"), "{found}");
    // Off, it passes.
    let device = Device::unchecked(&module(&body), |checks| checks.races = false);
    let x = device.u32s(&[0; 64]);
    device.launch("k", [1; 3], [64, 1, 1], 0, &[Arg::Ptr(x)]).unwrap();
}

#[test]
fn races_within_a_warp() {
    let got = passes(&exchange("bar.warp.sync -1;", 1), 64);
    assert_eq!(got, (0..64).map(|t| t ^ 1).collect::<Vec<u32>>());
    let found = kind(run(&exchange("", 1), 64));
    assert!(matches!(found, FaultKind::Race { access: AccessKind::Read, other: AccessKind::Write, .. }), "{found}");
    // A shuffle promises no order of memory.
    let shuffle = "shfl.sync.idx.b32 %r5, %t, 0, 31, -1;";
    assert!(matches!(kind(run(&exchange(shuffle, 1), 64)), FaultKind::Race { .. }));
    // All lanes may write one value to one place, but not different ones.
    passes("mov.u32 %r1, 7; st.shared.u32 [words], %r1;", 32);
    let found = kind(run("st.shared.u32 [words], %t;", 32));
    assert!(matches!(found, FaultKind::Race { other: AccessKind::Write, .. }), "{found}");
}

#[test]
fn neighbours_in_a_word_do_not_race() {
    let body = "mov.u32 %s, words; add.u32 %s, %s, %t; st.shared.u8 [%s], %t; ld.shared.u8 %r1, [%s];
        st.global.u32 [%a], %r1;";
    assert_eq!(passes(body, 64), (0..64).collect::<Vec<u32>>());
}

#[test]
fn atomics_race_with_stores_only() {
    let body = "setp.ne.u32 %p, %t, 0; @%p bra GO; st.shared.u32 [words], 0; GO: bar.sync 0;
        atom.shared.add.u32 %r1, [words], 1; bar.sync 0; ld.shared.u32 %r2, [words]; st.global.u32 [%a], %r2;";
    let body = &body.replace("[words], 0;", "[words], %t;");
    assert_eq!(passes(body, 64), [64; 64]);
    let found = kind(run(&body.replace("bar.sync 0; ld", "ld"), 64));
    assert!(matches!(found, FaultKind::Race { .. }), "{found}");
}

#[test]
fn divergent_barriers() {
    let body = "setp.lt.u32 %p, %t, 16; @%p bra LOW; bar.sync 0; bra END; LOW: bar.sync 0; END:";
    let found = kind(run(body, 32));
    assert_eq!(found, FaultKind::DivergentBarrier { reached: 0xffff_0000, alive: u32::MAX });
    passes(&body.replace("%t, 16", "%t, 32"), 64);
    let found = kind(run("setp.lt.u32 %p, %t, 16; @%p bar.sync 0;", 32));
    assert_eq!(found, FaultKind::DivergentBarrier { reached: 0xffff, alive: u32::MAX });
    // `barrier.sync` without `.aligned` counts threads one by one.
    passes(&body.replace("bar.sync", "barrier.sync"), 32);
}

#[test]
fn barriers_that_not_all_reach() {
    let body = "setp.lt.u32 %p, %t, 32; @%p bra END; bar.sync 0; END:";
    let found = kind(run(body, 96));
    assert_eq!(found, FaultKind::BarrierNotReached { barrier: 0, waiting: 64, needed: 96, finished: 32 });
    passes("bar.sync 0;", 96);
    let device = Device::unchecked(&module(body), |checks| checks.finished_at_barrier = false);
    device.launch("k", [1; 3], [96, 1, 1], 0, &[Arg::Ptr(DevicePtr(0))]).unwrap();
    // A number of threads that never comes.
    let found = kind(run("setp.lt.u32 %p, %t, 32; @%p bra END; bar.sync 1, 64; END:", 64));
    assert_eq!(found, FaultKind::BarrierNotReached { barrier: 1, waiting: 32, needed: 64, finished: 32 });
    assert!(matches!(kind(run("bar.sync 16;", 32)), FaultKind::BadBarrier { barrier: 16, .. }));
    assert!(matches!(kind(run("bar.sync 0, 33;", 64)), FaultKind::BadBarrier { threads: 33, .. }));
}

#[test]
fn barriers_in_another_order() {
    // The first warp goes to one barrier first, the second to the other.
    let body = |first: u32, second: u32| {
        format!(
            "setp.lt.u32 %p, %t, 32; @%p bra LOW; bar.sync {first}; bar.sync {second}; bra END;
             LOW: bar.sync 1; bar.sync 2; END:"
        )
    };
    passes(&body(1, 2), 64);
    assert_eq!(kind(run(&body(2, 1), 64)), FaultKind::Deadlock { barrier: 1, other: 2 });
}

#[test]
fn branches_by_an_index_that_the_table_lacks() {
    let body = "T: .branchtargets L0, L1; brx.idx %t, T;
        L0: mov.u32 %r1, 5; bra END; L1: mov.u32 %r1, 6; END: st.global.u32 [%a], %r1;";
    assert_eq!(passes(body, 2)[..2], [5, 6]);
    let found = fault(run(body, 3));
    assert_eq!((found.kind, found.thread), (FaultKind::BranchIndex { index: 2 }, [2, 0, 0]));
}

/// Copies four words a thread; `wait` stands before the barrier that all readers pass.
fn copies(wait: &str) -> String {
    format!(
        "mul.lo.u32 %r1, %t, 16; mov.u32 %r2, words; add.u32 %r2, %r2, %r1; cvt.u64.u32 %d, %r1; add.u64 %y, %x, %d;
         cp.async.cg.shared.global [%r2], [%y], 16; cp.async.commit_group; {wait} bar.sync 0;
         ld.shared.u32 %r4, [words+12]; st.global.u32 [%a], %r4;"
    )
}

#[test]
fn copies_that_nobody_waited_for() {
    assert_eq!(passes(&copies("cp.async.wait_group 0;"), 16)[..16], [3; 16]);
    passes(&copies("cp.async.wait_all;"), 16);
    for wait in ["", "cp.async.wait_group 1;"] {
        let found = kind(run(&copies(wait), 16));
        let FaultKind::PendingCopy { copier: 0, copy, .. } = found else { panic!("{found}") };
        assert!(copy.text.contains("cp.async.cg.shared.global"));
    }
    // Waited for, but by the copying thread alone: others need a barrier too.
    let alone = copies("cp.async.wait_group 0;").replace("bar.sync 0;", "");
    assert!(matches!(kind(run(&alone, 16)), FaultKind::Race { .. }));
}

#[test]
fn copies_over_what_others_still_read() {
    let body = |between: &str| {
        format!(
            "st.shared.u32 [%s], %t; bar.sync 0; xor.b32 %r1, %t, 32; shl.b32 %r1, %r1, 2; mov.u32 %r2, words;
             add.u32 %r2, %r2, %r1; ld.shared.u32 %r3, [%r2]; {between}
             cp.async.ca.shared.global [%s], [%a], 4; cp.async.wait_all;"
        )
    };
    passes(&body("bar.sync 0;"), 64);
    let found = kind(run(&body(""), 64));
    // One warp copies before the other has read.
    assert!(matches!(found, FaultKind::Race { .. } | FaultKind::PendingCopy { .. }), "{found}");
}

#[test]
fn groups_of_copies_arrive_in_order() {
    // The first group is waited for and read, the second is not.
    let body = |read: &str| {
        format!(
            "cp.async.ca.shared.global [words], [%x+4], 4; cp.async.commit_group;
             cp.async.ca.shared.global [words+4], [%x+8], 4; cp.async.commit_group;
             cp.async.wait_group 1; ld.shared.u32 %r1, [{read}]; st.global.u32 [%x], %r1;"
        )
    };
    assert_eq!(passes(&body("words"), 1)[0], 1);
    assert!(matches!(kind(run(&body("words+4"), 1)), FaultKind::PendingCopy { .. }));
    // Fewer bytes than asked for: zeros fill the rest.
    let body = "mov.u32 %r1, 4; cp.async.ca.shared.global [words], [%x+8], 8, %r1; cp.async.wait_all;
        ld.shared.v2.u32 {%r2, %r3}, [words]; st.global.v2.u32 [%x], {%r2, %r3};";
    assert_eq!(passes(body, 1)[..2], [2, 0]);
}

#[test]
fn shuffles_of_lanes_that_do_not_come() {
    let body = "setp.lt.u32 %p, %t, 16; @%p bra LOW; shfl.sync.bfly.b32 %r1, %t, 1, 31, -1; bra END;
        LOW: shfl.sync.bfly.b32 %r1, %t, 1, 31, -1; END:";
    let found = kind(run(body, 32));
    assert_eq!(found, FaultKind::WarpNotJoined { named: u32::MAX, reached: 0xffff_0000 });
    passes(&body.replace("-1; bra", "0xffff0000; bra").replace("-1; END", "0xffff; END"), 32);
    // Lanes that have finished need not come.
    passes("setp.lt.u32 %p, %t, 16; @%p bra END; shfl.sync.bfly.b32 %r1, %t, 1, 31, -1; END:", 32);
}

#[test]
fn shuffles_name_who_takes_part() {
    let found = kind(run("shfl.sync.bfly.b32 %r1, %t, 1, 31, 0xffff;", 32));
    assert_eq!(found, FaultKind::NotAMember { mask: 0xffff });
    let half = "setp.ge.u32 %p, %t, 16; @%p bra END; shfl.sync.bfly.b32 %r1, %t, {by}, 31, 0xffff; END:";
    passes(&half.replace("{by}", "8"), 32);
    let found = kind(run(&half.replace("{by}", "16"), 32));
    assert_eq!(found, FaultKind::ShuffleFromOutside { source: 16, members: 0xffff });
}

#[test]
fn read_only_memory_traps_hangs() {
    let constant = ".version 8.0\n.target sm_80\n.address_size 64\n.const .align 4 .u32 c = 5;
        .visible .entry k(.param .u64 x) { .reg .b32 %r; .reg .b64 %x; mov.u64 %x, c; ld.const.u32 %r, [c]; st.global.u32 [%x], %r; }";
    let device = Device::new(constant);
    let found = kind(device.launch("k", [1; 3], [1; 3], 0, &[Arg::U64(0)]));
    assert!(matches!(found, FaultKind::ReadOnly { .. }), "{found}");
    let device = Device::new(&constant.replace("mov.u64 %x, c;", "ld.param.u64 %x, [x];"));
    let x = device.empty(4);
    device.launch("k", [1; 3], [1; 3], 0, &[Arg::Ptr(x)]).unwrap();
    assert_eq!(device.read_u32(x, 1), [5]);
    assert_eq!(kind(run("trap;", 1)), FaultKind::Trap);
    passes("setp.gt.u32 %p, %t, 100; @%p trap;", 32);
    let hangs = |times: u32| {
        let body = format!("mov.u32 %r1, 0; L: add.u32 %r1, %r1, 1; setp.ne.u32 %p, %r1, {times}; @%p bra L;");
        let device = Device::with(Emulator::new((8, 0)).unwrap().with_budget(10_000), &module(&body));
        device.launch("k", [1; 3], [1; 3], 0, &[Arg::U64(0)])
    };
    hangs(1000).unwrap();
    let found = kind(hangs(0));
    assert!(matches!(found, FaultKind::OutOfBudget { .. }), "{found}");
}
