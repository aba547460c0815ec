//! Arithmetic, comparisons, moves and conversions.

use super::{Decoder, Mods, Result, compare};
use crate::emulator::isa::{Bank, FloatMods, FloatOp, IntOp, Logic, Op, Round, Ty};
use crate::emulator::ptx::Operand;

/// Decodes an instruction of this kind; `false` if it is none.
pub(super) fn decode<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<bool> {
    match mods.name {
        "mov" => mov(d, mods, operands)?,
        "cvt" => convert(d, mods, operands)?,
        "setp" => compare::setp(d, mods, operands)?,
        "set" => compare::set(d, mods, operands)?,
        "selp" => {
            let ty = ty(d, mods)?;
            let [to, a, b, p] = d.operands(operands)?;
            let uses = vec![d.read(a, ty)?, d.read(b, ty)?, d.read(p, Ty::Pred)?];
            let to = d.write(to, ty)?;
            d.emit(if ty.bits() == 64 { Op::SelectWide } else { Op::Select }, vec![to], uses);
        }
        "and" | "or" | "xor" | "not" if mods.rest.last() == Some(&"pred") => {
            mods.rest.pop();
            let logic = match mods.name {
                "and" => Logic::And,
                "or" => Logic::Or,
                "xor" => Logic::Xor,
                _ => Logic::Not,
            };
            let Some((to, from)) = operands.split_first() else { return d.problem("operands are missing") };
            if from.len() != if logic == Logic::Not { 1 } else { 2 } {
                return d.problem("a wrong number of operands");
            }
            let uses = from.iter().map(|operand| d.read(operand, Ty::Pred)).collect::<Result<_>>()?;
            let to = d.write(to, Ty::Pred)?;
            d.emit(Op::Logic(logic), vec![to], uses);
        }
        "lop3" => {
            let ty = ty(d, mods)?;
            if ty != Ty::B32 {
                return d.problem("lop3 is for .b32");
            }
            let [to, a, b, c, table] = d.operands(operands)?;
            let Operand::Int(table @ 0..=255) = table else { return d.problem("lop3 needs a table of 8 bits") };
            let uses = vec![d.read(a, ty)?, d.read(b, ty)?, d.read(c, ty)?];
            let to = d.write(to, ty)?;
            d.emit(Op::Int(IntOp::Lop3(*table as u8), Ty::U32), vec![to], uses);
        }
        "dp4a" => {
            let Some(right) = mods.ty() else { return d.problem("dp4a without types") };
            let left = ty(d, mods)?;
            let [to, a, b, c] = d.operands(operands)?;
            let uses = vec![d.read(a, Ty::B32)?, d.read(b, Ty::B32)?, d.read(c, Ty::B32)?];
            let to = d.write(to, Ty::B32)?;
            d.emit(Op::Dp4a(left == Ty::S32, right == Ty::S32), vec![to], uses);
        }
        _ => {
            let is_float = mods.rest.last().and_then(|word| Ty::parse(word)).is_some_and(Ty::is_float);
            return if is_float { float(d, mods, operands) } else { integer(d, mods, operands) };
        }
    }
    Ok(true)
}

pub(super) fn ty<'a>(d: &Decoder<'a>, mods: &mut Mods<'a>) -> Result<Ty> {
    match mods.ty() {
        Some(ty) => Ok(ty),
        None => d.problem(format!("{} without a type that is supported", mods.name)),
    }
}

/// Bits count as unsigned numbers.
pub(super) fn unsigned(ty: Ty) -> Ty {
    match ty {
        Ty::B16 => Ty::U16,
        Ty::B32 => Ty::U32,
        Ty::B64 => Ty::U64,
        other => other,
    }
}

