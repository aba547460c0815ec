//! Types of operands, and the numbers that instructions are tried on.

/// An operand's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ty {
    /// Bits or whole numbers of this many bits; their sign is the instruction's affair.
    Bits(u32),
    F16,
    Bf16,
    /// Two of either in 32 bits.
    F16x2,
    Bf16x2,
    F32,
    F64,
}

impl Ty {
    /// Of a type's suffix, such as `u32`.
    pub(super) fn of(suffix: &str) -> Ty {
        match suffix {
            "f16" => Ty::F16,
            "bf16" => Ty::Bf16,
            "f16x2" => Ty::F16x2,
            "bf16x2" => Ty::Bf16x2,
            "f32" | "tf32" => Ty::F32,
            "f64" => Ty::F64,
            whole => Ty::Bits(whole[1..].parse().expect("a letter and a number of bits")),
        }
    }

    pub(super) fn bits(self) -> u32 {
        match self {
            Ty::Bits(bits) => bits,
            Ty::F16 | Ty::Bf16 => 16,
            Ty::F16x2 | Ty::Bf16x2 | Ty::F32 => 32,
            Ty::F64 => 64,
        }
    }

    /// Bits behind the point and of the exponent.
    fn format(self) -> Option<(u32, u32)> {
        match self {
            Ty::Bits(_) => None,
            Ty::F16 | Ty::F16x2 => Some((10, 5)),
            Ty::Bf16 | Ty::Bf16x2 => Some((7, 8)),
            Ty::F32 => Some((23, 8)),
            Ty::F64 => Some((52, 11)),
        }
    }

    fn pair(self) -> bool {
        matches!(self, Ty::F16x2 | Ty::Bf16x2)
    }

    /// Bits of a NaN are one: PTX says which NaN comes out for some instructions only.
    pub(super) fn canonical(self, bits: u64) -> u64 {
        let Some((mantissa, exponent)) = self.format() else { return bits };
        let width = 1 + mantissa + exponent;
        let one = |bits: u64| {
            let infinity = ((1 << exponent) - 1) << mantissa;
            let magnitude = bits & ((1 << (width - 1)) - 1);
            if magnitude > infinity { infinity | 1 << (mantissa - 1) } else { bits }
        };
        if self.pair() { one(bits & 0xffff) | one(bits >> 16) << 16 } else { one(bits) }
    }

    /// How many steps from number to number lie between two results; `None` if they are no numbers, or differ in sign
    /// beyond zero.
    pub(super) fn steps(self, a: u64, b: u64) -> Option<u64> {
        let (mantissa, exponent) = self.format().filter(|_| !self.pair())?;
        let (width, infinity) = (1 + mantissa + exponent, ((1_u64 << exponent) - 1) << mantissa);
        let magnitude = |bits: u64| bits & ((1 << (width - 1)) - 1);
        let ordered = |bits: u64| {
            let magnitude = magnitude(bits) as i64;
            if bits >> (width - 1) == 1 { -magnitude } else { magnitude }
        };
        (magnitude(a) <= infinity && magnitude(b) <= infinity).then(|| ordered(a).abs_diff(ordered(b)))
    }

    /// Where instructions go wrong first.
    fn edges(self) -> Vec<u64> {
        let Some((mantissa, exponent)) = self.format() else {
            let bits = self.bits();
            let all = u64::MAX >> (64 - bits);
            let middle = 1 << (bits - 1);
            return [0, 1, 2, 3, 5, 15, 31, 32, 33, 63, 64, 255, middle - 1, middle, middle + 1, all - 1, all]
                .map(|value| value & all)
                .to_vec();
        };
        let (one, infinity) = (((1 << (exponent - 1)) - 1) << mantissa, ((1_u64 << exponent) - 1) << mantissa);
        let ulp = 1;
        let positive = [
            0,
            // The smallest number, the largest that is not normal, the smallest that is.
            ulp,
            (1 << mantissa) - 1,
            1 << mantissa,
            // About 1, 1.5, 2, and a half of the range.
            one,
            one + ulp,
            one - ulp,
            one + (1 << (mantissa - 1)),
            one + (1 << mantissa),
            infinity / 4 + 3,
            infinity - ulp,
            infinity,
            infinity | 1 << (mantissa - 1),
        ];
        let sign = 1_u64 << (mantissa + exponent);
        let both = positive.into_iter().flat_map(|bits| [bits, bits | sign]);
        if self.pair() { both.map(|bits| bits | (bits ^ sign) << 16).collect() } else { both.collect() }
    }

