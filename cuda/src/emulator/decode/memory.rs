//! Loads, stores, atomics, asynchronous copies, matrices.

use super::{Decoder, Mods, Result, access, bulk};
use crate::emulator::isa::{AtomicOp, Bank, Element, Op, Space, Ty};
use crate::emulator::ptx::Operand;

/// Decodes an instruction of this kind; `false` if it is none.
pub(super) fn decode<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<bool> {
    match mods.name {
        "ld" | "ldu" => load(d, mods, operands)?,
        "st" => store(d, mods, operands)?,
        "atom" | "red" => atomic(d, mods, operands)?,
        "cvta" => {
            let back = mods.take("to");
            let Some(space) = space(mods) else { return d.problem("cvta without a state space") };
            let Some(ty) = mods.ty() else { return d.problem("cvta without a type") };
            let [to, from] = d.operands(operands)?;
            let from = d.read(from, ty)?;
            let to = d.write(to, ty)?;
            if ty.bits() != 64 {
                return d.problem("cvta of 32-bit addresses is not supported");
            }
            d.emit(if back { Op::FromGeneric(space) } else { Op::ToGeneric(space) }, vec![to], vec![from]);
        }
        "isspacep" => {
            let Some(space) = space(mods) else { return d.problem("isspacep without a state space") };
            let [to, from] = d.operands(operands)?;
            let from = d.read(from, Ty::B64)?;
            let to = d.write(to, Ty::Pred)?;
            d.emit(Op::IsSpace(space), vec![to], vec![from]);
        }
        "mapa" => {
            mods.take("shared::cluster");
            let Some(ty) = mods.ty() else { return d.problem("mapa without a type") };
            let [to, from, rank] = d.operands(operands)?;
            let uses = vec![d.read(from, ty)?, d.read(rank, Ty::U32)?];
            let to = d.write(to, ty)?;
            d.emit(Op::MapAddress { wide: ty.bits() == 64 }, vec![to], uses);
        }
        "prefetch" if mods.rest.last() == Some(&"tensormap") => bulk::prefetch(d, mods, operands)?,
        "prefetch" | "prefetchu" | "discard" | "applypriority" => {
            mods.rest.clear();
            d.emit(Op::Nothing, vec![], vec![]);
        }
        "cp" => {
            if !mods.take("async") {
                return Ok(false);
            }
            copy_async(d, mods, operands)?;
        }
        "ldmatrix" => {
            mods.take("sync");
            mods.take("aligned");
            let count = matrices(d, mods)?;
            let transposed = mods.take("trans");
            shared_only(d, mods)?;
            let [to, from] = d.operands(operands)?;
            let parts = list(d, to, count.into())?;
            let defs = parts.iter().map(|operand| d.write(operand, Ty::B32)).collect::<Result<_>>()?;
            let (base, offset, wide) = d.address(from)?;
            d.shared_granule(16);
            d.emit_at(Op::LoadMatrix { count, transposed }, defs, vec![base], offset, wide);
        }
        "stmatrix" => {
            mods.take("sync");
            mods.take("aligned");
            let count = matrices(d, mods)?;
            let transposed = mods.take("trans");
            shared_only(d, mods)?;
            let [to, from] = d.operands(operands)?;
            let (base, offset, wide) = d.address(to)?;
            let mut uses = vec![base];
            for operand in list(d, from, count.into())? {
                uses.push(d.read(operand, Ty::B32)?);
            }
            d.shared_granule(16);
            d.emit_at(Op::StoreMatrix { count, transposed }, vec![], uses, offset, wide);
        }
        "mma" => mma(d, mods, operands)?,
        "wgmma" => bulk::group_product(d, mods, operands)?,
        _ => return Ok(false),
    }
    Ok(true)
}

/// The state space among the modifiers; constants are global memory.
fn space(mods: &mut Mods<'_>) -> Option<Space> {
    mods.one_of(&[
        ("global", Space::Global),
        ("shared", Space::Shared),
        ("shared::cta", Space::Shared),
        ("shared::cluster", Space::Shared),
        ("const", Space::Global),
        ("local", Space::Local),
        ("param", Space::Param),
        ("param::entry", Space::Param),
    ])
}

