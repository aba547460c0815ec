//! The register-tiled kernels: one tile of C from a panel of A and a panel of B.

#[cfg(target_arch = "x86_64")]
use crate::simd::{Simd, level};

/// Elements of the largest tile.
pub(crate) const MAX_TILE: usize = 12 * 32;

/// A compute type's kernel.
pub trait Kernel: Sized {
    /// Rows and columns of the tile on this machine.
    fn tile() -> (usize, usize);

    /// `out[r * nr + c]` = sum over `p < kc`, in order, of `a[p * mr + r] * b[p * nr + c]`, fused.
    fn kernel(kc: usize, a: &[Self], b: &[Self], out: &mut [Self; MAX_TILE]);
}

impl Kernel for f32 {
    #[inline]
    fn tile() -> (usize, usize) {
        #[cfg(target_arch = "x86_64")]
        match level() {
            Simd::Avx512 => return (12, 32),
            Simd::Avx2 => return (6, 16),
            Simd::Portable => {}
        }
        (6, 16)
    }

    #[inline]
    fn kernel(kc: usize, a: &[f32], b: &[f32], out: &mut [f32; MAX_TILE]) {
        #[cfg(target_arch = "x86_64")]
        match level() {
            Simd::Avx512 => {
                assert!(a.len() >= 12 * kc && b.len() >= 32 * kc);
                // SAFETY: level() says AVX-512 is there; the panels are long enough.
                return unsafe { x86::avx512_12x32(kc, a.as_ptr(), b.as_ptr(), out) };
            }
            Simd::Avx2 => {
                assert!(a.len() >= 6 * kc && b.len() >= 16 * kc);
                // SAFETY: level() says AVX2 and FMA are there; the panels are long enough.
                return unsafe { x86::avx2_6x16(kc, a.as_ptr(), b.as_ptr(), out) };
            }
            Simd::Portable => {}
        }
        portable::<f32, 6, 16>(kc, a, b, out);
    }
}

impl Kernel for f64 {
    #[inline]
    fn tile() -> (usize, usize) {
        (4, 8)
    }

    #[inline]
    fn kernel(kc: usize, a: &[f64], b: &[f64], out: &mut [f64; MAX_TILE]) {
        #[cfg(target_arch = "x86_64")]
        if level() >= Simd::Avx2 {
            #[target_feature(enable = "avx2,fma")]
            fn avx2(kc: usize, a: &[f64], b: &[f64], out: &mut [f64; MAX_TILE]) {
                portable::<f64, 4, 8>(kc, a, b, out);
            }
            // SAFETY: level() says AVX2 and FMA are there.
            return unsafe { avx2(kc, a, b, out) };
        }
        portable::<f64, 4, 8>(kc, a, b, out);
    }
}

/// The kernel in plain Rust; what the others must equal bit for bit.
#[inline(always)]
pub(super) fn portable<R: crate::Real, const MR: usize, const NR: usize>(
    kc: usize,
    a: &[R],
    b: &[R],
    out: &mut [R; MAX_TILE],
) {
    let mut acc = [[R::ZERO; NR]; MR];
    for p in 0..kc {
        let a: &[R; MR] = a[p * MR..(p + 1) * MR].try_into().expect("MR long");
        let b: &[R; NR] = b[p * NR..(p + 1) * NR].try_into().expect("NR long");
        for r in 0..MR {
            for c in 0..NR {
                acc[r][c] = a[r].mul_add(b[c], acc[r][c]);
            }
        }
    }
    for r in 0..MR {
        out[r * NR..(r + 1) * NR].copy_from_slice(&acc[r]);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::MAX_TILE;
    use std::arch::x86_64::*;

    /// 6 rows by two registers of 8: 12 accumulators, 2 of B and 1 of A of the 16 there are.
    ///
    /// # Safety
    /// `a` must be readable for 6 kc elements and `b` for 16 kc.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2_6x16(kc: usize, a: *const f32, b: *const f32, out: &mut [f32; MAX_TILE]) {
        let mut acc = [[_mm256_setzero_ps(); 2]; 6];
        for p in 0..kc {
            // SAFETY: p < kc, so both panels hold these elements by the caller's promise.
            unsafe {
                let b0 = _mm256_loadu_ps(b.add(p * 16));
                let b1 = _mm256_loadu_ps(b.add(p * 16 + 8));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = _mm256_broadcast_ss(&*a.add(p * 6 + r));
                    acc[0] = _mm256_fmadd_ps(x, b0, acc[0]);
                    acc[1] = _mm256_fmadd_ps(x, b1, acc[1]);
                }
            }
        }
        for (acc, out) in acc.iter().zip(out.chunks_exact_mut(16)) {
            // SAFETY: `out` is a chunk of 16.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), acc[0]);
                _mm256_storeu_ps(out.as_mut_ptr().add(8), acc[1]);
            }
        }
    }

    /// 12 rows by two registers of 16: 24 accumulators, 2 of B and 1 of A of the 32 there are.
    ///
    /// # Safety
    /// `a` must be readable for 12 kc elements and `b` for 32 kc.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512_12x32(kc: usize, a: *const f32, b: *const f32, out: &mut [f32; MAX_TILE]) {
        let mut acc = [[_mm512_setzero_ps(); 2]; 12];
        for p in 0..kc {
            // SAFETY: p < kc, so both panels hold these elements by the caller's promise.
            unsafe {
                let b0 = _mm512_loadu_ps(b.add(p * 32));
                let b1 = _mm512_loadu_ps(b.add(p * 32 + 16));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*a.add(p * 12 + r));
                    acc[0] = _mm512_fmadd_ps(x, b0, acc[0]);
                    acc[1] = _mm512_fmadd_ps(x, b1, acc[1]);
                }
            }
        }
        for (acc, out) in acc.iter().zip(out.chunks_exact_mut(32)) {
            // SAFETY: `out` is a chunk of 32.
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), acc[0]);
                _mm512_storeu_ps(out.as_mut_ptr().add(16), acc[1]);
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::super::portable;
        use super::*;
        use crate::simd::{Simd, level};

        /// Every vector kernel this machine can run against the portable one, bit for bit.
        #[test]
        fn vector_kernels_equal_the_portable_one() {
            let stream = crate::rng::Stream::new(1, crate::rng::Purpose::Data, 0);
            for kc in [1usize, 2, 7, 64, 512] {
                let a: Vec<f32> = (0..12 * kc).map(|i| stream.normal(i as u64) as f32).collect();
                let b: Vec<f32> = (0..32 * kc).map(|i| stream.normal(1_000_000 + i as u64) as f32).collect();
                let (mut want, mut got) = ([0.0; MAX_TILE], [0.0; MAX_TILE]);
                if level() >= Simd::Avx2 {
                    portable::<f32, 6, 16>(kc, &a, &b, &mut want);
                    // SAFETY: detected; the panels are longer than needed.
                    unsafe { avx2_6x16(kc, a.as_ptr(), b.as_ptr(), &mut got) };
                    assert_eq!(want.map(f32::to_bits), got.map(f32::to_bits), "avx2, kc {kc}");
                }
                if level() >= Simd::Avx512 {
                    portable::<f32, 12, 32>(kc, &a, &b, &mut want);
                    // SAFETY: detected; the panels are exactly as long as needed.
                    unsafe { avx512_12x32(kc, a.as_ptr(), b.as_ptr(), &mut got) };
                    assert_eq!(want.map(f32::to_bits), got.map(f32::to_bits), "avx512, kc {kc}");
                }
            }
        }
    }
}
