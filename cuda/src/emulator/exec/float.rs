//! Floats: arithmetic, comparisons, conversions.

use super::registers::{Bf16, F16, Registers};
use crate::emulator::float::{self as f, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use crate::emulator::isa::{Compare, FloatMods, FloatOp, Round, Ty};

/// Runs one arithmetic instruction on the lanes of `mask`.
#[inline(always)]
pub(crate) fn run(r: &mut Registers, op: FloatOp, ty: Ty, m: FloatMods, s: &[u16], mask: u32) {
    match ty {
        Ty::F32 => {
            if m == FloatMods::default() {
                plain(r, op, s, mask);
            } else {
                single(r, op, m, s, mask);
            }
        }
        Ty::F64 => double(r, op, s, mask),
        Ty::F16 => half(r, op, m, s, mask, false, Format::F16),
        Ty::F16x2 => half(r, op, m, s, mask, true, Format::F16),
        Ty::Bf16 => half(r, op, m, s, mask, false, Format::Bf16),
        Ty::Bf16x2 => half(r, op, m, s, mask, true, Format::Bf16),
        _ => unreachable!("the decoder lets no other type through"),
    }
}

/// f32, rounded to nearest, subnormals kept: the common case, in a form that becomes vector code.
#[inline(always)]
fn plain(r: &mut Registers, op: FloatOp, s: &[u16], mask: u32) {
    match op {
        FloatOp::Add => r.binary(s, mask, |a: f32, b: f32| a + b),
        FloatOp::Sub => r.binary(s, mask, |a: f32, b: f32| a - b),
        FloatOp::Mul => r.binary(s, mask, |a: f32, b: f32| a * b),
        FloatOp::Fma => r.ternary(s, mask, |a: f32, b: f32, c: f32| a.mul_add(b, c)),
        FloatOp::Div | FloatOp::DivApprox => r.binary(s, mask, |a: f32, b: f32| a / b),
        FloatOp::Rcp | FloatOp::RcpApprox => r.unary(s, mask, |a: f32| 1.0 / a),
        FloatOp::Sqrt | FloatOp::SqrtApprox => r.unary(s, mask, |a: f32| a.sqrt()),
        FloatOp::RsqrtApprox => r.unary(s, mask, |a: f32| (1.0 / f64::from(a).sqrt()) as f32),
        FloatOp::Abs => r.unary(s, mask, |a: f32| a.abs()),
        FloatOp::Neg => r.unary(s, mask, |a: f32| -a),
        FloatOp::Min => r.binary(s, mask, |a: f32, b: f32| f::min_f32(a, b, false)),
        FloatOp::Max => r.binary(s, mask, |a: f32, b: f32| f::max_f32(a, b, false)),
        FloatOp::Ex2 => r.unary(s, mask, f::exp2),
        FloatOp::Lg2 => r.unary(s, mask, f::log2),
        FloatOp::Sin => r.unary(s, mask, |a: f32| f64::from(a).sin() as f32),
        FloatOp::Cos => r.unary(s, mask, |a: f32| f64::from(a).cos() as f32),
        FloatOp::Tanh => r.unary(s, mask, |a: f32| f64::from(a).tanh() as f32),
        // The sign of the first operand, the rest of the second.
        FloatOp::Copysign => r.binary(s, mask, |a: f32, b: f32| b.copysign(a)),
    }
}

/// f32 with modifiers.
#[inline(always)]
fn single(r: &mut Registers, op: FloatOp, m: FloatMods, s: &[u16], mask: u32) {
    let input = |x: f32| if m.ftz { f::flush(x) } else { x };
    // A NaN saturates to 0.
    let saturated = |x: f32| if m.sat { if x > 0.0 { x.min(1.0) } else { 0.0 } } else { x };
    let output = |x: f32| saturated(if m.ftz { f::flush(x) } else { x });
    // Where rounding may make a normal number of one that is not.
    let output_of = |x: f32, exact: f64| saturated(if m.ftz { f::flush_exact(x, exact) } else { x });
    let round = m.round;
    macro_rules! one {
        ($f:expr) => {
            r.unary(s, mask, |a: f32| output($f(input(a))))
        };
    }
    macro_rules! two {
        ($f:expr) => {
            r.binary(s, mask, |a: f32, b: f32| output($f(input(a), input(b))))
        };
    }
    match op {
        FloatOp::Add => two!(|a, b| f::add_f32(a, b, round)),
        FloatOp::Sub => two!(|a, b: f32| f::add_f32(a, -b, round)),
        FloatOp::Mul => r.binary(s, mask, |a: f32, b: f32| {
            let (a, b) = (input(a), input(b));
            output_of(f::mul_f32(a, b, round), f64::from(a) * f64::from(b))
        }),
        FloatOp::Fma => r.ternary(s, mask, |a: f32, b: f32, c: f32| {
            let (a, b, c) = (input(a), input(b), input(c));
            output_of(f::fma_f32(a, b, c, round), f::odd_sum(f64::from(a) * f64::from(b), c.into()))
        }),
        FloatOp::Div | FloatOp::DivApprox => two!(|a, b| f::div_f32(a, b, round)),
        FloatOp::Rcp | FloatOp::RcpApprox => one!(|a| f::div_f32(1.0, a, round)),
        FloatOp::Sqrt | FloatOp::SqrtApprox => one!(|a| f::sqrt_f32(a, round)),
        FloatOp::RsqrtApprox => one!(|a| (1.0 / f64::from(a).sqrt()) as f32),
        FloatOp::Abs => one!(f32::abs),
        FloatOp::Neg => one!(|a: f32| -a),
        FloatOp::Min => two!(|a, b| f::min_f32(a, b, m.nan)),
        FloatOp::Max => two!(|a, b| f::max_f32(a, b, m.nan)),
        FloatOp::Ex2 => one!(f::exp2),
        FloatOp::Lg2 => one!(f::log2),
        FloatOp::Sin => one!(|a| f64::from(a).sin() as f32),
        FloatOp::Cos => one!(|a| f64::from(a).cos() as f32),
        FloatOp::Tanh => one!(|a| f64::from(a).tanh() as f32),
        FloatOp::Copysign => two!(|a: f32, b: f32| b.copysign(a)),
    }
}

fn double(r: &mut Registers, op: FloatOp, s: &[u16], mask: u32) {
    match op {
        FloatOp::Add => r.binary(s, mask, |a: f64, b: f64| a + b),
        FloatOp::Sub => r.binary(s, mask, |a: f64, b: f64| a - b),
        FloatOp::Mul => r.binary(s, mask, |a: f64, b: f64| a * b),
        FloatOp::Fma => r.ternary(s, mask, |a: f64, b: f64, c: f64| a.mul_add(b, c)),
        FloatOp::Div | FloatOp::DivApprox => r.binary(s, mask, |a: f64, b: f64| a / b),
        FloatOp::Rcp | FloatOp::RcpApprox => r.unary(s, mask, |a: f64| 1.0 / a),
        FloatOp::Sqrt | FloatOp::SqrtApprox => r.unary(s, mask, f64::sqrt),
        FloatOp::RsqrtApprox => r.unary(s, mask, |a: f64| 1.0 / a.sqrt()),
        FloatOp::Abs => r.unary(s, mask, f64::abs),
        FloatOp::Neg => r.unary(s, mask, |a: f64| -a),
        FloatOp::Min => r.binary(s, mask, f::min_f64),
        FloatOp::Max => r.binary(s, mask, |a: f64, b: f64| -f::min_f64(-a, -b)),
        FloatOp::Copysign => r.binary(s, mask, |a: f64, b: f64| b.copysign(a)),
        _ => unreachable!("the decoder lets no other operation through"),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Format {
    F16,
    Bf16,
}

impl Format {
    #[inline(always)]
    fn widen(self, bits: u16) -> f32 {
        if self == Self::F16 { f16_to_f32(bits) } else { bf16_to_f32(bits) }
    }

    #[inline(always)]
    fn round(self, x: f64) -> u16 {
        if self == Self::F16 { f::f64_to_f16(x, Round::Nearest) } else { f::f64_to_bf16(x, Round::Nearest) }
    }

    #[inline(always)]
    fn round_f32(self, x: f32) -> u16 {
        if self == Self::F16 { f32_to_f16(x) } else { f32_to_bf16(x) }
    }

    /// A subnormal becomes a zero.
    #[inline(always)]
    fn flush(self, bits: u16, ftz: bool) -> u16 {
        let exponent = if self == Self::F16 { 0x7c00 } else { 0x7f80 };
        if ftz && bits & exponent == 0 { bits & 0x8000 } else { bits }
    }
}

/// Halves, alone or in pairs. Every operation is rounded once: sums of exact products by an odd f64.
#[inline(always)]
fn half(r: &mut Registers, op: FloatOp, m: FloatMods, s: &[u16], mask: u32, pair: bool, format: Format) {
    let one = |bits: [u16; 3]| -> u16 {
        let bits = bits.map(|bits| format.flush(bits, m.ftz));
        let [a, b, c] = bits.map(|bits| format.widen(bits));
        let wide = f64::from;
        let raw = match op {
            FloatOp::Add => format.round(f::odd_sum(wide(a), wide(b))),
            FloatOp::Sub => format.round(f::odd_sum(wide(a), -wide(b))),
            // Exact in f64.
            FloatOp::Mul => format.round(wide(a) * wide(b)),
            FloatOp::Fma => format.round(f::odd_sum(wide(a) * wide(b), wide(c))),
            // Bits only: a NaN stays what it is.
            FloatOp::Abs => bits[0] & 0x7fff,
            FloatOp::Neg => bits[0] ^ 0x8000,
            FloatOp::Min => format.round_f32(f::min_f32(a, b, m.nan)),
            FloatOp::Max => format.round_f32(f::max_f32(a, b, m.nan)),
            FloatOp::Ex2 => format.round_f32(f::exp2(a)),
            FloatOp::Tanh => format.round(wide(a).tanh()),
            _ => unreachable!("the decoder lets no other operation through"),
        };
        let raw = format.flush(raw, m.ftz);
        let value = format.widen(raw);
        if m.sat {
            if value > 0.0 { format.round_f32(value.min(1.0)) } else { 0 }
        } else if m.relu && !value.is_nan() && !(value > 0.0) {
            0
        } else {
            raw
        }
    };
    let both = |a: u32, b: u32, c: u32| -> u32 {
        let low = one([a as u16, b as u16, c as u16]);
        let high = if pair { one([(a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16]) } else { 0 };
        u32::from(high) << 16 | u32::from(low)
    };
    match s.len() {
        2 => r.unary(s, mask, |a: u32| both(a, 0, 0)),
        3 => r.binary(s, mask, |a: u32, b: u32| both(a, b, 0)),
        _ => r.ternary(s, mask, both),
    }
}

/// Runs one comparison on the lanes of `mask`.
#[inline(always)]
pub(crate) fn compare(r: &mut Registers, compare: Compare, ty: Ty, ftz: bool, s: &[u16], mask: u32) {
    macro_rules! whole {
        ($t:ty) => {
            match compare {
                Compare::Eq => r.compare(s, mask, |a: $t, b: $t| a == b),
                Compare::Ne => r.compare(s, mask, |a: $t, b: $t| a != b),
                Compare::Lt => r.compare(s, mask, |a: $t, b: $t| a < b),
                Compare::Le => r.compare(s, mask, |a: $t, b: $t| a <= b),
                Compare::Gt => r.compare(s, mask, |a: $t, b: $t| a > b),
                Compare::Ge => r.compare(s, mask, |a: $t, b: $t| a >= b),
                _ => unreachable!("whole numbers are never unordered"),
            }
        };
    }
    macro_rules! real {
        ($t:ty, $value:expr) => {
            match compare {
                Compare::Eq => r.compare(s, mask, |a: $t, b: $t| $value(a) == $value(b)),
                // Ordered: false if either is NaN.
                Compare::Ne => r.compare(s, mask, |a: $t, b: $t| $value(a) < $value(b) || $value(a) > $value(b)),
                Compare::Lt => r.compare(s, mask, |a: $t, b: $t| $value(a) < $value(b)),
                Compare::Le => r.compare(s, mask, |a: $t, b: $t| $value(a) <= $value(b)),
                Compare::Gt => r.compare(s, mask, |a: $t, b: $t| $value(a) > $value(b)),
                Compare::Ge => r.compare(s, mask, |a: $t, b: $t| $value(a) >= $value(b)),
                Compare::Equ => r.compare(s, mask, |a: $t, b: $t| !($value(a) < $value(b) || $value(a) > $value(b))),
                Compare::Neu => r.compare(s, mask, |a: $t, b: $t| $value(a) != $value(b)),
                Compare::Ltu => r.compare(s, mask, |a: $t, b: $t| !($value(a) >= $value(b))),
                Compare::Leu => r.compare(s, mask, |a: $t, b: $t| !($value(a) > $value(b))),
                Compare::Gtu => r.compare(s, mask, |a: $t, b: $t| !($value(a) <= $value(b))),
                Compare::Geu => r.compare(s, mask, |a: $t, b: $t| !($value(a) < $value(b))),
                Compare::Num => r.compare(s, mask, |a: $t, b: $t| !$value(a).is_nan() && !$value(b).is_nan()),
                Compare::Nan => r.compare(s, mask, |a: $t, b: $t| $value(a).is_nan() || $value(b).is_nan()),
            }
        };
    }
    match ty {
        Ty::U16 => whole!(u16),
        Ty::S16 => whole!(i16),
        Ty::U32 => whole!(u32),
        Ty::S32 => whole!(i32),
        Ty::U64 => whole!(u64),
        Ty::S64 => whole!(i64),
        Ty::F32 if ftz => real!(f32, f::flush),
        Ty::F32 => real!(f32, |x: f32| x),
        Ty::F64 => real!(f64, |x: f64| x),
        Ty::F16 => real!(F16, |x: F16| x.0),
        Ty::Bf16 => real!(Bf16, |x: Bf16| x.0),
        _ => unreachable!("the decoder lets no other type through"),
    }
}

/// A value in flight between two types: whole numbers and floats keep apart, so nothing is rounded twice.
#[derive(Clone, Copy)]
enum Value {
    Whole(i128),
    Real(f64),
}

/// `cvt`. The common pairs run as vectors; the rest lane by lane.
#[inline(always)]
pub(crate) fn convert(
    r: &mut Registers,
    (to, from): (Ty, Ty),
    register_bits: u32,
    m: FloatMods,
    integral: bool,
    s: &[u16],
    mask: u32,
) {
    let plain = m == FloatMods::default() && !integral;
    match (to, from) {
        (Ty::F32, Ty::Bf16) if plain => return r.unary(s, mask, bf16_to_f32),
        (Ty::F32, Ty::F16) if plain => return r.unary(s, mask, f16_to_f32),
        (Ty::Bf16, Ty::F32) if plain && register_bits <= 32 => {
            return r.unary(s, mask, |x: f32| u32::from(f32_to_bf16(x)));
        }
        (Ty::F16, Ty::F32) if plain && register_bits <= 32 => {
            return r.unary(s, mask, |x: f32| u32::from(f32_to_f16(x)));
        }
        (Ty::F32, Ty::S32) if plain => return r.unary(s, mask, |x: i32| x as f32),
        (Ty::F32, Ty::U32) if plain => return r.unary(s, mask, |x: u32| x as f32),
        (Ty::S64, Ty::S32) if !m.sat => return r.unary(s, mask, |x: i32| i64::from(x)),
        (Ty::U64 | Ty::S64, Ty::U32) => return r.unary(s, mask, |x: u32| u64::from(x)),
        (Ty::U32 | Ty::S32, Ty::U64 | Ty::S64) if !m.sat && register_bits == 32 => {
            return r.unary(s, mask, |x: u64| x as u32);
        }
        (Ty::U32 | Ty::S32, Ty::U16) if !m.sat && register_bits == 32 => {
            return r.unary(s, mask, |x: u16| u32::from(x));
        }
        (Ty::F64, Ty::F32) if !m.sat && !m.ftz && !integral => return r.unary(s, mask, |x: f32| f64::from(x)),
        _ => {}
    }
    convert_lanes(r, (to, from), register_bits, m, integral, s, mask);
}

fn convert_lanes(
    r: &mut Registers,
    (to, from): (Ty, Ty),
    register_bits: u32,
    m: FloatMods,
    integral: bool,
    s: &[u16],
    mask: u32,
) {
    for lane in 0..32 {
        if mask >> lane & 1 == 0 {
            continue;
        }
        let word = |r: &Registers| r.words[usize::from(s[1])][lane];
        let wide = |r: &Registers| r.wides[usize::from(s[1])][lane];
        let value = match from {
            Ty::U8 | Ty::B8 => Value::Whole(i128::from(word(r) as u8)),
            Ty::S8 => Value::Whole(i128::from(word(r) as i8)),
            Ty::U16 | Ty::B16 => Value::Whole(i128::from(word(r) as u16)),
            Ty::S16 => Value::Whole(i128::from(word(r) as i16)),
            Ty::S32 => Value::Whole(i128::from(word(r) as i32)),
            Ty::U64 | Ty::B64 => Value::Whole(i128::from(wide(r))),
            Ty::S64 => Value::Whole(i128::from(wide(r) as i64)),
            Ty::F16 => Value::Real(f16_to_f32(word(r) as u16).into()),
            Ty::Bf16 => Value::Real(bf16_to_f32(word(r) as u16).into()),
            Ty::F32 => {
                let x = f32::from_bits(word(r));
                Value::Real(if m.ftz { f::flush(x) } else { x }.into())
            }
            Ty::F64 => Value::Real(f64::from_bits(wide(r))),
            _ => Value::Whole(i128::from(word(r))),
        };
        let bits = match value {
            // To whole numbers of at most 32 bits from floats of at most 32 a NaN is 0, else the highest bit alone.
            Value::Real(x) if x.is_nan() && !to.is_float() => {
                if from == Ty::F64 || to.bits() == 64 {
                    1 << (to.bits() - 1)
                } else {
                    0
                }
            }
            _ if to.is_float() => to_float(to, value, m, integral),
            _ => to_whole(to, value, m),
        };
        // Signed results fill a wider register with their sign.
        let bits = if to.is_signed() && to.bits() < 64 {
            ((bits << (64 - to.bits())) as i64 >> (64 - to.bits())) as u64
        } else {
            bits
        };
        if register_bits == 64 {
            r.wides[usize::from(s[0])][lane] = bits;
        } else {
            let kept = if register_bits == 16 { bits as u32 & 0xffff } else { bits as u32 };
            r.words[usize::from(s[0])][lane] = if register_bits == 8 { kept & 0xff } else { kept };
        }
    }
}

fn rounded(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest | Round::NearestAway => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    }
}

fn to_whole(to: Ty, value: Value, m: FloatMods) -> u64 {
    let bits = to.bits();
    let (least, most): (i128, i128) =
        if to.is_signed() { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
    match value {
        Value::Whole(x) if m.sat => x.clamp(least, most) as u64,
        Value::Whole(x) => x as u64 & (u64::MAX >> (64 - bits)),
        // Floats always saturate.
        Value::Real(x) => (rounded(x, m.round) as i128).clamp(least, most) as u64 & (u64::MAX >> (64 - bits)),
    }
}

fn to_float(to: Ty, value: Value, m: FloatMods, integral: bool) -> u64 {
    let x = match value {
        // Odd in its last bit if it does not fit, so that one rounding remains.
        Value::Whole(x) => {
            let near = x as f64;
            let error = x - near as i128;
            f::odd_sum(near, error as f64)
        }
        Value::Real(x) if integral => rounded(x, m.round).copysign(x),
        Value::Real(x) => x,
    };
    let x = if m.sat { if x > 0.0 { x.min(1.0) } else { 0.0 } } else { x };
    let x = if m.relu && !x.is_nan() && !(x > 0.0) { 0.0 } else { x };
    let round = if integral { Round::Nearest } else { m.round };
    match to {
        Ty::F16 => f::f64_to_f16(x, round).into(),
        Ty::Bf16 => f::f64_to_bf16(x, round).into(),
        Ty::Tf32 => f::to_tf32(x as f32, round).to_bits().into(),
        Ty::F32 => {
            let x = if x.is_nan() { f32::from_bits(0x7fff_ffff) } else { f::f64_to_f32(x, round) };
            if m.ftz { f::flush(x) } else { x }.to_bits().into()
        }
        _ => match value {
            Value::Whole(x) if !m.sat => (x as f64).to_bits(),
            _ => x.to_bits(),
        },
    }
}

/// `cvt` of two f32 to a pair.
#[inline(always)]
pub(crate) fn convert_pair(r: &mut Registers, to: Ty, m: FloatMods, s: &[u16], mask: u32) {
    let plain = m == FloatMods::default();
    let one = |x: f32| {
        if plain {
            return if to == Ty::F16x2 { f32_to_f16(x) } else { f32_to_bf16(x) };
        }
        let x = if m.relu && !x.is_nan() && !(x > 0.0) { 0.0 } else { f64::from(x) };
        if to == Ty::F16x2 { f::f64_to_f16(x, m.round) } else { f::f64_to_bf16(x, m.round) }
    };
    r.binary(s, mask, |upper: f32, lower: f32| u32::from(one(upper)) << 16 | u32::from(one(lower)));
}
