//! Copies by tensor maps: boxes of tensors, swizzles, edges; and what is against their rules.

mod emulator_support;

use emulator_support::{Device, kind};
use planish_cuda::driver::{Arg, DevicePtr, Driver, Fill, Swizzle, TENSOR_MAP_BYTES, TensorMap};
use planish_cuda::emulator::{Emulator, FaultKind};
use planish_cuda::{DType, Result};

/// A kernel that loads the box at the coordinates `c` and gives its bytes as they lie in shared memory.
fn loading(dimensions: usize) -> String {
    let coordinates: Vec<String> = (0..dimensions).map(|at| format!("%c{at}")).collect();
    format!(
        "{HEAD} mov.b64 %m, map; cvta.param.u64 %m, %m; prefetch.tensormap [%m];
        setp.ne.u32 %p, %t, 0; @%p bra GO;
        mbarrier.init.shared::cta.b64 [bar], 1; fence.mbarrier_init.release.cluster;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], %r1;
        cp.async.bulk.tensor.{dimensions}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [box], [%m, {{{}}}], [bar];
        GO: bar.sync 0;
        WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p, [bar], 0; @!%p bra WAIT;
        mov.u32 %r2, box; shl.b32 %r3, %t, 2;
        LOOP: setp.ge.u32 %p, %r3, %r1; @%p bra END;
        add.u32 %r4, %r2, %r3; ld.shared.u32 %r5, [%r4];
        cvt.u64.u32 %d, %r3; add.u64 %d, %o, %d; st.global.u32 [%d], %r5;
        add.u32 %r3, %r3, 512; bra LOOP;
        END: ret; }}",
        coordinates.join(", ")
    )
}

const HEAD: &str = ".version 8.0\n.target sm_90a\n.address_size 64
    .visible .entry k(.param .align 64 .b8 map[128], .param .u64 o, .param .u32 bytes, .param .u32 c0, .param .u32 c1,
    .param .u32 c2, .param .u32 c3, .param .u32 c4) {
    .reg .pred %p; .reg .b32 %t, %r<6>, %c<5>; .reg .b64 %m, %o, %d;
    .shared .align 1024 .b8 box[8192]; .shared .align 8 .b8 bar[8];
    ld.param.u64 %o, [o]; ld.param.u32 %r1, [bytes]; mov.u32 %t, %tid.x;
    ld.param.u32 %c0, [c0]; ld.param.u32 %c1, [c1]; ld.param.u32 %c2, [c2]; ld.param.u32 %c3, [c3]; ld.param.u32 %c4, [c4];";

struct Tensor {
    device: Device,
    at: DevicePtr,
    sizes: Vec<u64>,
    strides: Vec<u64>,
    /// Its bytes, gaps included.
    bytes: Vec<u8>,
}

fn hopper() -> Emulator {
    Emulator::new((9, 0)).unwrap().with_budget(200_000)
}

impl Tensor {
    /// A tensor of `element` bytes an element with gaps between its rows.
    fn new(text: &str, sizes: &[u64], element: u64) -> Tensor {
        let mut strides = Vec::new();
        let mut size = sizes[0] * element;
        for length in &sizes[1..] {
            strides.push((size + 1).next_multiple_of(16));
            size = strides[strides.len() - 1] * length;
        }
        let bytes: Vec<u8> = (0..size).map(|at| ((at * 7919) >> 3) as u8 | 1).collect();
        let device = Device::with(hopper(), text);
        let at = device.bytes(&bytes);
        Tensor { device, at, sizes: sizes.to_vec(), strides, bytes }
    }

    fn map(&self, dtype: DType, tile: &[u32], swizzle: Swizzle, fill: Fill) -> [u8; TENSOR_MAP_BYTES] {
        let (base, sizes, strides) = (self.at, &self.sizes[..], &self.strides[..]);
        self.device.emulator.tensor_map(&TensorMap { base, dtype, sizes, strides, tile, swizzle, fill }).unwrap()
    }

    fn run(&self, map: &[u8], out: DevicePtr, bytes: u32, first: &[i32]) -> Result<()> {
        let mut args = vec![Arg::Bytes(map), Arg::Ptr(out), Arg::U32(bytes)];
        args.extend((0..5).map(|at| Arg::I32(first.get(at).copied().unwrap_or(0))));
        self.device.launch("k", [1; 3], [128, 1, 1], 0, &args)
    }

    /// The byte of an element of the box; `None` outside of the tensor.
    fn byte(&self, first: &[i32], within: &[u64], element: u64, byte: u64) -> Option<u8> {
        let mut at = byte;
        for (d, (first, within)) in first.iter().zip(within).enumerate() {
            let here = i64::from(*first) + *within as i64;
            if !(0..self.sizes[d] as i64).contains(&here) {
                return None;
            }
            at += here as u64 * if d == 0 { element } else { self.strides[d - 1] };
        }
        Some(self.bytes[at as usize])
    }
}

/// Elements of a box in the order of shared memory.
fn places(tile: &[u32]) -> impl Iterator<Item = Vec<u64>> + '_ {
    (0..tile.iter().product::<u32>()).map(move |number| {
        let mut rest = u64::from(number);
        tile.iter()
            .map(|size| {
                let at = rest % u64::from(*size);
                rest /= u64::from(*size);
                at
            })
            .collect()
    })
}

