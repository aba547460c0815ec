//! Single instructions against their definitions, and how lanes and warps are scheduled.

mod emulator_support;

use emulator_support::{Device, from_bf16, kernel, noise, to_bf16};
use planish_cuda::driver::{Arg, Driver, Image};
use planish_cuda::emulator::{Emulator, FaultKind};

/// Runs a body in one block of 32 threads: %a and %b are the thread's words of two inputs, %o is what it gives.
fn words(body: &str, a: &[u32; 32], b: &[u32; 32]) -> Vec<u32> {
    let text = kernel(
        ".param .u64 a, .param .u64 b, .param .u64 o",
        &format!(
            ".reg .pred %p, %q; .reg .b16 %h<4>; .reg .b32 %t, %a, %b, %o, %r<9>; .reg .b64 %d<9>, %x, %y, %z;
             ld.param.u64 %x, [a]; ld.param.u64 %y, [b]; ld.param.u64 %z, [o];
             mov.u32 %t, %tid.x; mul.wide.u32 %d0, %t, 4;
             add.s64 %x, %x, %d0; add.s64 %y, %y, %d0; add.s64 %z, %z, %d0;
             ld.global.u32 %a, [%x]; ld.global.u32 %b, [%y];
             {body}
             st.global.u32 [%z], %o; ret;"
        ),
    );
    let device = Device::new(&text);
    let (a, b, o) = (device.u32s(a), device.u32s(b), device.empty(128));
    device.launch("k", [1; 3], [32, 1, 1], 0, &[Arg::Ptr(a), Arg::Ptr(b), Arg::Ptr(o)]).unwrap();
    device.read_u32(o, 32)
}

/// Words of all kinds: small, large, negative, with runs of bits.
fn samples() -> ([u32; 32], [u32; 32]) {
    let special = [0, 1, 2, 3, 31, 32, 33, 255, 256, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, u32::MAX, u32::MAX - 1];
    let random = noise(1, 64);
    let mut all = random.iter().map(|x| ((x * 1e9) as i32 as u32).wrapping_mul(3));
    let a = std::array::from_fn(|i| special.get(i).copied().unwrap_or_else(|| all.next().unwrap()));
    let b = std::array::from_fn(|i| special.get(i * 5 % 32).copied().unwrap_or_else(|| all.next().unwrap()));
    (a, b)
}

fn check(body: &str, want: impl Fn(u32, u32) -> u32) {
    let (a, b) = samples();
    for (i, got) in words(body, &a, &b).into_iter().enumerate() {
        assert_eq!(got, want(a[i], b[i]), "{body} of {:#x} and {:#x}", a[i], b[i]);
    }
}

#[test]
fn whole_numbers() {
    check("add.s32 %o, %a, %b;", u32::wrapping_add);
    check("add.sat.s32 %o, %a, %b;", |a, b| (a as i32).saturating_add(b as i32) as u32);
    check("sub.u32 %o, %a, %b;", u32::wrapping_sub);
    check("mul.lo.s32 %o, %a, %b;", u32::wrapping_mul);
    check("mul.hi.s32 %o, %a, %b;", |a, b| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32);
    check("mul.hi.u32 %o, %a, %b;", |a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32);
    check("mad.lo.s32 %o, %a, %b, 7;", |a, b| a.wrapping_mul(b).wrapping_add(7));
    check("mul.wide.s32 %d1, %a, %b; shr.u64 %d1, %d1, 13; cvt.u32.u64 %o, %d1;", |a, b| {
        ((i64::from(a as i32) * i64::from(b as i32)) as u64 >> 13) as u32
    });
    check("or.b32 %b, %b, 1; div.s32 %o, %a, %b;", |a, b| (a as i32).wrapping_div((b | 1) as i32) as u32);
    check("or.b32 %b, %b, 1; rem.u32 %o, %a, %b;", |a, b| a % (b | 1));
    // As cards do where PTX leaves it open.
    check("rem.u32 %o, %a, 0;", |_, _| u32::MAX);
    check("rem.s32 %o, %a, 0;", |_, _| u32::MAX);
    check("abs.s32 %o, %a;", |a, _| (a as i32).wrapping_abs() as u32);
    check("min.s32 %o, %a, %b;", |a, b| (a as i32).min(b as i32) as u32);
    check("max.u32 %o, %a, %b;", u32::max);
    check("sad.s32 %o, %a, %b, 1;", |a, b| (a as i32).abs_diff(b as i32).wrapping_add(1));
}

