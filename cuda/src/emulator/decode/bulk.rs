//! Bulk copies, and products of warp groups.

use super::{Decoder, Mods, Result};
use crate::emulator::isa::{Bank, Element, FloatMods, IntOp, Op, Ty};
use crate::emulator::ptx::Operand;

/// An address as one 64-bit register, its offset added.
fn whole_address<'a>(d: &mut Decoder<'a>, operand: &Operand<'a>) -> Result<u32> {
    let (mut base, offset, wide) = d.address(operand)?;
    if !wide {
        let to = d.temporary(Bank::Wide);
        let mods = FloatMods::default();
        let op = Op::Convert { to: Ty::U64, from: Ty::U32, register_bits: 64, mods, integral: false };
        d.emit(op, vec![to], vec![base]);
        base = to;
    }
    if offset != 0 {
        let (to, offset) = (d.temporary(Bank::Wide), d.value(Ty::U64, offset as u64));
        d.emit(Op::Int(IntOp::Add, Ty::U64), vec![to], vec![base, offset]);
        base = to;
    }
    Ok(base)
}

/// `cp.async.bulk`, its first words taken.
pub(super) fn copy<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<()> {
    if mods.take("commit_group") {
        d.emit(Op::BulkCommit, vec![], vec![]);
        return Ok(());
    }
    if mods.take("wait_group") {
        // Whether the copies have been read, or are done: here they are both.
        mods.take("read");
        let [Operand::Int(left)] = operands else { return d.problem("a number of groups was expected") };
        d.emit_at(Op::BulkWait, vec![], vec![], (*left).try_into().unwrap_or(i64::MAX), false);
        return Ok(());
    }
    if mods.rest.first() == Some(&"prefetch") {
        mods.rest.clear();
        d.emit(Op::Nothing, vec![], vec![]);
        return Ok(());
    }
    if mods.take("tensor") {
        return tensor(d, mods, operands);
    }
    let inward = match mods.rest.first() {
        Some(&("shared::cluster" | "shared::cta")) => true,
        Some(&"global") => false,
        _ => return d.problem("a bulk copy between these state spaces is not supported"),
    };
    mods.rest.remove(0);
    let others: &[&str] = if inward { &["global"] } else { &["shared::cta"] };
    if !others.iter().any(|space| mods.take(space)) {
        return d.problem("a bulk copy between these state spaces is not supported");
    }
    // The hint's policy is an operand more.
    let hinted = usize::from(mods.take("L2::cache_hint"));
    let multicast = inward && mods.take("multicast::cluster");
    let ends = if inward { mods.take("mbarrier::complete_tx::bytes") } else { mods.take("bulk_group") };
    if !ends {
        return d.problem("a bulk copy that says not how it completes");
    }
    let wanted = if inward { 4 + usize::from(multicast) } else { 3 };
    if operands.len() != wanted + hinted {
        return d.problem("a wrong number of operands");
    }
    let mut uses = vec![whole_address(d, &operands[0])?, whole_address(d, &operands[1])?];
    uses.push(d.read(&operands[2], Ty::U32)?);
    if inward {
        uses.push(whole_address(d, &operands[3])?);
    }
    if multicast {
        uses.push(d.read(&operands[4], Ty::U16)?);
    }
    d.shared_granule(16);
    d.emit(if inward { Op::BulkLoad { multicast } } else { Op::BulkStore }, vec![], uses);
    Ok(())
}

/// `cp.async.bulk.tensor`, these words taken.
fn tensor<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<()> {
    let numbers = [("1d", 1), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)];
    let Some(dimensions) = mods.one_of(&numbers) else { return d.problem("a copy without a number of dimensions") };
    mods.take("tile");
    let inward = match mods.rest.first() {
        Some(&("shared::cluster" | "shared::cta")) => true,
        Some(&"global") => false,
        _ => return d.problem("a copy between these state spaces is not supported"),
    };
    mods.rest.remove(0);
    if !mods.take(if inward { "global" } else { "shared::cta" }) {
        return d.problem("a copy between these state spaces is not supported");
    }
    let hinted = usize::from(mods.take("L2::cache_hint"));
    if !mods.take(if inward { "mbarrier::complete_tx::bytes" } else { "bulk_group" }) {
        return d.problem("a bulk copy that says not how it completes");
    }
    let multicast = inward && mods.take("multicast::cluster");
    if operands.len() != if inward { 3 + usize::from(multicast) } else { 2 } + hinted {
        return d.problem("a wrong number of operands");
    }
    let (shared, there) = if inward { (&operands[0], &operands[1]) } else { (&operands[1], &operands[0]) };
    let Operand::Address(base, offset, rest) = there else { return d.problem("a tensor map was expected") };
    let [Operand::List(coordinates)] = &rest[..] else { return d.problem("a list of coordinates was expected") };
    if coordinates.len() != dimensions {
        return d.problem(format!("{dimensions} coordinates were expected, and {} are there", coordinates.len()));
    }
    let mut uses = vec![whole_address(d, shared)?];
    uses.push(whole_address(d, &Operand::Address(base.clone(), *offset, vec![]))?);
    if inward {
        uses.push(whole_address(d, &operands[2])?);
    }
    if multicast {
        uses.push(d.read(&operands[3], Ty::U16)?);
    }
    for coordinate in coordinates {
        uses.push(d.read(coordinate, Ty::S32)?);
    }
    d.shared_granule(16);
    d.emit(if inward { Op::TensorLoad { multicast } } else { Op::TensorStore }, vec![], uses);
    Ok(())
}