fn swizzled(at: u64, swizzle: Swizzle) -> u64 {
    let chunks = u64::from(swizzle.span().unwrap_or(16)) / 16;
    at ^ ((at / 128 % chunks) * 16)
}

fn check(sizes: &[u64], dtype: DType, tile: &[u32], swizzle: Swizzle, fill: Fill, first: &[i32]) {
    let element = dtype.size() as u64;
    let tensor = Tensor::new(&loading(sizes.len()), sizes, element);
    let bytes = tile.iter().product::<u32>() * element as u32;
    let out = tensor.device.empty(bytes as usize);
    tensor.run(&tensor.map(dtype, tile, swizzle, fill), out, bytes, first).unwrap();
    let got: Vec<[u8; 1]> = tensor.device.read(out, bytes as usize);
    let outside = match (fill, dtype) {
        (Fill::Nan, DType::BF16) => 0x7fc0_u64,
        (Fill::Nan, _) => u64::from(f32::NAN.to_bits()),
        _ => 0,
    };
    for (number, within) in places(tile).enumerate() {
        for byte in 0..element {
            let want = tensor.byte(first, &within, element, byte).unwrap_or((outside >> (8 * byte)) as u8);
            let at = swizzled(number as u64 * element + byte, swizzle);
            assert_eq!(got[at as usize][0], want, "{dtype} {tile:?} {swizzle:?} at {first:?}: {within:?}");
        }
    }
}

#[test]
fn boxes_of_one_to_five_dimensions() {
    let (none, zeros) = (Swizzle::None, Fill::Zeros);
    check(&[100], DType::U8, &[32], none, zeros, &[3]);
    check(&[40, 9], DType::F32, &[12, 5], none, zeros, &[4, 2]);
    check(&[24, 5, 4], DType::BF16, &[16, 3, 2], none, zeros, &[0, 1, 1]);
    check(&[8, 3, 4, 3], DType::F32, &[4, 2, 3, 2], none, zeros, &[4, 1, 0, 1]);
    check(&[8, 3, 2, 3, 2], DType::F16, &[8, 2, 2, 2, 2], none, zeros, &[0, 0, 0, 1, 0]);
    check(&[6, 4], DType::F64, &[4, 4], none, zeros, &[1, 0]);
}

#[test]
fn edges_are_filled() {
    for first in [[-3, -2], [30, 5], [-40, 0], [38, -20], [0, 8], [i32::MAX, i32::MIN]] {
        check(&[40, 9], DType::F32, &[12, 5], Swizzle::None, Fill::Zeros, &first);
        check(&[40, 9], DType::BF16, &[16, 5], Swizzle::Bytes32, Fill::Nan, &first);
    }
    check(&[8, 3, 2], DType::F32, &[8, 4, 4], Swizzle::Bytes32, Fill::Nan, &[-1, -1, -1]);
}