#[test]
fn bits() {
    check("shl.b32 %o, %a, %b;", |a, b| if b > 31 { 0 } else { a << b });
    check("shr.s32 %o, %a, %b;", |a, b| ((a as i32) >> b.min(31)) as u32);
    check("shr.u32 %o, %a, 31;", |a, _| a >> 31);
    check("popc.b32 %o, %a;", |a, _| a.count_ones());
    check("clz.b32 %o, %a;", |a, _| a.leading_zeros());
    check("brev.b32 %o, %a;", |a, _| a.reverse_bits());
    check("bfind.u32 %o, %a;", |a, _| if a == 0 { u32::MAX } else { 31 - a.leading_zeros() });
    check("bfind.s32 %o, %a;", |a, _| {
        let bits = if (a as i32) < 0 { !a } else { a };
        if bits == 0 { u32::MAX } else { 31 - bits.leading_zeros() }
    });
    check("bfe.u32 %o, %a, 5, 9;", |a, _| a >> 5 & 0x1ff);
    check("bfe.s32 %o, %a, 5, 9;", |a, _| ((a << 18) as i32 >> 23) as u32);
    // The field goes beyond the number: its sign fills.
    check("bfe.s32 %o, %a, 28, 9;", |a, _| (a as i32 >> 28) as u32);
    check("bfi.b32 %o, %a, %b, 4, 8;", |a, b| b & !0xff0 | (a & 0xff) << 4);
    check("bfi.b32 %o, %a, %b, 0, 0;", |_, b| b);
    check("prmt.b32 %o, %a, %b, 0x5410;", |a, b| b << 16 | a & 0xffff);
    check("prmt.b32 %o, %a, %b, 0xb;", |a, _| ((a & 0xff) * 0x0101_0100) | if a >> 31 == 1 { 0xff } else { 0 });
    check("shf.l.wrap.b32 %o, %a, %b, 7;", |a, b| b << 7 | a >> 25);
    check("shf.r.clamp.b32 %o, %a, %b, 40;", |_, b| b);
    check("shf.r.wrap.b32 %o, %a, %b, 40;", |a, b| b << 24 | a >> 8);
    check("lop3.b32 %o, %a, %b, 0xff00ff, 0xca;", |a, b| a & b | !a & 0xff_00ff);
    check("dp4a.s32.u32 %o, %a, %b, 5;", |a, b| {
        a.to_le_bytes().iter().zip(b.to_le_bytes()).fold(5, |sum, (x, y)| sum + i32::from(*x as i8) * i32::from(y))
            as u32
    });
    check("not.b32 %o, %a;", |a, _| !a);
    check("cnot.b32 %o, %a;", |a, _| u32::from(a == 0));
}

#[test]
fn narrow_types() {
    check("cvt.u16.u32 %h0, %a; cvt.s32.s16 %o, %h0;", |a, _| i32::from(a as i16) as u32);
    check("cvt.u16.u32 %h0, %a; add.s16 %h1, %h0, 5; cvt.u32.u16 %o, %h1;", |a, _| (a as u16).wrapping_add(5).into());
    check("cvt.s8.s32 %r1, %a; mov.u32 %o, %r1;", |a, _| i32::from(a as i8) as u32);
    check("cvt.sat.u8.s32 %o, %a;", |a, _| (a as i32).clamp(0, 255) as u32);
    check("mov.b32 {%h0, %h1}, %a; mov.b32 %o, {%h1, %h0};", |a, _| a.rotate_left(16));
    check("mov.b64 %d1, {%a, %b}; mov.b64 {%r1, %o}, %d1;", |_, b| b);
    check("cvt.u16.u32 %h0, %a; mul.wide.s16 %o, %h0, -3;", |a, _| (i32::from(a as i16) * -3) as u32);
    check(
        "ld.global.s8 %d1, [%x]; cvt.u32.u64 %r1, %d1; shr.u64 %d2, %d1, 32; cvt.u32.u64 %r2, %d2; xor.b32 %o, %r1, %r2;",
        |a, _| {
            let wide = i64::from(a as i8) as u64;
            wide as u32 ^ (wide >> 32) as u32
        },
    );
}

