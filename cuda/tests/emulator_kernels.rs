//! Kernels that NVRTC compiled (tests/emulator/*.cu), against the same mathematics in f64.

mod emulator_support;

use emulator_support::{Device, from_bf16, noise, to_bf16};
use planish_cuda::driver::Arg;
use planish_cuda::emulator::Class;

/// Fails for a NaN, too.
fn close(got: f32, want: f64, relative: f64, absolute: f64) {
    let tolerance = relative * want.abs() + absolute;
    assert!((f64::from(got) - want).abs() <= tolerance, "{got} instead of {want}");
}

#[test]
fn rms_norm() {
    let device = Device::new(include_str!("emulator/rms_norm.ptx"));
    for (rows, n, threads) in [(3, 576, 128), (2, 1, 32), (1, 1000, 1024), (5, 77, 64)] {
        let x: Vec<u16> = noise(1, rows * n).into_iter().map(to_bf16).collect();
        let w = noise(2, n);
        let (xs, ws, ys) = (device.u16s(&x), device.f32s(&w), device.empty(rows * n * 2));
        let args = [Arg::Ptr(xs), Arg::Ptr(ws), Arg::Ptr(ys), Arg::I32(n as i32), Arg::F32(1e-5)];
        device.launch("rms_norm", [rows as u32, 1, 1], [threads, 1, 1], 0, &args).unwrap();
        let y = device.read_u16(ys, rows * n);
        for row in 0..rows {
            let values: Vec<f64> = x[row * n..][..n].iter().map(|bits| from_bf16(*bits).into()).collect();
            let mean = values.iter().map(|v| v * v).sum::<f64>() / n as f64;
            for (i, v) in values.iter().enumerate() {
                // bf16 has 8 bits: half a unit is at most 2^-8 of the number.
                let want = v / (mean + f64::from(1e-5_f32)).sqrt() * f64::from(w[i]);
                close(from_bf16(y[row * n + i]), want, 0.00391, 1e-30);
            }
        }
    }
}

#[test]
fn softmax() {
    let device = Device::new(include_str!("emulator/softmax.ptx"));
    for (rows, n) in [(1, 1), (7, 33), (4, 200)] {
        let x: Vec<f32> = noise(3, rows * n).into_iter().map(|x| 8.0 * x).collect();
        let (xs, ys) = (device.f32s(&x), device.empty(rows * n * 4));
        let args = [Arg::Ptr(xs), Arg::Ptr(ys), Arg::I32(rows as i32), Arg::I32(n as i32)];
        device.launch("softmax", [rows.div_ceil(4) as u32, 1, 1], [128, 1, 1], 0, &args).unwrap();
        let y = device.read_f32(ys, rows * n);
        for row in 0..rows {
            let values: Vec<f64> = x[row * n..][..n].iter().map(|v| f64::from(*v)).collect();
            let top = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = values.iter().map(|v| (v - top).exp()).sum();
            for (i, v) in values.iter().enumerate() {
                // The exponent loses the bits of a product with log2(e) in f32, up to 23 * 2^-24.
                close(y[row * n + i], (v - top).exp() / sum, 5e-6, 0.0);
            }
        }
    }
}

#[test]
fn matmul_with_tensor_cores() {
    let device = Device::new(include_str!("emulator/matmul.ptx"));
    let (m, n, k) = (128, 64, 96);
    let a: Vec<u16> = noise(4, m * k).into_iter().map(to_bf16).collect();
    let b: Vec<u16> = noise(5, n * k).into_iter().map(to_bf16).collect();
    let (at, bt, ct) = (device.u16s(&a), device.u16s(&b), device.empty(m * n * 4));
    let args = [Arg::Ptr(at), Arg::Ptr(bt), Arg::Ptr(ct), Arg::I32(n as i32), Arg::I32(k as i32)];
    device.launch("matmul", [(n / 64) as u32, (m / 64) as u32, 1], [128, 1, 1], 0, &args).unwrap();
    let c = device.read_f32(ct, m * n);
    for i in 0..m {
        for j in 0..n {
            let pairs = (0..k).map(|l| (f64::from(from_bf16(a[i * k + l])), f64::from(from_bf16(b[j * k + l]))));
            let (sum, size) = pairs.fold((0.0, 0.0), |(sum, size), (x, y)| (sum + x * y, size + (x * y).abs()));
            // One rounding to f32 a step of the chain.
            close(c[i * n + j], sum, 0.0, size * k as f64 * 6e-8);
        }
    }
    let report = device.emulator.last_report().unwrap();
    // 2 blocks, 4 warps, 6 steps of 16, 8 tiles.
    assert_eq!(report.classes[&Class::Matrix], 2 * 4 * 6 * 8);
    assert_eq!(report.barriers, 2 * 4 * 3 * 2);
    // The padded rows keep ldmatrix free of conflicts.
    assert_eq!(report.shared.used, report.shared.least, "{report}");
}

