//! What sm_90 added: bulk copies that an mbarrier counts, and products of warp groups.

mod emulator_support;

use emulator_support::{Device, from_bf16, kind, noise, to_bf16};
use planish_cuda::driver::Arg;
use planish_cuda::emulator::{AccessKind, Emulator, FaultKind};

/// Where `a` and `b` lie: the first KiB of shared memory is the hardware's.
const A: u64 = 1024;
const B: u64 = 1024 + 8192;

/// Loads images of A and B by bulk copies, multiplies, and gives each thread's sums.
fn module(n: usize, steps: &[(u64, u64)], transposed: (u32, u32), wait: &str) -> String {
    let sums: Vec<String> = (0..n / 2).map(|i| format!("%f{i}")).collect();
    let list = sums.join(", ");
    let mut products = String::new();
    for (step, (a, b)) in steps.iter().enumerate() {
        products += &format!(
            "mov.u64 %a, {a}; mov.u64 %b, {b}; setp.ne.b32 %p, {}, 0;
             wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{list}}}, %a, %b, %p, 1, 1, {}, {};\n",
            i32::from(step > 0),
            transposed.0,
            transposed.1
        );
    }
    let stores: String = (0..n / 2).map(|i| format!("st.global.f32 [%o+{}], %f{i};\n", 4 * i)).collect();
    format!(
        ".version 8.0\n.target sm_90a\n.address_size 64
        .visible .entry k(.param .u64 a, .param .u64 b, .param .u64 o, .param .u32 bytes) {{
        .reg .pred %p; .reg .b32 %t, %r<4>; .reg .f32 %f<128>; .reg .b64 %a, %b, %o, %d;
        .shared .align 1024 .b8 sa[8192]; .shared .align 1024 .b8 sb[8192]; .shared .align 8 .b8 bar[8];
        ld.param.u64 %a, [a]; ld.param.u64 %b, [b]; ld.param.u64 %o, [o]; ld.param.u32 %r1, [bytes];
        mov.u32 %t, %tid.x; setp.ne.u32 %p, %t, 0; @%p bra GO;
        mbarrier.init.shared::cta.b64 [bar], 1; fence.proxy.async.shared::cta;
        add.u32 %r2, %r1, 8192; mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], %r2;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [sa], [%a], 8192, [bar];
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [sb], [%b], %r1, [bar];
        GO: bar.sync 0;
        {wait}
        wgmma.fence.sync.aligned;
        {products}
        wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
        mul.wide.u32 %d, %t, {}; add.u64 %o, %o, %d;
        {stores} ret; }}",
        n * 2
    )
}

const WAIT: &str = "WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p, [bar], 0; @!%p bra WAIT;";

/// A descriptor: start, leading and stride in bytes, and the swizzle's number.
fn descriptor(start: u64, leading: u64, stride: u64, swizzle: u64) -> u64 {
    start >> 4 | (leading >> 4) << 16 | (stride >> 4) << 32 | swizzle << 62
}

/// Puts values where `place` says, in an image of 8 KiB, and zeros elsewhere.
fn image(values: &[u16], columns: usize, place: impl Fn(usize, usize) -> usize) -> Vec<u16> {
    let mut image = vec![0; 4096];
    for (at, value) in values.iter().enumerate() {
        image[place(at / columns, at % columns) / 2] = *value;
    }
    image
}

fn check(n: usize, k: usize, images: [Vec<u16>; 2], text: &str, a: &[u16], b: &[u16]) {
    let device = Device::with(Emulator::new((9, 0)).unwrap(), text);
    let (xa, xb) = (device.u16s(&images[0]), device.u16s(&images[1]));
    let out = device.empty(64 * n * 4);
    device.launch("k", [1; 3], [128, 1, 1], 0, &[Arg::Ptr(xa), Arg::Ptr(xb), Arg::Ptr(out), Arg::U32(8192)]).unwrap();
    let got = device.read_f32(out, 64 * n);
    for (at, sum) in got.into_iter().enumerate() {
        let (thread, i) = (at / (n / 2), at % (n / 2));
        let row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
        let column = i / 4 * 8 + thread % 4 * 2 + i % 2;
        let want: f64 =
            (0..k).map(|l| f64::from(from_bf16(a[row * k + l])) * f64::from(from_bf16(b[column * k + l]))).sum();
        // A chain of at most 64 sums below 64 in f32.
        assert!((f64::from(sum) - want).abs() <= 2e-5, "({row}, {column}): {sum} instead of {want}");
    }
}

