//! The codes: which numbers a block's small integers stand for, in units of its scale.

/// A 4-bit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FourBitKind {
    /// 4-bit NormalFloat: quantiles of a normal distribution, zero among them.
    Nf4,
    /// 4-bit float: a sign, two bits of exponent, one of fraction.
    Fp4,
}

/// arXiv:2305.14314, appendix E, sorted.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// By bit pattern: 0, 1/16 and 8, 12, 4, 6, 2, 3, over 12, then the same negative, zero included.
const FP4: [f32; 16] = {
    let mut code = [
        0.0,
        0.0625 / 12.0,
        8.0 / 12.0,
        1.0,
        4.0 / 12.0,
        0.5,
        2.0 / 12.0,
        0.25,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
    ];
    let mut i = 0;
    while i < 8 {
        code[8 + i] = -code[i];
        i += 1;
    }
    code
};

/// The integers in the order of their values: nf4 is sorted; fp4 has two zeros, of which the first is used for what is
/// nearest to zero from below and the second from above.
const NF4_ORDER: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const FP4_ORDER: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

impl FourBitKind {
    /// Its name, as bitsandbytes writes it.
    pub const fn name(self) -> &'static str {
        match self {
            FourBitKind::Nf4 => "nf4",
            FourBitKind::Fp4 => "fp4",
        }
    }

    /// By its name.
    pub fn parse(name: &str) -> Option<FourBitKind> {
        [FourBitKind::Nf4, FourBitKind::Fp4].into_iter().find(|k| k.name() == name)
    }

    /// What each integer stands for.
    pub const fn code(self) -> &'static [f32; 16] {
        match self {
            FourBitKind::Nf4 => &NF4,
            FourBitKind::Fp4 => &FP4,
        }
    }

    /// Midpoints between neighbouring values, and the integers in the order of their values: x is coded by the
    /// integer whose place is the number of midpoints below x.
    pub(super) fn bounds(self) -> ([f32; 15], &'static [u8; 16]) {
        let (code, order) = match self {
            FourBitKind::Nf4 => (&NF4, &NF4_ORDER),
            FourBitKind::Fp4 => (&FP4, &FP4_ORDER),
        };
        let at = |i: usize| code[order[i] as usize];
        (std::array::from_fn(|i| (at(i) + at(i + 1)) / 2.0), order)
    }
}

/// The signed dynamic code of 8 bits, sorted: for each of seven decades ending at 1, the middles of 2^i equal parts of
/// \[0.1, 1\] (i = 0 for the lowest decade), with both signs; and 0 and 1.
///
/// # Source
/// Dettmers et al., arXiv:2110.02861, section 2.1; rounded in f32 as bitsandbytes rounds it.
pub fn dynamic_code() -> [f32; 256] {
    let mut code = Vec::with_capacity(256);
    for (i, decade) in [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0f32].into_iter().enumerate() {
        let parts = 1usize << i;
        let step = (1.0 - 0.1f32) / parts as f32;
        let bound = |k: usize| {
            // From the nearer end.
            if k < parts.div_ceil(2) { step.mul_add(k as f32, 0.1) } else { (-step).mul_add((parts - k) as f32, 1.0) }
        };
        for k in 0..parts {
            let middle = decade * ((bound(k) + bound(k + 1)) / 2.0);
            code.extend([middle, -middle]);
        }
    }
    code.extend([0.0, 1.0]);
    code.sort_by(f32::total_cmp);
    code.try_into().expect("2 · 127 values and two")
}