#[test]
fn floats() {
    let float = |body: &str, want: &dyn Fn(f32, f32) -> f32| {
        let (a, b): (Vec<f32>, Vec<f32>) = (noise(2, 32), noise(3, 32));
        let bits = |values: &[f32]| -> [u32; 32] { std::array::from_fn(|i| values[i].to_bits()) };
        for (i, got) in words(body, &bits(&a), &bits(&b)).into_iter().enumerate() {
            assert_eq!(got, want(a[i], b[i]).to_bits(), "{body} of {} and {}", a[i], b[i]);
        }
    };
    float("add.f32 %o, %a, %b;", &|a, b| a + b);
    float("fma.rn.f32 %o, %a, %b, %a;", &|a, b| a.mul_add(b, a));
    float("div.rn.f32 %o, %a, %b;", &|a, b| a / b);
    float("sqrt.rn.f32 %o, %a;", &|a, _| if a < 0.0 { f32::from_bits((a.sqrt()).to_bits()) } else { a.sqrt() });
    float("copysign.f32 %o, %a, %b;", &|a, b| b.copysign(a));
    float("mul.rz.f32 %o, %a, %b;", &|a, b| {
        let exact = f64::from(a) * f64::from(b);
        let near = exact as f32;
        if f64::from(near).abs() > exact.abs() { f32::from_bits(near.to_bits() - 1) } else { near }
    });
    float("add.sat.f32 %o, %a, %b;", &|a, b| (a + b).clamp(0.0, 1.0) + 0.0);
    float("setp.gt.f32 %p, %a, %b; selp.f32 %o, %a, %b, %p;", &|a, b| if a > b { a } else { b });
    float("set.lt.f32.f32 %o, %a, %b;", &|a, b| f32::from(u8::from(a < b)));
    float("mov.f32 %r1, 0f00000001; mul.ftz.f32 %o, %r1, %a;", &|a, _| 0.0_f32.copysign(a));
    float("mov.f32 %r1, 0f7FC00000; max.f32 %o, %r1, %a;", &|a, _| a);
    float("mov.f32 %r1, 0f7FC00000; setp.ltu.f32 %p, %a, %r1; selp.f32 %o, %a, 0f00000000, %p;", &|a, _| a);
    float("mov.f32 %r1, 0f7FC00000; setp.ne.f32 %p, %a, %r1; selp.f32 %o, %a, 0f00000000, %p;", &|_, _| 0.0);
    float("cvt.rn.bf16.f32 %h0, %a; cvt.f32.bf16 %o, %h0;", &|a, _| from_bf16(to_bf16(a)));
    float("cvt.rn.bf16x2.f32 %r1, %a, %b; and.b32 %o, %r1, 0xffff0000;", &|a, _| from_bf16(to_bf16(a)));
    float("cvt.rzi.s32.f32 %r1, %a; cvt.rn.f32.s32 %o, %r1;", &|a, _| a.trunc() + 0.0);
    // A NaN is 0 or the highest bit alone, as the widths have it.
    let nan = "mov.f32 %r1, 0f7FC00000; cvt.f64.f32 %d1, %r1;";
    check(&format!("{nan} cvt.rzi.s32.f32 %o, %r1;"), |_, _| 0);
    check(&format!("{nan} cvt.rmi.s32.f64 %o, %d1;"), |_, _| 1 << 31);
    check(&format!("{nan} cvt.rzi.u64.f32 %d2, %r1; shr.u64 %d2, %d2, 32; cvt.u32.u64 %o, %d2;"), |_, _| 1 << 31);
    // Subnormal before it is rounded: 2^-126 (1 - 2^-24), which is 2^-126 to the nearest; and less than half of the least.
    for (product, rounded) in [("mul.rn", 0x0080_0000), ("mul.rn.ftz", 0)] {
        check(&format!("{product}.f32 %o, 0f3F7FFFFF, 0f00800000;"), |_, _| rounded);
    }
    for (sum, rounded) in [("fma.rn", 0x0080_0000), ("fma.rn.ftz", 0)] {
        check(&format!("{sum}.f32 %o, 0f3F7FFFFF, 0f00800000, 0f00000000;"), |_, _| rounded);
    }
    for (round, rounded) in [("rz", 0), ("rm", 0), ("rp", 1)] {
        check(&format!("mul.{round}.f32 %o, 0f00000001, 0f00000001;"), |_, _| rounded);
    }
    float("mul.f32 %r1, %a, 0f42C80000; cvt.rni.f32.f32 %o, %r1;", &|a, _| (a * 100.0).round_ties_even());
    float("cvt.rna.tf32.f32 %o, %a;", &|a, _| f32::from_bits((a.to_bits() + 0x1000) & !0x1fff));
    float("ex2.approx.f32 %o, %a;", &|a, _| f64::from(a).exp2() as f32);
    float("abs.f32 %r1, %a; rsqrt.approx.f32 %o, %r1;", &|a, _| (1.0 / f64::from(a.abs()).sqrt()) as f32);
    float("tanh.approx.f32 %o, %a;", &|a, _| f64::from(a).tanh() as f32);
}

