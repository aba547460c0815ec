//! From the many registers of PTX to few slots, by linear scan.
//!
//! A register lives from its first to its last position in the order of the code, widened over every block into which
//! or out of which it is live. Lanes on different paths may hold different registers in one slot: each writes its
//! own lane only. Registers of `wgmma` live until it may have been waited for.

use super::isa::{Bank, Op};

/// An instruction whose registers are still PTX's.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) op: Op,
    pub(crate) guard: Option<(u32, bool)>,
    pub(crate) defs: Vec<u32>,
    pub(crate) uses: Vec<u32>,
    pub(crate) imm: i64,
    pub(crate) wide: bool,
}

/// A slot for each register, and how many slots each bank has. `pinned` registers keep theirs throughout.
pub(crate) fn assign(code: &[Draft], tables: &[Vec<u32>], banks: &[Bank], pinned: &[bool]) -> (Vec<u32>, [usize; 3]) {
    let spans = spans(code, tables, banks.len());
    let mut order: Vec<usize> =
        (0..banks.len()).filter(|register| spans[*register].is_some() || pinned[*register]).collect();
    let span = |register: usize| {
        if pinned[register] { (0, u32::MAX) } else { spans[register].unwrap_or((0, u32::MAX)) }
    };
    order.sort_by_key(|register| span(*register));
    let mut slots = vec![u32::MAX; banks.len()];
    let mut counts = [0_usize; 3];
    // Per bank: until when each slot is taken.
    let mut taken: [Vec<u32>; 3] = Default::default();
    let mut free: [std::collections::BinaryHeap<std::cmp::Reverse<(u32, u32)>>; 3] = Default::default();
    for register in order {
        let bank = banks[register] as usize;
        let (begin, end) = span(register);
        let slot = match free[bank].peek() {
            Some(std::cmp::Reverse((until, slot))) if *until < begin => {
                let slot = *slot;
                free[bank].pop();
                slot
            }
            _ => {
                taken[bank].push(0);
                counts[bank] += 1;
                counts[bank] as u32 - 1
            }
        };
        free[bank].push(std::cmp::Reverse((end, slot)));
        slots[register] = slot;
    }
    (slots, counts)
}

/// The registers that products in the background read or write until they are waited for.
fn held_by_products(code: &[Draft]) -> Vec<u32> {
    let mut held: Vec<u32> = Vec::new();
    for inst in code {
        if let Op::GroupMma { in_registers, .. } = inst.op {
            held.extend(&inst.defs);
            // Behind the sums, which come again, A.
            held.extend(inst.uses.iter().skip(inst.defs.len()).take(if in_registers { 4 } else { 0 }));
        }
    }
    held.sort_unstable();
    held.dedup();
    held
}

/// First and last position of each register.
fn spans(code: &[Draft], tables: &[Vec<u32>], registers: usize) -> Vec<Option<(u32, u32)>> {
    let held = held_by_products(code);
    // Blocks.
    let mut starts = vec![false; code.len() + 1];
    if let Some(first) = starts.first_mut() {
        *first = true;
    }
    for (at, inst) in code.iter().enumerate() {
        match inst.op {
            Op::Branch => {
                starts[inst.imm as usize] = true;
                starts[at + 1] = true;
            }
            Op::BranchIndexed => {
                for target in &tables[inst.imm as usize] {
                    starts[*target as usize] = true;
                }
                starts[at + 1] = true;
            }
            Op::Exit => starts[at + 1] = true,
            _ => {}
        }
    }
    let begins: Vec<usize> = (0..code.len()).filter(|at| starts[*at]).collect();
    let block_of = |at: usize| begins.partition_point(|begin| *begin <= at) - 1;
    let words = registers.div_ceil(64);
    let count = begins.len();
    let (mut reads, mut writes) = (vec![0_u64; count * words], vec![0_u64; count * words]);
    let mut next: Vec<Vec<usize>> = vec![Vec::new(); count];
    let set = |bits: &mut [u64], register: u32| bits[register as usize / 64] |= 1 << (register % 64);
    let has = |bits: &[u64], register: u32| bits[register as usize / 64] >> (register % 64) & 1 == 1;
    for (block, begin) in begins.iter().enumerate() {
        let end = begins.get(block + 1).copied().unwrap_or(code.len());
        let range = block * words..(block + 1) * words;
        for inst in &code[*begin..end] {
            let guard = inst.guard.map(|(register, _)| register);
            // A guarded write leaves some lanes as they were.
            let kept: &[u32] = if guard.is_some() { &inst.defs } else { &[] };
            let waits: &[u32] = if inst.op == Op::GroupWait { &held } else { &[] };
            for register in inst.uses.iter().chain(kept).chain(waits).copied().chain(guard) {
                if !has(&writes[range.clone()], register) {
                    set(&mut reads[range.clone()], register);
                }
            }
            if guard.is_none() {
                for register in &inst.defs {
                    set(&mut writes[range.clone()], *register);
                }
            }
        }
        let last = &code[end - 1];
        let falls = match last.op {
            Op::Branch => {
                next[block].push(block_of(last.imm as usize));
                last.guard.is_some()
            }
            Op::BranchIndexed => {
                next[block].extend(tables[last.imm as usize].iter().map(|target| block_of(*target as usize)));
                last.guard.is_some()
            }
            Op::Exit => last.guard.is_some(),
            _ => true,
        };
        if falls && block + 1 < count {
            next[block].push(block + 1);
        }
    }
    let mut live_in = reads.clone();
    let mut live_out = vec![0_u64; count * words];
    let mut changed = true;
    while changed {
        changed = false;
        for block in (0..count).rev() {
            for word in 0..words {
                let out = next[block].iter().fold(0, |all, to| all | live_in[to * words + word]);
                let at = block * words + word;
                live_out[at] = out;
                let live = reads[at] | (out & !writes[at]);
                changed |= live != live_in[at];
                live_in[at] = live;
            }
        }
    }
    let mut spans: Vec<Option<(u32, u32)>> = vec![None; registers];
    let mut widen = |register: usize, at: usize| {
        let at = at as u32;
        let span = spans[register].get_or_insert((at, at));
        *span = (span.0.min(at), span.1.max(at));
    };
    for (block, begin) in begins.iter().enumerate() {
        let end = begins.get(block + 1).copied().unwrap_or(code.len());
        for register in 0..registers {
            if has(&live_in[block * words..], register as u32) {
                widen(register, *begin);
            }
            if has(&live_out[block * words..], register as u32) {
                widen(register, end - 1);
            }
        }
        for (at, inst) in code.iter().enumerate().take(end).skip(*begin) {
            let waits: &[u32] = if inst.op == Op::GroupWait { &held } else { &[] };
            for register in
                inst.defs.iter().chain(&inst.uses).chain(waits).copied().chain(inst.guard.map(|(register, _)| register))
            {
                widen(register as usize, at);
            }
        }
    }
    spans
}