fn ordering(mods: &mut Mods<'_>) -> bool {
    mods.take("weak");
    let order = [("volatile", ()), ("relaxed", ()), ("acquire", ()), ("release", ()), ("acq_rel", ()), ("mmio", ())];
    let strong = mods.one_of(&order).is_some();
    let _ = mods.one_of(&[("cta", ()), ("cluster", ()), ("gpu", ()), ("sys", ())]);
    strong
}

/// Hints to the caches, which change nothing here.
fn hints(mods: &mut Mods<'_>) {
    mods.rest.retain(|word| {
        let known = ["ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc"].contains(word);
        let level = (word.starts_with("L1::") || word.starts_with("L2::")) && *word != "L2::cache_hint";
        !known && !level
    });
}

fn count(mods: &mut Mods<'_>) -> u8 {
    mods.one_of(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1)
}

/// The operands of a vector; a single one may stand without braces.
fn list<'a>(d: &Decoder<'a>, operand: &'a Operand<'a>, count: usize) -> Result<&'a [Operand<'a>]> {
    let parts = match operand {
        Operand::List(parts) => parts.as_slice(),
        single => std::slice::from_ref(single),
    };
    if parts.len() != count {
        return d.problem(format!("a vector of {count} was expected"));
    }
    Ok(parts)
}

fn load<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<()> {
    let strong = ordering(mods);
    let space = space(mods).unwrap_or(Space::Generic);
    hints(mods);
    let count = count(mods);
    let Some(ty) = mods.ty() else { return d.problem("a load without a type that is supported") };
    let [to, from] = d.operands(operands)?;
    let mut defs = Vec::new();
    for part in list(d, to, count.into())? {
        defs.push(d.write_as(part, ty, true)?);
    }
    let register_bits = d.bits_of(defs[0]);
    if defs.iter().any(|register| d.bits_of(*register) != register_bits) {
        return d.problem("registers of different widths in a vector");
    }
    if let (Space::Param, Operand::Address(base, offset, rest)) = (space, from)
        && let (Operand::Word(name), true) = (base.as_ref(), rest.is_empty())
        && let Some((Space::Param, at)) = d.symbols.get(name).copied()
    {
        d.emit_at(Op::Param(access(space, ty, count, register_bits, false)), defs, vec![], at as i64 + offset, false);
        return Ok(());
    }
    let (base, offset, wide) = d.address(from)?;
    if matches!(space, Space::Shared | Space::Generic) {
        d.shared_granule(ty.bits() / 8);
    }
    // A block that waits for what another writes must not keep the other from running.
    d.ordered |= strong && matches!(space, Space::Global | Space::Generic);
    d.emit_at(Op::Load(access(space, ty, count, register_bits, strong)), defs, vec![base], offset, wide);
    Ok(())
}

fn store<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<()> {
    let strong = ordering(mods);
    let space = space(mods).unwrap_or(Space::Generic);
    if space == Space::Param {
        return d.problem("arguments cannot be written");
    }
    hints(mods);
    let count = count(mods);
    let Some(ty) = mods.ty() else { return d.problem("a store without a type that is supported") };
    let [to, from] = d.operands(operands)?;
    let (base, offset, wide) = d.address(to)?;
    let mut uses = vec![base];
    for part in list(d, from, count.into())? {
        uses.push(d.read_as(part, ty, true)?);
    }
    // Stores of a narrow part of a wide register read its lower word.
    if ty.bits() < 64 {
        for register in uses.iter_mut().skip(1) {
            if d.registers[*register as usize].bank == Bank::Wide {
                let parts = vec![d.temporary(Bank::Word), d.temporary(Bank::Word)];
                d.emit(Op::Unpack { part: 32, wide: true }, parts.clone(), vec![*register]);
                *register = parts[0];
            }
        }
    }
    if matches!(space, Space::Shared | Space::Generic) {
        d.shared_granule(ty.bits() / 8);
    }
    d.ordered |= strong && matches!(space, Space::Global | Space::Generic);
    d.emit_at(Op::Store(access(space, ty, count, ty.bits(), strong)), vec![], uses, offset, wide);
    Ok(())
}

