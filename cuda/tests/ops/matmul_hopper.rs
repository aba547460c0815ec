//! matmul on Hopper: the ring of tiles, and the version that takes them by turns.

use std::sync::Arc;

use planish_cuda::driver::{Arg, Fill, Swizzle, TensorMap};
use planish_cuda::emulator::Emulator;
use planish_cuda::kernels::{HEADERS, Kernel, MATMUL_HOPPER};
use planish_cuda::memory::DeviceBuffer;
use planish_cuda::ops::matmul::{Epilogue, Layout, Term, matmul};
use planish_cuda::ops::matmul_runs::matmul_runs;
use planish_cuda::{DType, Device, Queue, Shape};

use crate::support::*;

const LAYOUTS: [Layout; 4] = [
    Layout::FORWARD,
    Layout::INPUT_GRADIENT,
    Layout::WEIGHT_GRADIENT,
    Layout { a_transposed: true, b_transposed: false },
];

/// A, B, A2, B2, the bias and C before, of a product of these sizes.
fn inputs(queue: Queue<'_>, [m, n, k, k2]: [usize; 4], t: DType, to: DType) -> [DeviceBuffer; 6] {
    let sizes = [m * k, n * k, m * k2, n * k2, n, m * n];
    std::array::from_fn(|i| {
        let dtype = if i == 5 { to } else { t };
        put(queue, &random(sizes[i], dtype, i as u64 + 1), dtype)
    })
}

fn product(device: &Device, sizes: [usize; 4], layout: Layout, t: DType, to: DType, add: bool) -> Vec<f64> {
    let [a, b, a2, b2, bias, c] = inputs(device.queue(), sizes, t, to);
    let epilogue = Epilogue { alpha: 0.5, bias: Some(bias.slice(t)), add };
    product_of(device, sizes, layout, (t, to), [a, b, a2, b2], c, epilogue)
}

fn product_of(
    device: &Device,
    [m, n, k, k2]: [usize; 4],
    layout: Layout,
    (t, to): (DType, DType),
    [a, b, a2, b2]: [DeviceBuffer; 4],
    mut c: DeviceBuffer,
    epilogue: Epilogue<'_>,
) -> Vec<f64> {
    let terms = [Term { a: a.slice(t), b: b.slice(t), depth: k }, Term { a: a2.slice(t), b: b2.slice(t), depth: k2 }];
    matmul(device.queue(), c.slice_mut(to), [m, n], layout, &terms, epilogue).unwrap();
    get(&c, to)
}

/// The emulator adds in the order that the heads of both files state, so both must give the same bits: those of the
/// kernel of other cards, which other tests hold against f64.
#[test]
fn hopper_and_ampere_add_in_one_order() {
    let (Some(hopper), Some(ampere)) = (device_of((9, 0)), device_of((8, 0))) else { return };
    let (half, f32) = (DType::BF16, DType::F32);
    let same = |sizes, layout, t, to, add| {
        let of = |device| product(device, sizes, layout, t, to, add);
        assert!(of(&hopper) == of(&ampere), "{sizes:?} {layout:?} {t}");
    };
    // Few rows and many, more steps than stages, edges in every direction.
    for layout in LAYOUTS {
        same([72, 200, 72, 16], layout, half, f32, true);
    }
    same([8, 8, 8, 0], Layout::FORWARD, half, half, false);
    same([64, 72, 456, 8], Layout::INPUT_GRADIENT, DType::F16, DType::F16, false);
    // A number of rows that is no multiple of 8, and columns that are odd.
    for sizes in [[1, 24, 40, 0], [131, 33, 64, 24]] {
        same(sizes, Layout::FORWARD, half, half, false);
    }
}