#[test]
fn shuffles_votes_matches() {
    let (a, b) = samples();
    let lane = |f: &dyn Fn(usize) -> u32| (0..32).map(f).collect::<Vec<u32>>();
    let up = words("shfl.sync.up.b32 %o|%p, %a, 3, 0, -1; @!%p mov.u32 %o, 99;", &a, &b);
    assert_eq!(up, lane(&|i| if i < 3 { 99 } else { a[i - 3] }));
    let down = words("shfl.sync.down.b32 %o, %a, 3, 31, -1;", &a, &b);
    assert_eq!(down, lane(&|i| if i + 3 > 31 { a[i] } else { a[i + 3] }));
    // Segments of eight: the upper bits of the clamp.
    let bfly = words("shfl.sync.bfly.b32 %o, %a, 5, 0x181f, -1;", &a, &b);
    assert_eq!(bfly, lane(&|i| a[i ^ 5]));
    let idx = words("shfl.sync.idx.b32 %o, %a, 2, 0x181f, -1;", &a, &b);
    assert_eq!(idx, lane(&|i| a[i / 8 * 8 + 2]));
    let odd: u32 = a.iter().enumerate().map(|(i, x)| (x & 1) << i).sum();
    let ballot = "and.b32 %r1, %a, 1; setp.ne.u32 %p, %r1, 0; vote.sync.ballot.b32 %o, %p, -1;";
    assert_eq!(words(ballot, &a, &b), [odd; 32]);
    let any = "setp.eq.u32 %p, %a, 33; vote.sync.any.pred %q, %p, -1; selp.u32 %o, 1, 0, %q;";
    assert_eq!(words(any, &a, &b), [1; 32]);
    assert_eq!(words(&any.replace("any", "all"), &a, &b), [0; 32]);
    let alike = words("and.b32 %r1, %t, 3; match.any.sync.b32 %o, %r1, -1;", &a, &b);
    assert_eq!(alike, lane(&|i| 0x1111_1111 << (i % 4)));
    let all = "mov.u32 %r1, 5; match.all.sync.b32 %o|%p, %r1, -1; @%p add.u32 %o, %o, 2;";
    assert_eq!(words(all, &a, &b), [1; 32]);
    let least = a.iter().map(|x| *x as i32).min().unwrap() as u32;
    assert_eq!(words("redux.sync.min.s32 %o, %a, -1;", &a, &b), [least; 32]);
    assert_eq!(words("redux.sync.xor.b32 %o, %a, -1;", &a, &b), [a.iter().fold(0, |x, y| x ^ y); 32]);
    assert_eq!(words("activemask.b32 %o;", &a, &b), [u32::MAX; 32]);
    let elected = words("mov.u32 %o, 0; elect.sync %r1|%p, -1; @%p mov.u32 %o, 1;", &a, &b);
    assert_eq!(elected, lane(&|i| u32::from(i == 0)));
    // Halves of the warp that do not wait for each other.
    let halves = "setp.lt.u32 %p, %t, 16; @%p bra LOW; redux.sync.add.u32 %o, %t, 0xffff0000; bra END;
        LOW: redux.sync.add.u32 %o, %t, 0xffff; END:";
    assert_eq!(words(halves, &a, &b), lane(&|i| if i < 16 { 120 } else { 376 }));
}

#[test]
fn a_lane_may_wait_for_another_of_its_warp() {
    // Each lane takes a lock in turn: the holder must be able to go on while the others spin.
    let text = kernel(
        ".param .u64 lock, .param .u64 sum",
        ".reg .pred %p; .reg .b32 %r<4>; .reg .b64 %x, %y;
         ld.param.u64 %x, [lock]; ld.param.u64 %y, [sum];
         TRY: atom.global.cas.b32 %r1, [%x], 0, 1; setp.ne.u32 %p, %r1, 0; @%p bra TRY;
         ld.volatile.global.u32 %r2, [%y]; add.u32 %r2, %r2, 1; st.volatile.global.u32 [%y], %r2;
         atom.global.exch.b32 %r3, [%x], 0; ret;",
    );
    let device = Device::new(&text);
    let (lock, sum) = (device.u32s(&[0]), device.u32s(&[0]));
    device.launch("k", [3, 1, 1], [64, 1, 1], 0, &[Arg::Ptr(lock), Arg::Ptr(sum)]).unwrap();
    assert_eq!(device.read_u32(sum, 1), [192]);
}

#[test]
fn blocks_may_wait_for_one_another() {
    // A barrier of the whole grid.
    let text = kernel(
        ".param .u64 count",
        ".reg .pred %p; .reg .b32 %r<4>; .reg .b64 %x;
         ld.param.u64 %x, [count]; atom.global.add.u32 %r1, [%x], 1; mov.u32 %r3, %nctaid.x;
         WAIT: ld.acquire.gpu.global.u32 %r2, [%x]; setp.lt.u32 %p, %r2, %r3; @%p bra WAIT; ret;",
    );
    let device = Device::new(&text);
    let count = device.u32s(&[0]);
    device.launch("k", [5, 1, 1], [1; 3], 0, &[Arg::Ptr(count)]).unwrap();
    assert_eq!(device.read_u32(count, 1), [5]);
}