fn atomic<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<()> {
    let returns = mods.name == "atom";
    if mods.take("async") {
        return d.problem("red.async is not supported");
    }
    ordering(mods);
    let space = space(mods).unwrap_or(Space::Generic);
    if !matches!(space, Space::Generic | Space::Global | Space::Shared) {
        return d.problem("an atomic in this state space");
    }
    let ops = [
        ("and", AtomicOp::And),
        ("or", AtomicOp::Or),
        ("xor", AtomicOp::Xor),
        ("exch", AtomicOp::Exch),
        ("cas", AtomicOp::Cas),
        ("add", AtomicOp::Add),
        ("inc", AtomicOp::Inc),
        ("dec", AtomicOp::Dec),
        ("min", AtomicOp::Min),
        ("max", AtomicOp::Max),
    ];
    let Some(op) = mods.one_of(&ops) else { return d.problem("an atomic without an operation") };
    mods.take("noftz");
    hints(mods);
    let count = count(mods);
    let Some(ty) = mods.ty() else { return d.problem("an atomic without a type that is supported") };
    let ty = match ty {
        Ty::B16 => Ty::U16,
        Ty::B32 => Ty::U32,
        Ty::B64 => Ty::U64,
        other => other,
    };
    let float_only = matches!(op, AtomicOp::Add | AtomicOp::Min | AtomicOp::Max);
    let exists = match ty {
        Ty::U32 | Ty::U64 => true,
        Ty::S32 | Ty::S64 => float_only,
        Ty::U16 => matches!(op, AtomicOp::Cas | AtomicOp::Exch),
        Ty::F32 | Ty::F64 => op == AtomicOp::Add,
        Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2 => float_only,
        _ => false,
    };
    if !exists || (count > 1 && !ty.is_float()) {
        return d.problem("an atomic of this type is not supported");
    }
    let (to, rest) = if returns {
        let Some((to, rest)) = operands.split_first() else { return d.problem("operands are missing") };
        (Some(to), rest)
    } else {
        (None, operands)
    };
    if rest.len() != if op == AtomicOp::Cas { 3 } else { 2 } {
        return d.problem("a wrong number of operands");
    }
    let (base, offset, wide) = d.address(&rest[0])?;
    let mut uses = vec![base];
    for operand in &rest[1..] {
        for part in list(d, operand, count.into())? {
            uses.push(d.read(part, ty)?);
        }
    }
    let mut defs = Vec::new();
    if let Some(to) = to {
        for part in list(d, to, count.into())? {
            defs.push(d.write(part, ty)?);
        }
    }
    if space != Space::Global {
        d.shared_granule(ty.bits() / 8);
    }
    // Whole-number sums come out the same in any order; old values and sums of floats do not.
    d.ordered |= space != Space::Shared && (returns || ty.is_float() || matches!(op, AtomicOp::Exch | AtomicOp::Cas));
    d.emit_at(Op::Atomic { space, op, ty, count, returns }, defs, uses, offset, wide);
    Ok(())
}

fn copy_async<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<()> {
    if mods.take("bulk") {
        return bulk::copy(d, mods, operands);
    }
    if mods.take("commit_group") {
        d.emit(Op::CopyCommit, vec![], vec![]);
        return Ok(());
    }
    if mods.take("wait_group") {
        let [Operand::Int(left)] = operands else { return d.problem("a number of groups was expected") };
        let Ok(left) = i64::try_from(*left) else { return d.problem("a number of groups was expected") };
        d.emit_at(Op::CopyWait, vec![], vec![], left, false);
        return Ok(());
    }
    if mods.take("wait_all") {
        d.emit(Op::CopyWaitAll, vec![], vec![]);
        return Ok(());
    }
    if mods.take("mbarrier") {
        mods.take("arrive");
        let noinc = mods.take("noinc");
        shared_only_quiet(mods);
        mods.take("b64");
        let [at] = d.operands(operands)?;
        let (base, offset, wide) = d.address(at)?;
        d.emit_at(Op::MbarrierArriveCopies { noinc }, vec![], vec![base], offset, wide);
        return Ok(());
    }
    let cached = mods.take("ca");
    let once = mods.take("cg");
    shared_only(d, mods)?;
    mods.take("global");
    hints(mods);
    let (to, from, bytes, size) = match operands {
        [to, from, Operand::Int(bytes)] => (to, from, *bytes, None),
        [to, from, Operand::Int(bytes), size] => (to, from, *bytes, Some(size)),
        _ => return d.problem("cp.async needs two addresses and a size"),
    };
    if !(matches!(bytes, 4 | 8 | 16) && cached != once && (cached || bytes == 16)) {
        return d.problem("cp.async copies 4, 8 or 16 bytes with .ca, or 16 with .cg");
    }
    let (to, to_offset, to_wide) = d.address(to)?;
    let (from, from_offset, from_wide) = d.address(from)?;
    // One offset an instruction: the source's is added beforehand.
    let from = if from_offset == 0 {
        from
    } else {
        let (offset, sum) = (d.value(Ty::U64, from_offset as u64), d.temporary(Bank::Wide));
        d.emit(Op::Int(crate::emulator::isa::IntOp::Add, Ty::U64), vec![sum], vec![from, offset]);
        sum
    };
    if !from_wide {
        return d.problem("the source of cp.async needs a 64-bit address");
    }
    let mut uses = vec![to, from];
    let mut ignore = false;
    if let Some(size) = size {
        match size {
            Operand::Word(name) if d.lookup(name).is_some_and(|register| d.bits_of(register) == 1) => {
                ignore = true;
                uses.push(d.read(size, Ty::Pred)?);
            }
            _ => uses.push(d.read(size, Ty::U32)?),
        }
    }
    d.shared_granule(bytes as u32);
    let op = Op::CopyAsync { bytes: bytes as u8, ignore, sized: uses.len() == 3 };
    d.emit_at(op, vec![], uses, to_offset, to_wide);
    Ok(())
}