/// Tiles that lie wholly within C and have no bias are stored in another way: the same bits, beside tiles that do not.
#[test]
fn whole_tiles_have_the_bits_of_others() {
    let (Some(hopper), Some(ampere)) = (device_of((9, 0)), device_of((8, 0))) else { return };
    let same = |sizes, layout, t, to, add| {
        let of = |device: &Device| {
            let [a, b, a2, b2, _, c] = inputs(device.queue(), sizes, t, to);
            product_of(device, sizes, layout, (t, to), [a, b, a2, b2], c, Epilogue { alpha: 0.3, bias: None, add })
        };
        assert!(of(&hopper) == of(&ampere), "{sizes:?} {layout:?} {t} {to} {add}");
    };
    let (half, f32) = (DType::BF16, DType::F32);
    for sizes in [[64, 64, 72, 8], [200, 264, 72, 0]] {
        same(sizes, Layout::FORWARD, half, half, false);
        same(sizes, Layout::FORWARD, half, half, true);
        same(sizes, Layout::FORWARD, DType::F16, DType::F16, false);
        same(sizes, Layout::WEIGHT_GRADIENT, half, f32, true);
        same(sizes, Layout::INPUT_GRADIENT, half, f32, false);
    }
    // The narrowest tile, and rows that are no words of 16 bytes.
    same([64, 32, 72, 0], Layout::FORWARD, half, half, false);
    same([64, 130, 72, 0], Layout::FORWARD, half, half, false);
}

/// A kernel of the file, its tile, and how many blocks take part at most.
#[derive(Clone, Copy, Debug)]
struct Rung {
    name: &'static str,
    groups: usize,
    columns: usize,
    stages: usize,
    cluster: usize,
    most: usize,
}

const fn ring(groups: usize, columns: usize, stages: usize, cluster: usize, most: usize) -> Rung {
    Rung { name: "matmul_hopper", groups, columns, stages, cluster, most }
}

const fn turns(columns: usize) -> Rung {
    Rung { name: "matmul_hopper_by_turns", ..ring(1, columns, 3, 1, usize::MAX) }
}

/// A, B, A2 and B2 as maps.
fn maps(device: &Device, [m, n, k, k2]: [usize; 4], layout: Layout, of: [&DeviceBuffer; 4]) -> [[u8; 128]; 4] {
    let [a, b] = [(layout.a_transposed, m), (layout.b_transposed, n)];
    let of = of.into_iter().zip([(a, k), (b, k), (a, k2), (b, k2)]);
    let map = |(x, ((transposed, rows), depth)): (&DeviceBuffer, ((bool, usize), usize))| {
        let (along, across) = if transposed { (rows, depth) } else { (depth, rows) };
        let map = TensorMap {
            base: x.ptr(),
            dtype: DType::BF16,
            sizes: &[along as u64, across as u64],
            strides: &[2 * along as u64],
            tile: &[64, 64],
            swizzle: Swizzle::Bytes128,
            fill: Fill::Zeros,
        };
        device.driver().tensor_map(&map).unwrap()
    };
    of.map(map).collect::<Vec<_>>().try_into().unwrap()
}