fn integer<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<bool> {
    use IntOp::*;
    // What follows the type: 0 for the type itself, 32 for u32.
    let (op, sources): (IntOp, &[u32]) = match mods.name {
        "add" => (if mods.take("sat") { AddSat } else { Add }, &[0, 0]),
        "sub" => (if mods.take("sat") { SubSat } else { Sub }, &[0, 0]),
        "mul" | "mad" => {
            let mad = mods.name == "mad";
            let parts = [
                ("lo", if mad { MadLo } else { MulLo }),
                ("hi", if mad { MadHi } else { MulHi }),
                ("wide", if mad { MadWide } else { MulWide }),
            ];
            let Some(op) = mods.one_of(&parts) else { return d.problem("a product without .lo, .hi or .wide") };
            (op, if mad { &[0, 0, 0] } else { &[0, 0] })
        }
        "mul24" | "mad24" => {
            if !mods.take("lo") {
                return d.problem("only the lower half of 24-bit products is supported");
            }
            if mods.name == "mul24" { (Mul24Lo, &[0, 0]) } else { (Mad24Lo, &[0, 0, 0]) }
        }
        "div" => (Div, &[0, 0]),
        "rem" => (Rem, &[0, 0]),
        "abs" => (Abs, &[0]),
        "neg" => (Neg, &[0]),
        "min" => (Min, &[0, 0]),
        "max" => (Max, &[0, 0]),
        "and" => (And, &[0, 0]),
        "or" => (Or, &[0, 0]),
        "xor" => (Xor, &[0, 0]),
        "not" => (Not, &[0]),
        "cnot" => (Cnot, &[0]),
        "shl" => (Shl, &[0, 32]),
        "shr" => (Shr, &[0, 32]),
        "brev" => (Brev, &[0]),
        "clz" => (Clz, &[0]),
        "popc" => (Popc, &[0]),
        "bfind" => (if mods.take("shiftamt") { BfindShift } else { Bfind }, &[0]),
        "bfe" => (Bfe, &[0, 32, 32]),
        "bfi" => (Bfi, &[0, 0, 32, 32]),
        "prmt" => (Prmt, &[0, 0, 0]),
        "sad" => (Sad, &[0, 0, 0]),
        "shf" => {
            let left = mods.take("l");
            if !left && !mods.take("r") {
                return d.problem("shf without a direction");
            }
            let wrap = mods.take("wrap");
            if !wrap && !mods.take("clamp") {
                return d.problem("shf without .wrap or .clamp");
            }
            let op = match (left, wrap) {
                (true, true) => FunnelLeftWrap,
                (true, false) => FunnelLeftClamp,
                (false, true) => FunnelRightWrap,
                (false, false) => FunnelRightClamp,
            };
            (op, &[0, 0, 32])
        }
        _ => return Ok(false),
    };
    let ty = unsigned(ty(d, mods)?);
    if matches!(ty, Ty::Pred | Ty::B8 | Ty::U8 | Ty::S8) {
        return d.problem(format!("{} of this type is not supported", mods.name));
    }
    let exists = match op {
        Abs | AddSat | SubSat if ty.bits() < 64 || op == Abs => ty.is_signed(),
        AddSat | SubSat => false,
        Mul24Lo | Mad24Lo => ty == Ty::U32,
        Prmt | FunnelLeftWrap | FunnelLeftClamp | FunnelRightWrap | FunnelRightClamp => ty == Ty::U32,
        Brev | Clz | Popc | Bfind | BfindShift | Bfe | Bfi => ty.bits() >= 32,
        _ => true,
    };
    if !exists {
        return d.problem(format!("{} of this type is not supported", mods.name));
    }
    let to_ty = match op {
        MulWide | MadWide => match ty {
            Ty::U16 => Ty::U32,
            Ty::S16 => Ty::S32,
            Ty::U32 => Ty::U64,
            Ty::S32 => Ty::S64,
            _ => return d.problem("a wide product of this type does not exist"),
        },
        Clz | Popc | Bfind | BfindShift => Ty::U32,
        _ => ty,
    };
    let Some((to, from)) = operands.split_first() else { return d.problem("operands are missing") };
    if from.len() != sources.len() {
        return d.problem(format!("{} operands were expected, and {} are there", sources.len() + 1, operands.len()));
    }
    let mut uses = Vec::new();
    for (at, (operand, bits)) in from.iter().zip(sources).enumerate() {
        let of = if *bits == 32 {
            Ty::U32
        } else if op == MadWide && at == 2 {
            to_ty
        } else {
            ty
        };
        uses.push(d.read(operand, of)?);
    }
    let to = d.write(to, to_ty)?;
    d.emit(Op::Int(op, ty), vec![to], uses);
    Ok(true)
}

fn rounding(mods: &mut Mods<'_>) -> Option<Round> {
    mods.one_of(&[
        ("rn", Round::Nearest),
        ("rz", Round::Zero),
        ("rm", Round::Down),
        ("rp", Round::Up),
        ("rna", Round::NearestAway),
    ])
}

