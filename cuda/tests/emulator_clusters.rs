//! Clusters: blocks that meet, arrive at one another's mbarriers and copy into one another's shared memory; and what is against
//! their rules, each with a kernel that breaks one.

mod emulator_support;

use emulator_support::{Device, STREAM, fault, kind};
use planish_cuda::Result;
use planish_cuda::driver::{Arg, DevicePtr, Driver, Fill, Launch, Swizzle, TENSOR_MAP_BYTES, TensorMap};
use planish_cuda::emulator::{AccessKind, Emulator, FaultKind};
use planish_cuda::{DType, Error};

fn launch(device: &Device, grid: [u32; 3], cluster: [u32; 3], threads: u32, args: &[Arg<'_>]) -> Result<()> {
    let function = device.emulator.function(device.module, "k")?;
    let launch = Launch { grid, block: [threads, 1, 1], cluster, shared_bytes: 0 };
    device.emulator.launch(function, &launch, args, STREAM)
}

fn hopper(text: &str) -> Device {
    Device::with(Emulator::new((9, 0)).unwrap().with_budget(200_000), text)
}

/// Registers, the rank in %rank, the address of `o` in %o, and threads but the first of a block at END.
const HEAD: &str = ".version 8.0\n.target sm_90a\n.address_size 64
    .visible .entry k(.param .align 64 .b8 map[128], .param .u64 x, .param .u64 o) {
    .reg .pred %p; .reg .b16 %h; .reg .b32 %t, %rank, %other, %r<9>; .reg .b64 %m, %x, %o, %d, %w;
    .shared .align 1024 .b8 box[1024]; .shared .align 8 .b8 bar[8]; .shared .align 8 .b8 ready[8];
    mov.b64 %m, map; cvta.param.u64 %m, %m; ld.param.u64 %x, [x]; ld.param.u64 %o, [o];
    mov.u32 %t, %tid.x; mov.u32 %rank, %cluster_ctarank; xor.b32 %other, %rank, 1;";

const MEET: &str = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;";

/// A run in clusters of two blocks, with pieces replaced. `x`: 100 to 163, also as a map of 16 x 4 words; `o`: 1 KiB of zeros.
fn run(text: &str, change: &[(&str, &str)], threads: u32, grid: u32) -> (Device, DevicePtr, Result<()>) {
    let mut text = text.to_owned();
    for (old, new) in change {
        assert!(text.contains(old), "{old} is not there");
        text = text.replace(old, new);
    }
    let device = hopper(&text);
    let x = device.u32s(&(0..64).map(|i| 100 + i).collect::<Vec<u32>>());
    let o = device.u32s(&[0; 256]);
    let map = TensorMap {
        base: x,
        dtype: DType::F32,
        sizes: &[16, 4],
        strides: &[64],
        tile: &[16, 4],
        swizzle: Swizzle::None,
        fill: Fill::Zeros,
    };
    let map: [u8; TENSOR_MAP_BYTES] = device.emulator.tensor_map(&map).unwrap();
    let result = launch(&device, [grid, 1, 1], [2, 1, 1], threads, &[Arg::Bytes(&map), Arg::Ptr(x), Arg::Ptr(o)]);
    (device, o, result)
}

fn fails(text: &str, change: &[(&str, &str)]) -> FaultKind {
    kind(run(text, change, 32, 2).2)
}

#[test]
fn registers_say_where_a_block_stands() {
    let names = ["ctarank", "nctarank", "ctaid.x", "ctaid.y", "ctaid.z", "nctaid.x", "nctaid.y", "nctaid.z"];
    let mut registers: Vec<String> = names.map(|name| format!("%cluster_{name}")).to_vec();
    registers.extend(["x", "y", "z"].map(|axis| format!("%clusterid.{axis}")));
    registers.extend(["x", "y", "z"].map(|axis| format!("%nclusterid.{axis}")));
    registers.extend(["x", "y", "z"].map(|axis| format!("%ctaid.{axis}")));
    let stores: String = registers
        .iter()
        .enumerate()
        .map(|(at, name)| format!("mov.u32 %r0, {name}; st.global.u32 [%o+{}], %r0;\n", 4 * at))
        .collect();
    let text = format!(
        ".version 8.0\n.target sm_90\n.address_size 64
        .visible .entry k(.param .u64 o) {{ .reg .b32 %r<4>; .reg .b64 %o, %d; ld.param.u64 %o, [o];
        mov.u32 %r0, %ctaid.y; mov.u32 %r1, %nctaid.x; mov.u32 %r2, %ctaid.x; mad.lo.u32 %r0, %r0, %r1, %r2;
        mul.wide.u32 %d, %r0, 68; add.u64 %o, %o, %d; {stores} ret; }}"
    );
    let device = hopper(&text);
    let o = device.empty(24 * 68);
    launch(&device, [6, 4, 1], [3, 2, 1], 1, &[Arg::Ptr(o)]).unwrap();
    let got = device.read_u32(o, 24 * 17);
    for (block, got) in got.chunks_exact(17).enumerate() {
        let (x, y) = (block as u32 % 6, block as u32 / 6);
        let rank = x % 3 + y % 2 * 3;
        assert_eq!(got, [rank, 6, x % 3, y % 2, 0, 3, 2, 1, x / 3, y / 2, 0, 2, 2, 1, x, y, 0]);
    }
}

#[test]
fn launches_are_made_of_clusters() {
    let text = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() { ret; }";
    let refused = |device: &Device, grid, cluster, words: &str| {
        let error = launch(device, grid, cluster, 1, &[]).unwrap_err();
        assert!(matches!(error, Error::Launch { .. }) && error.to_string().contains(words), "{error}");
    };
    let device = hopper(text);
    launch(&device, [6, 2, 4], [3, 1, 2], 1, &[]).unwrap();
    refused(&device, [5, 1, 1], [2, 1, 1], "a grid of 5 x 1 x 1 blocks is not made of clusters of 2 x 1 x 1");
    refused(&device, [16, 1, 1], [16, 1, 1], "1 to 8 blocks, and 16 x 1 x 1 were asked for");
    refused(&device, [16, 1, 1], [2, 0, 1], "1 to 8 blocks");
    refused(&device, [16, 1, 1], [u32::MAX; 3], "1 to 8 blocks");
    refused(&Device::new(text), [2, 1, 1], [2, 1, 1], "capability 8.0 has no clusters");
}

/// Each block waits for the other's arrival, which orders what came before it in global memory.
fn arriving() -> String {
    format!(
        "{HEAD} setp.ne.u32 %p, %t, 0; @%p bra MET;
        mbarrier.init.shared::cta.b64 [bar], 1; fence.mbarrier_init.release.cluster;
        MET: {MEET}
        mov.u32 %r0, bar; mapa.shared::cluster.u32 %r1, %r0, %other; @%p bra DONE;
        mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r1];
        WAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p, [bar], 0; @!%p bra WAIT;
        mov.u32 %r2, %ctaid.x; mul.wide.u32 %d, %r2, 4; add.u64 %o, %o, %d; st.global.u32 [%o], 7;
        setp.ne.u32 %p, %t, 0;
        DONE: barrier.cluster.arrive.release; barrier.cluster.wait.acquire; ret; }}"
    )
}