#[test]
fn named_barriers_and_reductions() {
    // Warp 0 makes, warp 1 uses: 64 threads at barrier 1, of which warp 0 does not wait.
    let text = kernel(
        ".param .u64 o",
        ".reg .pred %p, %q; .reg .b32 %t, %s, %r<6>; .reg .b64 %x, %d; .shared .align 4 .b8 words[128];
         ld.param.u64 %x, [o]; mov.u32 %t, %tid.x; and.b32 %s, %t, 31; shl.b32 %s, %s, 2; mov.u32 %r1, words;
         add.u32 %s, %s, %r1; setp.ge.u32 %p, %t, 32; @%p bra USE;
         st.shared.u32 [%s], %t; bar.arrive 1, 64; bra JOIN;
         USE: bar.sync 1, 64; ld.shared.u32 %r2, [%s]; add.u32 %r2, %r2, 100;
         mul.wide.u32 %d, %t, 4; add.u64 %d, %d, %x; st.global.u32 [%d], %r2;
         JOIN: setp.lt.u32 %p, %t, 40; bar.red.popc.u32 %r3, 0, %p; bar.red.and.pred %q, 0, %p;
         selp.u32 %r4, 1, 0, %q; shl.b32 %r4, %r4, 8; or.b32 %r3, %r3, %r4;
         setp.ne.u32 %p, %t, 0; @%p bra END; st.global.u32 [%x], %r3; END: ret;",
    );
    let device = Device::new(&text);
    let o = device.u32s(&[0; 64]);
    device.launch("k", [1; 3], [64, 1, 1], 0, &[Arg::Ptr(o)]).unwrap();
    let got = device.read_u32(o, 64);
    assert_eq!(got[0], 40);
    assert_eq!(got[32..], (100..132).collect::<Vec<u32>>());
    // Without the barrier it is a race.
    let broken = text.replace("bar.arrive 1, 64; ", "").replace("bar.sync 1, 64; ", "");
    let device = Device::new(&broken);
    let o = device.u32s(&[0; 64]);
    let found = emulator_support::kind(device.launch("k", [1; 3], [64, 1, 1], 0, &[Arg::Ptr(o)]));
    assert!(matches!(found, FaultKind::Race { .. }), "{found}");
}

#[test]
fn mbarriers() {
    let text = kernel(
        ".param .u64 x",
        ".reg .pred %p; .reg .b32 %t, %r<6>; .reg .b64 %x, %d, %s; .shared .align 8 .b8 bar[8];
         .shared .align 16 .b8 words[256];
         ld.param.u64 %x, [x]; mov.u32 %t, %tid.x; setp.ne.u32 %p, %t, 0;
         @%p bra GO; mbarrier.init.shared.b64 [bar], 64; GO: bar.sync 0;
         mul.wide.u32 %d, %t, 4; add.u64 %d, %x, %d; shl.b32 %r1, %t, 2; mov.u32 %r2, words; add.u32 %r1, %r1, %r2;
         cp.async.ca.shared.global [%r1], [%d], 4; cp.async.mbarrier.arrive.noinc.shared.b64 [bar];
         { .reg .pred p; WAIT: mbarrier.try_wait.parity.shared.b64 p, [bar], 0; @!p bra WAIT; }
         xor.b32 %r3, %t, 63; shl.b32 %r3, %r3, 2; add.u32 %r3, %r3, %r2; ld.shared.u32 %r4, [%r3];
         st.global.u32 [%d+256], %r4;
         { WAIT: mbarrier.arrive.shared.b64 %s, [bar]; }
         ret;",
    );
    let device = Device::new(&text);
    let x = device.u32s(&(0..128).collect::<Vec<u32>>());
    device.launch("k", [1; 3], [64, 1, 1], 0, &[Arg::Ptr(x)]).unwrap();
    assert_eq!(device.read_u32(x, 128)[64..], (0..64).rev().collect::<Vec<u32>>());
    // Nobody waits.
    let broken = text.replace("@!p bra WAIT;", "");
    let device = Device::new(&broken);
    let x = device.u32s(&(0..128).collect::<Vec<u32>>());
    let found = emulator_support::kind(device.launch("k", [1; 3], [64, 1, 1], 0, &[Arg::Ptr(x)]));
    assert!(matches!(found, FaultKind::Race { .. } | FaultKind::Unwritten { .. }), "{found}");
    let device = Device::new(&text.replace("mbarrier.init.shared.b64 [bar], 64;", ""));
    let x = device.u32s(&[0; 128]);
    let found = emulator_support::kind(device.launch("k", [1; 3], [64, 1, 1], 0, &[Arg::Ptr(x)]));
    assert!(matches!(found, FaultKind::BadMbarrier { .. }), "{found}");
}