#[test]
fn swizzles_exchange_chunks_of_rows() {
    for (swizzle, columns) in [(Swizzle::Bytes32, 16), (Swizzle::Bytes64, 32), (Swizzle::Bytes128, 64)] {
        check(&[100, 40], DType::BF16, &[columns, 32], swizzle, Fill::Zeros, &[24, 3]);
    }
    check(&[64, 3, 40], DType::BF16, &[64, 1, 20], Swizzle::Bytes128, Fill::Zeros, &[0, 2, 30]);
}

/// The tile that products read: the pattern is that of the address, so it begins at a multiple of 1024 bytes.
#[test]
fn a_map_may_lie_in_global_memory() {
    let text = loading(2).replace("mov.b64 %m, map; cvta.param.u64 %m, %m;", "ld.param.u64 %m, [map];");
    let tensor = Tensor::new(&text, &[16, 4], 4);
    let map = tensor.map(DType::F32, &[16, 4], Swizzle::None, Fill::Zeros);
    let (there, out) = (tensor.device.bytes(&[&map[..], &map[..]].concat()), tensor.device.empty(256));
    let run = |at: u64| {
        let mut argument = [0; TENSOR_MAP_BYTES];
        argument[..8].copy_from_slice(&at.to_le_bytes());
        tensor.run(&argument, out, 256, &[0, 0])
    };
    run(there.0 + 128).unwrap();
    let first: Vec<[u8; 1]> = tensor.device.read(out, 64);
    assert!(first.iter().map(|byte| byte[0]).eq(tensor.bytes[..64].iter().copied()));
    assert_eq!(kind(run(there.0 + 8)), FaultKind::Misaligned { address: there.0 + 8, bytes: 64 });
}

#[test]
fn broken_copies_are_caught() {
    let text = loading(2);
    let run = |text: &str, tile: &[u32], bytes: u32, first: &[i32]| {
        let tensor = Tensor::new(text, &[16, 8], 4);
        let map = tensor.map(DType::F32, tile, Swizzle::None, Fill::Zeros);
        let out = tensor.device.empty(4096);
        kind(tensor.run(&map, out, bytes, first))
    };
    let wait = "WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p, [bar], 0; @!%p bra WAIT;";
    assert!(matches!(run(&text.replace(wait, ""), &[16, 8], 512, &[0, 0]), FaultKind::PendingCopy { .. }));
    // The bytes of the whole box count, also of what lies outside.
    assert!(matches!(run(&text, &[16, 8], 256, &[0, 4]), FaultKind::OutOfBudget { .. }));
    let moved = text.replace("[box], [%m", "[box+64], [%m");
    assert!(matches!(run(&moved, &[16, 8], 512, &[0, 0]), FaultKind::Misaligned { bytes: 128, .. }));
    let silent = text.replace("mbarrier.init.shared::cta.b64 [bar], 1;", "");
    assert!(matches!(run(&silent, &[16, 8], 512, &[0, 0]), FaultKind::BadMbarrier { .. }));
    let flat = loading(1);
    assert!(matches!(run(&flat, &[16, 8], 512, &[0]), FaultKind::BadTensorMap { .. }));
    let large = text.replace("box[8192]", "box[512]");
    assert!(matches!(run(&large, &[16, 16], 1024, &[0, 0]), FaultKind::OutOfBounds { space: "shared", .. }));

    let tensor = Tensor::new(&text, &[16, 8], 4);
    let out = tensor.device.empty(4096);
    let found = kind(tensor.run(&[7; TENSOR_MAP_BYTES], out, 512, &[0, 0]));
    assert!(matches!(found, FaultKind::BadTensorMap { problem: "is none that the driver made", .. }), "{found}");

    // A description that goes beyond the memory that it is of, and memory that nothing wrote.
    for (sizes, found) in [([16, 9], "outside of global memory"), ([16, 8], "nothing wrote")] {
        let device = Device::with(hopper(), &text);
        let (at, out) = (device.empty(512), device.empty(4096));
        if sizes[1] == 9 {
            device.emulator.fill(at, 1, 512, emulator_support::STREAM).unwrap();
        }
        let map = TensorMap {
            base: at,
            dtype: DType::F32,
            sizes: &sizes,
            strides: &[64],
            tile: &[16, 9],
            swizzle: Swizzle::None,
            fill: Fill::Zeros,
        };
        let map = device.emulator.tensor_map(&map).unwrap();
        let mut args = vec![Arg::Bytes(&map), Arg::Ptr(out), Arg::U32(576)];
        args.extend([Arg::I32(0); 5]);
        let text = kind(device.launch("k", [1; 3], [128, 1, 1], 0, &args)).to_string();
        assert!(text.contains(found), "{text}");
    }
}