/// `prefetch.tensormap`
pub(super) fn prefetch<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<()> {
    mods.rest.clear();
    let [map] = d.operands(operands)?;
    let uses = vec![whole_address(d, map)?];
    d.emit(Op::MapPrefetch, vec![], uses);
    Ok(())
}

/// `wgmma`.
pub(super) fn group_product<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<()> {
    if !(mods.take("sync") && mods.take("aligned")) {
        return d.problem("wgmma without .sync.aligned");
    }
    if mods.take("fence") {
        d.emit(Op::GroupFence, vec![], vec![]);
        return Ok(());
    }
    if mods.take("commit_group") {
        d.emit(Op::GroupCommit, vec![], vec![]);
        return Ok(());
    }
    if mods.take("wait_group") {
        let [Operand::Int(left)] = operands else { return d.problem("a number of groups was expected") };
        d.emit_at(Op::GroupWait, vec![], vec![], (*left).try_into().unwrap_or(i64::MAX), false);
        return Ok(());
    }
    if !mods.take("mma_async") || mods.rest.len() != 4 {
        return d.problem("a wgmma of this kind is not supported");
    }
    let shape = mods.rest[0];
    let types: Option<Vec<Ty>> = mods.rest[1..].iter().map(|word| Ty::parse(word)).collect();
    mods.rest.clear();
    let (element, k, sums) = match types.as_deref() {
        Some([sums, Ty::F16, Ty::F16]) => (Element::F16, 16, *sums),
        Some([sums @ Ty::F32, Ty::Bf16, Ty::Bf16]) => (Element::Bf16, 16, *sums),
        Some([sums @ Ty::F32, Ty::Tf32, Ty::Tf32]) => (Element::Tf32, 8, *sums),
        _ => return d.problem("a wgmma of these types is not supported"),
    };
    let columns = shape.strip_prefix("m64n").and_then(|rest| rest.strip_suffix(&format!("k{k}")));
    let columns: Option<u16> = columns.and_then(|columns| columns.parse().ok());
    let Some(n) = columns.filter(|n| n % 8 == 0 && (8..=256).contains(n)) else {
        return d.problem("a wgmma of this shape is not supported");
    };
    let wide = match sums {
        Ty::F32 => true,
        Ty::F16 => false,
        _ => return d.problem("a wgmma of these types is not supported"),
    };
    let [to, a, b, scale, signs @ ..] = operands else { return d.problem("a wrong number of operands") };
    let Operand::List(to) = to else { return d.problem("a list of sums was expected") };
    if to.len() != usize::from(n) / if wide { 2 } else { 4 } {
        return d.problem("a wrong number of sums");
    }
    let ty = if wide { Ty::F32 } else { Ty::B32 };
    let mut uses = to.iter().map(|operand| d.read(operand, ty)).collect::<Result<Vec<_>>>()?;
    let in_registers = matches!(a, Operand::List(_));
    match a {
        Operand::List(parts) if parts.len() == 4 => {
            for part in parts {
                uses.push(d.read(part, Ty::B32)?);
            }
        }
        Operand::List(_) => return d.problem("four registers were expected"),
        descriptor => uses.push(d.read(descriptor, Ty::B64)?),
    }
    uses.push(d.read(b, Ty::B64)?);
    uses.push(d.read(scale, Ty::Pred)?);
    // Signs of A and B, then which of them are transposed.
    let transposes = if element == Element::Tf32 {
        0
    } else if in_registers {
        1
    } else {
        2
    };
    if signs.len() != 2 + transposes {
        return d.problem("a wrong number of operands");
    }
    let mut flags = [false; 4];
    for (at, operand) in signs.iter().enumerate() {
        let Operand::Int(value) = operand else { return d.problem("a number was expected") };
        flags[at] = match (at, *value as i64) {
            (0 | 1, 1) | (2 | 3, 0) => false,
            (0 | 1, -1) | (2 | 3, 1) => true,
            _ => return d.problem("a sign is 1 or -1, a transposition 0 or 1"),
        };
    }
    let [negate_a, negate_b, first, second] = flags;
    let (transpose_a, transpose_b) = if in_registers { (false, first) } else { (first, second) };
    let defs = to.iter().map(|operand| d.write(operand, ty)).collect::<Result<_>>()?;
    d.shared_granule(16);
    let op = Op::GroupMma { n, element, wide, in_registers, negate: negate_a != negate_b, transpose_a, transpose_b };
    d.emit(op, defs, uses);
    Ok(())
}