#[test]
fn indexed_branches_and_predicates() {
    let body = "and.b32 %r1, %t, 3; setp.lt.u32 %p|%q, %t, 30;
        T: .branchtargets L0, L1, L2, L3;
        brx.idx %r1, T;
        L0: mov.u32 %o, 10; bra E; L1: mov.u32 %o, 11; bra E; L2: mov.u32 %o, 12; bra E; L3: mov.u32 %o, 13;
        E: @%q mov.u32 %o, 0; setp.eq.and.u32 %p, %t, 4, %p; @%p add.u32 %o, %o, 100;";
    let (a, b) = samples();
    let want: Vec<u32> = (0..32).map(|t| if t >= 30 { 0 } else { 10 + t % 4 + if t == 4 { 100 } else { 0 } }).collect();
    assert_eq!(words(body, &a, &b), want);
}

#[test]
fn products_of_small_matrices() {
    // Every fragment as PTX lays it out (ISA 9.7.14), filled from matrices and read back.
    let cases = [
        ("m16n8k16", 16, "f32.f16.f16.f32", 1, false),
        ("m16n8k8", 8, "f32.f16.f16.f32", 1, false),
        ("m16n8k16", 16, "f32.bf16.bf16.f32", 2, false),
        ("m16n8k8", 8, "f32.bf16.bf16.f32", 2, false),
        ("m16n8k8", 8, "f32.tf32.tf32.f32", 3, false),
        ("m16n8k4", 4, "f32.tf32.tf32.f32", 3, false),
        ("m16n8k16", 16, "f16.f16.f16.f16", 1, true),
    ];
    for (shape, k, types, element, half_sums) in cases {
        let per = if element == 3 { 1 } else { 2 };
        let (a_words, b_words) = (16 * k / 32 / per, 8 * k / 32 / per);
        let sums = if half_sums { 2 } else { 4 };
        let names = |prefix: &str, count: usize| {
            let all: Vec<String> = (0..count).map(|i| format!("%{prefix}{i}")).collect();
            all.join(", ")
        };
        let loads = |prefix: &str, base: &str, count: usize| -> String {
            (0..count).map(|i| format!("ld.global.b32 %{prefix}{i}, [{base}+{}];", i * 128)).collect()
        };
        let kind = if half_sums { "b32" } else { "f32" };
        let text = kernel(
            ".param .u64 a, .param .u64 b, .param .u64 c",
            &format!(
                ".reg .b32 %t, %a<4>, %b<2>; .reg .{kind} %c<4>; .reg .b64 %x, %y, %z, %d;
                 ld.param.u64 %x, [a]; ld.param.u64 %y, [b]; ld.param.u64 %z, [c]; mov.u32 %t, %laneid;
                 mul.wide.u32 %d, %t, 4; add.u64 %x, %x, %d; add.u64 %y, %y, %d; add.u64 %z, %z, %d;
                 {} {} {}
                 mma.sync.aligned.{shape}.row.col.{types} {{{c}}}, {{{}}}, {{{}}}, {{{c}}};
                 {} ret;",
                loads("a", "%x", a_words),
                loads("b", "%y", b_words),
                loads("c", "%z", sums),
                names("a", a_words),
                names("b", b_words),
                (0..sums).map(|i| format!("st.global.b32 [%z+{}], %c{i};", i * 128)).collect::<String>(),
                c = names("c", sums),
            ),
        );
        let encode = |x: f32| match element {
            1 => u32::from(half::f16::from_f32(x).to_bits()),
            2 => u32::from(to_bf16(x)),
            _ => x.to_bits(),
        };
        let decode = |bits: u32| match element {
            1 => half::f16::from_bits(bits as u16).to_f64(),
            2 => f64::from(from_bf16(bits as u16)),
            _ => f64::from(f32::from_bits(bits & !0x1fff)),
        };
        let a: Vec<u32> = noise(5, 16 * k).into_iter().map(encode).collect();
        let b: Vec<u32> = noise(6, 8 * k).into_iter().map(encode).collect();
        let c = noise(7, 16 * 8);
        // Row g or g + 8; k from t·per on, and behind the first half of k.
        let word = |at: &dyn Fn(usize) -> u32| (0..per).map(|i| at(i) << (16 * i)).fold(0, |x, y| x | y);
        let half_k = 4 * per;
        let mut fa = vec![0; a_words * 32];
        let mut fb = vec![0; b_words * 32];
        let mut fc = vec![0; sums * 32];
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            for i in 0..a_words {
                fa[i * 32 + lane] = word(&|e| a[(g + i % 2 * 8) * k + i / 2 * half_k + t * per + e]);
            }
            for i in 0..b_words {
                fb[i * 32 + lane] = word(&|e| b[g * k + i * half_k + t * per + e]);
            }
            for i in 0..sums {
                fc[i * 32 + lane] = if half_sums {
                    let pair = [0, 1].map(|e| u32::from(half::f16::from_f32(c[(g + i * 8) * 8 + t * 2 + e]).to_bits()));
                    pair[0] | pair[1] << 16
                } else {
                    c[(g + i / 2 * 8) * 8 + t * 2 + i % 2].to_bits()
                };
            }
        }
        let device = Device::new(&text);
        let (xa, xb, xc) = (device.u32s(&fa), device.u32s(&fb), device.u32s(&fc));
        device.launch("k", [1; 3], [32, 1, 1], 0, &[Arg::Ptr(xa), Arg::Ptr(xb), Arg::Ptr(xc)]).unwrap();
        let got = device.read_u32(xc, sums * 32);
        for row in 0..16 {
            for column in 0..8 {
                let lane = row % 8 * 4 + column / 2;
                let (value, start, tolerance) = if half_sums {
                    let bits = got[row / 8 * 32 + lane] >> (column % 2 * 16);
                    let start = half::f16::from_f32(c[row * 8 + column]).to_f64();
                    // Half a unit of f16 below 4, and the chain in f32.
                    (half::f16::from_bits(bits as u16).to_f64(), start, 1.1e-3)
                } else {
                    let bits = got[(row / 8 * 2 + column % 2) * 32 + lane];
                    (f64::from(f32::from_bits(bits)), f64::from(c[row * 8 + column]), 2e-6)
                };
                let want = (0..k).fold(start, |sum, l| sum + decode(a[row * k + l]) * decode(b[column * k + l]));
                assert!((value - want).abs() <= tolerance, "{shape} {types} ({row}, {column}): {value} {want}");
            }
        }
    }
}

