//! Rounding, half precision, and the functions whose error PTX only bounds.
//!
//! The `.approx` functions are computed in f64 and rounded once to f32, so they are the nearest f32 almost always:
//! closer than PTX's bounds (2 ulp for `ex2` and `rcp`'s 1 ulp, 2^-22 for `lg2`, 2^-20.5 for `sin` and `cos`,
//! 2^-11 for `tanh`), and not bit for bit what any card gives.

use super::isa::Round;

#[inline(always)]
pub(crate) fn f16_to_f32(half: u16) -> f32 {
    let sign = (u32::from(half) & 0x8000) << 16;
    let magnitude = (u32::from(half) & 0x7fff) << 13;
    // 2^112 moves the exponent's bias, and makes subnormals normal.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let special = if magnitude >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled | special | sign)
}

#[inline(always)]
pub(crate) fn bf16_to_f32(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// To nearest, ties to even.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let rounded = if magnitude > 0x7f80_0000 {
        return 0x7fff;
    } else if magnitude >= 0x477f_f000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // The last bit of 0.5 is worth 2^-24, the smallest half.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000
    } else {
        ((magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13) - (112 << 10)
    };
    rounded as u16 | sign
}

/// To nearest, ties to even.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return 0x7fff;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// `x` in a format of so many bits behind the point and these exponents, as an f64.
fn narrow(x: f64, mantissa: i32, least: i32, most: i32, round: Round) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let exponent = ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(least);
    let unit = exponent - mantissa;
    let scaled = x * power(-unit);
    let whole = match round {
        Round::Nearest => scaled.round_ties_even(),
        Round::NearestAway => scaled.round(),
        Round::Zero => scaled.trunc(),
        Round::Down => scaled.floor(),
        Round::Up => scaled.ceil(),
    };
    let y = whole * power(unit);
    if y.abs() < power(most) * 2.0 {
        return y.copysign(x);
    }
    let largest = (2.0 - power(-mantissa)) * power(most);
    let inward = match round {
        Round::Nearest | Round::NearestAway => false,
        Round::Zero => true,
        Round::Down => x > 0.0,
        Round::Up => x < 0.0,
    };
    if inward { largest.copysign(x) } else { f64::INFINITY.copysign(x) }
}

/// 2^exponent, for exponents of normal numbers.
#[inline(always)]
fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

pub(crate) fn f64_to_f32(x: f64, round: Round) -> f32 {
    if round == Round::Nearest { x as f32 } else { narrow(x, 23, -126, 127, round) as f32 }
}

pub(crate) fn f64_to_f16(x: f64, round: Round) -> u16 {
    if x.is_nan() { 0x7fff } else { f32_to_f16(narrow(x, 10, -14, 15, round) as f32) }
}

pub(crate) fn f64_to_bf16(x: f64, round: Round) -> u16 {
    if x.is_nan() { 0x7fff } else { f32_to_bf16(narrow(x, 7, -126, 127, round) as f32) }
}

/// f32 with ten bits behind the point.
pub(crate) fn to_tf32(x: f32, round: Round) -> f32 {
    if x.is_nan() { f32::from_bits(0x7fff_ffff) } else { narrow(f64::from(x), 10, -126, 127, round) as f32 }
}

/// a + b to a nearby f64 whose last bit is odd if it is not exact: rounding it again, to fewer bits, is like rounding
/// the exact sum. (Boldo and Melquiond, *Emulation of FMA and correctly rounded sums*, 2008.)
#[inline(always)]
pub(crate) fn odd_sum(a: f64, b: f64) -> f64 {
    let sum = a + b;
    if !sum.is_finite() {
        return sum;
    }
    let of_b = sum - a;
    let error = (a - (sum - of_b)) + (b - of_b);
    if error == 0.0 || sum.to_bits() & 1 == 1 {
        return sum;
    }
    // Towards the exact value.
    let bits = sum.to_bits();
    f64::from_bits(if (error > 0.0) == (sum > 0.0) { bits + 1 } else { bits - 1 })
}

/// The nearest f32, moved to its neighbour if the exact value lies beyond it and the rounding is directed there.
/// `beyond` has the sign of the exact value less the nearest.
#[inline(always)]
fn directed(nearest: f32, beyond: f64, round: Round) -> f32 {
    let down = match round {
        Round::Down => true,
        Round::Up => false,
        // Zero is nearest to what lies between it and the least number, and on the way to it.
        Round::Zero if nearest == 0.0 => return nearest,
        Round::Zero => nearest > 0.0,
        Round::Nearest | Round::NearestAway => return nearest,
    };
    if down && beyond < 0.0 {
        nearest.next_down()
    } else if !down && beyond > 0.0 {
        nearest.next_up()
    } else {
        nearest
    }
}