#[test]
fn lanes_diverge_and_come_together() {
    let device = Device::new(include_str!("emulator/misc.ptx"));
    let n = 1000;
    let steps = device.empty(n * 4);
    device.launch("collatz", [8, 1, 1], [128, 1, 1], 0, &[Arg::Ptr(steps), Arg::I32(n as i32)]).unwrap();
    for (i, count) in device.read_u32(steps, n).into_iter().enumerate() {
        let (mut v, mut want) = (i as u64 + 1, 0);
        while v != 1 {
            v = if v % 2 == 1 { 3 * v + 1 } else { v / 2 };
            want += 1;
        }
        assert_eq!(count, want, "{i}");
    }
    let report = device.emulator.last_report().unwrap();
    assert!(report.active_lanes() < 31.0, "{report}");
}

#[test]
fn atomics() {
    let device = Device::new(include_str!("emulator/misc.ptx"));
    let x: Vec<u32> = noise(6, 5000).into_iter().map(|x| (x * 1e6) as i32 as u32).collect();
    let (xs, counts) = (device.u32s(&x), device.u32s(&[0; 16]));
    let (total, top) = (device.f32s(&[0.0]), device.u32s(&[0]));
    let args = [Arg::Ptr(xs), Arg::Ptr(counts), Arg::Ptr(total), Arg::Ptr(top), Arg::I32(5000)];
    device.launch("histogram", [4, 1, 1], [96, 1, 1], 0, &args).unwrap();
    let mut want = [0; 16];
    x.iter().for_each(|x| want[*x as usize % 16] += 1);
    assert_eq!(device.read_u32(counts, 16), want);
    assert_eq!(device.read_f32(total, 1)[0], x.iter().map(|x| (x % 16) as f32).sum::<f32>());
    assert_eq!(device.read_u32(top, 1)[0], x.iter().map(|x| x & 0x7fff_ffff).max().unwrap());
}

#[test]
fn constants_local_arrays_votes() {
    let device = Device::new(include_str!("emulator/misc.ptx"));
    let out = device.empty(64 * 4);
    for n in 0..3 {
        device.launch("indexed", [1; 3], [32, 1, 1], 0, &[Arg::Ptr(out), Arg::I32(n)]).unwrap();
        let got = device.read_u32(out, 64);
        for thread in 0..32_usize {
            let prime = [2, 3, 5, 7, 11, 13, 17, 19][(thread % 8 + 8 - n as usize) % 8];
            assert_eq!(got[thread], (prime + thread as u32) * 16);
            assert_eq!(got[32 + thread], 31 * 16);
        }
    }
    let (calls, bytes) = device.emulator.variable(device.module, "calls").unwrap();
    assert_eq!((device.read_u32(calls, 1)[0], bytes), (3, 4));
}

