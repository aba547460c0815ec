//! `ldmatrix`, `stmatrix` and `mma.sync`.
//!
//! A product is one chain of fused multiply-adds in f32 for each element, from the accumulator on, in the order of k;
//! PTX leaves order and rounding open. An f16 accumulator is rounded once, at the end. tf32 operands lose the 13
//! bits that hardware ignores.

use super::Warp;
use super::memory::{Result, addresses};
use super::registers::{FULL, Lane, Registers};
use crate::emulator::block::Common;
use crate::emulator::float::{bf16_to_f32, f16_to_f32, f32_to_f16};
use crate::emulator::isa::{Element, Inst};
use crate::emulator::shared::{Accessor, bank_passes};

impl Common<'_> {
    pub(crate) fn load_matrix(
        &mut self,
        warp: &mut Warp,
        inst: &Inst,
        count: usize,
        transposed: bool,
        pc: u32,
    ) -> Result<()> {
        let kernel = self.kernel;
        let slots = &kernel.pool[inst.at as usize..];
        let from = addresses(warp, inst, slots[count]);
        self.count_matrix(&from, count, pc);
        for (matrix, slot) in slots[..count].iter().enumerate() {
            let mut rows = [[0_u16; 8]; 8];
            for (row, values) in rows.iter_mut().enumerate() {
                let lane = matrix * 8 + row;
                let clocks = &self.clocks[warp.number as usize];
                let by = Accessor { thread: warp.overall * 32 + lane as u32, pc, strong: false, clocks };
                match self.near.shared.read(from[lane], 16, &by) {
                    Ok(bytes) => {
                        for (value, pair) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                            *value = u16::from_le_bytes([pair[0], pair[1]]);
                        }
                    }
                    Err(fault) => return Err((lane as u32, fault.resolve(|pc| kernel.line(pc)))),
                }
            }
            let mut out = [0_u32; 32];
            for (lane, word) in out.iter_mut().enumerate() {
                let (row, column) = (lane / 4, lane % 4 * 2);
                let (low, high) = if transposed {
                    (rows[column][row], rows[column + 1][row])
                } else {
                    (rows[row][column], rows[row][column + 1])
                };
                *word = u32::from(high) << 16 | u32::from(low);
            }
            u32::put(&mut warp.registers, *slot, &out, FULL);
        }
        Ok(())
    }

    pub(crate) fn store_matrix(
        &mut self,
        warp: &mut Warp,
        inst: &Inst,
        count: usize,
        transposed: bool,
        pc: u32,
    ) -> Result<()> {
        let kernel = self.kernel;
        let slots = &kernel.pool[inst.at as usize..];
        let to = addresses(warp, inst, slots[0]);
        self.count_matrix(&to, count, pc);
        for (matrix, slot) in slots[1..=count].iter().enumerate() {
            let words = warp.registers.words[usize::from(*slot)];
            let mut rows = [[0_u8; 16]; 8];
            for (lane, word) in words.iter().enumerate() {
                let (row, column) = (lane / 4, lane % 4 * 2);
                for (half, bits) in [(0, *word as u16), (1, (*word >> 16) as u16)] {
                    let (row, column) = if transposed { (column + half, row) } else { (row, column + half) };
                    rows[row][column * 2..column * 2 + 2].copy_from_slice(&bits.to_le_bytes());
                }
            }
            for (row, bytes) in rows.iter().enumerate() {
                let lane = matrix * 8 + row;
                let clocks = &self.clocks[warp.number as usize];
                let by = Accessor { thread: warp.overall * 32 + lane as u32, pc, strong: false, clocks };
                let written = self.near.shared.write(to[lane], bytes, &by);
                written.map_err(|fault| (lane as u32, fault.resolve(|pc| kernel.line(pc))))?;
            }
        }
        Ok(())
    }

    /// Eight rows of 16 bytes are a pass.
    fn count_matrix(&mut self, addresses: &[u64; 32], count: usize, pc: u32) {
        let mask = if count == 4 { FULL } else { (1 << (8 * count)) - 1 };
        let (used, least) = bank_passes(addresses, mask, 16);
        let counts = &mut self.stats.counts[pc as usize];
        counts.requests += 1;
        counts.used += u64::from(used);
        counts.least += u64::from(least);
    }
}

/// D = A·B + C: 16 × k by k × 8, from and to the fragments that PTX lays down.
pub(crate) fn multiply(warp: &mut Warp, s: &[u16], k: usize, element: Element, wide: bool) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the features were just detected.
        return unsafe { multiply_avx2(&mut warp.registers, s, k, element, wide) };
    }
    multiply_with(&mut warp.registers, s, k, element, wide);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_avx2(r: &mut Registers, s: &[u16], k: usize, element: Element, wide: bool) {
    multiply_with(r, s, k, element, wide);
}