#[test]
fn blocks_arrive_at_one_anothers_barriers() {
    for threads in [1, 32, 33] {
        let (device, o, result) = run(&arriving(), &[], threads, 6);
        result.unwrap();
        assert_eq!(device.read_u32(o, 7), [7, 7, 7, 7, 7, 7, 0], "{threads} threads");
    }
    // By a generic address of this block's, which is of any space.
    let own = [("mapa.shared::cluster.u32 %r1, %r0, %other;", "mapa.shared::cluster.u32 %r1, %r0, %rank;")];
    run(&arriving(), &own, 32, 2).2.unwrap();
}

#[test]
fn graphs_keep_clusters() {
    let device = hopper(&arriving());
    let e = &device.emulator;
    let (o, stream) = (device.u32s(&[0; 4]), e.create_stream().unwrap());
    let function = e.function(device.module, "k").unwrap();
    let shape = Launch { grid: [4, 1, 1], block: [32, 1, 1], cluster: [2, 1, 1], shared_bytes: 0 };
    e.begin_capture(stream).unwrap();
    e.launch(function, &shape, &[Arg::Bytes(&[0; TENSOR_MAP_BYTES]), Arg::Ptr(o), Arg::Ptr(o)], stream).unwrap();
    let graph = e.end_capture(stream).unwrap();
    assert_eq!(device.read_u32(o, 4), [0; 4]);
    e.launch_graph(graph, stream).unwrap();
    assert_eq!(device.read_u32(o, 4), [7; 4]);
    assert_eq!(e.last_report().unwrap().cluster, 2);
}

