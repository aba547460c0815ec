//! The 8-bit numbers of optimizer states: a sign, an exponent in unary, and the rest a fraction.
//!
//! A block of 256 numbers x is kept as a = max |x| and a byte a number, the index of a code c near x / a. The codes are
//! sorted; for each k of 0..7 they hold the middles of 2^k (signed) or 2^(k+1) (unsigned) equal parts of
//! [0.1, 1] · 10^(k-6), with both signs or without, and 0 and 1.
//!
//! # Source
//! Dettmers et al., "8-bit Optimizers via Block-wise Quantization", arXiv:2110.02861, section 2; bitsandbytes 0.50's
//! `create_dynamic_map`. [`Rounding::Nearest`] is its reference in PyTorch, [`Rounding::Table`] its CPU kernel.

use std::sync::OnceLock;

/// Numbers of a block.
pub(super) const BLOCK: usize = 256;

/// How a number finds its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounding {
    /// The nearest code; of two as near, the lower.
    #[default]
    Nearest,
    /// That of the nearest of 65,536 equal steps of [-1, 1]: bit for bit bitsandbytes on a CPU. What is below
    /// 1/65,536 of its block's largest becomes 0.
    Table,
}

/// A set of 256 codes.
pub(super) struct Codes {
    pub(super) values: [f32; 256],
    /// By the upper half of a number's bits: the nearest code of the lowest such number. The next code is the only
    /// other one that a number with that half can be nearest to.
    lowest: Vec<u8>,
    /// By the step of [-1, 1].
    steps: Vec<u8>,
}

/// Codes of numbers with a sign: mean gradients.
pub(super) fn signed() -> &'static Codes {
    static CODES: OnceLock<Codes> = OnceLock::new();
    CODES.get_or_init(|| Codes::new(true))
}

/// Codes of numbers from 0: mean squares.
pub(super) fn unsigned() -> &'static Codes {
    static CODES: OnceLock<Codes> = OnceLock::new();
    CODES.get_or_init(|| Codes::new(false))
}

impl Codes {
    fn new(signed: bool) -> Codes {
        let mut all = vec![0.0f32, 1.0];
        for k in 0..7usize {
            let parts: usize = if signed { 1 << k } else { 2 << k };
            // As torch's linspace: from the nearer end.
            let step = 0.9f32 / parts as f32;
            let edge = |i: usize| {
                if i < parts.div_ceil(2) {
                    step.mul_add(i as f32, 0.1)
                } else {
                    step.mul_add(-((parts - i) as f32), 1.0)
                }
            };
            let scale = 10f64.powi(k as i32 - 6) as f32;
            for i in 0..parts {
                let middle = scale * ((edge(i) + edge(i + 1)) / 2.0);
                all.push(middle);
                if signed {
                    all.push(-middle);
                }
            }
        }
        all.sort_by(f32::total_cmp);
        let values: [f32; 256] = all.try_into().expect("2 and 127 · 2 codes");
        let nearest = |x: f32| {
            let above = values.partition_point(|&c| c < x).min(255);
            let below = above.saturating_sub(1);
            if (x - values[below]).abs() <= (x - values[above]).abs() { below } else { above }
        };
        let lowest = (0..=u16::MAX).map(|half| {
            // Of negative numbers the lowest has the largest magnitude.
            let bits = if half >> 15 == 1 { (half as u32) << 16 | 0xffff } else { (half as u32) << 16 };
            nearest(f32::from_bits(bits).clamp(-1.0, 1.0)) as u8
        });
        let lowest = lowest.collect();
        let middles: Vec<f32> = values.windows(2).map(|w| (w[0] + w[1]) * 0.5).collect();
        let step = |i: u32| 2.0 * i as f32 / 65535.0 - 1.0;
        let steps = (0..65536).map(|i| middles.partition_point(|&m| m < step(i)) as u8).collect();
        Codes { values, lowest, steps }
    }

    /// Reads a block.
    #[inline(always)]
    pub(super) fn read(&self, bytes: &[u8], largest: f32, out: &mut [f32; BLOCK]) {
        for (x, &b) in out.iter_mut().zip(bytes) {
            *x = self.values[b as usize] * largest;
        }
    }

    /// Writes a block; gives its largest magnitude.
    #[inline(always)]
    pub(super) fn write(&self, x: &[f32], rounding: Rounding, bytes: &mut [u8]) -> f32 {
        let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        match rounding {
            Rounding::Nearest => {
                let largest = if largest == 0.0 { 1.0 } else { largest };
                for (b, &x) in bytes.iter_mut().zip(x) {
                    let x = x / largest;
                    let low = self.lowest[(x.to_bits() >> 16) as usize] as usize;
                    let high = (low + 1).min(255);
                    *b = if (self.values[high] - x).abs() < (x - self.values[low]).abs() { high } else { low } as u8;
                }
                largest
            }
            Rounding::Table => {
                if largest == 0.0 {
                    bytes.fill(0);
                    return 0.0;
                }
                let inverse = 1.0 / largest;
                for (b, &x) in bytes.iter_mut().zip(x) {
                    let x = (x * inverse).clamp(-1.0, 1.0);
                    *b = self.steps[((x + 1.0) * 0.5).mul_add(65535.0, 0.5) as usize];
                }
                largest
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_halves_finds_the_nearest_code_of_every_number() {
        for codes in [signed(), unsigned()] {
            assert_eq!((codes.values[255], codes.values.contains(&0.0)), (1.0, true));
            assert!(codes.values.windows(2).all(|w| w[0] < w[1]));
            // Every upper half of a number in [-1, 1], with the lowest, the middle and the highest lower half.
            for half in (0..=0x3f80u32).chain(0x8000..=0xbf80) {
                for low in [0, 1, 0x7fff, 0x8000, 0xffff] {
                    let x = f32::from_bits(half << 16 | low);
                    if x.abs() > 1.0 {
                        continue;
                    }
                    // A block of the number and a 1, so that it is divided by 1.
                    let mut two = [0; 2];
                    codes.write(&[x, 1.0], Rounding::Nearest, &mut two);
                    let distance = |c: f32| (x - c).abs();
                    let best = codes.values.iter().map(|&c| distance(c)).fold(f32::INFINITY, f32::min);
                    let first = codes.values.iter().position(|&c| distance(c) == best).unwrap();
                    assert_eq!(two[0] as usize, first, "{x}");
                }
            }
        }
    }

    #[test]
    fn the_codes_are_bitsandbytes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/optim/eight_bits.safetensors");
        let reader = planish_nn::weights::WeightsReader::open(path).unwrap();
        for (name, codes) in [("qmap.signed", signed()), ("qmap.unsigned", unsigned())] {
            let want = reader.get(name).unwrap().to_vec::<f32>().unwrap();
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&codes.values), bits(&want), "{name}");
        }
    }

    #[test]
    fn a_block_of_zeros_stays_zero() {
        for rounding in [Rounding::Nearest, Rounding::Table] {
            let (mut bytes, mut back) = ([7u8; 4], [1.0; BLOCK]);
            let largest = signed().write(&[0.0; 4], rounding, &mut bytes);
            signed().read(&bytes, largest, &mut back);
            assert_eq!(back[..4], [0.0; 4]);
        }
    }
}
