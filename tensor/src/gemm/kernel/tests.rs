use super::{Mode, Tile, portable_rows};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Simd, level};

/// Every vector kernel this machine can run against the portable one, bit for bit, at every number
/// of rows and at columns on and beside the registers' edges; nothing beside the tile is written.
#[test]
fn vector_kernels_equal_the_portable_one() {
    type Run = unsafe fn(&Tile<f32>);
    let stream = crate::rng::Stream::new(1, crate::rng::Purpose::Data, 0);
    let random = |n: usize, from: u64| (0..n as u64).map(|i| stream.normal(from + i) as f32).collect::<Vec<_>>();
    let mut kernels: Vec<(&str, Run, usize, usize, usize)> = vec![];
    #[cfg(target_arch = "x86_64")]
    if level() >= Simd::Avx2 {
        kernels.push(("avx2", super::x86::avx2, 6, 16, 8));
    }
    #[cfg(target_arch = "x86_64")]
    if level() >= Simd::Avx512 {
        kernels.push(("avx512", super::x86::avx512, 8, 48, 16));
    }
    #[cfg(target_arch = "aarch64")]
    kernels.push(("neon", super::neon::neon, 6, 16, 4));
    for (name, run, mr, nr, lanes) in kernels {
        for kc in [0usize, 1, 7, 64] {
            for rows in 1..=mr {
                for cols in 1..=nr {
                    for mode in [Mode::Set, Mode::Add, Mode::Continue] {
                        for a_k in [1, mr] {
                            let width = cols.next_multiple_of(lanes);
                            let a_row = if a_k == 1 { kc.max(1) } else { 1 };
                            let a = random(mr * kc.max(1), 0);
                            let b = random(kc * width, 1_000_000);
                            let c = random(mr * 50, 2_000_000);
                            let (mut got, mut want) = (c.clone(), c);
                            let tile = |c: *mut f32| Tile {
                                rows,
                                cols,
                                kc,
                                a: a.as_ptr(),
                                a_row,
                                a_k,
                                b: b.as_ptr(),
                                width,
                                c,
                                c_row: 50,
                                mode,
                            };
                            // SAFETY: detected; every buffer holds the tile.
                            unsafe { run(&tile(got.as_mut_ptr())) };
                            let all = tile(want.as_mut_ptr());
                            for j in 0..cols {
                                let mut column = vec![0.0; kc];
                                (0..kc).for_each(|p| column[p] = b[p * width + j]);
                                // SAFETY: one column of the same tile.
                                unsafe {
                                    let one =
                                        Tile { cols: 1, b: column.as_ptr(), width: 1, c: all.c.add(j), ..tile(all.c) };
                                    for r in 0..rows {
                                        portable_rows::<f32, 1, 1>(&one, r);
                                    }
                                }
                            }
                            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                            assert_eq!(bits(&got), bits(&want), "{name} {rows}x{cols}x{kc} {mode:?}");
                        }
                    }
                }
            }
        }
    }
}