#[test]
fn warp_groups_multiply_rows_of_k() {
    // 128 bytes of k a row, chunks of 16 exchanged by the row's number in its eight: what a swizzled tensor copy leaves.
    let (n, k) = (32, 64);
    let bf16 = |seed, count| noise(seed, count).into_iter().map(to_bf16).collect::<Vec<u16>>();
    let (a, b) = (bf16(1, 64 * k), bf16(2, n * k));
    for (number, row) in [(1, 128), (2, 64), (3, 32)] {
        let depth = row / 2;
        let pick = |values: &[u16], rows: usize| -> Vec<u16> {
            (0..rows * depth).map(|at| values[at / depth * k + at % depth]).collect()
        };
        let (a, b) = (pick(&a, 64), pick(&b, n));
        let chunks = row / 16;
        // Bits 4 and up of the address, exchanged by bits 7 and up.
        let place = |r: usize, l: usize| {
            let plain = r * row + l * 2;
            plain ^ ((plain >> 7) & (chunks - 1)) << 4
        };
        let steps: Vec<(u64, u64)> = (0..depth as u64 / 16)
            .map(|step| {
                let stride = 8 * row as u64;
                (descriptor(A + step * 32, 0, stride, number), descriptor(B + step * 32, 0, stride, number))
            })
            .collect();
        let images = [image(&a, depth, place), image(&b, depth, place)];
        check(n, depth, images, &module(n, &steps, (0, 0), WAIT), &a, &b);
    }
    // Without a swizzle: blocks of 8 rows by 16 bytes, those along k 1024 bytes apart, those along rows 128.
    let (a, b) = (bf16(3, 64 * 16), bf16(4, n * 16));
    let place = |r: usize, l: usize| r / 8 * 128 + l / 8 * 1024 + r % 8 * 16 + l % 8 * 2;
    let steps = [(descriptor(A, 1024, 128, 0), descriptor(B, 1024, 128, 0))];
    let images = [image(&a, 16, place), image(&b, 16, place)];
    check(n, 16, images, &module(n, &steps, (0, 0), WAIT), &a, &b);
}

#[test]
fn warp_groups_multiply_transposed_operands() {
    // Rows of k, each 64 columns long, swizzled: B as it lies in memory when it is (k, n).
    let (n, k) = (64, 16);
    let bf16 = |seed, count| noise(seed, count).into_iter().map(to_bf16).collect::<Vec<u16>>();
    let (a, b) = (bf16(5, 64 * k), bf16(6, n * k));
    let place = |outer: usize, l: usize| l * 128 + ((outer / 8) ^ (l % 8)) * 16 + outer % 8 * 2;
    let steps = [(descriptor(A, 0, 1024, 1), descriptor(B, 0, 1024, 1))];
    let images = [image(&a, k, place), image(&b, k, place)];
    check(n, k, images, &module(n, &steps, (1, 1), WAIT), &a, &b);
}

#[test]
fn bulk_copies_must_be_waited_for() {
    let steps = [(descriptor(A, 1024, 128, 0), descriptor(B, 1024, 128, 0))];
    let run = |text: &str, bytes: u32, threads: u32| {
        let device = Device::with(Emulator::new((9, 0)).unwrap().with_budget(100_000), text);
        let (x, out) = (device.u16s(&[0; 4096]), device.empty(64 * 8 * 4));
        device.launch("k", [1; 3], [threads, 1, 1], 0, &[Arg::Ptr(x), Arg::Ptr(x), Arg::Ptr(out), Arg::U32(bytes)])
    };
    let good = module(8, &steps, (0, 0), WAIT);
    run(&good, 8192, 128).unwrap();
    assert!(matches!(kind(run(&module(8, &steps, (0, 0), ""), 8192, 128)), FaultKind::PendingCopy { .. }));
    // Bytes that nobody announced: the barrier never opens.
    let silent = good.replace("add.u32 %r2, %r1, 8192;", "mov.u32 %r2, %r1;");
    assert!(matches!(kind(run(&silent, 8192, 128)), FaultKind::OutOfBudget { .. }));
    assert!(matches!(kind(run(&good, 8200, 128)), FaultKind::Misaligned { bytes: 16, .. }));
    assert!(matches!(kind(run(&good, 8208, 128)), FaultKind::OutOfBounds { .. }));
    assert_eq!(kind(run(&good, 8192, 96)), FaultKind::NoWarpGroup { warps: 3 });
}

