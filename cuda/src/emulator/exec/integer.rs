//! Whole numbers, bits and moves.

use super::registers::Registers;
use crate::emulator::isa::{IntOp, Ty};

/// Runs one integer instruction on the lanes of `mask`.
#[inline(always)]
pub(crate) fn run(r: &mut Registers, op: IntOp, ty: Ty, s: &[u16], mask: u32) {
    match ty {
        Ty::U32 => unsigned32(r, op, s, mask),
        Ty::S32 => signed32(r, op, s, mask),
        Ty::U64 => unsigned64(r, op, s, mask),
        Ty::S64 => signed64(r, op, s, mask),
        Ty::U16 => unsigned16(r, op, s, mask),
        Ty::S16 => signed16(r, op, s, mask),
        _ => unreachable!("the decoder lets no other type through"),
    }
}

/// What is the same for every type. Division by zero, which PTX leaves open, gives ones, quotient
/// and remainder, as NVIDIA's cards do.
macro_rules! common {
    ($r:ident, $op:ident, $s:ident, $mask:ident, $t:ty, $unsigned:ty, $wide:ty, $wide_arg:ty) => {{
        const BITS: u32 = <$t>::BITS;
        match $op {
            IntOp::Add => $r.binary($s, $mask, |a: $t, b: $t| a.wrapping_add(b)),
            IntOp::Sub => $r.binary($s, $mask, |a: $t, b: $t| a.wrapping_sub(b)),
            IntOp::AddSat => $r.binary($s, $mask, |a: $t, b: $t| a.saturating_add(b)),
            IntOp::SubSat => $r.binary($s, $mask, |a: $t, b: $t| a.saturating_sub(b)),
            IntOp::MulLo => $r.binary($s, $mask, |a: $t, b: $t| a.wrapping_mul(b)),
            IntOp::MulHi => $r.binary($s, $mask, |a: $t, b: $t| ((a as $wide * b as $wide) >> BITS) as $t),
            IntOp::MadLo => $r.ternary($s, $mask, |a: $t, b: $t, c: $t| a.wrapping_mul(b).wrapping_add(c)),
            IntOp::MadHi => {
                $r.ternary($s, $mask, |a: $t, b: $t, c: $t| (((a as $wide * b as $wide) >> BITS) as $t).wrapping_add(c))
            }
            IntOp::Div => $r.binary($s, $mask, |a: $t, b: $t| if b == 0 { !0 } else { a.wrapping_div(b) }),
            IntOp::Rem => $r.binary($s, $mask, |a: $t, b: $t| if b == 0 { !0 } else { a.wrapping_rem(b) }),
            IntOp::Neg => $r.unary($s, $mask, |a: $t| (0 as $t).wrapping_sub(a)),
            IntOp::Min => $r.binary($s, $mask, |a: $t, b: $t| a.min(b)),
            IntOp::Max => $r.binary($s, $mask, |a: $t, b: $t| a.max(b)),
            IntOp::And => $r.binary($s, $mask, |a: $t, b: $t| a & b),
            IntOp::Or => $r.binary($s, $mask, |a: $t, b: $t| a | b),
            IntOp::Xor => $r.binary($s, $mask, |a: $t, b: $t| a ^ b),
            IntOp::Not => $r.unary($s, $mask, |a: $t| !a),
            IntOp::Cnot => $r.unary($s, $mask, |a: $t| (a == 0) as $t),
            IntOp::Shl => $r.binary($s, $mask, |a: $t, by: u32| if by >= BITS { 0 } else { a << by }),
            IntOp::Shr => $r.binary(
                $s,
                $mask,
                |a: $t, by: u32| {
                    if by >= BITS { if a < (0 as $t) { !0 } else { 0 } } else { a >> by }
                },
            ),
            IntOp::Brev => $r.unary($s, $mask, |a: $t| a.reverse_bits()),
            IntOp::Clz => $r.unary($s, $mask, |a: $t| a.leading_zeros()),
            IntOp::Popc => $r.unary($s, $mask, |a: $t| a.count_ones()),
            // Of a negative number, the highest bit that is zero.
            IntOp::Bfind | IntOp::BfindShift => $r.unary($s, $mask, |a: $t| {
                let bits = if a < (0 as $t) { !a } else { a };
                if bits == 0 {
                    u32::MAX
                } else if $op == IntOp::Bfind {
                    BITS - 1 - bits.leading_zeros()
                } else {
                    bits.leading_zeros()
                }
            }),
            IntOp::Bfe => $r.ternary($s, $mask, |a: $t, at: u32, len: u32| {
                let (at, len) = (at & 255, len & 255);
                let unsigned = a as $unsigned;
                let signed = (0 as $t).wrapping_sub(1) < (0 as $t);
                if len == 0 {
                    return 0;
                }
                // The sign is the field's last bit, or the number's if the field goes beyond it.
                let sign = signed && unsigned >> (at + len - 1).min(BITS - 1) & 1 == 1;
                let shifted = if at >= BITS { 0 } else { unsigned >> at };
                let fill_from = len.min(BITS.saturating_sub(at));
                let keep: $unsigned = if fill_from >= BITS { !0 } else { (1 << fill_from) - 1 };
                (shifted & keep | if sign { !keep } else { 0 }) as $t
            }),
            IntOp::Sad => $r.ternary($s, $mask, |a: $t, b: $t, c: $t| {
                c.wrapping_add(if a < b { b.wrapping_sub(a) } else { a.wrapping_sub(b) })
            }),
            IntOp::Bfi => bit_insert($r, BITS, $s, $mask),
            _ => other($r, $op, $s, $mask),
        }
    }};
}