#[test]
fn boxes_are_stored() {
    let text = format!(
        "{HEAD} mov.b64 %m, map; cvta.param.u64 %m, %m;
        mov.u32 %r2, box; shl.b32 %r3, %t, 2; add.u32 %r4, %r2, %r3; st.shared.u32 [%r4], %t;
        fence.proxy.async.shared::cta; bar.sync 0; setp.ne.u32 %p, %t, 0; @%p bra END;
        cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%m, {{%c0, %c1}}], [box];
        cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; END: ret; }}"
    );
    let run = |text: &str, first: [i32; 2]| {
        let tensor = Tensor::new(text, &[16, 8], 4);
        let map = tensor.map(DType::F32, &[16, 8], Swizzle::Bytes64, Fill::Zeros);
        let result = tensor.run(&map, tensor.at, 0, &first);
        (tensor, result)
    };
    for first in [[0, 0], [-3, 2], [5, -7], [16, 0]] {
        let (tensor, result) = run(&text, first);
        result.unwrap();
        let mut want = tensor.bytes.clone();
        for (number, within) in places(&[16, 8]).enumerate() {
            let value = (swizzled(number as u64 * 4, Swizzle::Bytes64) / 4) as u32;
            let (x, y) = (i64::from(first[0]) + within[0] as i64, i64::from(first[1]) + within[1] as i64);
            if (0..16).contains(&x) && (0..8).contains(&y) {
                let at = x as usize * 4 + y as usize * tensor.strides[0] as usize;
                want[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
        let got: Vec<[u8; 1]> = tensor.device.read(tensor.at, want.len());
        assert!(got.iter().map(|byte| byte[0]).eq(want.iter().copied()), "{first:?}");
    }
    let (_, result) = run(&text.replace("fence.proxy.async.shared::cta;", ""), [0, 0]);
    assert!(matches!(kind(result), FaultKind::NoProxyFence { .. }));
    // The box is read until it was waited for.
    let wait = "cp.async.bulk.wait_group 0;";
    let (_, result) = run(&text.replace(wait, &format!("st.shared.u32 [box], %t; {wait}")), [0, 0]);
    assert!(matches!(kind(result), FaultKind::OperandOverwritten { writer: 0, .. }));
    run(&text.replace(wait, &format!("{wait} st.shared.u32 [box], %t;")), [0, 0]).1.unwrap();
    // One group may be left, and this is one; the end of the thread waits for all.
    let (_, result) = run(&text.replace(wait, "cp.async.bulk.wait_group 1; st.shared.u32 [box], %t;"), [0, 0]);
    assert!(matches!(kind(result), FaultKind::OperandOverwritten { writer: 0, .. }));
    run(&text.replace(wait, ""), [0, 0]).1.unwrap();
    let (_, result) = run(&text.replace("bar.sync 0;", ""), [0, 0]);
    assert!(matches!(kind(result), FaultKind::Race { .. } | FaultKind::Unwritten { .. }));
}
