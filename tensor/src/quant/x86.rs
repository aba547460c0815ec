//! 4-bit codes in registers.

use std::arch::x86_64::*;

/// Writes elements `start..start + out.len()` of blocks of `block` elements, a power of two from 32, the scale of block
/// b being `scale(b)`.
///
/// Four bytes go to every lane, each lane shifts its nibble down, and two look-ups of eight entries and a choice by the
/// nibble's highest bit are the table of sixteen, which is multiplied by the scale once a block. The products are those
/// of the elements: the same two numbers, rounded once.
///
/// # Safety
/// AVX2 must be there.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn read(
    bytes: &[u8],
    code: &[f32; 16],
    block: usize,
    scale: impl Fn(usize) -> f32,
    start: usize,
    out: &mut [f32],
) {
    // SAFETY: the table has two halves of eight floats.
    let (low, high) = unsafe { (_mm256_loadu_ps(code.as_ptr()), _mm256_loadu_ps(code.as_ptr().add(8))) };
    // Element 0 is the high nibble of byte 0, element 1 its low one, and so on.
    let shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
    let bits = block.trailing_zeros();
    let one = |i: usize, scale: f32| {
        let byte = bytes[i / 2];
        code[(if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 }) as usize] * scale
    };
    let mut done = 0;
    while done < out.len() {
        let at = start + done;
        let n = (out.len() - done).min(block - (at & (block - 1)));
        let (part, scale) = (&mut out[done..done + n], scale(at >> bits));
        // Bytes begin with an even element.
        let odd = (at & 1).min(n);
        if odd == 1 {
            part[0] = one(at, scale);
        }
        let (groups, source) = ((n - odd) / 8, &bytes[(at + odd) / 2..]);
        assert!(source.len() >= 4 * groups, "nibbles past a quantised weight");
        let times = _mm256_set1_ps(scale);
        let (low, high) = (_mm256_mul_ps(low, times), _mm256_mul_ps(high, times));
        for g in 0..groups {
            // SAFETY: group g has four bytes, by the assertion, and eight elements of the part.
            unsafe {
                let word = source.as_ptr().add(4 * g).cast::<i32>().read_unaligned();
                let nibble = _mm256_srlv_epi32(_mm256_set1_epi32(word), shifts);
                let (a, b) = (_mm256_permutevar8x32_ps(low, nibble), _mm256_permutevar8x32_ps(high, nibble));
                let chosen = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(nibble));
                _mm256_storeu_ps(part.as_mut_ptr().add(odd + 8 * g), _mm256_blendv_ps(a, b, chosen));
            }
        }
        for (i, o) in part.iter_mut().enumerate().skip(odd + 8 * groups) {
            *o = one(at + i, scale);
        }
        done += n;
    }
}