#[inline(always)]
fn multiply_with(r: &mut Registers, s: &[u16], k: usize, element: Element, wide: bool) {
    match element {
        Element::F16 => product(r, s, k, wide, 2, |bits| [f16_to_f32(bits as u16), f16_to_f32((bits >> 16) as u16)]),
        Element::Bf16 => product(r, s, k, wide, 2, |bits| [bf16_to_f32(bits as u16), bf16_to_f32((bits >> 16) as u16)]),
        Element::Tf32 => product(r, s, k, wide, 1, |bits| [f32::from_bits(bits & !0x1fff), 0.0]),
    }
}

#[inline(always)]
fn product(r: &mut Registers, s: &[u16], k: usize, wide: bool, per_word: usize, values: impl Fn(u32) -> [f32; 2]) {
    let sums = if wide { 4 } else { 2 };
    let (a_count, b_count) = (16 * k / 32 / per_word, 8 * k / 32 / per_word);
    let (a_slots, rest) = s[sums..].split_at(a_count);
    let (b_slots, c_slots) = rest.split_at(b_count);
    // `a` by k and row, `b` by k and column.
    let (mut a, mut b, mut c) = ([[0_f32; 16]; 16], [[0_f32; 8]; 16], [[0_f32; 8]; 16]);
    // Lanes 4 g to 4 g + 3 hold four words of row g. Words go down by eight rows first, then along k.
    for (at, slot) in a_slots.iter().enumerate() {
        let words = &r.words[usize::from(*slot)];
        for (row, four) in words.chunks_exact(4).enumerate() {
            for (t, bits) in four.iter().enumerate() {
                let pair = values(*bits);
                let begin = (at / 2 * 4 + t) * per_word;
                a[begin & 15][row + at % 2 * 8] = pair[0];
                if per_word == 2 {
                    a[(begin + 1) & 15][row + at % 2 * 8] = pair[1];
                }
            }
        }
    }
    for (at, slot) in b_slots.iter().enumerate() {
        let words = &r.words[usize::from(*slot)];
        for (column, four) in words.chunks_exact(4).enumerate() {
            for (t, bits) in four.iter().enumerate() {
                let pair = values(*bits);
                let begin = (at * 4 + t) * per_word;
                b[begin & 15][column] = pair[0];
                if per_word == 2 {
                    b[(begin + 1) & 15][column] = pair[1];
                }
            }
        }
    }
    for half in 0..2 {
        let rows = &mut c[half * 8..half * 8 + 8];
        if wide {
            let (even, odd) = (&r.words[usize::from(c_slots[half * 2])], &r.words[usize::from(c_slots[half * 2 + 1])]);
            for lane in 0..32 {
                rows[lane / 4][lane % 4 * 2] = f32::from_bits(even[lane]);
                rows[lane / 4][lane % 4 * 2 + 1] = f32::from_bits(odd[lane]);
            }
        } else {
            let words = &r.words[usize::from(c_slots[half])];
            for lane in 0..32 {
                rows[lane / 4][lane % 4 * 2] = f16_to_f32(words[lane] as u16);
                rows[lane / 4][lane % 4 * 2 + 1] = f16_to_f32((words[lane] >> 16) as u16);
            }
        }
        // Eight rows of sums at a time fill half of the vector registers.
        let mut acc = [[0_f32; 8]; 8];
        acc.copy_from_slice(rows);
        for (a, b) in a.iter().zip(&b).take(k) {
            for (sums, x) in acc.iter_mut().zip(&a[half * 8..half * 8 + 8]) {
                for (sum, y) in sums.iter_mut().zip(b) {
                    *sum = x.mul_add(*y, *sum);
                }
            }
        }
        let value = |lane: usize, odd: usize| acc[lane / 4][lane % 4 * 2 + odd];
        if wide {
            for odd in 0..2 {
                let out: [u32; 32] = std::array::from_fn(|lane| value(lane, odd).to_bits());
                u32::put(r, s[half * 2 + odd], &out, FULL);
            }
        } else {
            let out: [u32; 32] = std::array::from_fn(|lane| {
                u32::from(f32_to_f16(value(lane, 1))) << 16 | u32::from(f32_to_f16(value(lane, 0)))
            });
            u32::put(r, s[half], &out, FULL);
        }
    }
}