#[test]
fn matrices_through_shared_memory() {
    // Rows stored, then loaded as they are and transposed; then the same by stmatrix.
    for (load, store) in [("", ""), (".trans", ""), ("", ".trans"), (".trans", ".trans")] {
        let text = kernel(
            ".param .u64 x",
            &format!(
                ".reg .b32 %t, %s, %r<4>; .reg .b64 %x, %d; .shared .align 16 .b8 words[128];
                 ld.param.u64 %x, [x]; mov.u32 %t, %laneid; mul.wide.u32 %d, %t, 4; add.u64 %x, %x, %d;
                 ld.global.u32 %r0, [%x]; and.b32 %s, %t, 7; shl.b32 %s, %s, 4; mov.u32 %r1, words; add.u32 %s, %s, %r1;
                 stmatrix.sync.aligned.m8n8.x1{store}.shared.b16 [%s], {{%r0}};
                 bar.warp.sync -1;
                 ldmatrix.sync.aligned.m8n8.x1{load}.shared.b16 {{%r2}}, [%s];
                 st.global.u32 [%x], %r2; ret;"
            ),
        );
        let device = Device::new(&text);
        let matrix: Vec<u16> = (0..64).collect();
        let x = device.u16s(&matrix);
        device.launch("k", [1; 3], [32, 1, 1], 0, &[Arg::Ptr(x)]).unwrap();
        let transposed = load != store;
        let want: Vec<u16> = (0..64).map(|i| if transposed { i % 8 * 8 + i / 8 } else { i }).collect();
        assert_eq!(device.read_u16(x, 64), want, "{load} {store}");
    }
}