fn shared_only_quiet(mods: &mut Mods<'_>) -> bool {
    mods.take("shared") || mods.take("shared::cta")
}

fn shared_only(d: &Decoder<'_>, mods: &mut Mods<'_>) -> Result<()> {
    if shared_only_quiet(mods) { Ok(()) } else { d.problem("an address in shared memory must be said to be so") }
}

fn matrices(d: &Decoder<'_>, mods: &mut Mods<'_>) -> Result<u8> {
    let count = mods.one_of(&[("x1", 1), ("x2", 2), ("x4", 4)]);
    match (mods.take("m8n8"), count, mods.take("b16")) {
        (true, Some(count), true) => Ok(count),
        _ => d.problem("only .m8n8 with .x1, .x2 or .x4 of .b16 is supported"),
    }
}

fn mma<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<()> {
    if !(mods.take("sync") && mods.take("aligned") && mods.take("row") && mods.take("col")) {
        return d.problem("only mma.sync.aligned with .row.col is supported");
    }
    let k = mods.one_of(&[("m16n8k4", 4), ("m16n8k8", 8), ("m16n8k16", 16)]);
    let types: Option<[Ty; 4]> = mods
        .rest
        .iter()
        .map(|word| Ty::parse(word))
        .collect::<Option<Vec<Ty>>>()
        .and_then(|types| types.try_into().ok());
    let (Some(k), Some([to_ty, a_ty, b_ty, c_ty])) = (k, types) else {
        return d.problem("a matrix product of this shape or these types is not supported");
    };
    mods.rest.clear();
    let (element, ks): (Element, &[u8]) = match a_ty {
        Ty::F16 => (Element::F16, &[8, 16]),
        Ty::Bf16 => (Element::Bf16, &[8, 16]),
        Ty::Tf32 => (Element::Tf32, &[4, 8]),
        _ => return d.problem("a matrix product of this type is not supported"),
    };
    let half = to_ty == Ty::F16;
    if a_ty != b_ty || to_ty != c_ty || !ks.contains(&k) || !(to_ty == Ty::F32 || (half && element == Element::F16)) {
        return d.problem("a matrix product of this shape or these types is not supported");
    }
    // 16 x k and k x 8 elements, 16 x 8 sums, spread over 32 lanes.
    let words = if element == Element::Tf32 { 1 } else { 2 };
    let (a_count, b_count) = (16 * usize::from(k) / 32 / words, 8 * usize::from(k) / 32 / words);
    let sums = if half { 2 } else { 4 };
    let [to, a, b, c] = d.operands(operands)?;
    let sum_ty = if half { Ty::B32 } else { Ty::F32 };
    let mut uses = Vec::new();
    for (operand, count, ty) in [(a, a_count, Ty::B32), (b, b_count, Ty::B32), (c, sums, sum_ty)] {
        for part in list(d, operand, count)? {
            uses.push(d.read(part, ty)?);
        }
    }
    let defs = list(d, to, sums)?.iter().map(|part| d.write(part, sum_ty)).collect::<Result<_>>()?;
    d.emit(Op::Mma { k, a: element, wide: !half }, defs, uses);
    Ok(())
}