#[test]
fn bulk_copies_out_of_shared_memory() {
    let text = ".version 8.0\n.target sm_90a\n.address_size 64
        .visible .entry k(.param .u64 o) { .reg .pred %p; .reg .b32 %t, %s, %r; .reg .b64 %o;
        .shared .align 16 .b8 words[256];
        ld.param.u64 %o, [o]; mov.u32 %t, %tid.x; mov.u32 %r, words; shl.b32 %s, %t, 2; add.u32 %s, %s, %r;
        st.shared.u32 [%s], %t; fence.proxy.async.shared::cta; bar.sync 0; setp.ne.u32 %p, %t, 0; @%p bra END;
        cp.async.bulk.global.shared::cta.bulk_group [%o], [words], 256; cp.async.bulk.commit_group;
        cp.async.bulk.wait_group.read 0; END: ret; }";
    let run = |text: &str| {
        let device = Device::with(Emulator::new((9, 0)).unwrap(), text);
        let out = device.empty(256);
        device.launch("k", [1; 3], [64, 1, 1], 0, &[Arg::Ptr(out)]).map(|()| device.read_u32(out, 64))
    };
    assert_eq!(run(text).unwrap(), (0..64).collect::<Vec<u32>>());
    let found = kind(run(&text.replace("bar.sync 0;", "")).map(|_| ()));
    assert!(matches!(found, FaultKind::Race { .. } | FaultKind::Unwritten { .. }), "{found}");
}

/// One product of 64 x 8 from unswizzled tiles of zeros and a 1, with pieces of the kernel replaced.
fn product(change: &[(&str, &str)]) -> planish_cuda::Result<()> {
    let steps = [(descriptor(A, 1024, 128, 0), descriptor(B, 1024, 128, 0))];
    let mut text = module(8, &steps, (0, 0), WAIT);
    for (old, new) in change {
        assert!(text.contains(old), "{old} is not there");
        text = text.replace(old, new);
    }
    let device = Device::with(Emulator::new((9, 0)).unwrap().with_budget(100_000), &text);
    let (x, out) = (device.u16s(&[0x3f80; 4096]), device.empty(64 * 8 * 4));
    device.launch("k", [1; 3], [128, 1, 1], 0, &[Arg::Ptr(x), Arg::Ptr(x), Arg::Ptr(out), Arg::U32(8192)])?;
    assert_eq!(device.read_f32(out, 4), [16.0; 4]);
    Ok(())
}

const FENCE: &str = "wgmma.fence.sync.aligned;";
const COMMIT: &str = "wgmma.commit_group.sync.aligned;";
const AWAIT: &str = "wgmma.wait_group.sync.aligned 0;";

#[test]
fn products_are_fenced_and_waited_for() {
    product(&[]).unwrap();
    let fault = |change: &[(&str, &str)]| kind(product(change));
    assert_eq!(fault(&[(FENCE, "")]), FaultKind::NoGroupFence { fenced: false });
    let written = format!("{FENCE} mov.f32 %f3, 0f3F800000;");
    assert_eq!(fault(&[(FENCE, &written)]), FaultKind::NoGroupFence { fenced: true });
    product(&[(FENCE, &format!("mov.f32 %f3, 0f3F800000; {FENCE}"))]).unwrap();
    // Not waited for, not committed, one batch too many left.
    for change in [(AWAIT, ""), (COMMIT, ""), (AWAIT, "wgmma.wait_group.sync.aligned 1;")] {
        let found = fault(&[change]);
        assert!(
            matches!(&found, FaultKind::ProductInFlight { access: AccessKind::Read, product } if product.text.contains("m64n8k16")),
            "{found}"
        );
    }
    let early = format!("mov.f32 %f2, 0f00000000; {AWAIT}");
    assert!(matches!(fault(&[(AWAIT, &early)]), FaultKind::ProductInFlight { access: AccessKind::Write, .. }));
    // A batch that is waited for beside one that is not.
    let two = format!("{COMMIT} {COMMIT} wgmma.wait_group.sync.aligned 1;");
    product(&[(COMMIT, &two)]).unwrap();
}