fn float<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<bool> {
    use FloatOp::*;
    const NAMES: [&str; 18] = [
        "add", "sub", "mul", "fma", "mad", "div", "rcp", "sqrt", "rsqrt", "abs", "neg", "min", "max", "ex2", "lg2",
        "sin", "cos", "tanh",
    ];
    if !NAMES.contains(&mods.name) && mods.name != "copysign" {
        return Ok(false);
    }
    let ty = ty(d, mods)?;
    let approx = mods.take("approx");
    let full = mods.take("full");
    let (op, sources) = match mods.name {
        "add" => (Add, 2),
        "sub" => (Sub, 2),
        "mul" => (Mul, 2),
        "fma" | "mad" => (Fma, 3),
        "div" if approx || full => (DivApprox, 2),
        "div" => (Div, 2),
        "rcp" if approx => (RcpApprox, 1),
        "rcp" => (Rcp, 1),
        "sqrt" if approx => (SqrtApprox, 1),
        "sqrt" => (Sqrt, 1),
        "rsqrt" if approx => (RsqrtApprox, 1),
        "abs" => (Abs, 1),
        "neg" => (Neg, 1),
        "min" => (Min, 2),
        "max" => (Max, 2),
        "ex2" if approx => (Ex2, 1),
        "lg2" if approx => (Lg2, 1),
        "sin" if approx => (Sin, 1),
        "cos" if approx => (Cos, 1),
        "tanh" if approx => (Tanh, 1),
        "copysign" => (Copysign, 2),
        _ => return Ok(false),
    };
    let half = matches!(ty, Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2);
    let float_mods = FloatMods {
        round: rounding(mods).unwrap_or_default(),
        ftz: mods.take("ftz"),
        sat: mods.take("sat"),
        relu: mods.take("relu"),
        nan: mods.take("NaN"),
    };
    let exact = matches!(op, Add | Sub | Mul | Fma | Min | Max | Abs | Neg);
    let allowed = match ty {
        Ty::F32 => true,
        Ty::F64 => {
            exact
                || matches!(op, Div | Rcp | Sqrt | Copysign)
                || (float_mods.ftz && matches!(op, RcpApprox | RsqrtApprox))
        }
        _ => exact || matches!(op, Ex2 | Tanh),
    };
    let directed = float_mods.round != Round::Nearest;
    let directable = ty == Ty::F32 && matches!(op, Add | Sub | Mul | Fma | Div | Rcp | Sqrt);
    if !allowed || (directed && !directable) || float_mods.round == Round::NearestAway {
        return d.problem(format!("{} of this type and rounding is not supported", mods.name));
    }
    if float_mods.relu && !(half && op == Fma) {
        return d.problem(".relu is for fma of halves");
    }
    if float_mods.nan && !matches!(op, Min | Max) {
        return d.problem(".NaN is for min and max");
    }
    if operands.len() != sources + 1 {
        return d.problem(format!("{} operands were expected, and {} are there", sources + 1, operands.len()));
    }
    let uses = operands[1..].iter().map(|operand| d.read(operand, ty)).collect::<Result<_>>()?;
    let to = d.write(&operands[0], ty)?;
    d.emit(Op::Float(op, ty, float_mods), vec![to], uses);
    Ok(true)
}

fn mov<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<()> {
    let ty = ty(d, mods)?;
    let [to, from] = d.operands(operands)?;
    match (to, from) {
        (Operand::List(parts), _) => {
            let part = part_type(d, ty, parts.len())?;
            let from = d.read(from, ty)?;
            let defs = parts.iter().map(|operand| d.write(operand, part)).collect::<Result<_>>()?;
            d.emit(Op::Unpack { part: part.bits() as u8, wide: ty.bits() == 64 }, defs, vec![from]);
        }
        (_, Operand::List(parts)) => {
            let part = part_type(d, ty, parts.len())?;
            let uses = parts.iter().map(|operand| d.read(operand, part)).collect::<Result<_>>()?;
            let to = d.write(to, ty)?;
            d.emit(Op::Pack { part: part.bits() as u8, wide: ty.bits() == 64 }, vec![to], uses);
        }
        (_, Operand::Word(name @ ("%clock" | "%clock_hi" | "%clock64" | "%globaltimer" | "%globaltimer_lo"))) => {
            let to = d.write(to, ty)?;
            let wide = name.ends_with("64") || name.ends_with("timer");
            if wide != (ty.bits() == 64) {
                return d.problem(format!("{name} is of another width"));
            }
            d.emit(if wide { Op::ClockWide } else { Op::Clock }, vec![to], vec![]);
        }
        _ => {
            let from = d.read(from, ty)?;
            let to = d.write(to, ty)?;
            let op = match ty.bank() {
                Bank::Pred => Op::Logic(Logic::Mov),
                Bank::Wide => Op::MovWide,
                Bank::Word => Op::Mov,
            };
            d.emit(op, vec![to], vec![from]);
        }
    }
    Ok(())
}