/// A kernel whose result may depend on the order of blocks runs clusters by their number.
#[test]
fn clusters_take_turns_too() {
    let text = format!(
        "{HEAD} {MEET} setp.ne.u32 %p, %t, 0; @%p bra DONE; mov.u32 %r1, %clusterid.x; mul.wide.u32 %d, %r1, 4;
        add.u64 %d, %o, %d; atom.global.add.u32 %r2, [%o+1020], 1; shr.u32 %r2, %r2, 1; st.global.u32 [%d], %r2;
        DONE: {MEET} ret; }}"
    );
    let (device, o, result) = run(&text, &[], 32, 200);
    result.unwrap();
    assert_eq!(device.read_u32(o, 100), (0..100).collect::<Vec<u32>>());
    assert_eq!(device.read_u32(DevicePtr(o.0 + 1020), 1), [200]);
}

#[test]
fn broken_arrivals_are_caught() {
    let text = arriving();
    let map = "mapa.shared::cluster.u32 %r1, %r0, %other;";
    let far = fails(&text, &[(map, "mapa.shared::cluster.u32 %r1, %r0, 2;")]);
    assert_eq!(far, FaultKind::NoSuchRank { rank: 2, blocks: 2 });
    // Nobody has said that the mbarrier is there.
    let found = fails(&text, &[(&format!("MET: {MEET}"), "MET:")]);
    assert!(matches!(found, FaultKind::BadMbarrier { .. }), "{found}");
    // It is, by luck: the other's turn came first. But nothing orders it.
    let relaxed = MEET.replace("release", "relaxed");
    let found = fails(&text, &[(MEET, &relaxed)]);
    let FaultKind::BadMbarrier { problem, .. } = found else { panic!("{found}") };
    assert!(problem.contains("was initialised by another block, and nothing like barrier.cluster"), "{problem}");
    // The arrival is one of this block's own shared memory, says the state space.
    let found = fails(&text, &[("arrive.release.cluster.shared::cluster", "arrive.release.cluster.shared::cta")]);
    assert!(matches!(found, FaultKind::BadMbarrier { problem, .. } if problem.contains("another block")));
    let found = fails(&text, &[("_, [%r1];", "_, [%r1], 2;")]);
    assert!(matches!(found, FaultKind::BadMbarrier { problem: "has more arrivals than its count", .. }));
    // Loads and stores there are not emulated.
    for (code, access) in
        [("st.shared.u32 [%r1], %t;", AccessKind::Write), ("ld.shared.u32 %r3, [%r1];", AccessKind::Read)]
    {
        let found = fails(&text, &[("mbarrier.arrive.release", &format!("{code} mbarrier.arrive.release"))]);
        assert!(matches!(found, FaultKind::OtherBlock { access: a, .. } if a == access), "{found}");
    }
    // Both must arrive: only rank 0 does, and waits for ever.
    let found = fails(&text, &[("mbarrier.arrive", "setp.eq.u32 %p, %rank, 1; @!%p mbarrier.arrive")]);
    assert!(matches!(found, FaultKind::OutOfBudget { .. }), "{found}");
    let returns = text.replace("_, [%r1];", "%d, [%r1];");
    let device = hopper(&returns);
    assert!(device.emulator.function(device.module, "k").unwrap_err().to_string().contains("gives no state"));
}

