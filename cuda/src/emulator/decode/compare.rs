//! Comparisons: `setp` and `set`, in terms of plain comparisons and logic of predicates.

use super::alu::{ty, unsigned};
use super::{Decoder, Mods, Result};
use crate::emulator::isa::{Bank, Compare, Logic, Op, Ty};
use crate::emulator::ptx::Operand;

fn comparison(mods: &mut Mods<'_>, ty: Ty) -> Option<Compare> {
    use Compare::*;
    let float = ty.is_float();
    mods.one_of(&[
        ("eq", Eq),
        ("ne", Ne),
        ("lt", Lt),
        ("le", Le),
        ("gt", Gt),
        ("ge", Ge),
        ("lo", Lt),
        ("ls", Le),
        ("hi", Gt),
        ("hs", Ge),
    ])
    .or_else(|| {
        let unordered = [
            ("equ", Equ),
            ("neu", Neu),
            ("ltu", Ltu),
            ("leu", Leu),
            ("gtu", Gtu),
            ("geu", Geu),
            ("num", Num),
            ("nan", Nan),
        ];
        if float { mods.one_of(&unordered) } else { None }
    })
}

fn join(mods: &mut Mods<'_>) -> Option<Logic> {
    mods.one_of(&[("and", Logic::And), ("or", Logic::Or), ("xor", Logic::Xor)])
}

pub(super) fn setp<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<()> {
    let ty = unsigned(ty(d, mods)?);
    let Some(compare) = comparison(mods, ty) else { return d.problem("a comparison that does not exist") };
    let (join, ftz) = (join(mods), mods.take("ftz"));
    let (to, a, b, c) = match (operands, join) {
        ([to, a, b], None) => (to, a, b, None),
        ([to, a, b, c], Some(_)) => (to, a, b, Some(c)),
        _ => return d.problem("a wrong number of operands"),
    };
    let (a, b) = (d.read(a, ty)?, d.read(b, ty)?);
    let c = c.map(|c| d.read(c, Ty::Pred)).transpose()?;
    let (first, second) = match to {
        Operand::Pair(first, second) => {
            (d.write(&Operand::Word(first), Ty::Pred)?, Some(d.write(&Operand::Word(second), Ty::Pred)?))
        }
        _ => (d.write(to, Ty::Pred)?, None),
    };
    if matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
        let Some(second) = second else { return d.problem("a comparison of pairs needs two destinations") };
        let single = if ty == Ty::F16x2 { Ty::F16 } else { Ty::Bf16 };
        let mut halves = [0; 4];
        for (at, from) in [a, b].into_iter().enumerate() {
            let parts = vec![d.temporary(Bank::Word), d.temporary(Bank::Word)];
            halves[at] = parts[0];
            halves[at + 2] = parts[1];
            d.emit(Op::Unpack { part: 16, wide: false }, parts, vec![from]);
        }
        let results = [d.temporary(Bank::Pred), d.temporary(Bank::Pred)];
        for (to, halves) in results.into_iter().zip([[halves[0], halves[1]], [halves[2], halves[3]]]) {
            let raw = d.temporary(Bank::Pred);
            d.emit(Op::Compare(compare, single, ftz), vec![raw], halves.to_vec());
            joined(d, join, to, raw, c);
        }
        both(d, [first, second], results);
        return Ok(());
    }
    if second.is_none() && join.is_none() {
        d.emit(Op::Compare(compare, ty, ftz), vec![first], vec![a, b]);
        return Ok(());
    }
    let raw = d.temporary(Bank::Pred);
    d.emit(Op::Compare(compare, ty, ftz), vec![raw], vec![a, b]);
    if let Some(second) = second {
        let not = d.temporary(Bank::Pred);
        d.emit(Op::Logic(Logic::Not), vec![not], vec![raw]);
        // Into temporaries first: `c` may be one of the destinations.
        let (p, q) = (d.temporary(Bank::Pred), d.temporary(Bank::Pred));
        joined(d, join, p, raw, c);
        joined(d, join, q, not, c);
        both(d, [first, second], [p, q]);
    } else {
        joined(d, join, first, raw, c);
    }
    Ok(())
}

/// Writes two predicates, the guard's own last: it decides about both.
fn both(d: &mut Decoder<'_>, to: [u32; 2], from: [u32; 2]) {
    let guards_first = d.guard.is_some_and(|(guard, _)| guard == to[0]);
    for at in if guards_first { [1, 0] } else { [0, 1] } {
        d.emit(Op::Logic(Logic::Mov), vec![to[at]], vec![from[at]]);
    }
}

fn joined(d: &mut Decoder<'_>, join: Option<Logic>, to: u32, raw: u32, c: Option<u32>) {
    match (join, c) {
        (Some(logic), Some(c)) => d.emit(Op::Logic(logic), vec![to], vec![raw, c]),
        _ => d.emit(Op::Logic(Logic::Mov), vec![to], vec![raw]),
    }
}

pub(super) fn set<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<()> {
    let from = unsigned(ty(d, mods)?);
    let to_ty = unsigned(ty(d, mods)?);
    let Some(compare) = comparison(mods, from) else { return d.problem("a comparison that does not exist") };
    let (join, ftz) = (join(mods), mods.take("ftz"));
    let (to, a, b, c) = match (operands, join) {
        ([to, a, b], None) => (to, a, b, None),
        ([to, a, b, c], Some(_)) => (to, a, b, Some(c)),
        _ => return d.problem("a wrong number of operands"),
    };
    let one = match to_ty {
        Ty::U32 | Ty::S32 | Ty::U16 | Ty::S16 => u64::MAX,
        Ty::F32 => u64::from(1_f32.to_bits()),
        Ty::F16 | Ty::F16x2 => 0x3c00,
        Ty::Bf16 | Ty::Bf16x2 => 0x3f80,
        _ => return d.problem("set to this type is not supported"),
    };
    let (a, b) = (d.read(a, from)?, d.read(b, from)?);
    let c = c.map(|c| d.read(c, Ty::Pred)).transpose()?;
    let to = d.write(to, to_ty)?;
    let single = match from {
        Ty::F16x2 => Ty::F16,
        Ty::Bf16x2 => Ty::Bf16,
        other => other,
    };
    let (one, zero) = (d.value(if from == single { to_ty } else { Ty::B16 }, one), d.value(to_ty, 0));
    let test = |d: &mut Decoder<'a>, to: u32, a: u32, b: u32| {
        let (raw, p) = (d.temporary(Bank::Pred), d.temporary(Bank::Pred));
        d.emit(Op::Compare(compare, single, ftz), vec![raw], vec![a, b]);
        joined(d, join, p, raw, c);
        d.emit(Op::Select, vec![to], vec![one, zero, p]);
    };
    if from == single {
        test(d, to, a, b);
        return Ok(());
    }
    let mut halves = Vec::new();
    for from in [a, b] {
        let parts = vec![d.temporary(Bank::Word), d.temporary(Bank::Word)];
        halves.push(parts.clone());
        d.emit(Op::Unpack { part: 16, wide: false }, parts, vec![from]);
    }
    let results = vec![d.temporary(Bank::Word), d.temporary(Bank::Word)];
    test(d, results[0], halves[0][0], halves[1][0]);
    test(d, results[1], halves[0][1], halves[1][1]);
    d.emit(Op::Pack { part: 16, wide: false }, vec![to], results);
    Ok(())
}