#[test]
fn operands_are_read_at_the_wait() {
    let fault = |change: &[(&str, &str)]| kind(product(change));
    // All is in order, and yet the tile is another when the product is made.
    let late = format!("setp.ne.u32 %p, %t, 0; @!%p st.shared.u32 [sa], %t; fence.proxy.async; bar.sync 0; {AWAIT}");
    assert!(matches!(fault(&[(AWAIT, &late)]), FaultKind::OperandOverwritten { address: A, writer: 0, .. }));
    let before = |fence: &str| {
        format!(
            "setp.ne.u32 %p, %t, 0; mov.u32 %r3, 0x3f803f80; @!%p st.shared.u32 [sa], %r3; {fence} bar.sync 0; {FENCE}"
        )
    };
    product(&[(FENCE, &before("fence.proxy.async.shared::cta;"))]).unwrap();
    assert!(matches!(fault(&[(FENCE, &before(""))]), FaultKind::NoProxyFence { address: A, writer: 0, .. }));
    // Of another space.
    let found = fault(&[(FENCE, &before("fence.proxy.async.global;"))]);
    assert!(matches!(found, FaultKind::NoProxyFence { .. }), "{found}");
}

#[test]
fn descriptors_must_be_of_a_layout() {
    let good = descriptor(A, 1024, 128, 0).to_string();
    let with = |bits: u64| kind(product(&[(&format!("mov.u64 %a, {good};"), &format!("mov.u64 %a, {bits};"))]));
    let found = with(descriptor(A + 128, 0, 1024, 1));
    assert!(matches!(
        found,
        FaultKind::BadDescriptor { problem: "begins within the eight rows of a swizzle's pattern", .. }
    ));
    assert!(matches!(with(descriptor(A, 0, 1024, 1) | 1 << 49), FaultKind::BadDescriptor { .. }));
    assert!(matches!(with(descriptor(A, 1 << 17, 128, 0)), FaultKind::OutOfBounds { space: "shared", .. }));
}

