//! `wgmma`: a product of four warps, A and B in shared memory as descriptors say.
//!
//! A product is asked for, and done in the background; `wgmma.wait_group` waits for it. Here it is done at the wait and
//! no sooner, so that an operand that was overwritten meanwhile is seen. Until then no instruction may touch its sums,
//! nor write its registers of A; and what the product finds in them must be what they were at the last
//! `wgmma.fence`, but for sums of products before it. Each warp makes its 16 rows of 64, with the sums of
//! [`super::matrix`].
//!
//! # Source
//! PTX ISA 9.0, 9.7.15 (`wgmma`, matrix descriptors, majorness and strides), and the canonical layouts of CUTLASS,
//! `cute/arch/mma_sm90_desc.hpp` and `cute/atom/mma_traits_sm90_gmma.hpp`.

use super::Warp;
use super::memory::Result;
use super::registers::{FULL, Lane};
use crate::emulator::block::{Common, Failure};
use crate::emulator::fault::{AccessKind, FaultKind};
use crate::emulator::float::{bf16_to_f32, f16_to_f32, f32_to_f16};
use crate::emulator::isa::{Element, Inst, Kernel, Op};
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
    fn new(bits: u64) -> std::result::Result<Self, FaultKind> {
        let field = |at: u32| (bits >> at & 0x3fff) << 4;
        // 1, 2 and 3 are swizzles of 128, 64 and 32 bytes.
        let row = [16, 128, 64, 32][(bits >> 62) as usize];
        let made = Self { start: field(0), leading: field(16), stride: field(32), row };
        let bad = |problem| Err(FaultKind::BadDescriptor { descriptor: bits, problem });
        if bits >> 49 & 7 != 0 {
            return bad("has a base offset, which is not emulated");
        }
        if made.start >> 7 & (row / 16 - 1) != 0 {
            return bad("begins within the eight rows of a swizzle's pattern");
        }
        Ok(made)
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

/// A product that was asked for and not waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pc: u32,
    /// The group that it was or will be committed with.
    group: u32,
    /// Descriptors; of A only if it lies in shared memory.
    a: u64,
    b: u64,
    /// Whether the sums are added to.
    keep: bool,
    begun: u32,
}

/// What products in flight hold of a warp's word registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Free,
    /// Part of A: may be read.
    Factor,
    /// A sum: may not be touched.
    Sum,
}

/// The registers of an instruction.
struct Operands<'k> {
    sums: &'k [u16],
    /// Four words, or a descriptor.
    a: &'k [u16],
    in_registers: bool,
    b: u16,
    scale: u16,
}

impl<'k> Operands<'k> {
    fn of(kernel: &'k Kernel, inst: &Inst) -> Self {
        let slots = &kernel.pool[inst.at as usize..][..usize::from(inst.defs) + usize::from(inst.uses)];
        let (sums, uses) = slots.split_at(usize::from(inst.defs));
        // The sums come again, as sources.
        let operands = &uses[sums.len()..];
        let in_registers = matches!(inst.op, Op::GroupMma { in_registers: true, .. });
        let (a, rest) = operands.split_at(if in_registers { 4 } else { 1 });
        Self { sums, a, in_registers, b: rest[0], scale: rest[1] }
    }

    fn factors(&self) -> &'k [u16] {
        if self.in_registers { self.a } else { &[] }
    }
}

impl Warp {
    /// `wgmma.fence`: from here on the registers are what products may take them to be.
    pub(crate) fn fence_products(&mut self) {
        self.fenced.clone_from(&self.registers.words);
    }

    fn hold(&mut self, kernel: &Kernel) {
        self.held.clear();
        self.held.resize(self.registers.words.len(), Held::Free);
        for product in &self.products {
            let operands = Operands::of(kernel, &kernel.code[product.pc as usize]);
            operands.factors().iter().for_each(|slot| self.held[usize::from(*slot)] = Held::Factor);
            operands.sums.iter().for_each(|slot| self.held[usize::from(*slot)] = Held::Sum);
        }
    }

    /// The last product in flight that holds a register.
    fn holder(&self, kernel: &Kernel, slot: u16) -> Option<&Product> {
        self.products.iter().rev().find(|product| {
            let operands = Operands::of(kernel, &kernel.code[product.pc as usize]);
            operands.sums.contains(&slot) || operands.factors().contains(&slot)
        })
    }