#[test]
fn what_is_not_known_is_refused() {
    let refuses = |body: &str, words: &str| {
        let text = kernel(".param .u64 x", &format!(".reg .b32 %r<4>; .reg .b64 %d<4>; .reg .pred %p;\n{body}\nret;"));
        let emulator = Emulator::new((8, 0)).unwrap();
        let error = emulator.load(Image::Ptx(&text)).and_then(|module| emulator.function(module, "k")).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(words) && error.contains("PTX line 7"), "{body}: {error}");
    };
    refuses("frobnicate.b32 %r1, %r2;", "frobnicate.b32 is not supported");
    refuses("add.cc.u32 %r1, %r2, %r3;", "the modifier .cc of add is not supported");
    refuses("ld.global.frob.u32 %r1, [%d1];", ".frob");
    refuses("add.u32 %r1, %r2;", "3 operands were expected");
    refuses("add.u32 %r1, %r2, %d1;", "%d1 has 64 bits where 32 are needed");
    refuses("add.u32 %r1, %r2, %r9;", "%r9 is not declared");
    refuses("add.u32 %r1, %r2 %r3;", "was expected");
    refuses("bra NOWHERE;", "NOWHERE is nowhere");
    refuses("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%r1}, {%r1}, {%r1}, {%r1};", "not supported");
    refuses("add.rm.f16 %r1, %r2, %r3;", "not supported");
    refuses("call.uni foo, (%r1);", "calls of functions are not supported");
    // A kernel that cannot run does not keep another of its module from running.
    let text = ".version 8.0\n.target sm_80\n.address_size 64
        .extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);
        .func (.param .b32 r) own (.param .b32 x) { .reg .b32 %r; ld.param.b32 %r, [x]; st.param.b32 [r], %r; ret; }
        .visible .entry prints() { .reg .b32 %r; { .param .b64 p; .param .b32 q; call.uni (q), vprintf, (p, p); } ret; }
        .visible .entry runs() { ret; }";
    let device = Device::new(text);
    let error = device.launch("prints", [1; 3], [1; 3], 0, &[]).unwrap_err().to_string();
    assert!(error.contains("not supported"), "{error}");
    device.launch("runs", [1; 3], [1; 3], 0, &[]).unwrap();
    let emulator = Emulator::new((8, 0)).unwrap();
    for text in [
        "garbage",
        ".version 8.0\n.target sm_80\n.entry k( {",
        "\"",
        "/*",
        ".target sm_90",
        ".entry k() { .reg .b32 %r<99999999999>; }",
    ] {
        let result = emulator.load(Image::Ptx(text)).and_then(|module| emulator.function(module, "k"));
        assert!(result.is_err(), "{text}");
    }
}

#[test]
fn no_text_makes_it_panic() {
    // Real kernels with words exchanged, removed and doubled: refused, faulting or running, but never a panic.
    let texts = [
        include_str!("emulator/misc.ptx"),
        include_str!("emulator/softmax.ptx"),
        include_str!("emulator/rms_norm.ptx"),
    ];
    let mut state = 7_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    let (mut refused, mut faulty, mut ran) = (0, 0, 0);
    for round in 0..400 {
        let text = texts[round % texts.len()];
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for _ in 0..=random(3) {
            let (at, other) = (random(lines.len()), random(lines.len()));
            let mut words: Vec<String> = lines[at].split_inclusive([' ', '\t', ',']).map(str::to_owned).collect();
            let others: Vec<String> = lines[other].split_inclusive([' ', '\t', ',']).map(str::to_owned).collect();
            let word = random(words.len());
            match random(4) {
                0 if !words.is_empty() => drop(words.remove(word)),
                1 if !words.is_empty() => words.insert(word, words[word].clone()),
                2 if !others.is_empty() && !words.is_empty() => words[word] = others[random(others.len())].clone(),
                _ => {
                    let byte = random(lines[at].len() + 1);
                    words = vec![lines[at].chars().take(byte).collect()];
                }
            }
            lines[at] = words.concat();
        }
        let text = lines.join("\n");
        let emulator = Emulator::new((8, 0)).unwrap().with_budget(20_000);
        let Ok(module) = emulator.load(Image::Ptx(&text)) else {
            refused += 1;
            continue;
        };
        for name in ["collatz", "indexed", "histogram", "functions", "halves", "softmax", "rms_norm"] {
            let Ok(function) = emulator.function(module, name) else {
                refused += 1;
                continue;
            };
            let Ok(memory) = emulator.alloc(1 << 16, emulator_support::STREAM) else { break };
            emulator.fill(memory, 1, 1 << 16, emulator_support::STREAM).unwrap();
            let launch =
                planish_cuda::driver::Launch { grid: [1; 3], block: [64, 1, 1], cluster: [1; 3], shared_bytes: 0 };
            let counts: [usize; 6] = [2, 4, 5, 4, 5, 3];
            for count in counts {
                let pointers = vec![Arg::Ptr(memory); count];
                for with in [Arg::I32(8), Arg::F32(8.0)] {
                    let args: Vec<Arg<'_>> = pointers[..count - 1].iter().copied().chain([with]).collect();
                    match emulator.launch(function, &launch, &args, emulator_support::STREAM) {
                        Ok(()) => ran += 1,
                        Err(planish_cuda::Error::Emulator(_)) => faulty += 1,
                        Err(_) => {}
                    }
                }
            }
        }
    }
    assert!(refused > 50 && ran > 50 && faulty > 5, "{refused} {faulty} {ran}");
}