/// A from registers, as the fragments of `mma`; then a register of it that is changed too soon.
#[test]
fn a_may_lie_in_registers() {
    let module = |after: &str| {
        format!(
            ".version 8.0\n.target sm_90a\n.address_size 64
            .visible .entry k(.param .u64 a, .param .u64 b, .param .u64 o) {{
            .reg .pred %p; .reg .b32 %t, %r<8>; .reg .f32 %f<4>; .reg .b64 %a, %b, %o, %d;
            .shared .align 1024 .b8 sb[256];
            ld.param.u64 %a, [a]; ld.param.u64 %b, [b]; ld.param.u64 %o, [o]; mov.u32 %t, %tid.x;
            mul.wide.u32 %d, %t, 16; add.u64 %a, %a, %d; ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%a];
            setp.ge.u32 %p, %t, 64; @%p bra GO;
            mul.wide.u32 %d, %t, 4; add.u64 %d, %b, %d; ld.global.u32 %r4, [%d];
            mov.u32 %r5, sb; shl.b32 %r6, %t, 2; add.u32 %r5, %r5, %r6; st.shared.u32 [%r5], %r4;
            GO: fence.proxy.async.shared::cta; bar.sync 0;
            mov.f32 %f0, 0f3F800000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0; mov.u64 %b, {};
            wgmma.fence.sync.aligned;
            wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%f0, %f1, %f2, %f3}}, {{%r0, %r1, %r2, %r3}}, %b, 1, -1, 1, 0;
            wgmma.commit_group.sync.aligned; {after} wgmma.wait_group.sync.aligned 0;
            mul.wide.u32 %d, %t, 16; add.u64 %o, %o, %d; st.global.v4.f32 [%o], {{%f0, %f1, %f2, %f3}}; ret; }}",
            descriptor(A, 128, 256, 0)
        )
    };
    let (k, n) = (16, 8);
    let bf16 = |seed, count| noise(seed, count).into_iter().map(to_bf16).collect::<Vec<u16>>();
    let (a, b) = (bf16(11, 64 * k), bf16(12, n * k));
    // Thread t of warp w: rows 16 w + t / 4 and 8 more, k from 2 (t mod 4) and 8 more.
    let mut fragments = Vec::new();
    for thread in 0..128 {
        for part in 0..4 {
            let (row, at) = (thread / 32 * 16 + thread % 32 / 4 + part % 2 * 8, thread % 4 * 2 + part / 2 * 8);
            fragments.extend([a[row * k + at], a[row * k + at + 1]]);
        }
    }
    // Two chunks of 8 columns by 16 bytes.
    let tile: Vec<u16> = (0..n * k).map(|at| b[at / 8 % 8 * k + at / 64 * 8 + at % 8]).collect();
    let run = |after: &str| {
        let device = Device::with(Emulator::new((9, 0)).unwrap(), &module(after));
        let (xa, xb, out) = (device.u16s(&fragments), device.u16s(&tile), device.empty(64 * n * 4));
        let done = device.launch("k", [1; 3], [128, 1, 1], 0, &[Arg::Ptr(xa), Arg::Ptr(xb), Arg::Ptr(out)]);
        done.map(|()| device.read_f32(out, 64 * n))
    };
    for (at, sum) in run("").unwrap().into_iter().enumerate() {
        let (thread, i) = (at / 4, at % 4);
        let (row, column) = (thread / 32 * 16 + thread % 32 / 4 + i / 2 * 8, thread % 4 * 2 + i % 2);
        let products = (0..k).map(|l| f64::from(from_bf16(a[row * k + l])) * f64::from(from_bf16(b[column * k + l])));
        let want = 1.0 - products.sum::<f64>();
        assert!((f64::from(sum) - want).abs() <= 1e-5, "({row}, {column}): {sum} instead of {want}");
    }
    let read = run("mov.u32 %r7, %r1;");
    assert!(read.is_ok(), "reading is allowed: {read:?}");
    let found = kind(run("mov.u32 %r1, %t;").map(drop));
    assert!(matches!(found, FaultKind::ProductInFlight { access: AccessKind::Write, .. }), "{found}");
    let found = kind(run("mov.f32 %f1, %f0;").map(drop));
    assert!(matches!(found, FaultKind::ProductInFlight { .. }), "{found}");
}

#[test]
fn registers_are_given_back_in_eights() {
    let text = |count: u32| {
        format!(
            ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k() {{ setmaxnreg.dec.sync.aligned.u32 {count}; ret; }}"
        )
    };
    let run =
        |count| Device::with(Emulator::new((9, 0)).unwrap(), &text(count)).launch("k", [1; 3], [128, 1, 1], 0, &[]);
    run(40).unwrap();
    for count in [16, 41, 264] {
        assert!(run(count).unwrap_err().to_string().contains("multiple of 8 from 24 to 256"), "{count}");
    }
}

/// One group of 128 threads gives registers back and two claim more, of the 168 that each thread of 384 begins with.
fn registers(left: u32, claimed: u32, bound: &str) -> planish_cuda::Result<()> {
    let text = format!(
        ".version 8.0\n.target sm_90a\n.address_size 64
        .visible .entry k(.param .u64 x) {bound} {{
        .reg .pred %p; .reg .b32 %t;
        mov.u32 %t, %tid.x; setp.lt.u32 %p, %t, 256; @%p bra MORE;
        setmaxnreg.dec.sync.aligned.u32 {left}; ret;
        MORE: setmaxnreg.inc.sync.aligned.u32 {claimed}; ret; }}"
    );
    let device = Device::with(Emulator::new((9, 0)).unwrap(), &text);
    let x = device.empty(4);
    device.launch("k", [1; 3], [384, 1, 1], 0, &[Arg::Ptr(x)])
}

#[test]
fn registers_that_no_warp_gives_back() {
    let bound = ".maxntid 384, 1, 1 .minnctapersm 1";
    for (left, claimed) in [(24, 240), (40, 232), (32, 232)] {
        registers(left, claimed, bound).unwrap();
    }
    assert_eq!(kind(registers(32, 240, bound)), FaultKind::TooManyRegisters { claimed: 65_536, there: 64_512 });
    // The assembler ignores it where nothing bounds the block.
    registers(32, 240, "").unwrap();
}