    fn in_flight(&self, kernel: &Kernel, slot: u16, access: AccessKind) -> FaultKind {
        let product = self.holder(kernel, slot).map(|product| kernel.line(product.pc)).unwrap_or_default();
        FaultKind::ProductInFlight { access, product }
    }

    /// Whether an instruction touches what products in flight hold. Products themselves are checked when they begin.
    #[cold]
    pub(crate) fn touches(&self, kernel: &Kernel, inst: &Inst) -> Option<FaultKind> {
        if matches!(inst.op, Op::GroupMma { .. }) {
            return None;
        }
        let (at, defs, uses) = (inst.at as usize, usize::from(inst.defs), usize::from(inst.uses));
        (0..defs + uses).find_map(|operand| {
            let slot = kernel.pool[at + operand];
            let access = if operand < defs { AccessKind::Write } else { AccessKind::Read };
            let held = if kernel.words[at + operand] { self.held[usize::from(slot)] } else { Held::Free };
            let touched = held == Held::Sum || (held == Held::Factor && access == AccessKind::Write);
            touched.then(|| self.in_flight(kernel, slot, access))
        })
    }
}

impl Common<'_> {
    /// A warp asks for a product.
    pub(crate) fn begin_product(&mut self, warp: &mut Warp, inst: &Inst, pc: u32) -> Result<()> {
        // A warp must be one of a whole group of four.
        if self.clocks.len() < (warp.number as usize / 4 + 1) * 4 {
            return Err((0, FaultKind::NoWarpGroup { warps: self.clocks.len() as u32 }));
        }
        let kernel = self.kernel;
        let operands = Operands::of(kernel, inst);
        let sums = operands.sums.iter().map(|slot| (*slot, true));
        for (slot, is_sum) in sums.chain(operands.factors().iter().map(|slot| (*slot, false))) {
            let at = usize::from(slot);
            match warp.held.get(at).copied().unwrap_or(Held::Free) {
                Held::Sum => {
                    // Products of one shape add to the same sums one after another.
                    let before = warp.holder(kernel, slot).map(|product| &kernel.code[product.pc as usize]);
                    if is_sum && before.is_some_and(|before| Operands::of(kernel, before).sums == operands.sums) {
                        continue;
                    }
                    let access = if is_sum { AccessKind::Write } else { AccessKind::Read };
                    return Err((0, warp.in_flight(kernel, slot, access)));
                }
                Held::Factor if is_sum => return Err((0, warp.in_flight(kernel, slot, AccessKind::Write))),
                _ => {}
            }
            let now = &warp.registers.words[at];
            match warp.fenced.get(at) {
                Some(then) if then == now => {}
                Some(then) => {
                    let lane = (0..32).find(|lane| then[*lane] != now[*lane]).unwrap_or(0);
                    return Err((lane as u32, FaultKind::NoGroupFence { fenced: true }));
                }
                None => return Err((0, FaultKind::NoGroupFence { fenced: false })),
            }
        }
        let wide = |slot: u16| warp.registers.wides[usize::from(slot)][0];
        let product = Product {
            pc,
            group: warp.product_groups,
            a: if operands.in_registers { 0 } else { wide(operands.a[0]) },
            b: wide(operands.b),
            keep: warp.registers.preds[usize::from(operands.scale)] & 1 == 1,
            begun: self.near.shared.begin_reading(),
        };
        if !operands.in_registers {
            Descriptor::new(product.a).map_err(|kind| (0, kind))?;
        }
        Descriptor::new(product.b).map_err(|kind| (0, kind))?;
        warp.products.push(product);
        warp.hold(kernel);
        Ok(())
    }

    /// `wgmma.wait_group`: products of all but the last `left` groups are done.
    pub(crate) fn await_products(&mut self, warp: &mut Warp, left: u32) -> std::result::Result<(), Failure> {
        let due = |product: &Product| product.group < warp.product_groups.saturating_sub(left);
        let (due, rest): (Vec<Product>, Vec<Product>) = std::mem::take(&mut warp.products).into_iter().partition(due);
        warp.products = rest;
        for product in due {
            self.finish(warp, &product).map_err(|(lane, kind)| (lane, product.pc, kind))?;
        }
        warp.hold(self.kernel);
        Ok(())
    }

    fn finish(&mut self, warp: &mut Warp, product: &Product) -> Result<()> {
        let kernel = self.kernel;
        let inst = &kernel.code[product.pc as usize];
        let Op::GroupMma { n, element, wide, negate, transpose_a, transpose_b, .. } = inst.op else { return Ok(()) };
        let operands = Operands::of(kernel, inst);
        let n = usize::from(n);
        let k = if element == Element::Tf32 { 8 } else { 16 };
        let first_row = warp.number as usize % 4 * 16;
        let descriptor = |bits| Descriptor::new(bits).map_err(|kind| (0, kind));
        // By row and k, and by k and column.
        let (mut a, mut b) = ([[0_f32; 16]; 16], vec![0_f32; k * n]);
        if operands.in_registers {
            fragment(warp, operands.a, element, &mut a);
        } else {
            let layout = (descriptor(product.a)?, transpose_a);
            self.tile(warp, product, layout, (first_row, 16), element, |row, i, value| a[row][i] = value)?;
        }
        let layout = (descriptor(product.b)?, transpose_b);
        self.tile(warp, product, layout, (0, n), element, |column, i, value| b[i * n + column] = value)?;
        let mut c = vec![0_f32; 16 * n];
        if product.keep {
            each_sum(n, wide, |slot, lane, half, at| {
                let bits = warp.registers.words[usize::from(operands.sums[slot])][lane];
                c[at] = if wide { f32::from_bits(bits) } else { f16_to_f32((bits >> (16 * half)) as u16) };
            });
        }
        if negate {
            a.iter_mut().flatten().for_each(|x| *x = -*x);
        }
        accumulate(&mut c, &a, &b, n);
        let mut out = vec![[0_u32; 32]; operands.sums.len()];
        each_sum(n, wide, |slot, lane, half, at| {
            out[slot][lane] |= if wide { c[at].to_bits() } else { u32::from(f32_to_f16(c[at])) << (16 * half) };
        });
        for (slot, values) in operands.sums.iter().zip(&out) {
            u32::put(&mut warp.registers, *slot, values, FULL);
            if let Some(fenced) = warp.fenced.get_mut(usize::from(*slot)) {
                *fenced = *values;
            }
        }
        Ok(())
    }

    /// Rows of a matrix in shared memory: `put` takes the row, from 0, the place along k and the value.
    fn tile(
        &mut self,
        warp: &Warp,
        product: &Product,
        (descriptor, transposed): (Descriptor, bool),
        (first, count): (usize, usize),
        element: Element,
        mut put: impl FnMut(usize, usize, f32),
    ) -> Result<()> {
        let kernel = self.kernel;
        let clocks = &self.clocks[warp.number as usize];
        let by = Accessor { thread: warp.overall * 32, pc: product.pc, strong: false, clocks };
        let per_chunk = if element == Element::Tf32 { 4 } else { 8 };
        let (lines, chunks) =
            if transposed { (0..16, first / 8..(first + count) / 8) } else { (first..first + count, 0..2) };
        for line in lines {
            for chunk in chunks.clone() {
                let address = descriptor.address(line as u64, chunk as u64, transposed);
                let bytes = self.near.shared.read_asynchronously(address, 16, &by, Some(product.begun));
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
                        put(chunk * 8 + at - first, line, value);
                    } else {
                        put(line - first, chunk * per_chunk + at, value);
                    }
                }
            }
        }
        Ok(())
    }
}

/// C += A B: 16 rows of n sums, each one chain along k.
fn accumulate(c: &mut [f32], a: &[[f32; 16]; 16], b: &[f32], n: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the features were just detected.
        return unsafe { accumulate_avx2(c, a, b, n) };
    }
    accumulate_with(c, a, b, n);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn accumulate_avx2(c: &mut [f32], a: &[[f32; 16]; 16], b: &[f32], n: usize) {
    accumulate_with(c, a, b, n);
}

#[inline(always)]
fn accumulate_with(c: &mut [f32], a: &[[f32; 16]; 16], b: &[f32], n: usize) {
    for (sums, row) in c.chunks_exact_mut(n).zip(a) {
        for (x, values) in row.iter().zip(b.chunks_exact(n)) {
            for (sum, y) in sums.iter_mut().zip(values) {
                *sum = x.mul_add(*y, *sum);
            }
        }
    }
}

/// A's four registers, as those of `mma`.
fn fragment(warp: &Warp, slots: &[u16], element: Element, rows: &mut [[f32; 16]; 16]) {
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
            let descriptor = Descriptor::new(mode << 62 | (1024 >> 4) | ((8 * row) >> 4) << 32).unwrap();
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