#[inline(always)]
#[allow(unused_comparisons, clippy::absurd_extreme_comparisons)]
fn unsigned32(r: &mut Registers, op: IntOp, s: &[u16], mask: u32) {
    match op {
        IntOp::MulWide => r.binary(s, mask, |a: u32, b: u32| u64::from(a) * u64::from(b)),
        IntOp::MadWide => {
            r.ternary(s, mask, |a: u32, b: u32, c: u64| (u64::from(a) * u64::from(b)).wrapping_add(c));
        }
        _ => common!(r, op, s, mask, u32, u32, u64, u32),
    }
}

#[inline(always)]
#[allow(unused_comparisons, clippy::absurd_extreme_comparisons)]
fn signed32(r: &mut Registers, op: IntOp, s: &[u16], mask: u32) {
    match op {
        IntOp::MulWide => r.binary(s, mask, |a: i32, b: i32| i64::from(a) * i64::from(b)),
        IntOp::MadWide => {
            r.ternary(s, mask, |a: i32, b: i32, c: i64| (i64::from(a) * i64::from(b)).wrapping_add(c));
        }
        IntOp::Abs => r.unary(s, mask, i32::wrapping_abs),
        _ => common!(r, op, s, mask, i32, u32, i64, i32),
    }
}

#[inline(always)]
#[allow(unused_comparisons, clippy::absurd_extreme_comparisons)]
fn unsigned64(r: &mut Registers, op: IntOp, s: &[u16], mask: u32) {
    common!(r, op, s, mask, u64, u64, u128, u64);
}

#[inline(always)]
#[allow(unused_comparisons, clippy::absurd_extreme_comparisons)]
fn signed64(r: &mut Registers, op: IntOp, s: &[u16], mask: u32) {
    if op == IntOp::Abs {
        return r.unary(s, mask, i64::wrapping_abs);
    }
    common!(r, op, s, mask, i64, u64, i128, i64);
}

#[allow(unused_comparisons, clippy::absurd_extreme_comparisons)]
fn unsigned16(r: &mut Registers, op: IntOp, s: &[u16], mask: u32) {
    match op {
        IntOp::MulWide => r.binary(s, mask, |a: u16, b: u16| u32::from(a) * u32::from(b)),
        IntOp::MadWide => r.ternary(s, mask, |a: u16, b: u16, c: u32| (u32::from(a) * u32::from(b)).wrapping_add(c)),
        _ => common!(r, op, s, mask, u16, u16, u32, u16),
    }
}