#[test]
fn barriers_of_the_cluster_have_rules() {
    let text = format!("{HEAD} {MEET} {MEET} st.global.u32 [%o], 1; ret; }}");
    run(&text, &[], 64, 8).2.unwrap();
    let once = |body: &str| format!("{HEAD} {body} ret; }}");
    let kind_of = |body: &str| fails(&once(body), &[]);
    let arrive = "barrier.cluster.arrive;";
    let found = kind_of(&format!("{arrive} {arrive}"));
    assert_eq!(found, FaultKind::BadClusterBarrier { problem: "arrives twice without a wait between" });
    let found = kind_of("barrier.cluster.wait;");
    assert_eq!(found, FaultKind::BadClusterBarrier { problem: "is waited for without having been arrived at" });
    let found = kind_of(&format!("setp.gt.u32 %p, %t, 3; @%p {}", MEET.split_inclusive(';').next().unwrap()));
    assert_eq!(found, FaultKind::DivergentBarrier { reached: 0xffff_fff0, alive: u32::MAX });
    // A warp of rank 1 waits for the other at a barrier of the block.
    let apart = "setp.lt.u32 %p, %t, 32; setp.ne.and.u32 %p, %rank, 0, %p; @%p bar.sync 1, 64;
        barrier.cluster.arrive; barrier.cluster.wait;";
    let found = kind(run(&once(apart), &[], 64, 2).2);
    assert_eq!(found, FaultKind::ClusterNotGathered { arrived: 96, threads: 128, finished: 0 });
    // Threads that have finished are not waited for, also those that finished without waiting.
    let part = once(&format!(
        "setp.gt.u32 %p, %t, 3; @%p exit; {arrive} setp.gt.u32 %p, %t, 1; @%p exit; barrier.cluster.wait;"
    ));
    run(&part, &[], 64, 4).2.unwrap();
    // Threads of a warp that meet the others at different places of the code.
    let apart = "setp.gt.u32 %p, %t, 3; @%p bra B; barrier.cluster.arrive; barrier.cluster.wait; bra C;
        B: barrier.cluster.arrive; barrier.cluster.wait; C: barrier.cluster.arrive; barrier.cluster.wait;";
    run(&once(apart), &[], 64, 4).2.unwrap();
    // A cluster of one block is one too.
    let device = hopper(&text);
    let o = device.u32s(&[0; 4]);
    launch(&device, [3, 1, 1], [1; 3], 40, &[Arg::Bytes(&[0; 128]), Arg::Ptr(o), Arg::Ptr(o)]).unwrap();
}

/// Each block copies its half of the matrix, by a map or by bytes, to both; all then give what they have.
fn sharing(copy: &str) -> String {
    format!(
        "{HEAD} setp.ne.u32 %p, %t, 0; @%p bra MET;
        mbarrier.init.shared::cta.b64 [bar], 1; fence.mbarrier_init.release.cluster;
        MET: {MEET} @%p bra WAIT;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 256;
        mov.u32 %r0, box; shl.b32 %r1, %rank, 7; add.u32 %r0, %r0, %r1; shl.b32 %r2, %rank, 1; mov.u16 %h, 3;
        cvt.u64.u32 %d, %r1; add.u64 %x, %x, %d;
        {copy}
        WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p, [bar], 0; @!%p bra WAIT;
        mov.u32 %r3, box; shl.b32 %r4, %t, 3; add.u32 %r3, %r3, %r4; ld.shared.v2.u32 {{%r5, %r6}}, [%r3];
        mov.u32 %r7, %ctaid.x; shl.b32 %r7, %r7, 8; add.u32 %r7, %r7, %r4; cvt.u64.u32 %d, %r7; add.u64 %o, %o, %d;
        st.global.v2.u32 [%o], {{%r5, %r6}};
        {MEET} ret; }}"
    )
}

const BYTES: &str =
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r0], [%x], 128, [bar], %h;";
const BOX: &str = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster \
                   [%r0], [%m, {0, %r2}], [bar], %h;";

/// A map of two rows, as BOX wants it: 16 x 2 of the 16 x 4.
fn run_box(change: &[(&str, &str)]) -> (Device, DevicePtr, Result<()>) {
    let mut text = sharing(BOX);
    for (old, new) in change {
        assert!(text.contains(old), "{old} is not there");
        text = text.replace(old, new);
    }
    let device = hopper(&text);
    let x = device.u32s(&(0..64).map(|i| 100 + i).collect::<Vec<u32>>());
    let o = device.u32s(&[0; 256]);
    let (sizes, strides, tile, swizzle) = (&[16, 4], &[64], &[16, 2], Swizzle::Bytes64);
    let map = TensorMap { base: x, dtype: DType::F32, sizes, strides, tile, swizzle, fill: Fill::Zeros };
    let map = device.emulator.tensor_map(&map).unwrap();
    let result = launch(&device, [4, 1, 1], [2, 1, 1], 32, &[Arg::Bytes(&map), Arg::Ptr(x), Arg::Ptr(o)]);
    (device, o, result)
}

