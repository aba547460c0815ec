//! 4-bit codes in registers.

use std::arch::x86_64::*;

/// Elements of a group.
const STEP: usize = 8;

/// Writes the elements of whole groups of eight, four bytes each, from the first byte on; gives how many they are.
///
/// The four bytes go to every lane, each lane shifts its nibble down, and two look-ups of eight entries and a choice by
/// the nibble's highest bit are the table of sixteen.
///
/// # Safety
/// AVX2 must be there.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn nibbles(bytes: &[u8], table: &[f32; 16], out: &mut [f32]) -> usize {
    let groups = (out.len() / STEP).min(bytes.len() / (STEP / 2));
    // SAFETY: the table has two halves of eight floats.
    let (low, high) = unsafe { (_mm256_loadu_ps(table.as_ptr()), _mm256_loadu_ps(table.as_ptr().add(8))) };
    // Element 0 is the high nibble of byte 0, element 1 its low one, and so on.
    let shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
    for g in 0..groups {
        // SAFETY: group g has four bytes and eight elements by the count above.
        unsafe {
            let word = bytes.as_ptr().add(4 * g).cast::<i32>().read_unaligned();
            let nibble = _mm256_srlv_epi32(_mm256_set1_epi32(word), shifts);
            let (a, b) = (_mm256_permutevar8x32_ps(low, nibble), _mm256_permutevar8x32_ps(high, nibble));
            let chosen = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(nibble));
            _mm256_storeu_ps(out.as_mut_ptr().add(8 * g), _mm256_blendv_ps(a, b, chosen));
        }
    }
    groups * STEP
}
