//! Elementary functions of the compute types.
//!
//! The f32 functions are polynomials without branches or table look-ups: loops over them
//! vectorise, and they give the same bits on every machine, which the platform's libm does not.

use crate::dtype::Real;

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const NEG_INFINITY: f64 = f64::NEG_INFINITY;
    #[inline(always)]
    fn mul_add(self, a: f64, b: f64) -> f64 {
        f64::mul_add(self, a, b)
    }
    #[inline(always)]
    fn exp(self) -> f64 {
        f64::exp(self)
    }
    #[inline(always)]
    fn ln(self) -> f64 {
        f64::ln(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn tanh(self) -> f64 {
        f64::tanh(self)
    }
    #[inline(always)]
    fn erf(self) -> f64 {
        erf_f64(self)
    }
    #[inline(always)]
    fn abs(self) -> f64 {
        f64::abs(self)
    }
    #[inline(always)]
    fn max(self, other: f64) -> f64 {
        if self > other { self } else { other }
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        f64::is_finite(self)
    }
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32) -> f32 {
        f32::mul_add(self, a, b)
    }
    #[inline(always)]
    fn exp(self) -> f32 {
        exp_f32(self)
    }
    #[inline(always)]
    fn ln(self) -> f32 {
        // Once per row (log-sum-exp), never hot: through f64, rounded once.
        f64::ln(self as f64) as f32
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn tanh(self) -> f32 {
        tanh_f32(self)
    }
    #[inline(always)]
    fn erf(self) -> f32 {
        erf_f32(self)
    }
    #[inline(always)]
    fn abs(self) -> f32 {
        f32::abs(self)
    }
    #[inline(always)]
    fn max(self, other: f32) -> f32 {
        if self > other { self } else { other }
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }
}

/// e^x in f32, at most 2 ulp off in the normal range; 0 below -104, infinity above 88.73, NaN of NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite), then a polynomial of degree 6 in r,
/// then 2^n in two factors so that results down to the subnormals come out.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    const LOG2E: f32 = std::f32::consts::LOG2_E;
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits: no conversion, no branch.
    const MAGIC: f32 = 12_582_912.0;
    let clamped = if x > 89.0 { 89.0 } else { x };
    let clamped = if clamped < -104.0 { -104.0 } else { clamped };
    let shifted = clamped.mul_add(LOG2E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(-LN2_HI, clamped);
    let r = n.mul_add(-LN2_LO, r);
    let mut p = 1.394_348e-3f32;
    p = p.mul_add(r, 8.375_242e-3);
    p = p.mul_add(r, 4.166_609e-2);
    p = p.mul_add(r, 1.666_645_5e-1);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    let n = shifted.to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    let half = n >> 1;
    let scale = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
    p * scale(half) * scale(n - half)
}

/// tanh x = 1 - 2 / (e^{2x} + 1) in magnitude, with an odd polynomial near 0 where that cancels.
#[inline(always)]
fn tanh_f32(x: f32) -> f32 {
    let a = x.abs();
    let e = exp_f32(2.0 * a);
    let large = 1.0 - 2.0 / (e + 1.0);
    // Taylor to x^13; below 0.55 its error is under an ulp.
    let s = x * x;
    let mut p = 21_844.0f32 / 6_081_075.0;
    p = p.mul_add(s, -1_382.0 / 155_925.0);
    p = p.mul_add(s, 62.0 / 2_835.0);
    p = p.mul_add(s, -17.0 / 315.0);
    p = p.mul_add(s, 2.0 / 15.0);
    p = p.mul_add(s, -1.0 / 3.0);
    let small = (p * s).mul_add(a, a);
    let magnitude = if a < 0.4 { small } else { large };
    if x.is_nan() { x } else { magnitude.copysign(x) }
}

/// erf x in f32, at most 3 ulp off; ±1 beyond 3.92, NaN of NaN. No branches: both ranges are computed.
///
/// Below 1, x + x p(x²), p fitted to erf x / x - 1; above, 1 - exp(-x q(x)), q fitted to -ln(erfc x) / x. Both
/// minimise the largest relative error of the result (reweighted least squares, below 1e-10 in exact arithmetic).
#[inline(always)]
fn erf_f32(x: f32) -> f32 {
    const P: [f32; 8] = [
        0.128_379_17,
        -0.376_126_38,
        0.112_837_82,
        -0.026_865_4,
        0.005_220_945_5,
        -0.000_848_282_9,
        1.125_694_9e-4,
        -0.000_009_641_516,
    ];
    const Q: [f32; 10] = [
        1.128_420_7,
        0.636_363_74,
        0.103_464_74,
        -0.020_197_546,
        0.000_808_733_63,
        0.001_118_511_8,
        -0.000_457_253_5,
        0.000_093_944_95,
        -0.000_010_613_368,
        0.000_000_523_401_4,
    ];
    let a = x.abs();
    let square = x * x;
    let near = x.mul_add(P[..7].iter().rev().fold(P[7], |sum, &c| sum.mul_add(square, c)), x);
    let a = if a > 3.92 { 3.92 } else { a };
    let q = Q[..9].iter().rev().fold(Q[9], |sum, &c| sum.mul_add(a, c));
    let far = (1.0 - exp_f32(-a * q)).copysign(x);
    if x.abs() < 1.0 {
        near
    } else if x.is_nan() {
        x
    } else {
        far
    }
}

/// erf x in f64 to about 1e-15.
///
/// Below 2.5 the series erf x = 2/sqrt(pi) e^{-x^2} sum_n 2^n x^{2n+1} / (1·3·…·(2n+1))
/// (Abramowitz and Stegun 7.1.6: all terms positive, so nothing cancels); above it the continued
/// fraction of erfc (7.1.14).
fn erf_f64(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let a = x.abs();
    let magnitude = if a < 2.5 {
        let (mut term, mut sum, mut n) = (a, a, 1.0);
        while term > sum * 1e-17 {
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-a * a).exp() * sum
    } else if a < 6.0 {
        let mut f = 0.0;
        for n in (1..=60).rev() {
            f = n as f64 / 2.0 / (a + f);
        }
        1.0 - (-a * a).exp() / std::f64::consts::PI.sqrt() / (a + f)
    } else {
        1.0
    };
    magnitude.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut x = -87.0f32;
        while x < 88.0 {
            let want = (x as f64).exp();
            let got = exp_f32(x) as f64;
            // 2 ulp of f32; the polynomial's error plus one rounding each of product and scaling.
            assert!(((got - want) / want).abs() <= 2.0 * f32::EPSILON as f64, "exp({x}) = {got}, want {want}");
            x += 0.000_37;
        }
    }

    #[test]
    fn exp_at_its_edges() {
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(-1e30), 0.0);
        assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp_f32(1e30), f32::INFINITY);
        assert!(exp_f32(f32::NAN).is_nan());
        assert!(exp_f32(-100.0) > 0.0, "subnormal results are kept");
    }

    #[test]
    fn tanh_is_close() {
        for i in -4000..=4000 {
            let x = i as f32 * 0.004;
            let want = (x as f64).tanh();
            let got = tanh_f32(x) as f64;
            assert!(
                (got - want).abs() <= 3.0 * f32::EPSILON as f64 * want.abs().max(1e-30),
                "tanh({x}) = {got}, want {want}"
            );
        }
        assert_eq!(tanh_f32(f32::INFINITY), 1.0);
        assert_eq!(tanh_f32(f32::NEG_INFINITY), -1.0);
        assert!(tanh_f32(f32::NAN).is_nan());
    }

    #[test]
    fn erf_in_f32_is_within_three_units_of_the_last_place() {
        let mut worst = 0.0f64;
        for i in -450_000..=450_000i32 {
            let x = i as f32 * 1e-5;
            let (got, want) = (Real::erf(x), erf_f64(x as f64));
            let unit = (want.abs().max(1e-30) as f32).next_up() as f64 - (want.abs().max(1e-30) as f32) as f64;
            worst = worst.max((got as f64 - want).abs() / unit);
            assert!(got.abs() <= 1.0 && Real::erf(-x) == -got, "{x}: {got} {}", Real::erf(-x));
        }
        assert!(worst <= 3.0, "{worst} units");
        assert_eq!((Real::erf(f32::INFINITY), Real::erf(-7f32)), (1.0, -1.0));
        let tiny = Real::erf(f32::MIN_POSITIVE) / f32::MIN_POSITIVE;
        assert!((tiny - std::f32::consts::FRAC_2_SQRT_PI).abs() < 3e-7, "{tiny}");
        assert!(Real::erf(f32::NAN).is_nan());
    }

    #[test]
    fn erf_matches_tabulated_values() {
        // Abramowitz and Stegun, table 7.1, and two values beyond it to 15 digits.
        for (x, want) in [
            (0.0, 0.0),
            (0.1, 0.112_462_916_018_284_9),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (2.6, 0.999_763_965_583_470_7),
            (4.0, 0.999_999_984_582_742_1),
        ] {
            assert!((erf_f64(x) - want).abs() < 2e-15, "erf({x}) = {}", erf_f64(x));
            assert_eq!(erf_f64(-x), -erf_f64(x));
        }
        assert_eq!(erf_f64(f64::INFINITY), 1.0);
        assert!(erf_f64(f64::NAN).is_nan());
    }
}