#[allow(unused_comparisons, clippy::absurd_extreme_comparisons)]
fn signed16(r: &mut Registers, op: IntOp, s: &[u16], mask: u32) {
    match op {
        IntOp::MulWide => r.binary(s, mask, |a: i16, b: i16| i32::from(a) * i32::from(b)),
        IntOp::MadWide => r.ternary(s, mask, |a: i16, b: i16, c: i32| (i32::from(a) * i32::from(b)).wrapping_add(c)),
        IntOp::Abs => r.unary(s, mask, i16::wrapping_abs),
        _ => common!(r, op, s, mask, i16, u16, i32, i16),
    }
}

/// `bfi d, a, b, at, len`: the lowest bits of a, into b.
fn bit_insert(r: &mut Registers, bits: u32, s: &[u16], mask: u32) {
    let insert = |a: u64, b: u64, at: u32, len: u32| {
        let (at, len) = (at & 255, len & 255);
        if at >= bits || len == 0 {
            return b;
        }
        let field = if len >= 64 { u64::MAX } else { (1 << len) - 1 };
        b & !(field << at) | (a & field) << at
    };
    for lane in 0..32 {
        if mask >> lane & 1 == 0 {
            continue;
        }
        let (at, len) = (r.words[usize::from(s[3])][lane], r.words[usize::from(s[4])][lane]);
        if bits == 64 {
            let (a, b) = (r.wides[usize::from(s[1])][lane], r.wides[usize::from(s[2])][lane]);
            r.wides[usize::from(s[0])][lane] = insert(a, b, at, len);
        } else {
            let (a, b) = (r.words[usize::from(s[1])][lane], r.words[usize::from(s[2])][lane]);
            r.words[usize::from(s[0])][lane] = insert(a.into(), b.into(), at, len) as u32;
        }
    }
}

/// What exists for 32 bits only; `lop3` and `prmt` among them.
fn other(r: &mut Registers, op: IntOp, s: &[u16], mask: u32) {
    let funnel = |a: u32, b: u32| u64::from(b) << 32 | u64::from(a);
    match op {
        IntOp::Mul24Lo => r.binary(s, mask, |a: u32, b: u32| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff)),
        IntOp::Mad24Lo => {
            r.ternary(s, mask, |a: u32, b: u32, c: u32| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff).wrapping_add(c))
        }
        IntOp::FunnelLeftWrap => {
            r.ternary(s, mask, |a: u32, b: u32, by: u32| (funnel(a, b) << (by & 31) >> 32) as u32);
        }
        IntOp::FunnelLeftClamp => {
            r.ternary(s, mask, |a: u32, b: u32, by: u32| (funnel(a, b) << by.min(32) >> 32) as u32);
        }
        IntOp::FunnelRightWrap => r.ternary(s, mask, |a: u32, b: u32, by: u32| (funnel(a, b) >> (by & 31)) as u32),
        IntOp::FunnelRightClamp => {
            r.ternary(s, mask, |a: u32, b: u32, by: u32| (funnel(a, b) >> by.min(32)) as u32);
        }
        IntOp::Prmt => r.ternary(s, mask, permute),
        IntOp::Lop3(table) => r.ternary(s, mask, |a: u32, b: u32, c: u32| {
            let mut out = 0;
            for row in 0..8 {
                if table >> row & 1 == 1 {
                    let pick = |x: u32, bit: u32| if row >> bit & 1 == 1 { x } else { !x };
                    out |= pick(a, 2) & pick(b, 1) & pick(c, 0);
                }
            }
            out
        }),
        _ => unreachable!("the decoder lets no other operation through"),
    }
}

/// `prmt`: each nibble of the selector names a byte of b:a; its top bit asks for the byte's sign instead.
#[inline(always)]
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    let mut out = 0;
    for at in 0..4 {
        let nibble = selector >> (4 * at) & 15;
        let byte = (bytes >> (8 * (nibble & 7))) as u8;
        let byte = if nibble & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 };
        out |= u32::from(byte) << (8 * at);
    }
    out
}
