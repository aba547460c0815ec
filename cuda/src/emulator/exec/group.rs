//! `wgmma`: a product of four warps, A and B in shared memory as descriptors say.
//!
//! Each warp makes its 16 rows of 64 when it comes to the instruction, with the sums of [`super::matrix`].
//!
//! # Source
//! PTX ISA 9.0, 9.7.15, and the canonical layouts of CUTLASS, `cute/arch/mma_sm90_desc.hpp`.

use super::Warp;
use super::memory::Result;
use super::registers::{FULL, Lane};
use crate::emulator::block::Common;
use crate::emulator::fault::FaultKind;
use crate::emulator::float::{bf16_to_f32, f16_to_f32, f32_to_f16};
use crate::emulator::isa::{Element, Inst, Op};
use crate::emulator::shared::Accessor;

/// A matrix in shared memory.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    start: u64,
    leading: u64,
    stride: u64,
    /// Bytes of the swizzle's rows: 16 for none.
    row: u64,
}

impl Descriptor {
    fn new(bits: u64) -> Self {
        let field = |at: u32| (bits >> at & 0x3fff) << 4;
        // 1, 2 and 3 are swizzles of 128, 64 and 32 bytes.
        let row = [16, 128, 64, 32][(bits >> 62) as usize];
        Self { start: field(0), leading: field(16), stride: field(32), row }
    }

    /// The address of 16 bytes: `line` counts along the outer dimension of 16-byte rows, `chunk` along the inner.
    ///
    /// K-major: rows of A or B, and chunks of k. MN-major: k, and chunks of rows.
    fn address(self, line: u64, chunk: u64, transposed: bool) -> u64 {
        let chunks = self.row / 16;
        let plain = chunks == 1;
        let (inner, outer) = match (transposed, plain) {
            // ((8, m), (T, 2)) : ((1 T, SBO), (1, LBO))
            (false, true) => (chunk * self.leading, line / 8 * self.stride),
            // ((8, m), (T, 2)) : ((row, SBO), (1, T))
            (false, false) => (chunk * 16, line / 8 * self.stride),
            // ((T, 1, m), (8, k)) : ((1, T, SBO), (1 T, LBO))
            (true, true) => (chunk * self.stride, line / 8 * self.leading),
            // ((T, chunks, m), (8, k)) : ((1, T, LBO), (row, SBO))
            (true, false) => (chunk % chunks * 16 + chunk / chunks * self.leading, line / 8 * self.stride),
        };
        let address = self.start + inner + outer + line % 8 * self.row;
        // The swizzle exchanges 16-byte chunks of a row, by the number of the row in its group of eight.
        address ^ ((address >> 7 & (chunks - 1)) << 4)
    }
}