fn part_type(d: &Decoder<'_>, ty: Ty, parts: usize) -> Result<Ty> {
    match (ty.bits(), parts) {
        (16, 2) | (32, 4) => Ok(Ty::B8),
        (32, 2) | (64, 4) => Ok(Ty::B16),
        (64, 2) => Ok(Ty::B32),
        _ => d.problem("a vector that does not fill the register"),
    }
}

fn convert<'a>(d: &mut Decoder<'a>, mods: &mut Mods<'a>, operands: &'a [Operand<'a>]) -> Result<()> {
    let from = ty(d, mods)?;
    let to = ty(d, mods)?;
    let integral =
        mods.one_of(&[("rni", Round::Nearest), ("rzi", Round::Zero), ("rmi", Round::Down), ("rpi", Round::Up)]);
    let float_mods = FloatMods {
        round: integral.or_else(|| rounding(mods)).unwrap_or_default(),
        ftz: mods.take("ftz"),
        sat: mods.take("sat"),
        relu: mods.take("relu"),
        nan: false,
    };
    if float_mods.round == Round::NearestAway && to != Ty::Tf32 {
        return d.problem(".rna is for tf32");
    }
    if matches!(to, Ty::F16x2 | Ty::Bf16x2) && from == Ty::F32 {
        let [to_operand, upper, lower] = d.operands(operands)?;
        if !matches!(float_mods.round, Round::Nearest | Round::Zero) {
            return d.problem("conversions to halves round to nearest or to zero");
        }
        let uses = vec![d.read(upper, Ty::F32)?, d.read(lower, Ty::F32)?];
        let to_register = d.write(to_operand, to)?;
        d.emit(Op::ConvertPair(to, float_mods), vec![to_register], uses);
        return Ok(());
    }
    let pair = |ty| matches!(ty, Ty::F16x2 | Ty::Bf16x2 | Ty::Pred);
    if pair(from) || pair(to) || from == Ty::Tf32 || (to == Ty::Tf32 && from != Ty::F32) {
        return d.problem("a conversion between these types is not supported");
    }
    if float_mods.relu && !matches!(to, Ty::F16 | Ty::Bf16 | Ty::Tf32) {
        return d.problem(".relu is for conversions to halves");
    }
    if matches!(from, Ty::F16 | Ty::Bf16 | Ty::F32 | Ty::F64) && !to.is_float() && integral.is_none() {
        return d.problem("a conversion from a float to an integer must say how it rounds");
    }
    let [to_operand, from_operand] = d.operands(operands)?;
    let uses = vec![d.read_as(from_operand, from, true)?];
    // A register that is wider than its type is read in its own bank.
    let from_wide = d.registers[uses[0] as usize].bank == Bank::Wide;
    let uses = if from_wide && from.bits() < 64 {
        let parts = vec![d.temporary(Bank::Word), d.temporary(Bank::Word)];
        d.emit(Op::Unpack { part: 32, wide: true }, parts.clone(), uses);
        vec![parts[0]]
    } else {
        uses
    };
    let to_register = d.write_as(to_operand, to, true)?;
    let register_bits = d.bits_of(to_register);
    if register_bits > to.bits() && to.is_float() && to.bits() == 32 {
        return d.problem("an f32 in a wider register");
    }
    let integral = integral.is_some();
    let op = Op::Convert { to, from, register_bits: register_bits as u8, mods: float_mods, integral };
    d.emit(op, vec![to_register], uses);
    Ok(())
}