    /// Of random bits, half the time a number between 2⁻⁸ and 2⁸, since of random exponents few meet.
    fn random(self, bits: u64) -> u64 {
        let Some((mantissa, exponent)) = self.format() else { return bits & (u64::MAX >> (64 - self.bits())) };
        let (bias, width) = ((1_u64 << (exponent - 1)) - 1, 1 + mantissa + exponent);
        let one = |bits: u64| {
            let bits = bits & (u64::MAX >> (64 - width));
            let (sign, fraction) = (bits >> (width - 1), bits & ((1 << mantissa) - 1));
            let near = bias - 8 + (bits >> mantissa & 15);
            if bits.count_ones().is_multiple_of(2) { bits } else { sign << (width - 1) | near << mantissa | fraction }
        };
        if self.pair() { one(bits & 0xffff) | one(bits >> 16 & 0xffff) << 16 } else { one(bits) }
    }
}

/// Random values beside the edges.
const RANDOM: u64 = 1024;

/// Values for each operand, all lists of one length: each edge of the first with each of the second, and then random ones,
/// which are a function of the operand's place and the value's number.
pub(super) fn inputs(types: &[Ty]) -> Vec<Vec<u64>> {
    let edges: Vec<Vec<u64>> = types.iter().map(|ty| ty.edges()).collect();
    let first = edges[0].len() as u64;
    let count = first * edges.get(1).map_or(1, |edges| edges.len() as u64);
    (0..types.len())
        .map(|operand| {
            let edges = &edges[operand];
            let edge = |i: u64| match operand {
                0 => i % first,
                1 => i / first,
                // Another one each time that the first two come together.
                _ => i % first * 5 + i / first * 3,
            };
            let fixed = (0..count).map(|i| edges[edge(i) as usize % edges.len()]);
            let random = (0..RANDOM).map(|i| types[operand].random(mix(operand as u64 * RANDOM + i)));
            fixed.chain(random).collect()
        })
        .collect()
}

/// SplitMix64's output for a counter.
fn mix(counter: u64) -> u64 {
    let z = counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_hold_what_goes_wrong() {
        let f32s: Vec<f32> = Ty::F32.edges().into_iter().map(|bits| f32::from_bits(bits as u32)).collect();
        for value in [0.0, 1.0, -1.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::INFINITY, f32::from_bits(1)] {
            assert!(f32s.contains(&value), "{value}");
        }
        assert!(f32s.iter().any(|x| x.is_nan()) && f32s.iter().any(|x| *x == 0.0 && x.is_sign_negative()));
        assert!(Ty::Bits(32).edges().contains(&0x8000_0000) && Ty::Bits(16).edges().contains(&0xffff));
        assert!(Ty::F16.edges().contains(&0x7bff) && Ty::Bf16.edges().contains(&0x7f7f));
        assert!(Ty::F64.edges().contains(&f64::MAX.to_bits()));
        // Upper and lower half differ, so that an exchange shows.
        assert!(Ty::F16x2.edges().iter().all(|bits| bits >> 16 != bits & 0xffff));
    }

    #[test]
    fn every_pair_of_edges_meets() {
        let [a, b, c] = &inputs(&[Ty::F32, Ty::F16, Ty::Bits(64)])[..] else { panic!() };
        let pairs: std::collections::HashSet<_> = a.iter().zip(b).collect();
        for x in Ty::F32.edges() {
            assert!(Ty::F16.edges().iter().all(|y| pairs.contains(&(&x, y))));
        }
        assert!(a.len() == b.len() && b.len() == c.len());
        assert!(Ty::Bits(64).edges().iter().all(|x| c.contains(x)));
        assert_eq!(inputs(&[Ty::F32])[0], inputs(&[Ty::F32])[0]);
    }

    #[test]
    fn distances() {
        let bits = |x: f32| u64::from(x.to_bits());
        assert_eq!(Ty::F32.steps(bits(1.0), bits(1.0 + f32::EPSILON)), Some(1));
        assert_eq!(Ty::F32.steps(bits(-0.0), bits(0.0)), Some(0));
        assert_eq!(Ty::F32.steps(bits(f32::from_bits(1)), bits(-f32::from_bits(1))), Some(2));
        assert_eq!(Ty::F32.steps(bits(f32::NAN), bits(0.0)), None);
        assert_eq!(Ty::F32.canonical(0xffff_ffff), 0x7fc0_0000);
        assert_eq!(Ty::F32.canonical(bits(-2.5)), bits(-2.5));
        assert_eq!(Ty::F16x2.canonical(0x3c00_7fff), 0x3c00_7e00);
        assert_eq!(Ty::Bits(32).canonical(0xffff_ffff), 0xffff_ffff);
    }
}