/// a + b − near, in sign.
#[inline(always)]
fn beyond(a: f64, b: f64, near: f32) -> f64 {
    let sum = a + b;
    let of_b = sum - a;
    let error = (a - (sum - of_b)) + (b - of_b);
    // The first difference is exact, and the error smaller than any that is not zero.
    (sum - f64::from(near)) + error
}

/// a·b + c in f32, rounded once.
#[inline(always)]
pub(crate) fn fma_f32(a: f32, b: f32, c: f32, round: Round) -> f32 {
    let near = a.mul_add(b, c);
    if round == Round::Nearest {
        return near;
    }
    let product = f64::from(a) * f64::from(b);
    signed_zero(directed(near, beyond(product, c.into(), near), round), a * b, c, round)
}

/// a + b in f32, rounded once.
#[inline(always)]
pub(crate) fn add_f32(a: f32, b: f32, round: Round) -> f32 {
    if round == Round::Nearest {
        return a + b;
    }
    signed_zero(directed(a + b, beyond(a.into(), b.into(), a + b), round), a, b, round)
}

/// A sum that vanishes exactly is −0 when rounding down, unless both were +0.
#[inline(always)]
fn signed_zero(sum: f32, a: f32, b: f32, round: Round) -> f32 {
    let both_positive_zero = a.to_bits() == 0 && b.to_bits() == 0;
    if sum == 0.0 && a == -b && round == Round::Down && !both_positive_zero { -0.0 } else { sum }
}

#[inline(always)]
pub(crate) fn mul_f32(a: f32, b: f32, round: Round) -> f32 {
    let near = a * b;
    if round == Round::Nearest { near } else { directed(near, f64::from(a) * f64::from(b) - f64::from(near), round) }
}

/// The quotient, rounded in a direction: the nearest, corrected by the sign of the exact remainder.
pub(crate) fn div_f32(a: f32, b: f32, round: Round) -> f32 {
    if round == Round::Nearest {
        return a / b;
    }
    let (a, b) = (f64::from(a), f64::from(b));
    let quotient = a / b;
    if quotient == 0.0 || !quotient.is_finite() {
        return quotient as f32;
    }
    let remainder = (-quotient).mul_add(b, a);
    f64_to_f32(toward(quotient, (remainder > 0.0) == (b > 0.0), remainder == 0.0), round)
}

pub(crate) fn sqrt_f32(x: f32, round: Round) -> f32 {
    if round == Round::Nearest || !(x > 0.0 && x.is_finite()) {
        return x.sqrt();
    }
    let root = f64::from(x).sqrt();
    let remainder = (-root).mul_add(root, f64::from(x));
    f64_to_f32(toward(root, remainder > 0.0, remainder == 0.0), round)
}

/// An approximation made odd, knowing on which side the exact value lies.
fn toward(x: f64, above: bool, exact: bool) -> f64 {
    if exact || x.to_bits() & 1 == 1 {
        return x;
    }
    f64::from_bits(if above == (x > 0.0) { x.to_bits() + 1 } else { x.to_bits() - 1 })
}

#[inline(always)]
pub(crate) fn flush(x: f32) -> f32 {
    if x.to_bits() & 0x7f80_0000 == 0 { f32::from_bits(x.to_bits() & 0x8000_0000) } else { x }
}

/// The result of an instruction that takes subnormal results for zero, of which `exact` is the exact value or as small: a
/// number is subnormal or not before it is rounded, so what would be rounded up to the least normal number is zero too.
#[inline(always)]
pub(crate) fn flush_exact(x: f32, exact: f64) -> f32 {
    if exact.abs() < f64::from(f32::MIN_POSITIVE) { 0.0_f32.copysign(x) } else { flush(x) }
}

/// 2^x: the whole part by the exponent, the fraction by Taylor's series (error below 1e-12).
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    let x = f64::from(x).clamp(-200.0, 200.0);
    let whole = x.round_ties_even();
    let t = (x - whole) * std::f64::consts::LN_2;
    let mut sum = 1.0 / 3_628_800.0;
    for term in
        [1.0 / 362_880.0, 1.0 / 40_320.0, 1.0 / 5_040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0]
    {
        sum = sum * t + term;
    }
    let whole = if whole.is_nan() { 0 } else { whole as i32 };
    (sum * power(whole)) as f32
}