impl Common<'_> {
    pub(crate) fn group_product(&mut self, warp: &mut Warp, inst: &Inst, pc: u32) -> Result<()> {
        let Op::GroupMma { n, element, wide, in_registers, negate, transpose_a, transpose_b } = inst.op else {
            return Ok(());
        };
        let kernel = self.kernel;
        let slots = &kernel.pool[inst.at as usize..][..usize::from(inst.defs) + usize::from(inst.uses)];
        let (defs, uses) = slots.split_at(usize::from(inst.defs));
        let (sums, operands) = uses.split_at(defs.len());
        let n = usize::from(n);
        let k = if element == Element::Tf32 { 8 } else { 16 };
        let (a_slots, rest) = operands.split_at(if in_registers { 4 } else { 1 });
        let descriptor = |warp: &Warp, slot: u16| Descriptor::new(warp.registers.wides[usize::from(slot)][0]);
        let first_row = warp.number as usize % 4 * 16;
        // By row and k.
        let a = if in_registers {
            fragment(warp, a_slots, element)
        } else {
            self.tile(warp, descriptor(warp, a_slots[0]), (first_row, 16), (element, transpose_a), pc)?
        };
        let b = self.tile(warp, descriptor(warp, rest[0]), (0, n), (element, transpose_b), pc)?;
        let keep = warp.registers.preds[usize::from(rest[1])] & 1 == 1;
        let mut c = vec![0_f32; 16 * n];
        if keep {
            each_sum(n, wide, |slot, lane, half, at| {
                let bits = warp.registers.words[usize::from(sums[slot])][lane];
                c[at] = if wide { f32::from_bits(bits) } else { f16_to_f32((bits >> (16 * half)) as u16) };
            });
        }
        let sign = if negate { -1.0 } else { 1.0 };
        for (row, sums) in c.chunks_exact_mut(n).enumerate() {
            for (sum, column) in sums.iter_mut().zip(&b) {
                for i in 0..k {
                    *sum = (sign * a[row][i]).mul_add(column[i], *sum);
                }
            }
        }
        let mut out = vec![[0_u32; 32]; defs.len()];
        each_sum(n, wide, |slot, lane, half, at| {
            out[slot][lane] |= if wide { c[at].to_bits() } else { u32::from(f32_to_f16(c[at])) << (16 * half) };
        });
        for (slot, values) in defs.iter().zip(&out) {
            u32::put(&mut warp.registers, *slot, values, FULL);
        }
        Ok(())
    }

    /// Rows of a matrix in shared memory, each of 16 or 8 values along k.
    fn tile(
        &mut self,
        warp: &Warp,
        descriptor: Descriptor,
        (first, count): (usize, usize),
        (element, transposed): (Element, bool),
        pc: u32,
    ) -> Result<Vec<[f32; 16]>> {
        let kernel = self.kernel;
        let mut rows = vec![[0_f32; 16]; count];
        let by = Accessor { thread: warp.number * 32, pc, strong: false, clocks: &self.clocks[warp.number as usize] };
        let per_chunk = if element == Element::Tf32 { 4 } else { 8 };
        let (lines, chunks) =
            if transposed { (0..16, first / 8..(first + count) / 8) } else { (first..first + count, 0..2) };
        for line in lines {
            for chunk in chunks.clone() {
                let address = descriptor.address(line as u64, chunk as u64, transposed);
                let bytes = self.shared.read(address, 16, &by);
                let bytes = bytes.map_err(|fault| (0, fault.resolve(|pc| kernel.line(pc))))?;
                for at in 0..per_chunk {
                    let value = match element {
                        Element::F16 => f16_to_f32(u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]])),
                        Element::Bf16 => bf16_to_f32(u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]])),
                        Element::Tf32 => {
                            let bits =
                                bytes[4 * at..4 * at + 4].iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte));
                            f32::from_bits(bits & !0x1fff)
                        }
                    };
                    if transposed {
                        rows[chunk * 8 + at - first][line] = value;
                    } else {
                        rows[line - first][chunk * per_chunk + at] = value;
                    }
                }
            }
        }
        Ok(rows)
    }

    /// A warp must be one of a whole group of four.
    pub(crate) fn check_group(&self, warp: &Warp) -> Result<()> {
        if self.clocks.len() >= (warp.number as usize / 4 + 1) * 4 {
            return Ok(());
        }
        Err((0, FaultKind::NoWarpGroup { warps: self.clocks.len() as u32 }))
    }
}

/// A's four registers, as those of `mma`.
fn fragment(warp: &Warp, slots: &[u16], element: Element) -> Vec<[f32; 16]> {
    let mut rows = vec![[0_f32; 16]; 16];
    for (at, slot) in slots.iter().enumerate() {
        for (lane, bits) in warp.registers.words[usize::from(*slot)].iter().enumerate() {
            let (row, column) = (lane / 4 + at % 2 * 8, lane % 4 + at / 2 * 4);
            let pair = [*bits as u16, (*bits >> 16) as u16];
            match element {
                Element::Tf32 => rows[row][column] = f32::from_bits(bits & !0x1fff),
                Element::F16 => (0..2).for_each(|half| rows[row][column * 2 + half] = f16_to_f32(pair[half])),
                Element::Bf16 => (0..2).for_each(|half| rows[row][column * 2 + half] = bf16_to_f32(pair[half])),
            }
        }
    }
    rows
}

/// Where each sum lies: slot, lane and half of the register, and its place in 16 × n.
fn each_sum(n: usize, wide: bool, mut f: impl FnMut(usize, usize, usize, usize)) {
    for column in 0..n {
        for row in 0..16 {
            let lane = row % 8 * 4 + column % 8 / 2;
            // Four f32 or two pairs of f16 for each eight columns.
            let slot = if wide { column / 8 * 4 + row / 8 * 2 + column % 2 } else { column / 8 * 2 + row / 8 };
            f(slot, lane, column % 2, row * n + column);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swizzles_permute_chunks_within_their_rows() {
        for (mode, row) in [(1_u64, 128), (2, 64), (3, 32)] {
            let descriptor = Descriptor::new(mode << 62 | (1024 >> 4) | ((8 * row) >> 4) << 32);
            for line in 0..64 {
                let mut all: Vec<u64> =
                    (0..row / 16).map(|chunk| descriptor.address(line, chunk, false) - 1024).collect();
                // 128 bytes: the chunk of row r is exchanged by r mod 8.
                if row == 128 {
                    assert_eq!(all[3], line * 128 + ((3 ^ (line % 8)) * 16));
                }
                all.sort_unstable();
                let begin = line * row;
                let aligned: Vec<u64> = (0..row / 16).map(|chunk| begin + chunk * 16).collect();
                assert_eq!(all, aligned);
            }
        }
    }
}
