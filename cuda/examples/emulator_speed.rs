//! How fast the emulator runs: thread instructions a second, for kernels of different kinds.
//!
//! `cargo run --release -p planish-cuda --example emulator_speed`, with a kernel's name behind `--` for that one
//! and its report.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use planish_cuda::driver::{Arg, Driver, Image, Launch, Stream};
use planish_cuda::emulator::{Checks, Emulator};

/// A chain of 8 × 1000 fused multiply-adds a thread.
const FMA: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry fma(.param .u64 out) {
    .reg .pred %p;
    .reg .b32 %r<4>;
    .reg .f32 %f<2>;
    .reg .b64 %d<4>;
    mov.u32 %r1, 0;
    mov.u32 %r2, %tid.x;
    cvt.rn.f32.u32 %f0, %r2;
LOOP:
    fma.rn.f32 %f0, %f0, 0f3F000000, 0f3F800000;
    fma.rn.f32 %f0, %f0, 0f3F000000, 0f3F800000;
    fma.rn.f32 %f0, %f0, 0f3F000000, 0f3F800000;
    fma.rn.f32 %f0, %f0, 0f3F000000, 0f3F800000;
    fma.rn.f32 %f0, %f0, 0f3F000000, 0f3F800000;
    fma.rn.f32 %f0, %f0, 0f3F000000, 0f3F800000;
    fma.rn.f32 %f0, %f0, 0f3F000000, 0f3F800000;
    fma.rn.f32 %f0, %f0, 0f3F000000, 0f3F800000;
    add.u32 %r1, %r1, 1;
    setp.lt.u32 %p, %r1, 1000;
    @%p bra LOOP;
    ld.param.u64 %d1, [out];
    mul.wide.u32 %d2, %r2, 4;
    add.u64 %d3, %d1, %d2;
    st.global.f32 [%d3], %f0;
    ret;
}";

fn main() -> planish_cuda::Result<()> {
    let stream = Stream::default();
    let only = std::env::args().nth(1);
    println!("{:<12} {:>8} {:>22} {:>12}", "kernel", "checks", "thread instructions", "a second");
    for on in [true, false] {
        let mut checks = Checks::default();
        (checks.races, checks.unwritten) = (on, on);
        let device = Emulator::new((8, 0))?.with_checks(checks);
        let alloc = |bytes: usize| {
            let at = device.alloc(bytes, stream)?;
            device.fill(at, 0, bytes, stream).map(|()| at)
        };
        let run = |ptx: &str, name: &str, grid: [u32; 3], threads: u32, args: &[Arg<'_>]| {
            if only.as_ref().is_some_and(|only| only != name) {
                return Ok(());
            }
            let kernel = device.function(device.load(Image::Ptx(ptx))?, name)?;
            let launch = Launch { grid, block: [threads, 1, 1], cluster: [1; 3], shared_bytes: 0 };
            let mut best = f64::INFINITY;
            for _ in 0..3 {
                let begin = Instant::now();
                device.launch(kernel, &launch, args, stream)?;
                best = best.min(begin.elapsed().as_secs_f64());
            }
            let count = device.last_report().map_or(0, |report| report.thread_instructions);
            let mega = count as f64 / best / 1e6;
            println!("{name:<12} {:>8} {count:>22} {mega:>10.0} M", if on { "all" } else { "bounds" });
            if let (Some(_), true, Some(report)) = (&only, on, device.last_report()) {
                println!("\n{report}");
            }
            Ok::<(), planish_cuda::Error>(())
        };
        let out = alloc(1 << 20)?;
        run(FMA, "fma", [16, 1, 1], 256, &[Arg::Ptr(out)])?;
        run(include_str!("../tests/emulator/misc.ptx"), "collatz", [64, 1, 1], 256, &[Arg::Ptr(out), Arg::I32(16384)])?;
        let (rows, n) = (256, 2048);
        let (x, w, y) = (alloc(rows * n * 2)?, alloc(n * 4)?, alloc(rows * n * 2)?);
        let args = [Arg::Ptr(x), Arg::Ptr(w), Arg::Ptr(y), Arg::I32(n as i32), Arg::F32(1e-5)];
        run(include_str!("../tests/emulator/rms_norm.ptx"), "rms_norm", [rows as u32, 1, 1], 256, &args)?;
        let (x, y) = (alloc(rows * n * 4)?, alloc(rows * n * 4)?);
        let args = [Arg::Ptr(x), Arg::Ptr(y), Arg::I32(rows as i32), Arg::I32(n as i32)];
        run(include_str!("../tests/emulator/softmax.ptx"), "softmax", [rows as u32 / 4, 1, 1], 128, &args)?;
        let size = 512_usize;
        let (a, b, c) = (alloc(size * size * 2)?, alloc(size * size * 2)?, alloc(size * size * 4)?);
        let args = [Arg::Ptr(a), Arg::Ptr(b), Arg::Ptr(c), Arg::I32(size as i32), Arg::I32(size as i32)];
        let tiles = size as u32 / 64;
        run(include_str!("../tests/emulator/matmul.ptx"), "matmul", [tiles, tiles, 1], 128, &args)?;
    }
    Ok(())
}