#[test]
fn copies_reach_all_blocks_of_a_mask() {
    let (device, o, result) = run(&sharing(BYTES), &[], 32, 4);
    result.unwrap();
    let want: Vec<u32> = (0..4).flat_map(|_| 100..164).collect();
    assert_eq!(device.read_u32(o, 256), want);
    let (device, o, result) = run_box(&[]);
    result.unwrap();
    // Chunks of 16 bytes exchanged in rows of 64, by bits 7 and 8 of the address.
    let place = |at: u32| at ^ (at >> 5 & 3) << 2;
    let mut want = vec![0; 64];
    (0..64).for_each(|at| want[place(at) as usize] = 100 + at);
    assert_eq!(device.read_u32(o, 256), want.repeat(4));
    // To the other alone: each has the other's half.
    let one = "mov.u16 %h, 3;";
    let other = [
        (one, "shl.b32 %r8, 1, %other; cvt.u16.u32 %h, %r8;"),
        ("[bar], 256;", "[bar], 128;"),
        ("mov.u32 %r3, box;", "and.b32 %t, %t, 15; shl.b32 %r8, %other, 7; mov.u32 %r3, box; add.u32 %r3, %r3, %r8;"),
    ];
    let (device, o, result) = run(&sharing(BYTES), &other, 32, 2);
    result.unwrap();
    assert_eq!(device.read_u32(o, 32), (132..164).collect::<Vec<u32>>());
    assert_eq!(device.read_u32(DevicePtr(o.0 + 256), 32), (100..132).collect::<Vec<u32>>());
    // By addresses of the other, without a mask.
    let named = [
        other[1],
        other[2],
        (".multicast::cluster", ""),
        (", [bar], %h;", ", [%r8];"),
        (
            one,
            "mapa.shared::cluster.u32 %r0, %r0, %other; mov.u32 %r8, bar; mapa.shared::cluster.u32 %r8, %r8, %other;",
        ),
    ];
    let (device, o, result) = run(&sharing(BYTES), &named, 32, 2);
    result.unwrap();
    assert_eq!(device.read_u32(o, 32), (132..164).collect::<Vec<u32>>());
}

#[test]
fn broken_multicasts_are_caught() {
    let text = sharing(BYTES);
    for mask in [0, 4, 7] {
        let found = fails(&text, &[("mov.u16 %h, 3;", &format!("mov.u16 %h, {mask};"))]);
        assert_eq!(found, FaultKind::BadMulticast { mask, blocks: 2 });
    }
    let found = kind(run_box(&[("mov.u16 %h, 3;", "mov.u16 %h, 5;")]).2);
    assert_eq!(found, FaultKind::BadMulticast { mask: 5, blocks: 2 });
    // The blocks have not met: their barriers may not be there.
    let found = fails(&text, &[(&format!("MET: {MEET}"), "MET:")]);
    assert!(matches!(found, FaultKind::BadMbarrier { .. }), "{found}");
    let found = fails(&text, &[(MEET, &MEET.replace("release", "relaxed"))]);
    assert!(matches!(found, FaultKind::BadMbarrier { .. }), "{found}");
    // Nobody waits for what the other brings, or only for half of it.
    let found =
        fails(&text, &[("WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p, [bar], 0; @!%p bra WAIT;", "WAIT:")]);
    assert!(matches!(found, FaultKind::PendingCopy { .. } | FaultKind::Unwritten { .. }), "{found}");
    // Behind the end of its shared memory, of which both have as much.
    let found = fails(&text, &[("mov.u32 %r0, box;", "mov.u32 %r0, box; add.u32 %r0, %r0, 1024;")]);
    assert!(matches!(found, FaultKind::OutOfBounds { space: "shared", .. }), "{found}");
    // Addresses of two blocks, and of another in a multicast.
    let map = "mapa.shared::cluster.u32 %r0, %r0, %other;";
    for change in [
        vec![("mov.u16 %h, 3;", map), (".multicast::cluster", ""), (", %h;", ";")],
        vec![("mov.u16 %h, 3;", "mov.u16 %h, 3; mapa.shared::cluster.u32 %r0, %r0, %other;")],
    ] {
        let found = fails(&text, &change);
        assert!(
            matches!(found, FaultKind::BadMbarrier { problem: "lies in another block than what is copied", .. }),
            "{found}"
        );
    }
    // The other block still reads what is overwritten.
    let again = "ld.shared.u32 %r5, [box]; bar.sync 0; BETWEEN setp.ne.u32 %p, %t, 0; @%p bra MORE;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 256;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r0], [%x], 128, [bar], %h;
        MORE: mbarrier.try_wait.parity.shared::cta.b64 %p, [bar], 1; @!%p bra MORE; ld.shared.u32 %r5, [box];";
    let end = format!("{MEET} ret; }}");
    let with = |between: &str| format!("{} {end}", again.replace("BETWEEN", between));
    run(&text, &[(&end, &with(MEET))], 32, 2).2.unwrap();
    let found = fails(&text, &[(&end, &with(""))]);
    // Whichever comes first.
    assert!(matches!(found, FaultKind::Race { .. } | FaultKind::PendingCopy { .. }), "{found}");
    let found = fails(&text, &[(&end, &with(&MEET.replace("release", "relaxed")))]);
    assert!(matches!(found, FaultKind::Race { access: AccessKind::Write, other: AccessKind::Read, .. }), "{found}");
}

