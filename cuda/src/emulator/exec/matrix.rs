//! `ldmatrix`, `stmatrix` and `mma.sync`.
//!
//! A product is one chain of fused multiply-adds in f32 for each element, from the accumulator on, in the order of k;
//! PTX leaves order and rounding open. An f16 accumulator is rounded once, at the end. tf32 operands lose the 13
//! bits that hardware ignores.

use super::Warp;
use super::memory::{Result, addresses};
use super::registers::{FULL, Lane};
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
                let by = Accessor { thread: warp.number * 32 + lane as u32, pc, strong: false, clocks };
                match self.shared.read(from[lane], 16, &by) {
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
                let by = Accessor { thread: warp.number * 32 + lane as u32, pc, strong: false, clocks };
                let written = self.shared.write(to[lane], bytes, &by);
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

/// Sums of a product of 16 × k by k × 8.
pub(crate) type Sums = [[f32; 8]; 16];

/// D = A·B + C, with the vector units of the machine.
pub(crate) fn multiply(warp: &mut Warp, s: &[u16], k: usize, element: Element, wide: bool) {
    let r = &mut warp.registers;
    let word = |slot: u16| r.words[usize::from(slot)];
    let sums = if wide { 4 } else { 2 };
    let per_word = if element == Element::Tf32 { 1 } else { 2 };
    let (a_count, b_count) = (16 * k / 32 / per_word, 8 * k / 32 / per_word);
    let (a_slots, rest) = s[sums..].split_at(a_count);
    let (b_slots, c_slots) = rest.split_at(b_count);
    let (mut a, mut b, mut c) = ([[0_f32; 16]; 16], [[0_f32; 8]; 16], [[0_f32; 8]; 16]);
    let values = |bits: u32| -> [f32; 2] {
        match element {
            Element::F16 => [f16_to_f32(bits as u16), f16_to_f32((bits >> 16) as u16)],
            Element::Bf16 => [bf16_to_f32(bits as u16), bf16_to_f32((bits >> 16) as u16)],
            Element::Tf32 => [f32::from_bits(bits & !0x1fff), 0.0],
        }
    };
    // Words go down by eight rows first, then along k.
    for (at, slot) in a_slots.iter().enumerate() {
        for (lane, bits) in word(*slot).into_iter().enumerate() {
            let row = lane / 4 + at % 2 * 8;
            let column = (lane % 4 + at / 2 * 4) * per_word;
            for (half, value) in values(bits).into_iter().take(per_word).enumerate() {
                a[row][column + half] = value;
            }
        }
    }
    for (at, slot) in b_slots.iter().enumerate() {
        for (lane, bits) in word(*slot).into_iter().enumerate() {
            let row = (lane % 4 + at * 4) * per_word;
            for (half, value) in values(bits).into_iter().take(per_word).enumerate() {
                b[row + half][lane / 4] = value;
            }
        }
    }
    for (at, slot) in c_slots.iter().enumerate() {
        for (lane, bits) in word(*slot).into_iter().enumerate() {
            if wide {
                c[lane / 4 + at / 2 * 8][lane % 4 * 2 + at % 2] = f32::from_bits(bits);
            } else {
                c[lane / 4 + at * 8][lane % 4 * 2] = f16_to_f32(bits as u16);
                c[lane / 4 + at * 8][lane % 4 * 2 + 1] = f16_to_f32((bits >> 16) as u16);
            }
        }
    }
    chains(&a, &b, &mut c, k);
    for (at, slot) in s[..sums].iter().enumerate() {
        let mut out = [0_u32; 32];
        for (lane, bits) in out.iter_mut().enumerate() {
            *bits = if wide {
                c[lane / 4 + at / 2 * 8][lane % 4 * 2 + at % 2].to_bits()
            } else {
                let pair = &c[lane / 4 + at * 8][lane % 4 * 2..];
                u32::from(f32_to_f16(pair[1])) << 16 | u32::from(f32_to_f16(pair[0]))
            };
        }
        u32::put(r, *slot, &out, FULL);
    }
}

fn chains(a: &[[f32; 16]; 16], b: &[[f32; 8]; 16], c: &mut Sums, k: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the features were just detected.
        return unsafe { chains_avx2(a, b, c, k) };
    }
    chains_with(a, b, c, k);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn chains_avx2(a: &[[f32; 16]; 16], b: &[[f32; 8]; 16], c: &mut Sums, k: usize) {
    chains_with(a, b, c, k);
}

#[inline(always)]
fn chains_with(a: &[[f32; 16]; 16], b: &[[f32; 8]; 16], c: &mut Sums, k: usize) {
    for (sums, row) in c.iter_mut().zip(a) {
        for (x, column) in row.iter().zip(b).take(k) {
            for (sum, y) in sums.iter_mut().zip(column) {
                *sum = x.mul_add(*y, *sum);
            }
        }
    }
}