/// log2(x).
#[inline(always)]
pub(crate) fn log2(x: f32) -> f32 {
    f64::from(x).log2() as f32
}

/// The smaller number; −0 is smaller than +0.
#[inline(always)]
pub(crate) fn min_f32(a: f32, b: f32, nan: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        return if nan || (a.is_nan() && b.is_nan()) {
            f32::from_bits(0x7fff_ffff)
        } else if a.is_nan() {
            b
        } else {
            a
        };
    }
    if a == b {
        f32::from_bits(a.to_bits() | b.to_bits())
    } else if a < b {
        a
    } else {
        b
    }
}

/// The larger number; +0 is larger than −0.
#[inline(always)]
pub(crate) fn max_f32(a: f32, b: f32, nan: bool) -> f32 {
    -min_f32(-a, -b, nan)
}

pub(crate) fn min_f64(a: f64, b: f64) -> f64 {
    if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else if a == b {
        f64::from_bits(a.to_bits() | b.to_bits())
    } else if a < b {
        a
    } else {
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_go_there_and_back() {
        for bits in 0..=u16::MAX {
            let nan = bits & 0x7fff > 0x7c00;
            let back = f32_to_f16(f16_to_f32(bits));
            assert!(if nan { back == 0x7fff } else { back == bits }, "{bits:x} {back:x}");
            assert!(nan || f64_to_f16(f64::from(f16_to_f32(bits)), Round::Nearest) == bits);
            let nan = bits & 0x7fff > 0x7f80;
            let back = f32_to_bf16(bf16_to_f32(bits));
            assert!(if nan { back == 0x7fff } else { back == bits }, "{bits:x} {back:x}");
        }
    }

    #[test]
    fn halves_are_rounded_to_the_nearest() {
        let cases = [
            (1.0 + 1.0 / 2048.0, 0x3c00),
            (1.0 + 3.0 / 2048.0, 0x3c02),
            (65519.99, 0x7bff),
            (65520.0, 0x7c00),
            (2.0_f32.powi(-25), 0),
            (2.0_f32.powi(-25) * 1.001, 1),
            (-1e-10, 0x8000),
        ];
        for (x, bits) in cases {
            assert_eq!(f32_to_f16(x), bits, "{x}");
            assert_eq!(f64_to_f16(f64::from(x), Round::Nearest), bits, "{x}");
        }
    }

    #[test]
    fn directed_rounding_brackets_the_exact_value() {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let exponent = 100 + (state >> 33) as u32 % 56;
            f32::from_bits((state >> 40) as u32 & 0x807f_ffff | exponent << 23)
        };
        for _ in 0..20_000 {
            let (a, b, c) = (next(), next(), next());
            let near = a.mul_add(b, c);
            let (down, up) = (fma_f32(a, b, c, Round::Down), fma_f32(a, b, c, Round::Up));
            assert!(down <= near && near <= up, "{a} {b} {c}");
            assert!(down == up || down.next_up() == up, "{a} {b} {c}: {down} {up}");
            let (down, up) = (div_f32(a, b, Round::Down), div_f32(a, b, Round::Up));
            assert!(down <= a / b && a / b <= up && (down == up || down.next_up() == up), "{a} / {b}: {down} {up}");
            let zero = div_f32(a, b, Round::Zero);
            assert!(zero.abs() <= (a / b).abs() && (zero == down || zero == up));
        }
        assert_eq!(add_f32(1.0, -1.0, Round::Down).to_bits(), (-0.0_f32).to_bits());
        assert_eq!(add_f32(f32::MAX, f32::MAX, Round::Zero), f32::MAX);
    }

    #[test]
    fn exp2_is_the_nearest_float_or_its_neighbour() {
        for step in -3000..3000 {
            let x = step as f32 * 0.0517;
            let exact = f64::from(x).exp2();
            let got = f64::from(exp2(x));
            let unit = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
            assert!((got - exact).abs() <= unit.max(f64::from(f32::from_bits(1))) || got == exact as f32 as f64, "{x}");
        }
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(f32::INFINITY), f32::INFINITY);
        assert!(exp2(f32::NAN).is_nan());
        assert_eq!(exp2(-149.0), f32::from_bits(1));
    }
}