/// A block must not end before it knows that others have done with it.
#[test]
fn blocks_that_end_too_early_are_caught() {
    let last = |text: &str, part: &str| {
        let at = text.rfind(part).unwrap();
        format!("{}{}", &text[..at], &text[at + part.len()..])
    };
    let ended = |kind: &FaultKind| matches!(kind, FaultKind::EndsTooEarly { .. } | FaultKind::BlockHasEnded { .. });
    // Without the last meeting: rank 0 cannot know that rank 1's arrival is all that it does... unless it waited for it.
    let early = last(&arriving(), "barrier.cluster.arrive.release; barrier.cluster.wait.acquire;");
    run(&early, &[], 32, 2).2.unwrap();
    let wait = "WAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p, [bar], 0; @!%p bra WAIT;";
    let found = fails(&early, &[(wait, "")]);
    assert!(ended(&found), "{found}");
    // A wait that learns nothing of other blocks' arrivals is none.
    let found = fails(&early, &[("try_wait.parity.acquire.cluster", "try_wait.parity")]);
    let FaultKind::EndsTooEarly { rank: 1, reach } = &found else { panic!("{found}") };
    assert!(reach.text.contains("mbarrier.arrive.release.cluster"), "{found}");
    // As is an arrival that releases nothing, or only within its block.
    for scope in ["arrive.relaxed.cluster", "arrive"] {
        assert!(ended(&fails(
            &early,
            &[("arrive.release.cluster.shared::cluster", &format!("{scope}.shared::cluster"))]
        )));
    }
    // With the meeting, but before a copy has come.
    let copy = sharing(BYTES);
    let wait = "WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p, [bar], 0; @!%p bra WAIT;";
    let reads = "ld.shared.v2.u32 {%r5, %r6}, [%r3];";
    let found = fails(&copy, &[(wait, "WAIT:"), (reads, "mov.u32 %r5, 0; mov.u32 %r6, 0;")]);
    let FaultKind::EndsTooEarly { rank: 1, reach } = &found else { panic!("{found}") };
    assert!(reach.text.contains("multicast"), "{found}");
    // Rank 0 comes later than the end of rank 1.
    let late = "setp.eq.u32 %p, %rank, 1; @%p exit;";
    let map = "mapa.shared::cluster.u32 %r1, %r0, %other;";
    let error = fault(run(&arriving(), &[(map, &format!("{map} {late}"))], 1, 2).2);
    assert_eq!(error.kind, FaultKind::BlockHasEnded { rank: 1 });
    assert_eq!(error.block, [0; 3]);
    assert!(error.to_string().contains("block 1 of the cluster, which has ended"), "{error}");
}