#[test]
fn halves() {
    let device = Device::new(include_str!("emulator/misc.ptx"));
    let n = 32;
    let (a, b, c) = (noise(7, 2 * n), noise(8, 2 * n), noise(9, 2 * n));
    let f16 = |x: f32| half::f16::from_f32(x);
    let bits = |values: &[f32]| values.iter().map(|x| f16(*x).to_bits()).collect::<Vec<u16>>();
    let (xa, xb, xc) = (device.u16s(&bits(&a)), device.u16s(&bits(&b)), device.u16s(&bits(&c)));
    let out = device.empty(n * 4 * 4);
    let args = [Arg::Ptr(xa), Arg::Ptr(xb), Arg::Ptr(xc), Arg::Ptr(out), Arg::I32(n as i32)];
    device.launch("halves", [1; 3], [32, 1, 1], 0, &args).unwrap();
    let got = device.read_u16(out, 8 * n);
    for i in 0..2 * n {
        let [x, y, z] = [a[i], b[i], c[i]].map(|x| f16(x).to_f64());
        let want = [x * y + z, x + y, x.max(y), x / y].map(|x| half::f16::from_f64(x).to_bits());
        assert_eq!([0, 1, 2, 3].map(|op| got[2 * n * op + i]), want, "{x} {y} {z}");
    }
    let bits = |values: &[f32]| values.iter().map(|x| to_bf16(*x)).collect::<Vec<u16>>();
    let (xa, xb, xc) = (device.u16s(&bits(&a)), device.u16s(&bits(&b)), device.u16s(&bits(&c)));
    let args = [Arg::Ptr(xa), Arg::Ptr(xb), Arg::Ptr(xc), Arg::Ptr(out), Arg::I32(n as i32)];
    device.launch("bfloats", [1; 3], [32, 1, 1], 0, &args).unwrap();
    let got = device.read_u16(out, 8 * n);
    for i in 0..2 * n {
        let [x, y, z] = [a[i], b[i], c[i]].map(|x| f64::from(from_bf16(to_bf16(x))));
        let want = [x * y + z, x + y, x.max(y), x / y].map(|x| half::bf16::from_f64(x).to_bits());
        assert_eq!([0, 1, 2, 3].map(|op| got[2 * n * op + i]), want, "{x} {y} {z}");
    }
}

#[test]
fn functions_of_libdevice() {
    let device = Device::new(include_str!("emulator/misc.ptx"));
    let mut x: Vec<f32> = noise(10, 60).into_iter().map(|x| 20.0 * x).collect();
    x.extend([1e-3, 100_000.0, -1.0, 7.5e8]);
    let n = x.len();
    let (xs, ys, zs) = (device.f32s(&x), device.empty(n * 8 * 4), device.empty(n * 3 * 8));
    let args = [Arg::Ptr(xs), Arg::Ptr(ys), Arg::Ptr(zs), Arg::I32(n as i32)];
    device.launch("functions", [1; 3], [64, 1, 1], 0, &args).unwrap();
    let (y, z) = (device.read_f32(ys, 8 * n), device.read_f64(zs, 3 * n));
    for (i, x) in x.iter().enumerate() {
        let v = f64::from(*x);
        // CUDA's documented bounds, in ulp of f32 (2^-23): exp 2, log 1, tanh 2, sin 2, pow 4.
        let ulp = 1.2e-7;
        if v < 80.0 {
            close(y[i], v.exp(), 3.0 * ulp, 1e-44);
        }
        close(y[n + i], v.abs().ln(), 2.0 * ulp, 1e-7);
        close(y[2 * n + i], v.tanh(), 3.0 * ulp, 0.0);
        close(y[3 * n + i], v.sin(), 3.0 * ulp, 1e-7);
        assert_eq!(y[4 * n + i], x.abs().sqrt());
        assert_eq!(y[5 * n + i], 1.0 / x);
        close(y[7 * n + i], v.abs().powf(f64::from(1.3_f32)), 8.0 * ulp, 0.0);
        if v < 700.0 {
            assert!((z[i] - v.exp()).abs() <= 4e-16 * v.exp(), "{} {}", z[i], v.exp());
        }
        assert_eq!(z[n + i], 1.0 / v);
        assert_eq!(z[2 * n + i], v.abs().sqrt());
    }
}

#[test]
fn faults_name_the_line_of_cuda() {
    let device = Device::new(include_str!("emulator/softmax.ptx"));
    let (x, y) = (device.f32s(&[0.0; 40]), device.empty(400));
    let args = [Arg::Ptr(x), Arg::Ptr(y), Arg::I32(1), Arg::I32(41)];
    let found = emulator_support::fault(device.launch("softmax", [1; 3], [128, 1, 1], 0, &args));
    let source = include_str!("emulator/softmax.cu");
    let line = 1 + source.lines().position(|line| line.contains("top = fmaxf(top, x[i])")).unwrap() as u32;
    assert_eq!(found.at.source, Some(("softmax.cu".to_owned(), line)), "{found}");
    assert_eq!((found.kernel.as_str(), found.thread), ("softmax", [8, 0, 0]));
    assert!(found.to_string().contains(&format!("(softmax.cu:{line})")), "{found}");
}