/// The same products as `product` makes of bf16, added to C in f32.
fn product_by(device: &Device, sizes: [usize; 4], layout: Layout, rung: Rung) -> Vec<f64> {
    let (queue, [m, n, k, k2]) = (device.queue(), sizes);
    let [a, b, a2, b2, bias, c] = inputs(queue, sizes, DType::BF16, DType::F32);
    let maps = maps(device, sizes, layout, [&a, &b, &a2, &b2]);
    let Rung { name, groups, columns, stages, cluster, most } = rung;
    let of = [
        ("T", "bf16".to_owned()),
        ("O", "f32".to_owned()),
        ("A_T", u8::from(layout.a_transposed).to_string()),
        ("B_T", u8::from(layout.b_transposed).to_string()),
        ("ADD", "1".to_owned()),
        ("GROUPS", groups.to_string()),
        ("BN", columns.to_string()),
        ("STAGES", stages.to_string()),
        ("CLUSTER", cluster.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    let mut args = vec![Arg::Ptr(c.ptr())];
    args.extend(maps.iter().map(|map| Arg::Bytes(map)));
    args.extend([Arg::Ptr(bias.ptr()), Arg::F32(0.5)]);
    args.extend([m, n, k, k2, n].map(|x| Arg::U32(x as u32)));
    args.extend((name == "matmul_hopper").then_some(Arg::U32(0)));
    // One group without a ring, or as many as there are and the producer.
    let (working, threads, room) = match name {
        "matmul_hopper" => (groups, 128 * (groups as u32 + 1), stages * (groups + columns / 64) * 8192 + 16 * stages),
        _ => (1, 128, (1 + columns / 64) * 8192 + 8),
    };
    let blocks = most.min(m.div_ceil(64 * working).next_multiple_of(cluster) * n.div_ceil(columns));
    let shape = Shape::line(blocks, threads).shared(room).clusters(cluster);
    queue.launch(&MATMUL_HOPPER, name, &of.to_vec(), shape, &args).unwrap();
    get(&c, DType::F32)
}

/// Rung 0 and rung 1, and all tiles: the same chains, the same bits.
#[test]
fn turns_and_ring_give_the_same_bits() {
    let Some(device) = device_of((9, 0)) else { return };
    for layout in [Layout::FORWARD, Layout::WEIGHT_GRADIENT] {
        let sizes = [72, 136, 136, 24];
        let want = product(&device, sizes, layout, DType::BF16, DType::F32, true);
        // Blocks that take one tile each, and fewer that take several.
        for rung in [
            ring(2, 64, 4, 1, 99),
            ring(1, 128, 3, 1, 99),
            ring(1, 128, 3, 1, 3),
            ring(2, 64, 2, 1, 1),
            ring(2, 256, 4, 1, 99),
            turns(64),
            turns(128),
            turns(256),
        ] {
            assert!(product_by(&device, sizes, layout, rung) == want, "{rung:?} {layout:?}");
        }
    }
}

/// Blocks that share B give the bits of those that do not: rows of tiles that are even and odd in number, only one, tiles that
/// blocks take one after another, edges in every direction, and more steps than stages.
#[test]
fn clusters_give_the_same_bits() {
    let Some(device) = device_of((9, 0)) else { return };
    let check = |sizes, layout, rungs: &[Rung]| {
        let want = product_by(&device, sizes, layout, ring(1, 64, 3, 1, 99));
        for rung in rungs {
            assert!(product_by(&device, sizes, layout, *rung) == want, "{sizes:?} {rung:?} {layout:?}");
        }
    };
    for layout in LAYOUTS {
        // Three tiles of 64 rows: the last has no neighbour. One cluster takes four tiles.
        check([136, 200, 136, 24], layout, &[ring(1, 128, 3, 2, 99), ring(1, 128, 2, 2, 2)]);
    }
    // The tiles that ship: a pair of which the second is not whole, and one that has no second.
    let shipped = [ring(2, 256, 4, 2, 99), ring(2, 128, 6, 2, 99)];
    check([200, 264, 456, 8], Layout::FORWARD, &shipped);
    check([72, 136, 72, 8], Layout::INPUT_GRADIENT, &shipped);
    check([264, 136, 72, 16], Layout::WEIGHT_GRADIENT, &[ring(2, 128, 2, 2, 2)]);
}

/// What the launcher makes of products of more rows than a tile: clusters, in the order of other cards.
#[test]
fn many_rows_go_to_clusters() {
    let Some(cache) = cache() else { return };
    let emulator = Arc::new(Emulator::new((9, 0)).unwrap().with_reports());
    let hopper = Device::new(emulator.clone(), cache);
    let Some(ampere) = device_of((8, 0)) else { return };
    for (sizes, blocks) in [([136, 72, 72, 8], 2), ([264, 72, 72, 0], 4), ([128, 72, 72, 0], 1)] {
        let of = |device| product(device, sizes, Layout::FORWARD, DType::BF16, DType::BF16, false);
        assert!(of(&hopper) == of(&ampere), "{sizes:?}");
        let report = emulator.take_reports().pop().unwrap();
        assert_eq!((report.blocks, report.cluster), (blocks, if blocks > 1 { 2 } else { 1 }), "{sizes:?}");
        assert_eq!(report.to_string().contains("blocks of 384 threads in clusters of 2"), blocks > 1, "{report}");
    }
}

/// A weight's rows of 8 elements but a first element that the copy engine cannot fetch; no row, no column, no depth.
#[test]
fn what_does_not_fit_goes_elsewhere() {
    let Some(device) = device_of((9, 0)) else { return };
    let (queue, t) = (device.queue(), DType::BF16);
    let (x, w) = (random(5 * 16, t, 1), random(9 * 16, t, 2));
    let (px, pw) = (put(queue, &x, t), put(queue, &w, t));
    let mut y = room(queue, 5 * 8, t);
    let term = Term { a: px.slice(t), b: pw.slice(t).part(4, 8 * 16).unwrap(), depth: 16 };
    matmul(queue, y.slice_mut(t), [5, 8], Layout::FORWARD, &[term], Epilogue::default()).unwrap();
    let want: Vec<f64> = (0..40).map(|e| (0..16).map(|i| x[e / 8 * 16 + i] * w[4 + e % 8 * 16 + i]).sum()).collect();
    close("from an odd place", &get(&y, t), &want, tolerance(t));
    for [m, n, k] in [[0, 8, 8], [8, 0, 8], [8, 8, 0]] {
        let (a, b) = (put(queue, &random(m * k, t, 1), t), put(queue, &random(n * k, t, 1), t));
        let mut c = put(queue, &vec![2.0; m * n], DType::F32);
        let term = Term { a: a.slice(t), b: b.slice(t), depth: k };
        let add = Epilogue { add: true, ..Epilogue::default() };
        matmul(queue, c.slice_mut(DType::F32), [m, n], Layout::FORWARD, &[term], add).unwrap();
        assert_eq!(get(&c, DType::F32), vec![2.0; m * n]);
    }
}

/// The gradient of a small weight is made in parts of its tokens: one that is not full, and what is there is added to.
#[test]
fn gradients_of_small_weights_are_made_in_parts() {
    let Some(device) = device_of((9, 0)) else { return };
    let (queue, t, f32) = (device.queue(), DType::BF16, DType::F32);
    let [m, n, k] = [16, 72, 2 * 1024 + 40];
    let (dy, x, before) = (random(k * m, t, 1), random(k * n, t, 2), random(m * n, f32, 3));
    let (a, b, mut c) = (put(queue, &dy, t), put(queue, &x, t), put(queue, &before, f32));
    let term = Term { a: a.slice(t), b: b.slice(t), depth: k };
    let epilogue = Epilogue { alpha: 0.5, bias: None, add: true };
    let mut run = || matmul(queue, c.slice_mut(f32), [m, n], Layout::WEIGHT_GRADIENT, &[term], epilogue).unwrap();
    run();
    let want: Vec<f64> = (0..m * n)
        .map(|e| before[e] + 0.5 * (0..k).map(|i| dy[i * m + e / n] * x[i * n + e % n]).sum::<f64>())
        .collect();
    close("in parts", &get(&c, f32), &want, 1e-5);
    let first = get(&c, f32);
    c.upload(&before.iter().map(|&x| x as f32).collect::<Vec<_>>()).unwrap();
    let mut again = || matmul(queue, c.slice_mut(f32), [m, n], Layout::WEIGHT_GRADIENT, &[term], epilogue).unwrap();
    again();
    assert!(get(&c, f32) == first);
}

/// The kernel with a piece of its text replaced, on a product of two stages more than the ring has, by a cluster of so many
/// blocks.
fn broken(device: &Device, cluster: usize, change: &[(&str, &str)]) -> planish_cuda::Result<()> {
    let ring = HEADERS.iter().find(|(name, _)| *name == "ring.cuh").unwrap().1.replace("#pragma once", "");
    let mut text = MATMUL_HOPPER.text.replace("#include \"ring.cuh\"", &ring);
    for (old, new) in change {
        assert!(text.contains(old), "{old} is not there");
        text = text.replace(old, new);
    }
    let kernel = Kernel { text: text.leak(), ..MATMUL_HOPPER };
    let (queue, t) = (device.queue(), DType::BF16);
    let (columns, cluster_of) = (64 * cluster, cluster.to_string());
    let sizes @ [m, n, k, _] = [64 * cluster, columns, 256, 0];
    let [a, b, _, _, _, c] = inputs(queue, sizes, t, t);
    let maps = maps(device, [m, n, k, k], Layout::FORWARD, [&a, &b, &a, &b]);
    let (columns_of, add) = (columns.to_string(), [("A_T", "0"), ("B_T", "0"), ("ADD", "0"), ("STAGES", "2")]);
    let of = [("T", "bf16"), ("O", "bf16"), ("GROUPS", "1"), ("BN", &columns_of), ("CLUSTER", &cluster_of)];
    let mut args = vec![Arg::Ptr(c.ptr())];
    args.extend(maps.iter().map(|map| Arg::Bytes(map)));
    args.extend([Arg::U64(0), Arg::F32(1.0)]);
    args.extend([m, n, k, 0, n, 0].map(|x| Arg::U32(x as u32)));
    let shape = Shape::line(cluster, 256).shared(2 * (1 + cluster) * 8192 + 32).clusters(cluster);
    queue.launch(&kernel, "matmul_hopper", &defines(&[&of[..], &add].concat()), shape, &args)
}

fn is_caught(cluster: usize, change: &[(&str, &str)], words: &str) {
    let Some(cache) = cache() else { return };
    let emulator = Emulator::new((9, 0)).unwrap().with_budget(1_000_000);
    let device = Device::new(Arc::new(emulator), cache);
    match (words, broken(&device, cluster, change)) {
        ("", result) => result.unwrap(),
        (words, Err(error)) => assert!(error.to_string().contains(words), "{change:?}: {error}"),
        (_, Ok(())) => panic!("nothing was seen of {change:?}"),
    }
}

/// Each way of being careless with copies and products, in the kernel that ships.
#[test]
fn broken_rings_are_caught() {
    let arrive = "if (step > 0 && lane < CLUSTER) release(freed + 8 * ((taken - 1) % STAGES));";
    let wait = "products_wait<1>();  // those of the step before";
    let early = format!("if (lane < CLUSTER) release(freed + 8 * s);\n                {wait}");
    let cases: [(&[(&str, &str)], &str); 7] = [
        (&[], ""),
        (&[("barrier_wait(full + 8 * s, taken / STAGES & 1);", "")], "shared memory"),
        (&[("    products_begin();\n", "")], "no wgmma.fence"),
        (
            &[("            products_wait<0>();\n            settle(sums);\n            if", "            if")],
            "which no wgmma.wait_group has waited for",
        ),
        // The stage is given back before the products have read it.
        (&[(arrive, ""), (wait, &early)], "shared memory"),
        (&[("barrier_init(empty + 8 * s, 4 * GROUPS * CLUSTER);", "barrier_init(empty + 8 * s, 1);")], "hangs"),
        (&[("else fetch<B_T", "else if (step == 9) fetch<B_T")], "hangs"),
    ];
    for (change, words) in cases {
        is_caught(1, change, words);
    }
}

/// And with the other block of the cluster.
#[test]
fn broken_clusters_are_caught() {
    let count = "barrier_init(empty + 8 * s, 4 * GROUPS * CLUSTER);";
    let (free, last) = ("if (step > 0 && lane < CLUSTER)", "if (lane < CLUSTER)");
    let cases: [(&[(&str, &str)], &str); 7] = [
        (&[], ""),
        // Barriers that may not be there yet, a block that may be gone.
        (&[("    if (CLUSTER > 1) cluster_meet();\n    else __syncthreads();", "    __syncthreads();")], "initialised"),
        (&[("    if (CLUSTER > 1) cluster_meet();  // the other block", "//")], "has ended"),
        // A stage that this block has done with, and the other has not.
        (
            &[
                (count, "barrier_init(empty + 8 * s, 4);"),
                (free, "if (step > 0 && lane == rank)"),
                (last, "if (lane == rank)"),
            ],
            "shared memory",
        ),
        (&[(free, "if (step > 0 && lane == rank)")], "hangs"),
        (&[("(1 << CLUSTER) - 1", "7")], "the mask 0x0007 of the multicast"),
        // The half that the other fetches is not waited for.
        (
            &[("barrier_expect(full + 8 * s, bytes);", "barrier_expect(full + 8 * s, bytes - BYTES_B / 2);")],
            "shared memory",
        ),
    ];
    for (change, words) in cases {
        is_caught(2, change, words);
    }
}

/// Up to eight rows have a kernel of their own: rows of a product of many have the same bits. Depths below a chunk of sixteen
/// steps, of several chunks, with what begins in the middle of one; both widths of a block.
#[test]
fn few_rows_have_the_bits_of_many() {
    let Some(device) = device_of((9, 0)) else { return };
    let (queue, t) = (device.queue(), DType::BF16);
    for ([m, n, k, k2], to, add) in [
        ([1, 40, 8, 0], DType::F32, false),
        ([3, 72, 1096, 16], DType::BF16, true),
        ([8, 100, 2120, 200], DType::F32, true),
        ([1, 264 * 64 + 8, 200, 0], DType::BF16, false),
    ] {
        let most = 70;
        let [a, b, a2, b2, bias, _] = inputs(queue, [most, n, k, k2], t, to);
        let before = random(most * n, to, 9);
        let of = |rows: usize| {
            let mut out = put(queue, &before[..rows * n], to);
            let terms = [
                Term { a: a.slice(t).part(0, rows * k).unwrap(), b: b.slice(t), depth: k },
                Term { a: a2.slice(t).part(0, rows * k2).unwrap(), b: b2.slice(t), depth: k2 },
            ];
            let epilogue = Epilogue { alpha: 0.5, bias: Some(bias.slice(t)), add };
            matmul(queue, out.slice_mut(to), [rows, n], Layout::FORWARD, &terms, epilogue).unwrap();
            get(&out, to)
        };
        let (few, many) = (of(m), of(most));
        assert!(few[..] == many[..m * n], "{m} of {n} x {k} + {k2}");
    }
}

/// Products of runs, in one launch on Hopper, have the bits of each by itself: runs of none, of one row and of more than a
/// tile, in each of the tiles that there are.
#[test]
fn runs_have_the_bits_of_their_own_products() {
    let emulator = Arc::new(Emulator::new((9, 0)).unwrap().with_reports());
    let Some(cache) = cache() else { return };
    let device = Device::new(emulator.clone(), cache);
    let (queue, t) = (device.queue(), DType::BF16);
    for (starts, [n, k], groups) in [
        // Tiles of 32 columns where B lies as weights do, else of 64.
        (vec![0, 0, 1, 4, 4, 12], [40, 72], 1),
        (vec![0, 3, 70, 71, 100], [8 * 64 * 33, 8], 1),
        // Of 128 rows.
        (vec![0, 130, 131, 131, 400], [136, 200], 2),
        (vec![0, 300, 500], [256 * 33, 8], 2),
    ] {
        let rows = *starts.last().unwrap();
        let a = put(queue, &random(rows * k, t, 1), t);
        let rights: Vec<DeviceBuffer> =
            (1..starts.len()).map(|g| put(queue, &random(n * k, t, 10 + g as u64), t)).collect();
        let cells: Vec<_> = rights.iter().map(|right| right.slice(t)).collect();
        for layout in [Layout::FORWARD, Layout::INPUT_GRADIENT] {
            let nothing = vec![f64::NAN; rows * n];
            let (mut all, mut each) = (put(queue, &nothing, t), put(queue, &nothing, t));
            emulator.take_reports();
            matmul_runs(queue, all.slice_mut(t), n, a.slice(t), &cells, layout.b_transposed, &starts).unwrap();
            let seen = emulator.take_reports();
            assert_eq!(seen.len(), 1, "{starts:?}");
            assert_eq!((seen[0].kernel.as_str(), seen[0].threads), ("matmul_runs_hopper", 128 * (groups + 1)));
            for (run, &b) in starts.windows(2).zip(&cells) {
                let count = run[1] - run[0];
                let term = Term { a: a.slice(t).part(run[0] * k, count * k).unwrap(), b, depth: k };
                let part = each.slice_mut(t).part(run[0] * n, count * n).unwrap();
                matmul(queue, part, [count, n], layout, &[term], Epilogue::default()).unwrap();
            }
            assert!(get(&all, t) == get(&each, t), "{starts:?} of {n} x {k}, {layout:?}");
        }
    }
}

/// Elsewhere, and of f32, they are products one after the other; what does not agree is named.
#[test]
fn runs_that_are_none_are_refused() {
    for (capability, t) in [((8, 0), DType::BF16), ((9, 0), DType::F32)] {
        let Some(device) = device_of(capability) else { return };
        let queue = device.queue();
        let [a, b, _, _, _, mut c] = inputs(queue, [5, 16, 8, 0], t, t);
        let mut of = |starts: &[usize], n| {
            let rights = [b.slice(t), b.slice(t)];
            matmul_runs(queue, c.slice_mut(t), n, a.slice(t), &rights, false, starts).map_err(|e| e.to_string())
        };
        of(&[0, 2, 5], 16).unwrap();
        assert!(of(&[0, 5], 16).unwrap_err().contains("where runs begin"));
        assert!(of(&[0, 6, 5], 16).unwrap_err().contains("where runs begin"));
        assert!(of(&[0, 2, 4], 16).unwrap_err().contains("C should have"));
        let sizes = [5, 16, 8, 0];
        let [a, b, a2, b2, _, whole] = inputs(queue, sizes, t, t);
        let whole = product_of(&device, sizes, Layout::FORWARD, (t, t), [a, b, a2, b2], whole, Epilogue::default());
        assert!(get(&c, t) == whole);
    }
}
